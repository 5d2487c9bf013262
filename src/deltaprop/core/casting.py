"""Casts: ``cast`` within a forward or a backward, at no cost where there is nothing to cast; ``Cast`` on the tape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return t in a dtype; t itself if it has it: `t.to(t.dtype)` takes as long as a small sum."""
    return t if t.dtype == dtype else t.to(dtype)


class Cast(Function):
    """t in another dtype; its gradient goes back in t's own."""

    @staticmethod
    def forward(t: Tensor, dtype: torch.dtype) -> Tensor:
        return t.to(dtype, copy=True)  # a Function that returns its input would hand out a view

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtypes = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return cast(grad_output, ctx.dtypes[0]), None

    @staticmethod
    def jvp(ctx: Any, t_dot: Tensor, _: None) -> Tensor:
        return t_dot.to(ctx.dtypes[1], copy=True)
