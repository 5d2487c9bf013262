"""Evaluate a model on one part of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deltaprop.data import GroupedRows, Part, Scaling
from deltaprop.data.ahead import ahead
from deltaprop.data.grouped import Window
from deltaprop.data.row_groups import PARTS
from deltaprop.distributed import World, is_part
from deltaprop.training.objective import Objective

CHUNK = 8192  # rows at a time: limits the memory of activations
AnyMetrics = TypeVar("AnyMetrics", bound="Metrics")
SELECTED_BY = "val_loss_standardised"  # in metrics.jsonl, for numbers


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of one part of a data set.

    Attributes:
        loss: C, a mean over samples; in regression in the units of the data, computed in float64.
        minimised: C as training minimises it: in regression of standardised targets, in the model's dtype.
        accuracy: Share of samples classified correctly; None in regression.
        rmse: Root of the mean squared error over all entries, in the units of the data; None in classification.
        r2: R², a mean over targets; None in classification, and where a target is the same in all rows.
    """

    loss: float
    minimised: float
    accuracy: float | None = None
    rmse: float | None = None
    r2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Metrics):
    """The metrics of one part of a data set, and what they are told from.

    Attributes:
        outputs: The model's outputs, [N, n_L].
    """

    outputs: Tensor


def figures(part: str, evaluation: Metrics | None, task: str) -> dict[str, float | None]:
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
        return Evaluation(loss=minimised, minimised=minimised, accuracy=correct / len(split), outputs=outputs)
    predicted, true = target_scaling.in_own_units(outputs).cpu(), raw_targets(split, target_scaling)
    errors, deviations = (predicted - true).square().mean(dim=0), true.var(dim=0, correction=0)
    r2 = float((1 - errors / deviations).mean()) if bool((true != true[0]).any(dim=0).all()) else None
    loss, rmse = float(objective(predicted, true)), float(errors.mean().sqrt())
    return Evaluation(loss=loss, minimised=minimised, rmse=rmse, r2=r2, outputs=outputs)


@torch.no_grad()
def evaluate_groups(
    model: nn.Module,
    objective: Objective,
    rows: GroupedRows,
    target_scaling: Scaling,
    check: Callable[[], None] = lambda: None,
    world: World | None = None,
) -> dict[str, Metrics | None]:
    """Return the metrics of a model on the parts ``val`` and ``test`` of rows that stay in their row groups.

    Each process reads its own row groups once, for both parts. Sums over a row group are added in the order of the
    table, whoever has read it. The arguments are those of :func:`evaluate`; ``rows`` are all rows.
    """
    world, parts = world or World(), ("val", "test")
    targets = 1 if objective.task == "classification" else len(rows.reading.plan.targets)
    sums = torch.zeros(len(rows.groups), len(parts), 2 + targets, dtype=torch.float64)
    windows = ahead(window for at in rows.own(world.rank, world.size) for window in rows.windows(at, parts, CHUNK))
    if any(map(is_part, model.parameters())):  # FSDP gathers parameters from all in each pass
        windows = _in_step(windows, world, Window(0, np.empty(0, np.int8), *rows.encoded(rows.nothing)))
    for window in windows:
        check()
        outputs = model(window.x)
        for number, part in enumerate(parts):
            own = np.flatnonzero(window.parts == PARTS.index(part))
            if len(own):
                some = window.some(own)
                sums[some.group, number] += len(own) * _sums(objective, some, outputs[own], target_scaling)
    totals = world.sum(sums).cumsum(dim=0)[-1]  # in the order of the table
    return {part: _figures(objective, rows, part, total) for part, total in zip(parts, totals, strict=True)}


@torch.no_grad()
def outputs_of_groups(model: nn.Module, rows: GroupedRows, part: str) -> tuple[Tensor, Tensor]:
    """Return the outputs for all rows of a part, and labels [N] or targets in their own units [N, k], in memory."""
    outputs, y = [], []
    for window in ahead(window for at in range(len(rows.groups)) for window in rows.windows(at, (part,), CHUNK)):
        outputs.append(model(window.x))
        y.append(window.y if window.y_raw is None else window.y_raw)
    return torch.cat(outputs), torch.cat(y)


def _in_step(windows: Iterator[Window], world: World, nothing: Window) -> Iterator[Window]:
    """Yield windows, and empty ones as long as another process has some."""
    while True:
        window = next(windows, None)
        if not world.largest(window is not None)[0]:
            return
        yield window or nothing


def _sums(objective: Objective, window: Window, outputs: Tensor, target_scaling: Scaling) -> Tensor:
    """Return of some rows C in the units of the data, C as it is minimised, and what is right or the squared errors."""
    minimised = objective(outputs, objective.targets(window.y, outputs.dtype)).cpu().double()
    if window.y_raw is None:
        right = (objective.decide(outputs) == window.y).cpu().double().mean()
        return torch.stack([minimised, minimised, right])
    predicted = target_scaling.in_own_units(outputs).cpu()
    errors = (predicted - window.y_raw).square().mean(dim=0)
    return torch.cat([torch.stack([objective(predicted, window.y_raw), minimised]), errors])


def _figures(objective: Objective, rows: GroupedRows, part: str, total: Tensor) -> Metrics | None:
    """Return the figures of a part from the sums of :func:`_sums`."""
    if not rows.count[part]:
        return None
    loss, minimised, *others = (total / rows.count[part]).tolist()
    if objective.task == "classification":
        return Metrics(loss=loss, minimised=minimised, accuracy=others[0])
    moments, errors = rows.moments[part], np.array(others)
    r2 = None if not rows.varies[part].all() else float((1 - errors / moments.variance).mean())
    return Metrics(loss=loss, minimised=minimised, rmse=float(np.sqrt(errors.mean())), r2=r2)


def as_first(evaluation: AnyMetrics, world: World) -> AnyMetrics:
    """Return an evaluation with the figures of process 0: on another machine they may differ in their last bit.

    What follows from them, whether to stop for instance, is the same in all processes then.
    """
    names = ("loss", "minimised", "accuracy", "rmse", "r2")
    told = world.of_first(json.dumps([getattr(evaluation, name) for name in names]).encode())
    return replace(evaluation, **dict(zip(names, json.loads(told), strict=True)))


def raw_targets(split: Part, target_scaling: Scaling) -> Tensor:
    """Return the targets of a part in their own units, [N, k], float64, on the CPU."""
    return target_scaling.in_own_units(split.y).cpu() if split.y_raw is None else split.y_raw
