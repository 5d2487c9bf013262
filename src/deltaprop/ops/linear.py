"""The linear layer: z = a_prev Wᵀ + b.

Shapes: a_prev [..., I], weight [O, I], bias [O], z and delta [..., O]; N is the product of the leading sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd import Function

from deltaprop.ops.casting import cast


def linear_forward(a_prev: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return z = a_prev Wᵀ + b."""
    return torch.nn.functional.linear(a_prev, weight, bias)  # FWD


def linear_grad_a_prev(delta: Tensor, weight: Tensor) -> Tensor:
    """Return ∂C/∂a_prev = δ W, [..., I]: the left factor of δ in the layer below."""
    return delta @ weight  # BP2, left factor: δ W


def linear_grad_weight(delta: Tensor, a_prev: Tensor) -> Tensor:
    """Return ∂C/∂W = δᵀ a_prev, [O, I]. δ already holds the loss's 1/N, so nothing here divides by N."""
    return rows(delta).T @ rows(a_prev)  # BP4: δᵀ a


def linear_grad_bias(delta: Tensor, shape: Size) -> Tensor:
    """Return ∂C/∂b = Σ_n δ_n, in b's own ``shape``: summed along every axis that b was spread over."""
    if len(shape) > delta.dim():  # PyTorch takes a bias [1, O] for one sample [I] too
        return delta.reshape(shape)
    if delta.dim() != 2 or shape != delta.shape[1:]:
        return delta.sum_to_size(shape)
    return delta.sum(0)  # BP3: Σ_n δ_n


def rows(t: Tensor) -> Tensor:
    """Return t as a matrix [N, n], one sample a row (not by -1, which is ambiguous where a row is empty)."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])


class Linear(Function):
    """z = a_prev Wᵀ + b;  ∂C/∂a_prev = δ W,  ∂C/∂W = δᵀ a_prev,  ∂C/∂b = Σ_n δ_n.

    Here ``grad_output`` is ∂C/∂z, which is δ itself.

    Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 2, equations BP2 to BP4.
    """

    @staticmethod
    def forward(a_prev: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear_forward(a_prev, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a_prev, weight, bias = inputs
        ctx.save_for_backward(a_prev, weight)
        ctx.bias_shape, ctx.bias_dtype = (None, None) if bias is None else (bias.shape, bias.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        delta = grad_output
        a_prev, weight = ctx.saved_tensors
        needs_a_prev, needs_weight, needs_bias = ctx.needs_input_grad
        dtype = delta.dtype  # under autocast narrower than the float32 inputs: the products run in δ's
        grad_a_prev = grad_weight = grad_bias = None
        if needs_a_prev:  # not for the first layer: nobody asks for ∂C/∂x
            grad_a_prev = cast(linear_grad_a_prev(delta, cast(weight, dtype)), a_prev.dtype)
        if needs_weight:  # not for a frozen layer
            grad_weight = cast(linear_grad_weight(delta, cast(a_prev, dtype)), weight.dtype)
        if needs_bias:
            grad_bias = cast(linear_grad_bias(delta, ctx.bias_shape), ctx.bias_dtype)
        return grad_a_prev, grad_weight, grad_bias

    @staticmethod
    def jvp(ctx: Any, a_dot: Tensor, weight_dot: Tensor, bias_dot: Tensor | None) -> Tensor:
        a_prev, weight = ctx.saved_tensors
        z_dot = linear_forward(a_dot, weight, bias_dot)
        return z_dot + linear_forward(a_prev, weight_dot, None)
