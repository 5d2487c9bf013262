"""Export a trained model with its preprocessing: ONNX, torch.export, plain weights; ``FORMATS`` lists what each holds.

Each export is compared with the model's own predictions before it is returned.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deltaprop.errors import UserError, setting, unknown_name
from deltaprop.inference.export.deployment import DeploymentModule
from deltaprop.inference.export.onnx_graph import to_onnx
from deltaprop.inference.export.state_dict import to_state_dict
from deltaprop.inference.export.torch_export import to_torch_export
from deltaprop.inference.export.verification import TOLERANCE, Exported, verified
from deltaprop.inference.model import Model

__all__ = ["FORMATS", "TOLERANCE", "DeploymentModule", "Exported", "Format", "export"]


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


FORMATS = {
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
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    try:
        with _quiet():
            exported = verified(model, FORMATS[to].build(model))
    except ModuleNotFoundError as error:
        install = f"pip install 'deltaprop[{FORMATS[to].extra}]'"
        raise UserError(f"{setting('to', to)} needs the package {error.name}: {install}") from error
    if not exported.difference <= TOLERANCE:
        far = "; a column far from 0 compared with its spread, such as dates in seconds? onnx keeps its digits"
        raise UserError(
            f"{setting('to', to)}: predictions differ by {exported.difference:.3g} from the model's own, more than "
            f"rounding ({TOLERANCE:g}): not written{far if to == 'state-dict' else ''}"
        )
    return exported


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
