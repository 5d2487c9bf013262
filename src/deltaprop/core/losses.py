"""The losses: C from the outputs a^L and the targets y, and ∂C/∂a^L.

A loss is one class, a ``torch.autograd.Function``. An element-wise one gives ``value``, the loss c of each entry, and
``derivative``, ∂c/∂a; their weighted mean or sum stands once, in :class:`ElementwiseLoss`. Cross-entropy, where each
gradient depends on all outputs of a sample, has a ``delta``. The mean's 1/N is applied here, once, and nowhere after.

Values call PyTorch's kernels: values, dtypes and refusals are PyTorch's. Everything that goes backward is written here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from deltaprop.core.activations import LogSoftmax
from deltaprop.core.casting import cast


class Loss(Function):
    """C from outputs and targets.

    Attributes:
        contains: Output activations that the loss applies itself, so the model must not.
        takes_labels: Whether targets may be class labels.
        takes_numbers: Whether targets may be arbitrary real numbers.

    A subclass has, besides what a Function has:

    - ``forward(a, y, …)``: C, or a tuple that begins with C;
    - ``saved(a, output)``: what the gradient is computed from besides the targets;
    - ``targets(y, like, …)``: the targets as the gradient takes them, tensors with a row for each sample, of outputs
      of ``like``'s shape and dtype; a engine may compute them for many batches at once;
    - ``grad_input(grad_loss, saved, targets, …)``: ∂C/∂a, the left factor of BP1: a new tensor, which the explicit
      engine overwrites;
    - ``denominator(saved, targets, …)``: D, what a mean divides by;
    - ``grad_entries(grad_loss, saved, targets, …)``: ∂C/∂c of the loss c of an entry, or of a sample: 1/D for a mean.

    In all of them the arguments of :meth:`options` follow, in order.
    """

    contains: ClassVar[tuple[str, ...]] = ()
    takes_labels: ClassVar[bool] = False
    takes_numbers: ClassVar[bool] = True

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the arguments after a and y: names and defaults."""
        return _defaults(cls.forward)

    @classmethod
    def targets(cls, y: Tensor, like: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return (y,)

    saved: ClassVar[Callable[..., Tensor]]
    grad_input: ClassVar[Callable[..., Tensor]]
    denominator: ClassVar[Callable[..., Tensor | int]]
    grad_entries: ClassVar[Callable[..., Tensor | float]]


@functools.cache
def _defaults(formula: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of a formula after its first two, and their defaults."""
    return {name: p.default for name, p in list(inspect.signature(formula).parameters.items())[2:]}


class ElementwiseLoss(Loss):
    """C = Σ w c(a, y) / D: the mean, the sum or (``reduction="none"``) the losses of all entries.

    A subclass gives the formulas, plain functions of tensors:

    - ``value(a, y, *constants)``: c, entry by entry;
    - ``derivative(a, y, *constants)``: ∂c/∂a;
    - ``derivative_by_target(a, y, *constants)``: ∂c/∂y, by default −∂c/∂a, as for a loss of a − y;
    - ``denominator``: D of a mean, by default the number of entries, or Σ w if ``divides_by_weight``.

    Shapes: a and y [..., n], and the weights w, broadcast to each other; C is [], or [..., n] for ``"none"``.
    """

    divides_by_weight: ClassVar[bool] = False

    @classmethod
    def options(cls) -> dict[str, Any]:
        return {"weight": None, "reduction": "mean", **_defaults(cls.value)}

    @staticmethod
    def value(a: Tensor, y: Tensor, *constants: Any) -> Tensor:
        raise TypeError("an element-wise loss must define value(a, y, *constants), the loss of each entry")

    @staticmethod
    def derivative(a: Tensor, y: Tensor, *constants: Any) -> Tensor:
        raise TypeError("an element-wise loss must define derivative(a, y, *constants), ∂c/∂a")

    @classmethod
    def derivative_by_target(cls, a: Tensor, y: Tensor, *constants: Any) -> Tensor:
        return -cls.derivative(a, y, *constants)

    @classmethod
    def denominator(cls, a: Tensor, targets: tuple[Tensor, ...], weight: Tensor | None, *_: Any) -> Tensor | int:
        return weight.sum() if cls.divides_by_weight and weight is not None else a.numel()

    @classmethod
    def forward(cls, a: Tensor, y: Tensor, weight: Tensor | None, reduction: str, *constants: Any) -> Tensor:
        a, y = _of_one_shape(a, y)
        entries = cls.value(a, y, *constants)
        if weight is not None:
            entries = weight * entries
        if reduction == "none":
            return entries
        if reduction == "sum":
            return entries.sum()
        denominator = cls.denominator(a, (y,), weight, reduction)
        if isinstance(denominator, int) and denominator == entries.numel():
            return entries.mean()  # in half precision a sum may overflow where the mean does not
        return entries.sum() / denominator

    @staticmethod
    def saved(a: Tensor, output: Tensor) -> Tensor:
        return a

    @classmethod
    def grad_input(
        cls, grad_loss: Tensor | float, a: Tensor, targets: tuple[Tensor, ...],
        weight: Tensor | None, reduction: str, *constants: Any,
    ) -> Tensor:  # fmt: skip
        (y,) = targets
        grad_entries = cls.grad_entries(grad_loss, a, targets, weight, reduction)
        if weight is not None:
            grad_entries = grad_entries * weight
        return grad_entries * cls.derivative(a, y, *constants)  # BP1, left factor: ∂C/∂a = w/D ∂c/∂a

    @classmethod
    def grad_entries(
        cls, grad_loss: Tensor | float, a: Tensor, targets: tuple[Tensor, ...], weight: Tensor | None, reduction: str,
        *_: Any,
    ) -> Tensor | float:  # fmt: skip
        """Return ∂C/∂(w c) of an entry, 1/D for a mean and else 1, times ``grad_loss``."""
        if reduction != "mean":
            return grad_loss
        denominator = cls.denominator(a, targets, weight, reduction)
        # An empty batch has a mean of NaN, as in PyTorch, and no entry that counts in it.
        return grad_loss / (denominator if isinstance(denominator, Tensor) else max(denominator, 1))

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, y, weight, ctx.reduction, *constants = inputs
        ctx.constants = [None if isinstance(c, Tensor) else c for c in constants]
        ctx.save_for_backward(a, y, weight, *[c if isinstance(c, Tensor) else None for c in constants])

    @staticmethod
    def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor | None, list[Any]]:
        a, y, weight, *tensors = ctx.saved_tensors
        return a, y, weight, [c if t is None else t for c, t in zip(ctx.constants, tensors, strict=True)]

    @classmethod
    def backward(cls, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        a, y, weight, constants = cls._saved(ctx)
        shapes, (a, y) = (a.shape, y.shape), _of_one_shape(a, y)
        needs_a, needs_y, needs_weight, *others = ctx.needs_input_grad
        grad_a = grad_y = grad_weight = None
        if needs_a:
            grad_a = cast(cls.grad_input(grad_loss, a, (y,), weight, ctx.reduction, *constants), a.dtype)
            grad_a = grad_a.sum_to_size(shapes[0])
        grad_entries = cls.grad_entries(grad_loss, a, (y,), weight, ctx.reduction) if needs_y or needs_weight else 0.0
        if needs_y:
            weighted = grad_entries if weight is None else grad_entries * weight
            grad_y = cast(weighted * cls.derivative_by_target(a, y, *constants), y.dtype).sum_to_size(shapes[1])
        if needs_weight and weight is not None:
            excess = cls._excess(a, y, weight, ctx.reduction, *constants)
            grad_weight = cast(grad_entries * excess, weight.dtype).sum_to_size(weight.shape)
        return grad_a, grad_y, grad_weight, *[None] * len(others)

    @classmethod
    def _excess(cls, a: Tensor, y: Tensor, weight: Tensor, reduction: str, *constants: Any) -> Tensor:
        """Return D ∂C/∂w: c, less the mean where D is Σ w."""
        entries = cls.value(a, y, *constants)
        if reduction == "mean" and cls.divides_by_weight:
            return entries - (weight * entries).sum() / weight.sum()
        return entries

    @classmethod
    def jvp(cls, ctx: Any, a_dot: Tensor | None, y_dot: Tensor | None, weight_dot: Tensor | None, *_: None) -> Tensor:
        a, y, weight, constants = cls._saved(ctx)
        a, y = _of_one_shape(a, y)
        c_dot = torch.zeros_like(a)
        if a_dot is not None:
            c_dot = c_dot + cls.derivative(a, y, *constants) * a_dot
        if y_dot is not None:
            c_dot = c_dot + cls.derivative_by_target(a, y, *constants) * y_dot
        if weight is not None:
            c_dot = weight * c_dot
        if weight is not None and weight_dot is not None:
            c_dot = c_dot + cls._excess(a, y, weight, ctx.reduction, *constants) * weight_dot
        entries = cls.grad_entries(1.0, a, (y,), weight, ctx.reduction) * c_dot
        return entries if ctx.reduction == "none" else entries.sum()


def _of_one_shape(a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and targets broadcast to one shape."""
    if a.shape == y.shape:
        return a, y
    a, y = torch.broadcast_tensors(a, y)
    return a, y


class MSE(ElementwiseLoss):
    """C = Σ (a − y)²/M over all M entries;  ∂C/∂a = 2 (a − y)/M.

    With weights w of the entries: C = Σ w (a − y)² / Σ w.
    """

    divides_by_weight = True

    @staticmethod
    def value(a: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(a, y, reduction="none")

    @staticmethod
    def derivative(a: Tensor, y: Tensor) -> Tensor:
        return 2 * (a - y)


class L1(ElementwiseLoss):
    """C = Σ |a − y|/M over all M entries;  ∂C/∂a = sign(a − y)/M, 0 at the kink.

    With weights w of the entries: C = Σ w |a − y| / Σ w.
    """

    divides_by_weight = True

    @staticmethod
    def value(a: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.l1_loss(a, y, reduction="none")

    @staticmethod
    def derivative(a: Tensor, y: Tensor) -> Tensor:
        return (a - y).sign()


class Huber(ElementwiseLoss):
    """C = Σ h(a − y)/M, h(r) = ½ r² up to |r| = d and then d (|r| − ½ d);  ∂C/∂a = (a − y)/M, a − y clipped to ±d.

    M is the number of entries, also with weights. d is ``delta``, PyTorch's name for it: here alone delta is not ∂C/∂z.

    Source: Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35 (1964).
    """

    @staticmethod
    def value(a: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
        return torch.nn.functional.huber_loss(a, y, reduction="none", delta=delta)

    @staticmethod
    def derivative(a: Tensor, y: Tensor, delta: float = 1.0) -> Tensor:
        return (a - y).clamp(-delta, delta)


class Quadratic(ElementwiseLoss):
    """C = ½ Σ (a − y)²/N;  ∂C/∂a = (a − y)/N.

    The textbook's 1/(2N) Σ_n ‖a_n − y_n‖²: a mean over the N samples, a sum over outputs.

    Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equation 6.
    """

    @staticmethod
    def value(a: Tensor, y: Tensor) -> Tensor:
        return 0.5 * torch.nn.functional.mse_loss(a, y, reduction="none")

    @staticmethod
    def derivative(a: Tensor, y: Tensor) -> Tensor:
        return a - y

    @classmethod
    def denominator(cls, a: Tensor, *_: Any) -> Tensor | int:
        return max(a.shape[:-1].numel(), 1)  # N; a vector is one sample


class BinaryCrossEntropy(ElementwiseLoss):
    """C = −Σ [y log s + (1 − y) log(1 − s)]/M, s = 1/(1 + e^−a);  ∂C/∂a = (s − y)/M.

    From the logits a = z, never from a clipped probability; M is the number of entries. With weights w of the entries
    and p of the positive ones (``pos_weight``), both constants: c = −w [p y log s + (1 − y) log(1 − s)] and
    ∂c/∂z = w ((1 + (p − 1) y) s − p y). Nats.
    """

    contains = ("sigmoid",)
    takes_numbers = False

    @staticmethod
    def value(z: Tensor, y: Tensor, pos_weight: Tensor | None = None) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y, pos_weight=pos_weight, reduction="none")

    @staticmethod
    def derivative(z: Tensor, y: Tensor, pos_weight: Tensor | None = None) -> Tensor:
        if pos_weight is None:
            return torch.sigmoid(z) - y
        return (1 + (pos_weight - 1) * y) * torch.sigmoid(z) - pos_weight * y

    @classmethod
    def derivative_by_target(cls, z: Tensor, y: Tensor, pos_weight: Tensor | None = None) -> Tensor:
        if pos_weight is None:
            return -z  # log(1 − σ(z)) − log σ(z)
        return logsigmoid(-z) - pos_weight * logsigmoid(z)


class BinaryCrossEntropyPerSample(BinaryCrossEntropy):
    """C = −Σ [y log s + (1 − y) log(1 − s)]/N, s = 1/(1 + e^−a);  ∂C/∂a = (s − y)/N.

    A mean over the N samples, a sum over outputs. Nats.

    Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 3, equation 63, from z instead of a.
    """

    @classmethod
    def denominator(cls, z: Tensor, *_: Any) -> Tensor | int:
        return len(z)


class CrossEntropy(Loss):
    """C = −Σ log p_y/N, p = exp(a)/Σ exp(a);  ∂C/∂a = (p − y)/N, y one-hot.

    From the logits a = z, so that ∂C/∂a is δ. Both kinds of target are one formula: with k the weight that the target
    puts on each class of a sample (of a label y with class weights w: w_y at class y, 0 elsewhere; of probabilities: w
    ⊙ y; y smoothed by ε: (1 − ε) y + ε/C):

        C = −Σ_n Σ_c k_nc log p_nc / D
        δ_n = (p_n Σ_c k_nc − k_n) / D

    For a mean over labels D = Σ_n w_{y_n} over the samples that are not ignored (``ignore_index`` None: all), over
    probabilities N. Nats.

    Shapes: z, log_p, k and δ [N, C], [C] or [N, C, d1, …]; labels as z without C. Classes lie along axis 1, or 0 in
    [C]. log_p is a second output, hidden by the public function: saved as an intermediate it would have no graph, and
    the second derivative would be silently wrong.

    Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990); smoothing:
    Szegedy et al., arXiv 1512.00567 (2015), section 7.
    """

    contains = ("softmax", "log_softmax")
    takes_labels = True
    takes_numbers = False

    @classmethod
    def forward(
        cls, z: Tensor, y: Tensor, weight: Tensor | None = None,
        reduction: str = "mean", ignore_index: int | None = -100, label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        log_p = torch.log_softmax(z, class_axis(z))
        return cls.value(log_p, y, weight, reduction, ignore_index, label_smoothing), log_p

    @staticmethod
    def value(
        log_p: Tensor, y: Tensor, weight: Tensor | None, reduction: str, ignore_index: int | None, smoothing: float
    ) -> Tensor:
        """Return C from log p. It is linear in log p, and so is its tangent from log p's."""
        if y.is_floating_point():
            entries = -(class_weights(y, log_p, weight, ignore_index, smoothing) * log_p).sum(class_axis(log_p))
            if reduction == "none":
                return entries
            return entries.mean() if reduction == "mean" else entries.sum()
        return label_value(log_p, y, weight, reduction, ignore_index, smoothing)

    @staticmethod
    def delta(log_p: Tensor, k: Tensor, total: Tensor, grad_entries: Tensor | float) -> Tensor:
        """Return δ = g (p Σ_c k − k), g being ∂C/∂C_n, 1/D for a mean; like the total of size 1 along the classes."""
        return grad_entries * (log_p.exp() * total - k)  # BP1 for softmax and −log p together: (p − y) / N

    @staticmethod
    def saved(z: Tensor, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    @classmethod
    def targets(
        cls, y: Tensor, like: Tensor, weight: Tensor | None, reduction: str, ignore_index: int | None, smoothing: float
    ) -> tuple[Tensor, ...]:
        """Return y, k, and Σ_c k of each sample; of labels also w_y, where it is not 1 for each."""
        all_count_1 = y.is_floating_point() or (weight is None and ignore_index is None)
        w_y = [] if all_count_1 else [label_weights(like, y, weight, ignore_index)]
        k = class_weights(y, like, weight, ignore_index, smoothing, *w_y)
        return y, k, k.sum(class_axis(like), keepdim=True), *w_y

    @classmethod
    def grad_input(
        cls, grad_loss: Tensor | float, log_p: Tensor, targets: tuple[Tensor, ...],
        weight: Tensor | None, reduction: str, ignore_index: int | None, smoothing: float,
    ) -> Tensor:  # fmt: skip
        _, k, total, *_ = targets
        return cls.delta(log_p, k, total, cls.grad_entries(grad_loss, log_p, targets, weight, reduction))

    @classmethod
    def grad_entries(
        cls, grad_loss: Tensor | float, log_p: Tensor, targets: tuple[Tensor, ...], weight: Tensor | None,
        reduction: str, *_: Any,
    ) -> Tensor | float:  # fmt: skip
        """Return ∂C/∂C_n of each sample, of size 1 along the classes: 1/D for a mean, times ``grad_loss``."""
        if reduction == "mean":
            denominator = cls.denominator(log_p, targets)
            if isinstance(denominator, Tensor):  # 0 where all labels are ignored: k is 0 then, and 0 · ∞ would be NaN
                denominator = denominator + (denominator == 0)
            return grad_loss / denominator
        if isinstance(grad_loss, Tensor) and grad_loss.dim():
            return grad_loss.unsqueeze(class_axis(log_p))
        return grad_loss

    @classmethod
    def denominator(cls, log_p: Tensor, targets: tuple[Tensor, ...], *_: Any) -> Tensor | int:
        w_y = targets[3:]
        return w_y[0].sum() if w_y else max(log_p.numel() // log_p.shape[class_axis(log_p)], 1)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z, y, weight, *ctx.constants = inputs
        _, log_p = output
        ctx.save_for_backward(log_p, y, weight)
        ctx.set_materialize_grads(False)  # log p has a gradient in a second derivative alone
        ctx.dtype = z.dtype

    @classmethod
    def backward(cls, ctx: Any, grad_output: Tensor | None, grad_log_p: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grad_output
        log_p, y, weight = ctx.saved_tensors
        needs_z, needs_y, needs_weight, *others = ctx.needs_input_grad
        delta = grad_y = grad_weight = None
        if grad_loss is not None:
            wide = cast(log_p, grad_loss.dtype)  # under autocast C is wider than z
            targets = cls.targets(y, wide, weight, *ctx.constants)
            if needs_z:
                delta = cls.grad_input(grad_loss, wide, targets, weight, *ctx.constants)
            if needs_y or needs_weight:  # of class probabilities; C is linear in k
                reduction, _, smoothing = ctx.constants
                grad_k = -cls.grad_entries(grad_loss, log_p, targets, weight, reduction) * log_p
                if needs_y:
                    grad_y = cast((1 - smoothing) * grad_k * along_classes(weight, log_p), y.dtype)
                if needs_weight:
                    of_classes = (smoothed(y, smoothing, log_p) * grad_k).movedim(class_axis(log_p), -1)
                    grad_weight = cast(of_classes.reshape(-1, of_classes.shape[-1]).sum(0), weight.dtype)
        if grad_log_p is not None:
            through = LogSoftmax.delta(grad_log_p, log_p, class_axis(log_p))
            delta = through if delta is None else delta + through
        return None if delta is None else cast(delta, ctx.dtype), grad_y, grad_weight, *[None] * len(others)

    @classmethod
    def jvp(
        cls, ctx: Any, z_dot: Tensor | None, y_dot: Tensor | None, weight_dot: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        log_p, y, weight = ctx.saved_tensors
        z_dot = torch.zeros_like(log_p) if z_dot is None else z_dot
        log_p_dot = LogSoftmax.push(z_dot, log_p, class_axis(log_p))
        loss_dot = cls.value(log_p_dot, y, weight, *ctx.constants)
        reduction, _, smoothing = ctx.constants
        k_dot = torch.zeros_like(log_p)  # of class probabilities; C is linear in k
        if y_dot is not None:
            k_dot = k_dot + (1 - smoothing) * y_dot * along_classes(weight, log_p)
        if weight_dot is not None:
            k_dot = k_dot + smoothed(y, smoothing, log_p) * along_classes(weight_dot, log_p)
        if y_dot is not None or weight_dot is not None:
            loss_dot = loss_dot + cls.value(log_p, k_dot, None, reduction, -100, 0.0)
        return loss_dot, log_p_dot


def class_axis(z: Tensor) -> int:
    """Return the axis of the classes."""
    return 0 if z.dim() == 1 else 1


def along_classes(weight: Tensor | None, z: Tensor) -> Tensor:
    """Return the class weights w, [C], shaped to broadcast along the classes of z; 1 where there are none."""
    return z.new_ones(()) if weight is None else weight.view(-1, *[1] * max(z.dim() - 2, 0))


def smoothed(y: Tensor, smoothing: float, z: Tensor) -> Tensor:
    """Return (1 − ε) y + ε/C: a target over the C classes of z, smoothed by ε."""
    return (1 - smoothing) * y + smoothing / z.shape[class_axis(z)] if smoothing else y


def class_weights(
    y: Tensor,
    like: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    smoothing: float,
    w_y: Tensor | None = None,
) -> Tensor:
    """Return k, what the target puts on each class of a sample, shape of ``like``; 0 where a label is ignored."""
    if y.is_floating_point():
        k = smoothed(y, smoothing, like)
        return k if weight is None else k * along_classes(weight, like)
    axis = class_axis(like)
    label, valid = split_ignored(y, ignore_index)
    k = torch.zeros_like(like).scatter(axis, label.unsqueeze(axis), 1.0 if w_y is None else w_y.unsqueeze(axis))
    if not smoothing:
        return k
    uniform = smoothing / like.shape[axis] * along_classes(weight, like)
    return (1 - smoothing) * k + (uniform if valid is None else valid.unsqueeze(axis) * uniform)


def split_ignored(y: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Return labels, 0 in place of those that are ignored, and which are not; None for all, if the index is None."""
    y = cast(y, torch.int64)  # −100 against uint8 would wrap to the label 156
    if ignore_index is None:
        return y, None
    valid = y != ignore_index
    return y * valid, valid


def label_weights(log_p: Tensor, y: Tensor, weight: Tensor | None, ignore_index: int | None) -> Tensor:
    """Return w_y of each label's sample, in log p's dtype, 1 without class weights; 0 where it is ignored."""
    label, valid = split_ignored(y, ignore_index)
    if weight is None:
        return torch.ones_like(label, dtype=log_p.dtype) if valid is None else valid.to(log_p.dtype)
    w_y = cast(weight, log_p.dtype).index_select(0, label.reshape(-1)).reshape(label.shape)
    return w_y if valid is None else torch.where(valid, w_y, 0.0)


def label_value(
    log_p: Tensor, y: Tensor, weight: Tensor | None, reduction: str, ignore_index: int | None, smoothing: float
) -> Tensor:
    """Return C of labels. PyTorch's kernel picks log p_y, and refuses a label below 0 or above C − 1."""
    index = -100 if ignore_index is None else ignore_index
    loss = torch.nn.functional.nll_loss(log_p, y, weight, ignore_index=index, reduction=reduction)
    if not smoothing:
        return loss
    axis = class_axis(log_p)
    uniform = -(log_p * along_classes(weight, log_p)).sum(axis)
    _, valid = split_ignored(y, ignore_index)
    if valid is not None:
        uniform = torch.where(valid, uniform, 0.0)
    if reduction != "none":
        uniform = uniform.sum()
    if reduction == "mean":
        uniform = uniform / label_weights(log_p, y, weight, ignore_index).sum()
    return (1 - smoothing) * loss + smoothing / log_p.shape[axis] * uniform
