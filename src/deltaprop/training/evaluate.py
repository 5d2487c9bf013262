"""Evaluate a model on one part of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop.data import Part, Scaling
from deltaprop.distributed import World
from deltaprop.training.objective import Objective

CHUNK = 8192  # rows at a time: limits the memory of activations
SELECTED_BY = "val_loss_standardised"  # in metrics.jsonl, for numbers


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one part of a data set.

    Attributes:
        loss: C, a mean over samples; in regression in the units of the data, computed in float64.
        minimised: C as training minimises it: in regression of standardised targets, in the model's dtype.
        accuracy: Share of samples classified correctly; None in regression.
        rmse: Root of the mean squared error over all entries, in the units of the data; None in classification.
        outputs: The model's outputs, [N, n_L].
        r2: R², a mean over targets; None in classification, and where a target is the same in all rows.
    """

    loss: float
    minimised: float
    accuracy: float | None
    rmse: float | None
    outputs: Tensor
    r2: float | None = None


def figures(part: str, evaluation: Evaluation | None, task: str) -> dict[str, float | None]:
    """Return the metrics of a part under their names in metrics.jsonl; None for each if the part has no rows."""
    names = ("loss", "accuracy") if task == "classification" else ("loss", "rmse", "r2")
    found = {f"{part}_{name}": None if evaluation is None else getattr(evaluation, name) for name in names}
    if part == "val" and task == "regression":  # in classification it is val_loss
        found[SELECTED_BY] = None if evaluation is None else evaluation.minimised
    return found


def selection_loss(metrics: Mapping[str, Any]) -> float:
    """Return the validation loss by which the best epoch is chosen: the one that training minimises.

    In the units of the data another epoch may have the lowest loss: Huber's threshold is another there, and of several
    targets that with the largest numbers would decide alone.
    """
    loss: float = metrics.get(SELECTED_BY, metrics["val_loss"])
    return loss


def in_own_units(objective: Objective, target_scaling: Scaling) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss to report: in regression, of outputs and targets in the units of the data, in float64."""
    if objective.task == "classification":
        return objective
    invert = target_scaling.in_own_units
    return lambda outputs, targets: objective(invert(outputs), invert(targets))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    split: Part,
    target_scaling: Scaling,
    check: Callable[[], None] = lambda: None,
    world: World | None = None,
) -> Evaluation | None:
    """Return the metrics of a model on a part, or None if the part has no rows.

    Args:
        model: The model.
        objective: Its loss and its kind of targets.
        split: The part.
        target_scaling: The scaling of the targets.
        check: Called before each chunk of rows; may raise to stop.
        world: The processes that share the rows; each gets the outputs of all.
    """
    if len(split) == 0:
        return None
    world = world or World()
    outputs: Tensor | None = None
    own = world.share(len(split))
    for start in range(own.start, own.start + world.largest_share(len(split)), CHUNK):  # as many for each process
        check()
        rows = slice(min(start, own.stop), min(start + CHUNK, own.stop))
        chunk = model(split.inputs(rows))
        if outputs is None:  # allocated once: small tensors between large ones would keep the memory of both
            outputs = chunk.new_empty(len(split), *chunk.shape[1:])
        outputs[rows] = chunk
    assert outputs is not None
    world.gather_rows(outputs)
    minimised = float(objective(outputs, objective.targets(split.y, outputs.dtype)))
    if objective.task == "classification":
        correct = int((objective.decide(outputs) == split.y).sum())
        return Evaluation(minimised, minimised, correct / len(split), None, outputs)
    predicted, true = target_scaling.in_own_units(outputs).cpu(), raw_targets(split, target_scaling)
    errors, deviations = (predicted - true).square().mean(dim=0), true.var(dim=0, correction=0)
    r2 = float((1 - errors / deviations).mean()) if bool((true != true[0]).any(dim=0).all()) else None
    return Evaluation(float(objective(predicted, true)), minimised, None, float(errors.mean().sqrt()), outputs, r2)


def as_first(evaluation: Evaluation, world: World) -> Evaluation:
    """Return an evaluation with the figures of process 0: on another machine they may differ in their last bit.

    What follows from them, whether to stop for instance, is the same in all processes then.
    """
    names = ("loss", "minimised", "accuracy", "rmse", "r2")
    told = world.of_first(json.dumps([getattr(evaluation, name) for name in names]).encode())
    return replace(evaluation, **dict(zip(names, json.loads(told), strict=True)))


def raw_targets(split: Part, target_scaling: Scaling) -> Tensor:
    """Return the targets of a part in their own units, [N, k], float64, on the CPU."""
    return target_scaling.in_own_units(split.y).cpu() if split.y_raw is None else split.y_raw
