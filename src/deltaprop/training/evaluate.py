"""Evaluate a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaprop.data import Part, Scaling
from deltaprop.training.objective import Objective

CHUNK = 8192  # rows at a time: limits the memory of activations


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one part of a data set.

    Attributes:
        loss: C, a mean over samples; in regression in the units of the data.
        accuracy: Share of samples classified correctly; None in regression.
        rmse: Root of the mean squared error over all entries, in the units of the data; None in classification.
        outputs: The model's outputs, [N, n_L].
    """

    loss: float
    accuracy: float | None
    rmse: float | None
    outputs: Tensor


def figures(part: str, evaluation: Evaluation | None, task: str) -> dict[str, float | None]:
    """Return the metrics of a part under their names in metrics.jsonl; None for each if the part has no rows."""
    names = ("loss", "accuracy" if task == "classification" else "rmse")
    return {f"{part}_{name}": None if evaluation is None else getattr(evaluation, name) for name in names}


def in_own_units(objective: Objective, target_scaling: Scaling) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss to report: in regression, of outputs and targets in the units of the data."""
    if objective.task == "classification":
        return objective
    return lambda outputs, targets: objective(target_scaling.invert(outputs), target_scaling.invert(targets))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    split: Part,
    target_scaling: Scaling,
    check: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Return the metrics of a model on a part, or None if the part has no rows.

    Args:
        model: The model.
        objective: Its loss and its kind of targets.
        split: The part.
        target_scaling: The scaling of the targets.
        check: Called before each chunk of rows; may raise to stop.
    """
    if len(split) == 0:
        return None
    outputs: Tensor | None = None
    for start in range(0, len(split), CHUNK):
        check()
        chunk = model(split.inputs(slice(start, start + CHUNK)))
        if outputs is None:  # allocated once: small tensors between large ones would keep the memory of both
            outputs = chunk.new_empty(len(split), *chunk.shape[1:])
        outputs[start : start + CHUNK] = chunk
    assert outputs is not None
    loss = float(in_own_units(objective, target_scaling)(outputs, objective.targets(split.y, outputs.dtype)))
    if objective.task == "classification":
        correct = int((objective.decide(outputs) == split.y).sum())
        return Evaluation(loss, correct / len(split), None, outputs)
    error = (outputs - split.y) * target_scaling.scale
    return Evaluation(loss, None, float(error.square().mean().sqrt()), outputs)
