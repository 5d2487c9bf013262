"""Cross-entropy from logits: softmax and −log p in one, by log-sum-exp.

Both kinds of target are one formula. With k the weight that the target puts on each class of a sample (for a label y
without smoothing: w_y at class y, 0 elsewhere) and p = softmax(z):

    C = −s Σ_n Σ_c k_nc log p_nc
    δ_n = s (p_n Σ_c k_nc − k_n)          for a plain label: δ = (p − y) / N, y one-hot

with s = 1/D: D = Σ_n w_{y_n} over the samples that are not ignored for a mean over labels, N for a mean over
probabilities, 1 otherwise. Nats.

Shapes: z, log_p, k, delta [N, C], [C] or [N, C, d1, …]; labels as z without C. Classes lie along axis 1, or 0 in [C].
log_p is a second output, hidden by the public function: saved as an intermediate it would have no graph, and the second
derivative would be silently wrong. Σ_n w_{y_n} is a third, a constant.

Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990); smoothing: Szegedy
et al., arXiv 1512.00567 (2015), section 7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deltaprop.ops.activations import LogSoftmax
from deltaprop.ops.casting import cast
from deltaprop.ops.kernels import kernel, may_fuse
from deltaprop.ops.losses import reduction_scale
from deltaprop.ops.primitive import in_plain_eager_mode, primitive, quick_apply


def class_axis(z: Tensor) -> int:
    """Return the axis of the classes."""
    return 0 if z.dim() == 1 else 1


def cross_entropy_delta(log_p: Tensor, k: Tensor, grad_entries: Tensor) -> Tensor:
    """Return δ = g (p Σ_c k − k), g = ``grad_entries`` being ∂C/∂C_n for each sample (1/D for a mean).

    Shapes: log_p and k [N, C]; grad_entries broadcasts to them, with size 1 along the classes.
    """
    total = k.sum(class_axis(log_p), keepdim=True)
    return grad_entries * (log_p.exp() * total - k)  # BP1 for softmax and −log p together


def label_loss(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return C = −Σ_n w_{y_n} log p_{n, y_n} / D, and Σ_n w_{y_n} over the samples that count.

    PyTorch's kernel picks log p_y, and refuses a label below 0 or above C − 1 on every device.
    """
    if _plain(log_p, target, weight):  # the kernel counts the weights anyway: cheaper than to count them again
        loss, total = _pick(log_p, target, weight, _REDUCTIONS[reduction], ignore_index)
        if reduction != "none":
            return loss, total
    else:
        loss = torch.nn.functional.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    _, _, w_y = label_weights(target, weight, ignore_index)
    return loss, w_y.sum().to(loss.dtype)


