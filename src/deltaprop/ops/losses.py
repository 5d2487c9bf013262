"""The losses of a residual: C from a and y, and ∂C/∂a.

Each is one class: its docstring is the formula, ``forward`` the loss and ``slope`` the derivative of one entry c by
r = a − y. The mean's 1/N is applied here, once, and nowhere after.

``forward`` calls PyTorch's kernel: values, dtypes and refusals are PyTorch's. Everything that goes backward is written
here.

Shapes: a, y and r are all [..., n], of equal shape (the public functions broadcast first); C is [], or [..., n] for
``reduction="none"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from deltaprop.ops.casting import cast


def reduction_scale(reduction: str, count: int) -> float:
    """Return what one entry's loss is worth in C: 1/count for a mean, 1 for a sum and for no reduction at all.

    An empty batch has a mean of NaN, as in PyTorch, and no entry to weigh.
    """
    return 1 / max(count, 1) if reduction == "mean" else 1.0


class ResidualLoss(Function):
    """C = the mean, the sum or the table of c(a − y); constants follow the reduction.

    A subclass gives formulas, all plain functions of tensors; the methods that PyTorch calls follow from them
    (:func:`_complete`):

    - ``forward(a, y, reduction, *constants)``: C;
    - ``slope(r, *constants)``: c'(r);
    - ``scale(r, reduction)``: what one entry is worth in C.
    """

    slope: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def scale(residual: Tensor, reduction: str) -> float:
        """Return 1/(number of entries) for a mean, else 1."""
        return reduction_scale(reduction, residual.numel())

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _complete(cls)


def _complete(op: Any) -> None:
    """Give a definition the methods that follow from its formulas (functions, no class methods: the compiler)."""
    slope: Callable[..., Tensor] = op.slope
    scale: Callable[[Tensor, str], float] = op.scale

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, y, ctx.reduction, *ctx.constants = inputs
        ctx.save_for_backward(a, y)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        a, y = ctx.saved_tensors
        needs_a, needs_y, *constants = ctx.needs_input_grad
        residual = a - y
        by_residual = (grad_loss * scale(residual, ctx.reduction)) * slope(residual, *ctx.constants)
        grad_a = cast(by_residual, a.dtype) if needs_a else None  # ∂C/∂a, the left factor of BP1
        grad_y = -cast(by_residual, y.dtype) if needs_y else None  # r = a − y
        return grad_a, grad_y, *[None] * len(constants)

    def jvp(ctx: Any, a_dot: Tensor, y_dot: Tensor, *_: None) -> Tensor:
        a, y = ctx.saved_tensors
        residual = a - y
        entries = scale(residual, ctx.reduction) * slope(residual, *ctx.constants) * (a_dot - y_dot)
        return entries if ctx.reduction == "none" else entries.sum()

    op.setup_context, op.backward, op.jvp = staticmethod(setup_context), staticmethod(backward), staticmethod(jvp)


class MSE(ResidualLoss):
    """c(r) = r²;  c'(r) = 2r. With the mean: C = Σ (a − y)² / (N n), over every entry, as PyTorch has it."""

    @staticmethod
    def forward(a: Tensor, y: Tensor, reduction: str) -> Tensor:
        return torch.nn.functional.mse_loss(a, y, reduction=reduction)

    @staticmethod
    def slope(residual: Tensor) -> Tensor:
        return 2 * residual


class L1(ResidualLoss):
    """c(r) = |r|;  c'(r) = sign r, 0 at the kink."""

    @staticmethod
    def forward(a: Tensor, y: Tensor, reduction: str) -> Tensor:
        return torch.nn.functional.l1_loss(a, y, reduction=reduction)

    @staticmethod
    def slope(residual: Tensor) -> Tensor:
        return residual.sign()


class Huber(ResidualLoss):
    """c(r) = ½ r² where |r| ≤ d, else d (|r| − ½ d);  c'(r) = r clipped to [−d, d].

    (PyTorch calls d ``delta``.)

    Source: Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35 (1964).
    """

    @staticmethod
    def forward(a: Tensor, y: Tensor, reduction: str, threshold: float) -> Tensor:
        return torch.nn.functional.huber_loss(a, y, reduction=reduction, delta=threshold)

    @staticmethod
    def slope(residual: Tensor, threshold: float) -> Tensor:
        return residual.clamp(-threshold, threshold)


class Quadratic(ResidualLoss):
    """C = 1/(2N) Σ_n ‖a_n − y_n‖²: a mean over the N samples, a sum over outputs;  c(r) = ½ r², c'(r) = r.

    Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equation 6.
    """

    @staticmethod
    def forward(a: Tensor, y: Tensor, reduction: str) -> Tensor:
        kernel = "none" if reduction == "none" else "sum"
        return torch.nn.functional.mse_loss(a, y, reduction=kernel) * (0.5 * Quadratic.scale(a, reduction))

    @staticmethod
    def samples(residual: Tensor) -> int:
        """Return N: the rows; a vector is one sample."""
        return residual.shape[:-1].numel()

    @staticmethod
    def scale(residual: Tensor, reduction: str) -> float:
        return reduction_scale(reduction, Quadratic.samples(residual))

    @staticmethod
    def slope(residual: Tensor) -> Tensor:
        return residual


class BinaryCrossEntropy(Function):
    """c(z, y) = −w [p y log σ(z) + (1 − y) log(1 − σ(z))], from the logit z, never from a clipped probability.

    With the class weight λ = 1 + (p − 1) y:

        ∂c/∂z = w (λ σ(z) − p y)
        ∂c/∂y = w (log(1 − σ(z)) − p log σ(z))        for p = 1: −w z

    w weighs entries, p (``pos_weight``) the positive ones; both are constants. For w = p = 1: δ = σ(z) − y.
    Shapes: z and y [..., n]; w and p broadcast to them. Nats.
    """

    @staticmethod
    def forward(z: Tensor, y: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            z, y, weight, pos_weight=pos_weight, reduction=reduction
        )

    @staticmethod
    def slopes(z: Tensor, y: Tensor, weight: Tensor | None, pos_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ∂c/∂z and ∂c/∂y."""
        if pos_weight is None:
            by_z, by_y = torch.sigmoid(z) - y, -z
        else:
            by_z = (1 + (pos_weight - 1) * y) * torch.sigmoid(z) - pos_weight * y
            by_y = logsigmoid(-z) - pos_weight * logsigmoid(z)
        return (by_z, by_y) if weight is None else (weight * by_z, weight * by_y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, y, weight, pos_weight, ctx.reduction = inputs
        ctx.save_for_backward(z, y, weight, pos_weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        z, y, weight, pos_weight = ctx.saved_tensors
        scale = grad_loss * reduction_scale(ctx.reduction, z.numel())
        by_z, by_y = BinaryCrossEntropy.slopes(z, y, weight, pos_weight)
        delta = cast(scale * by_z, z.dtype) if ctx.needs_input_grad[0] else None
        grad_y = cast(scale * by_y, y.dtype) if ctx.needs_input_grad[1] else None
        return delta, grad_y, None, None, None

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor, y_dot: Tensor, *_: None) -> Tensor:
        z, y, weight, pos_weight = ctx.saved_tensors
        by_z, by_y = BinaryCrossEntropy.slopes(z, y, weight, pos_weight)
        entries = reduction_scale(ctx.reduction, z.numel()) * (by_z * z_dot + by_y * y_dot)
        return entries if ctx.reduction == "none" else entries.sum()
