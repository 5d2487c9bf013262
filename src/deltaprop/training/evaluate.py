"""Judge a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaprop.data import Part, Scaling
from deltaprop.training.objective import Objective

CHUNK = 8192  # rows at a time: bounds the memory that activations take


@dataclass(frozen=True)
class Evaluation:
    """The figures of one part.

    Attributes:
        loss: C, a mean over samples; for numbers, of outputs and targets in the target's own units.
        accuracy: Share of samples classified right; None for numbers.
        rmse: Root of the mean squared error over all entries, in the target's own units; None for classes.
        outputs: What the model gave, [N, n_L].
    """

    loss: float
    accuracy: float | None
    rmse: float | None
    outputs: Tensor

    def figures(self, part: str) -> dict[str, float | None]:
        """Return the figures under the names that metrics.jsonl gives them."""
        figures = {f"{part}_rmse": self.rmse} if self.accuracy is None else {f"{part}_accuracy": self.accuracy}
        return {f"{part}_loss": self.loss, **figures}


def in_own_units(objective: Objective, target_scaling: Scaling) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss as people read it: for numbers, of what the scaling makes of outputs and targets."""
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
    """Return the figures of a part, or None where it has no rows.

    Args:
        model: To evaluate.
        objective: By its loss, and accuracy or rmse.
        split: The part.
        target_scaling: Of the targets.
        check: Asked before each chunk of rows; breaks off by raising.
    """
    if len(split) == 0:
        return None
    outputs: Tensor | None = None
    for start in range(0, len(split), CHUNK):
        check()
        given = model(split.inputs(slice(start, start + CHUNK)))
        if outputs is None:  # in one piece from the start: small pieces between large ones keep the memory of both
            outputs = given.new_empty(len(split), *given.shape[1:])
        outputs[start : start + CHUNK] = given
    assert outputs is not None
    targets = objective.targets(split.y, outputs.dtype)
    loss = float(in_own_units(objective, target_scaling)(outputs, targets))
    if objective.task == "classification":
        right = int((objective.decide(outputs) == split.y).sum())
        return Evaluation(loss, right / len(split), None, outputs)
    error = (outputs - split.y) * target_scaling.scale
    return Evaluation(loss, None, float(error.square().mean().sqrt()), outputs)


def evaluate_parts(
    model: nn.Module,
    objective: Objective,
    parts: Sequence[Part],
    target_scaling: Scaling,
    check: Callable[[], None] = lambda: None,
    *,
    at_once: int = 1,
) -> list[Evaluation | None]:
    """Return the figures of several parts, to the same bits however many are evaluated at once.

    Args:
        model: To evaluate.
        objective: By its loss, and accuracy or rmse.
        parts: The parts.
        target_scaling: Of the targets.
        check: Asked before each chunk of rows; breaks off by raising.
        at_once: In so many threads, each of which computes with as many as a run does.
    """

    def evaluated(part: Part) -> Evaluation | None:
        return evaluate(model, objective, part, target_scaling, check)

    if at_once == 1:
        return [evaluated(part) for part in parts]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(evaluated, parts))