def _plain(log_p: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Return whether PyTorch's kernel can be called directly on log p, or z: nothing to reshape, cast, or refuse."""
    return (
        log_p.dim() == 2
        and target.shape == log_p.shape[:1]
        and target.dtype == torch.int64
        and log_p.dtype in (torch.float32, torch.float64)
        and (weight is None or weight.dtype == log_p.dtype)
    )


def label_grad_log_p(
    grad_loss: Tensor,
    log_p: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    total: Tensor,
) -> Tensor:
    """Return G = ∂C/∂log p = −(∂C/∂C_n) w_y y / D, y one-hot, [N, C]; ``total`` is Σ_n w_{y_n}."""
    if log_p.dim() > 2:  # one sample a row
        by_class = log_p.movedim(1, -1)
        rows, labels = by_class.reshape(-1, log_p.shape[1]), target.reshape(-1)
        entries = grad_loss.reshape(-1) if reduction == "none" else grad_loss
        of_rows = label_grad_log_p(entries, rows, labels, weight, ignore_index, reduction, total)
        return of_rows.reshape(by_class.shape).movedim(-1, 1)
    target, weight = cast(target, torch.int64), None if weight is None else cast(weight, log_p.dtype)
    grad_log_p: Tensor = _put(grad_loss, log_p, target, weight, _REDUCTIONS[reduction], ignore_index, total)
    return grad_log_p


_pick = torch.ops.aten.nll_loss_forward.default  # C and Σ_n w_{y_n} from log p
_put = torch.ops.aten.nll_loss_backward.default  # G = ∂C/∂log p
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # PyTorch's numbers for its kernels


def smooth(y: Tensor, smoothing: float, classes: int) -> Tensor:
    """Return (1 − ε) y + ε/C: a target smoothed by ε over C classes."""
    return (1 - smoothing) * y + smoothing / classes if smoothing else y


def label_weights(target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (valid, label, w_y): which samples count, their labels (0 for others), their weights (0 for others).

    Without class weights w_y is ``valid`` itself, True being 1. Shapes: all as the labels.
    """
    target = cast(target, torch.int64)  # −100 against uint8 would wrap to the label 156
    valid = target != ignore_index
    label = torch.where(valid, target, 0)
    if weight is None:
        return valid, label, valid
    chosen = weight.index_select(0, label.reshape(-1)).reshape(label.shape)
    return valid, label, torch.where(valid, chosen, 0.0)


def labels_loss(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return C from log p and labels, and Σ_n w_{y_n}. C is linear in log p, and so its own derivative."""
    loss, total = label_loss(log_p, target, weight, ignore_index, reduction)
    if not smoothing:
        return loss, total
    axis = class_axis(log_p)
    valid, _, w_y = label_weights(target, weight, ignore_index)
    uniform = torch.where(valid, -(log_p * _along_classes(weight, log_p)).sum(axis), 0.0)
    if reduction == "mean":
        uniform = uniform.sum() / w_y.sum()
    elif reduction == "sum":
        uniform = uniform.sum()
    return (1 - smoothing) * loss + smoothing / log_p.shape[axis] * uniform, total


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_p = torch.log_softmax(z, class_axis(z))
        loss, total = labels_loss(log_p, target, weight, ignore_index, reduction, smoothing)
        return loss, log_p, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        z, target, weight, *ctx.constants = inputs
        _, log_p, total = output
        ctx.save_for_backward(log_p, target, weight, total)
        ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)  # nobody differentiates log p but a second derivative
        ctx.dtype = z.dtype

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_log_p: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        log_p, target, weight, total = ctx.saved_tensors
        ignore_index, reduction, smoothing = ctx.constants
        delta = None
        if grad_loss is not None and not smoothing:
            wide = cast(log_p, grad_loss.dtype)  # under autocast C is wider than z
            by_log_p = label_grad_log_p(grad_loss, wide, target, weight, ignore_index, reduction, total)
            if may_fuse(by_log_p) and log_p.dim() <= 2:
                kernel(LogSoftmax, (class_axis(log_p),)).bend(by_log_p, wide)  # the formula below, in place
                delta = by_log_p
            else:
                delta = LogSoftmax.delta(by_log_p, wide, class_axis(log_p))  # BP1: δ = G − p Σ_c G; plain: (p − y) / N
        elif grad_loss is not None:
            axis = class_axis(log_p)
            valid, label, _w_y = label_weights(target, weight, ignore_index)
            # ∂C/∂C_n, with the loss's 1/N; 0 where ignored, for D is 0 too if all of them are
            grad_entries = torch.where(valid, grad_loss / total if reduction == "mean" else grad_loss, 0.0)
            y = torch.zeros_like(log_p).scatter(axis, label.unsqueeze(axis), 1.0)
            k = smooth(y, smoothing, log_p.shape[axis]) * _along_classes(weight, log_p)
            delta = cross_entropy_delta(log_p, k, grad_entries.unsqueeze(axis))
        return _with_hidden_output(delta, grad_log_p, log_p, ctx.dtype), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor, *constants: None) -> tuple[Tensor, Tensor, None]:
        log_p, target, weight, _total = ctx.saved_tensors
        log_p_dot = LogSoftmax.push(z_dot, log_p, class_axis(log_p))
        loss_dot, _total = labels_loss(log_p_dot, target, weight, *ctx.constants)
        return loss_dot, log_p_dot, None


class QuickCrossEntropy(Function):
    """The same for plain labels in eager mode: two kernels each way, and no questions in between.

    Where nets are small, Python costs more than the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
    ) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(z, 1)
        loss, total = _pick(log_p, target, weight, _REDUCTIONS[reduction], ignore_index)
        ctx.save_for_backward(log_p, target, weight, total)
        ctx.constants = ignore_index, reduction
        ctx.set_materialize_grads(False)  # nobody differentiates log p but a second derivative
        return loss, log_p

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_log_p: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        log_p, target, weight, total = ctx.saved_tensors
        ignore_index, reduction = ctx.constants
        delta = None
        if grad_loss is not None:
            delta = _put(grad_loss, log_p, target, weight, _REDUCTIONS[reduction], ignore_index, total)
            if may_fuse(delta):
                _bend(delta, log_p)  # BP1: δ = G − p Σ_c G; plain: (p − y) / N
            else:
                delta = LogSoftmax.delta(delta, log_p, 1)
        if grad_log_p is not None:
            delta = _with_hidden_output(delta, grad_log_p, log_p, log_p.dtype)
        return delta, None, None, None, None


_cross_entropy = primitive(CrossEntropy)
_quick = quick_apply(QuickCrossEntropy)
_bend = kernel(LogSoftmax, (1,)).bend


def cross_entropy(
    z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    """Return C from logits and labels: by the quick Function where it will do."""
    if in_plain_eager_mode() and not smoothing and reduction != "none" and _plain(z, target, weight):
        loss, _ = _quick(z, target, weight, ignore_index, reduction)
    else:
        loss, _, _ = _cross_entropy(z, target, weight, ignore_index, reduction, smoothing)
    result: Tensor = loss
    return result


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
            grad_k = -cast(scale * log_p, k.dtype) if ctx.needs_input_grad[1] else None
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
    return None if delta is None else cast(delta, dtype)
