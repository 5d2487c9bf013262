"""Compare the predictions of an export with the model's own, on rows drawn around those of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.inference.export.deployment import class_outputs, fills, second_output
from deltaprop.inference.model import Model

Array = NDArray[Any]

TOLERANCE = 1e-5  # of probabilities, and of values in deviations of the target: rounding of float32 is a tenth of it
PROBES = 512  # rows that are compared


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        content: The content of the file.
        predict: Returns its predictions by output name, for rows as they are read, categories by their index.
        dtype: The dtype of its inputs.
        by: What computes its predictions.
        notes: What its users need to know, a line each.
        difference: The largest difference between its predictions and the model's: of probabilities, or of values in
            deviations of the target; NaN before they are compared.
        rows: The number of rows that were compared.
    """

    content: bytes
    predict: Callable[[Array], dict[str, Array]] = field(repr=False)
    dtype: str
    by: str
    notes: tuple[str, ...]
    difference: float = math.nan
    rows: int = 0


def probes(model: Model, dtype: str) -> Array:
    """Return rows as they are read, [N, p], drawn around the mean of each column, some far away, some missing."""
    rng = np.random.default_rng(0)
    mean, scale = model.input_scaling.mean.cpu().numpy(), model.input_scaling.scale.cpu().numpy()
    spread = rng.standard_normal((PROBES, len(mean))) * np.where(rng.random((PROBES, 1)) < 0.1, 10.0, 1.0)
    raw = mean + scale * spread
    if model.encoding is not None:
        numbers = raw
        raw = np.empty((PROBES, len(model.encoding.inputs)))
        raw[:, model.encoding.numbers] = numbers[:, : len(model.encoding.numbers)]
        if fills(model):
            raw[rng.random(raw.shape) < 0.05] = np.nan
        for at in model.encoding.categories:
            raw[:, at] = rng.integers(-1, len(model.encoding.inputs[at].categories), PROBES)
    return raw.astype(dtype).astype(np.float64)


def verified(model: Model, exported: Exported) -> Exported:
    """Return an export with the largest difference between its predictions and the model's; ∞ for another class.

    The class may differ where rounding decides between two.
    """
    raw = probes(model, exported.dtype)
    encoded = raw if model.encoding is None else model.encoding.encode(raw)
    outputs = model.feed(model.input_scaling.apply(torch.from_numpy(encoded)).to(model.dtype)).cpu()
    theirs = exported.predict(raw)
    if model.task == "regression":
        units = model.target_scaling.scale.cpu().numpy()
        difference = np.abs((theirs["values"] - model.in_units(outputs).numpy()) / units).max()
    else:
        own_class, own = (t.numpy() for t in class_outputs(model.objective, outputs))
        difference = np.abs(theirs[second_output(model)] - own).max() / max(1.0, np.abs(own).max())
        scores = np.sort(model.objective.scores(outputs).numpy(), axis=1)
        clear = scores[:, -1] - scores[:, -2] > 2 * TOLERANCE * np.abs(scores).max()
        if (theirs["label"] != model.classes[own_class])[clear].any():
            difference = math.inf
    return replace(exported, difference=float(difference), rows=len(raw))


def by_name(model: Model, outputs: Any) -> dict[str, Array]:
    """Return the outputs of a `DeploymentModule` by their names, a class by its own."""
    if model.task == "regression":
        return {"values": outputs.detach().numpy()}
    index, second = outputs
    return {"label": model.classes[index.numpy()], second_output(model): second.detach().numpy()}
