"""Export a trained model with its preprocessing: ONNX, torch.export, plain weights; ``EXPORTS`` lists what each holds.

Each export is compared with the model's own predictions before it is returned.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.errors import UserError, setting, unknown_name
from deltaprop.inference.export.deployment import (
    DeploymentModule,
    Exported,
    by_name,
    class_outputs,
    second_output,
    to_torch_export,
)
from deltaprop.inference.export.onnx_graph import to_onnx
from deltaprop.inference.export.state_dict import to_state_dict
from deltaprop.inference.model import Model

__all__ = ["EXPORTS", "TOLERANCE", "DeploymentModule", "Exported", "Format", "export"]


TOLERANCE = 1e-5  # of probabilities, and of values in deviations of the target: rounding of float32 is a tenth of it
PROBES = 512  # rows that are compared


class Format(NamedTuple):
    """A file format for trained models.

    Attributes:
        build: Exports a model, without comparing its predictions.
        suffix: The file ending.
        help: What the file contains, in one line.
        extra: The optional dependencies of deltaprop that it needs; empty if none.
    """

    build: Callable[[Model], Exported]
    suffix: str
    help: str
    extra: str = ""

    def describe(self) -> str:
        """Return what the file contains, and how to install what it needs."""
        return self.help + (f" (pip install 'deltaprop[{self.extra}]')" if self.extra else "")


EXPORTS = {
    "onnx": Format(to_onnx, ".onnx", "a graph from a table's columns to classes and probabilities, or values", "onnx"),
    "torch-export": Format(
        to_torch_export,
        ".pt2",
        "the same as a program of PyTorch, for torch.export.load; categories and classes by their index",
    ),
    "state-dict": Format(
        to_state_dict,
        ".safetensors",
        "safetensors for a plain torch.nn.Sequential on raw numbers, the scalings folded into its weights",
    ),
}


def export(model: Model, to: str) -> Exported:
    """Return a model in another format, after comparing its predictions there with the model's own.

    Args:
        model: The model to export.
        to: ``"onnx"``, ``"torch-export"`` or ``"state-dict"``.

    Raises:
        UserError: If there is no such format, a package is missing, or predictions differ by more than rounding.
    """
    if to not in EXPORTS:
        raise unknown_name("format", to, EXPORTS)
    try:
        with _quiet():
            exported = _verified(model, EXPORTS[to].build(model))
    except ModuleNotFoundError as error:
        install = f"pip install 'deltaprop[{EXPORTS[to].extra}]'"
        raise UserError(f"{setting('to', to)} needs the package {error.name}: {install}") from error
    if not exported.difference <= TOLERANCE:
        far = "; a column far from 0 compared with its spread, such as dates in seconds? onnx keeps its digits"
        raise UserError(
            f"{setting('to', to)}: predictions differ by {exported.difference:.3g} from the model's own, more than "
            f"rounding ({TOLERANCE:g}): not written{far if to == 'state-dict' else ''}"
        )
    return exported


def _verified(model: Model, exported: Exported) -> Exported:
    """Return an export with the largest difference between its predictions and the model's; ∞ for another class.

    The class may differ where rounding decides between two.
    """
    raw = _probes(model, exported.dtype)
    encoded = raw if model.encoding is None else model.encoding.encode(raw)
    outputs = model.feed(model.input_scaling.apply(torch.from_numpy(encoded)).to(model.dtype)).cpu()
    regression = model.task == "regression"
    own = by_name(model, model.in_units(outputs) if regression else class_outputs(model.objective, outputs))
    theirs, name = exported.predict(raw), "values" if regression else second_output(model)
    unit = model.target_scaling.scale.cpu().numpy() if regression else max(1.0, np.abs(own[name]).max())
    difference = (np.abs(theirs[name] - own[name]) / unit).max()
    if not regression:
        scores = np.sort(model.objective.scores(outputs).numpy(), axis=1)
        clear = scores[:, -1] - scores[:, -2] > 2 * TOLERANCE * np.abs(scores).max()
        if (theirs["label"] != own["label"])[clear].any():
            difference = math.inf
    return replace(exported, difference=float(difference), rows=len(raw))


def _probes(model: Model, dtype: str) -> NDArray[Any]:
    """Return rows as they are read, [N, p], drawn around the mean of each column, some far away, unknown or missing."""
    rng = np.random.default_rng(0)
    mean, scale = model.input_scaling.mean.cpu().numpy(), model.input_scaling.scale.cpu().numpy()
    spread = rng.standard_normal((PROBES, len(mean))) * np.where(rng.random((PROBES, 1)) < 0.1, 10.0, 1.0)
    raw = mean + scale * spread
    if model.encoding is not None:
        numbers = raw
        raw = np.empty((PROBES, len(model.encoding.inputs)))
        raw[:, model.encoding.numbers] = numbers[:, : len(model.encoding.numbers)]
        for at in model.encoding.categories:
            raw[:, at] = rng.integers(-1, len(model.encoding.inputs[at].categories), PROBES)
        may_miss = [column.kind == "categories" or column.fill is not None for column in model.encoding.inputs]
        raw[(rng.random(raw.shape) < 0.05) & may_miss] = np.nan
    return raw.astype(dtype).astype(np.float64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporters log about missing packages and their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
