"""The linear layer: z = a_prev Wᵀ + b, and its gradients from δ = ∂C/∂z.

Shapes: a_prev [..., I], weight [O, I], bias [O], z and delta [..., O]; N is the product of the leading sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd import Function

from deltaprop.core.casting import cast


def linear_forward(a_prev: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return z = a_prev Wᵀ + b, [..., O], in ``out`` where it is given."""
    return torch.nn.functional.linear(a_prev, weight, bias, out=out)  # type: ignore[call-arg]  # FWD


def linear_grad_input(delta: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ∂C/∂a_prev = δ W, [..., I], in ``out`` where it is given: the left factor of δ in the layer below."""
    return torch.matmul(delta, weight, out=out)  # BP2, left factor: δ W


def linear_grad_bias(delta: Tensor, into: Tensor | None = None, beta: float = 0, alpha: float = 1) -> Tensor:
    """Return ∂C/∂b = Σ_n δ_n, [O]; or add it to a tensor in place: into ← β into + α Σ_n δ_n."""
    total = rows(delta).sum(0)  # BP3: Σ_n δ_n
    return total if into is None else add_scaled(total, into, beta, alpha)


def linear_grad_weight(
    delta: Tensor, a_prev: Tensor, into: Tensor | None = None, beta: float = 0, alpha: float = 1
) -> Tensor:
    """Return ∂C/∂W = δᵀ a_prev, [O, I]; or add it to a tensor in place: into ← β into + α δᵀ a_prev.

    ``addmm`` accumulates the product at no extra cost. δ already holds the loss's 1/N, so nothing here divides
    by N.
    """
    start = delta.new_zeros(()) if into is None else into
    return torch.addmm(start, rows(delta).T, rows(a_prev), beta=beta, alpha=alpha, out=into)  # BP4: δᵀ a


def add_scaled(gradient: Tensor, into: Tensor, beta: float, alpha: float) -> Tensor:
    """Add a gradient to a tensor in place: into ← β into + α gradient; with β = 0 the old value is ignored."""
    if beta == 0:
        into.copy_(gradient)
        return into if alpha == 1 else into.mul_(alpha)
    if beta != 1:
        into.mul_(beta)
    return into.add_(gradient, alpha=alpha)


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
        matrix = weight
        if weight.dim() == 1:  # one neuron: W is [I], and z and δ have no last axis
            matrix, delta = weight.unsqueeze(0), delta.unsqueeze(-1)
        if needs_a_prev:  # not for the first layer: ∂C/∂x is not needed
            grad_a_prev = cast(linear_grad_input(delta, cast(matrix, dtype)), a_prev.dtype)
        if needs_weight:  # not for a frozen layer
            grad_weight = cast(linear_grad_weight(delta, cast(a_prev, dtype)), weight.dtype).reshape(weight.shape)
        if needs_bias:
            grad_bias = cast(_grad_broadcast_bias(delta, ctx.bias_shape), ctx.bias_dtype)
        return grad_a_prev, grad_weight, grad_bias

    @staticmethod
    def jvp(ctx: Any, a_dot: Tensor, weight_dot: Tensor, bias_dot: Tensor | None) -> Tensor:
        a_prev, weight = ctx.saved_tensors
        z_dot = linear_forward(a_dot, weight, bias_dot)
        return z_dot + linear_forward(a_prev, weight_dot, None)


def _grad_broadcast_bias(delta: Tensor, shape: Size) -> Tensor:
    """Return ∂C/∂b in b's own shape: PyTorch accepts any that broadcasts, and sums over the broadcast axes."""
    if shape == delta.shape[-1:]:
        return linear_grad_bias(delta)
    if len(shape) > delta.dim():  # a bias [1, O] for one sample [I]
        return delta.reshape(shape)
    return delta.sum_to_size(shape)
