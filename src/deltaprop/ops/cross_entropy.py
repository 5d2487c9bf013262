"""Cross-entropy from logits: softmax and −log p in one, by log-sum-exp.

Both kinds of target are one formula. With k the weight that the target puts on each class of a sample (for a label y
without smoothing: w_y at class y, 0 elsewhere) and p = softmax(z):

    C = −s Σ_n Σ_c k_nc log p_nc
    δ_n = s (p_n Σ_c k_nc − k_n)          for a plain label: δ = (p − y) / N, y one-hot

with s = 1/D: D = Σ_n w_{y_n} over the samples that are not ignored for a mean over labels, N for a mean over
probabilities, 1 otherwise. Nats.

Shapes: z, log_p, k, delta [N, C], [C] or [N, C, d1, …]; labels as z without C. Classes lie along axis 1, or 0 in [C].
log_p is a second output, hidden by the public function: saved as an intermediate it would have no graph, and the second
derivative would be silently wrong.

Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990); smoothing: Szegedy
et al., arXiv 1512.00567 (2015), section 7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deltaprop.ops.activations import LogSoftmax
from deltaprop.ops.losses import reduction_scale


def class_axis(z: Tensor) -> int:
    """Return the axis of the classes."""
    return 0 if z.dim() == 1 else 1


def cross_entropy_delta(log_p: Tensor, k: Tensor, grad_entries: Tensor) -> Tensor:
    """Return δ = g (p Σ_c k − k), g = ``grad_entries`` being ∂C/∂C_n for each sample (1/D for a mean).

    Shapes: log_p and k [N, C]; grad_entries broadcasts to them, with size 1 along the classes.
    """
    total = k.sum(class_axis(log_p), keepdim=True)
    return grad_entries * (log_p.exp() * total - k)  # BP1 for softmax and −log p together: δ = (p − y) / N


def label_weights(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return k, shaped as log_p, and w_{y_n} (0 where ignored), shaped as the labels.

    k_nc = w_c ((1 − ε) 1[c = y_n] + ε/C) for smoothing ε; a row of zeros where the label is ``ignore_index``.
    """
    axis = class_axis(log_p)
    valid = target != ignore_index
    label = torch.where(valid, target, 0).long()
    sample_weight = (
        valid.to(log_p.dtype)
        if weight is None
        else weight.index_select(0, label.reshape(-1)).reshape(label.shape) * valid
    )
    # In the weights' dtype: under autocast log p may have a narrower one.
    zeros = torch.zeros_like(log_p, dtype=sample_weight.dtype)
    k = zeros.scatter(axis, label.unsqueeze(axis), (1 - smoothing) * sample_weight.unsqueeze(axis))
    if smoothing:
        k = k + smoothing / log_p.shape[axis] * _along_classes(weight, log_p) * valid.unsqueeze(axis)
    return k, sample_weight


