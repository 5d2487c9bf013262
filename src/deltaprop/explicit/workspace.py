"""The memory of the explicit driver: made once for a batch size, and written over at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deltaprop.core.activations import Elementwise
from deltaprop.core.recursion import Layer
from deltaprop.explicit.graph import CapturedStep
from deltaprop.loss_spec import LossSpec

# Bytes: of larger z, σ and σ' take so much at a time. As large as all of z, what they allocate on the way would break
# up the heap, by 10 to 18 MiB at 1024-2048-2048-10.
PIECE = 2**18
MOST_CAPTURED = 8  # a full batch, a last one, and a few sizes more


class Workspace:
    """Layers, and memory for batches of up to the largest size seen.

    Args:
        layers: From the first.
        holdable: Whether a CUDA graph may hold a step.
    """

    def __init__(self, layers: list[Layer], *, holdable: bool) -> None:
        self.layers, self._holdable = layers, holdable
        self._rows = self._capacity = 0
        self._captured: dict[int, tuple[Any, CapturedStep]] = {}  # by rows

    def fit(self, rows: int) -> None:
        """Give every layer memory for batches of so many rows."""
        if rows == self._rows:
            return
        if rows > self._capacity:
            self._capacity = rows
            with torch.inference_mode(False):  # else nothing outside of inference mode could write there
                self._memory = [self._new(layer, rows) for layer in self.layers]
            self._captured.clear()
        self._rows = rows
        for layer, (z, a, grad_a) in zip(self.layers, self._memory, strict=True):
            layer.z_out, layer.grad_a_out = z[:rows], grad_a[:rows]
            layer.a_out = None if a is None else a[:rows]

    def _new(self, layer: Layer, rows: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return memory for z, a and ∂C/∂a of a layer; for a none where it is small: then σ makes it anew.

        Each is allocated by itself, so that it is aligned whatever the rows: the rounding of a product depends on it,
        and an epoch that was broken off must go on to the same bits.
        """
        like, size = layer.weight.detach(), (rows, len(layer.weight))
        z, grad_a = like.new_empty(size), like.new_empty(size)
        if layer.activation is None or not issubclass(layer.activation, Elementwise) or z.nbytes <= PIECE:
            return z, None, grad_a
        layer.rows_at_once = max(1, PIECE * rows // z.nbytes) if z.device.type == "cpu" else rows
        return z, z if layer.activation.from_output else like.new_empty(size), grad_a

    def captured(self, loss: LossSpec, x: Tensor, y: Tensor, step: Callable[..., tuple[Tensor, ...]]) -> CapturedStep:
        """Return the step on rows of x and y, to be captured in a graph."""
        reads = (
            loss.options.get("ignore_index", -100),  # None where no label is: then nothing looks for one
            *[(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in (x, y)],
        )
        before, captured = self._captured.pop(self._rows, (None, None))
        if captured is None or before != reads:  # of other data, which it would keep in memory
            captured = CapturedStep(step, self._rows, x.device, self._holdable)
        if len(self._captured) >= MOST_CAPTURED:
            del self._captured[next(iter(self._captured))]  # of the size that was not used for the longest time
        self._captured[self._rows] = reads, captured
        return captured
