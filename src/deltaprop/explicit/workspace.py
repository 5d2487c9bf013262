"""The memory of the explicit engine: allocated once for a batch size, overwritten at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaprop.core.activations import Elementwise
from deltaprop.core.recursion import Layer
from deltaprop.explicit.graph import CapturedStep
from deltaprop.loss_spec import LossSpec

# Bytes: for a larger z, σ and σ' are computed in pieces of this size. Temporaries as large as z fragment the heap,
# by 10 to 18 MiB at 1024-2048-2048-10.
PIECE = 2**18
MOST_CAPTURED = 8  # a full batch, a last one, and a few more sizes


class Workspace:
    """Layers, and memory for batches of up to the largest size seen.

    Args:
        layers: The layers, from the first.
        lowest: The lowest trained layer: no ∂C/∂a is computed below it.
        holdable: Whether a step may be captured in a CUDA graph.
    """

    def __init__(self, layers: list[Layer], lowest: int, *, holdable: bool) -> None:
        self.layers, self._lowest, self._holdable = layers, lowest, holdable
        self._rows = self._capacity = 0
        self._captured: dict[int, tuple[Any, CapturedStep]] = {}  # by rows

    def fit(self, rows: int) -> None:
        """Set every layer's memory for batches of so many rows."""
        if rows == self._rows:
            return
        if rows > self._capacity:
            self._capacity = rows
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                self._memory = [self._new(number, rows) for number in range(len(self.layers))]
            self._captured.clear()
        self._rows = rows
        for layer, (z, a, grad_a) in zip(self.layers, self._memory, strict=True):
            layer.z_out, layer.a_out, layer.grad_a_out = z[:rows], _first(a, rows), _first(grad_a, rows)

    def _new(self, number: int, rows: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return memory for z, a and ∂C/∂a of a layer, and set how its activation uses it.

        None for a where z is small: σ allocates it; None for ∂C/∂a where the loss computes it, or none is needed.

        Each is an allocation of its own, so that it is aligned for any number of rows: the rounding of a product
        depends on that, and a resumed epoch must give the same bits.
        """
        layer = self.layers[number]
        new = partial(layer.weight.detach().new_empty, (rows, len(layer.weight)))
        z, a, grad_a = new(), None, new() if self._lowest <= number < len(self.layers) - 1 else None
        by_rows = layer.activation is not None and issubclass(layer.activation, Elementwise)
        if by_rows and z.nbytes > PIECE and not any(isinstance(constant, Tensor) for constant in layer.constants):
            a = z if layer.activation.from_output else new()  # type: ignore[union-attr]  # by_rows: not None
            layer.rows_at_once = max(1, PIECE * rows // z.nbytes) if z.device.type == "cpu" else rows
        return z, a, grad_a

    def captured(
        self, loss: LossSpec, rows_of: Sequence[Tensor], step: Callable[..., tuple[Tensor, ...]]
    ) -> CapturedStep:
        """Return the step on rows of these tensors, inputs and targets, to be captured in a graph."""
        reads = (
            loss.options.get("ignore_index", -100),  # None where no label is ignored
            *[(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in rows_of],
        )
        before, captured = self._captured.pop(self._rows, (None, None))
        if captured is None or before != reads:  # a capture of other data would keep those in memory
            captured = CapturedStep(step, self._rows, rows_of[0].device, self._holdable)
        if len(self._captured) >= MOST_CAPTURED:
            del self._captured[next(iter(self._captured))]  # the least recently used size
        self._captured[self._rows] = reads, captured
        return captured


def _first(t: Tensor | None, rows: int) -> Tensor | None:
    return None if t is None else t[:rows]