def labels_loss(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """Return C from log p and labels; linear in log p, and so its own derivative.

    −log p_y is gathered by PyTorch's kernel, which refuses a label below 0 or above C − 1 on every device.
    """
    loss = torch.nn.functional.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    if not smoothing:
        return loss
    axis = class_axis(log_p)
    uniform = -(log_p * _along_classes(weight, log_p)).sum(axis)
    uniform = torch.where(target != ignore_index, uniform, 0.0)
    if reduction == "mean":
        _, sample_weight = label_weights(log_p, target, weight, ignore_index, 0.0)
        uniform = uniform.sum() / sample_weight.sum()
    elif reduction == "sum":
        uniform = uniform.sum()
    return (1 - smoothing) * loss + smoothing / log_p.shape[axis] * uniform


def _along_classes(weight: Tensor | None, log_p: Tensor) -> Tensor:
    """Return w shaped to broadcast along the classes of log_p; ones where there are no weights."""
    if weight is None:
        return log_p.new_ones(())
    return weight if log_p.dim() == 1 else weight.view(-1, *[1] * (log_p.dim() - 2))


class CrossEntropy(Function):
    """C = −Σ_n w_{y_n} log p_{n, y_n} / D from logits and labels;  δ = (p − y) / N for plain labels."""

    @staticmethod
    def forward(
        z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(z, class_axis(z))
        return labels_loss(log_p, target, weight, ignore_index, reduction, smoothing), log_p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z, target, weight, *ctx.constants = inputs
        _, log_p = output
        ctx.save_for_backward(log_p, target, weight)
        ctx.set_materialize_grads(False)  # nobody differentiates log p but a second derivative
        ctx.dtype = z.dtype

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_log_p: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        log_p, target, weight = ctx.saved_tensors
        ignore_index, reduction, smoothing = ctx.constants
        delta = None
        if grad_loss is not None:
            k, sample_weight = label_weights(log_p, target, weight, ignore_index, smoothing)
            scale = grad_loss
            if reduction == "mean":  # the loss's 1/N; 0 where ignored, for D is 0 too if all of them are
                scale = torch.where(target != ignore_index, grad_loss / sample_weight.sum(), 0.0)
            delta = cross_entropy_delta(log_p, k, scale.unsqueeze(class_axis(log_p)) if scale.dim() else scale)
        return _with_hidden_output(delta, grad_log_p, log_p, ctx.dtype), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        log_p, target, weight = ctx.saved_tensors
        log_p_dot = LogSoftmax.push(z_dot, log_p, class_axis(log_p))
        return labels_loss(log_p_dot, target, weight, *ctx.constants), log_p_dot


class SoftCrossEntropy(Function):
    """C = −s Σ_n Σ_c k_nc log p_nc from logits and the weights k of class probabilities;  ∂C/∂k = −s log p."""

    @staticmethod
    def forward(z: Tensor, k: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(z, class_axis(z))
        return SoftCrossEntropy.value(log_p, k, reduction), log_p

    @staticmethod
    def value(log_p: Tensor, k: Tensor, reduction: str) -> Tensor:
        """Return C from log p."""
        entries = -(k * log_p).sum(class_axis(log_p))
        if reduction == "none":
            return entries
        return entries.mean() if reduction == "mean" else entries.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z, k, ctx.reduction = inputs
        _, log_p = output
        ctx.save_for_backward(log_p, k)
        ctx.set_materialize_grads(False)
        ctx.dtype = z.dtype

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_log_p: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        log_p, k = ctx.saved_tensors
        delta = grad_k = None
        if grad_loss is not None:
            axis = class_axis(log_p)
            scale = grad_loss * reduction_scale(ctx.reduction, log_p.select(axis, 0).numel())
            scale = scale.unsqueeze(axis) if scale.dim() else scale
            delta = cross_entropy_delta(log_p, k, scale) if ctx.needs_input_grad[0] else None
            grad_k = -(scale * log_p).to(k.dtype) if ctx.needs_input_grad[1] else None
        return _with_hidden_output(delta, grad_log_p, log_p, ctx.dtype), grad_k, None

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor | None, k_dot: Tensor | None, *_: None) -> tuple[Tensor, Tensor]:
        log_p, k = ctx.saved_tensors
        z_dot = torch.zeros_like(log_p) if z_dot is None else z_dot
        log_p_dot = LogSoftmax.push(z_dot, log_p, class_axis(log_p))
        loss_dot = SoftCrossEntropy.value(log_p_dot, k, ctx.reduction)
        if k_dot is not None:
            loss_dot = loss_dot + SoftCrossEntropy.value(log_p, k_dot, ctx.reduction)
        return loss_dot, log_p_dot


def _with_hidden_output(
    delta: Tensor | None, grad_log_p: Tensor | None, log_p: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """Add what comes back through log p, which happens in a second derivative alone."""
    if grad_log_p is not None:
        through = LogSoftmax.delta(grad_log_p, log_p, class_axis(log_p))
        delta = through if delta is None else delta + through
    return None if delta is None else delta.to(dtype)
