"""Export a trained model: ONNX, torch.export, plain weights; each is compared with the model's own predictions.

Preprocessing goes with it as far as a format allows:

==============  =====================================================================================================
 onnx            all of it: numbers as they are in the table, names of categories as text, missing numbers as NaN; out
                 come the class by its name and the probabilities, or the values in their own units
 torch-export    all but the names: a category is given by its place in the list that stands in the file, a class is
                 given by its index
 state-dict      the scalings, folded into the weights of the first layer and, for numbers, of the last:
                 W' = W / s, b' = b − W m / s;  the one-hot inputs and the softmax are left to whoever loads it
==============  =====================================================================================================
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
from deltaprop.inference.export.verification import TOLERANCE, Exported
from deltaprop.inference.model import Model

__all__ = ["FORMATS", "SUFFIX", "TOLERANCE", "DeploymentModule", "ExportFormat", "Exported", "export"]


class ExportFormat(NamedTuple):
    """A format: the function that converts a model to it, the ending of its files, and one line of help."""

    convert: Callable[[Model], Exported]
    suffix: str
    help: str


FORMATS = {
    "onnx": ExportFormat(to_onnx, ".onnx", "from columns to classes and probabilities; needs deltaprop[onnx]"),
    "torch-export": ExportFormat(to_torch_export, ".pt2", "the same for torch.export.load; categories by index"),
    "state-dict": ExportFormat(to_state_dict, ".safetensors", "weights of a plain nn.Sequential, scalings folded in"),
}
SUFFIX = {name: format_.suffix for name, format_ in FORMATS.items()}


def export(model: Model, to: str) -> Exported:
    """Return a model in another format, once its answers there are ours.

    Args:
        model: To export.
        to: ``"onnx"``, ``"torch-export"`` or ``"state-dict"``.

    Raises:
        UserError: If there is no such format, a package is missing, or the answers differ by more than rounding.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    with _quiet():
        found = FORMATS[to].convert(model)
    if not found.difference <= TOLERANCE:
        far = "; a column far from 0 beside its spread, such as dates in seconds? onnx keeps its digits"
        hint = far if to == "state-dict" else ""
        raise UserError(
            f"{setting('to', to)}: answers differ by {found.difference:.3g} from the model's own, more than rounding "
            f"({TOLERANCE:g}): not written{hint}"
        )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what PyTorch's exporters say of packages that are not there and of their own innards."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)
