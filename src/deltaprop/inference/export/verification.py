"""What an export is held to: its answers beside the model's own, on rows drawn about those of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.inference.model import Model

Array = NDArray[Any]

TOLERANCE = 1e-5  # of probabilities, and of values in deviations of the target: rounding of float32 is a tenth of it
PROBES = 512  # rows that an export is held to


@dataclass(frozen=True)
class Exported:
    """An export that gives what the model gives.

    Attributes:
        content: Of the file.
        difference: The largest between its answers and ours: of probabilities, or of values in deviations of the
            target.
        rows: That were compared.
        by: What computed its answers.
        notes: What its users need to know, a line each.
    """

    content: bytes
    difference: float
    rows: int
    by: str
    notes: tuple[str, ...]


def probes(model: Model, dtype: np.dtype[Any]) -> Array:
    """Return rows as they are read, [N, p], drawn about the mean of each column, some far away, some missing."""
    rng = np.random.default_rng(0)
    mean, scale = model.input_scaling.mean.cpu().numpy(), model.input_scaling.scale.cpu().numpy()
    spread = rng.standard_normal((PROBES, len(mean))) * np.where(rng.random((PROBES, 1)) < 0.1, 10.0, 1.0)
    numbers = mean + scale * spread
    if model.encoding is None:
        return numbers.astype(dtype).astype(np.float64)
    raw = np.empty((PROBES, len(model.encoding.inputs)))
    raw[:, model.encoding.numbers] = numbers[:, : len(model.encoding.numbers)]
    if fills(model):
        raw[rng.random(raw.shape) < 0.05] = np.nan
    for at in model.encoding.categories:
        raw[:, at] = rng.integers(-1, len(model.encoding.inputs[at].categories), PROBES)
    return raw.astype(dtype).astype(np.float64)


def fills(model: Model) -> bool:
    """Return whether a number may be missing."""
    return model.encoding is not None and any(column.fill is not None for column in model.encoding.inputs)


def largest_difference(model: Model, raw: Array, answer: Callable[[Array], dict[str, Array]]) -> float:
    """Return the largest difference between the answers of an export and the model's own; infinite for another class.

    A class may be another where two are equally likely but for rounding.
    """
    encoded = raw if model.encoding is None else model.encoding.encode(raw)
    weight = next(model.net.parameters())
    outputs = model.feed(model.input_scaling.apply(torch.from_numpy(encoded)).to(weight.dtype)).cpu()
    theirs = answer(raw)
    if model.task == "regression":
        units = model.target_scaling.scale.cpu().numpy()
        return float(np.abs((theirs["values"] - model.in_units(outputs).numpy()) / units).max())
    objective = model.objective
    ours = (objective.probabilities(outputs) if objective.has_probabilities else objective.scores(outputs)).numpy()
    size = np.maximum(1.0, np.abs(ours).max())
    difference = float(np.abs(theirs["probabilities" if objective.has_probabilities else "scores"] - ours).max() / size)
    places = {name: at for at, name in enumerate(model.classes.tolist())}
    scores = np.sort(objective.scores(outputs).numpy(), axis=1)
    clear = scores[:, -1] - scores[:, -2] > 2 * TOLERANCE * np.abs(scores).max()
    label = np.array([places[name] for name in theirs["label"].tolist()])
    if (label != objective.decide(outputs).numpy())[clear].any():
        return float("inf")
    return difference


def named(model: Model, found: Any) -> dict[str, Array]:
    """Return what a module gave by the names of its outputs."""
    if model.task == "regression":
        return {"values": found.detach().numpy()}
    place, second = found
    name = "probabilities" if model.objective.has_probabilities else "scores"
    return {"label": model.classes[place.numpy()], name: second.detach().numpy()}
