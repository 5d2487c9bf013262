"""The precision that a function computes in: it may be less than that of its inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DtypesSeen(TorchFunctionMode):
    """Note the dtypes of floating tensors that a function computes in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what is called, and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.dtypes.add(result.dtype)
        return result


def precision_of(outputs: Sequence[Tensor], seen: Collection[torch.dtype]) -> float:
    """Return the relative precision of outputs: that of the dtype that they fill.

    A function of float64 that computes in float32 returns float32, or numbers that all are numbers of float32. Of 16
    bits, which many numbers fill, only a dtype that was seen counts.
    """
    eps = 0.0
    for t in outputs:
        eps = max(eps, float(torch.finfo(t.dtype).eps))
        if t.numel() < 4 or torch.equal((2 * t).round(), 2 * t):  # whole numbers and halves fill none
            continue
        for dtype in {torch.float32, *seen}:
            if torch.equal(t.to(dtype).to(t.dtype), t):
                eps = max(eps, float(torch.finfo(dtype).eps))
    return eps
