"""The public functions: names, leading arguments, results, dtypes and refusals of ``torch.nn.functional``.

Each calls a Function of :mod:`deltaprop.core`, so its backward pass is written by hand. Three differences are meant:
``inplace=True`` is refused, for the δ formulas read what it would overwrite; complex input is refused, for they are the
formulas of real numbers; and ``label_smoothing`` below 0 is refused. ``step``, ``identity``,
``quadratic_loss`` and ``binary_cross_entropy_per_sample`` are ours: PyTorch has no function of these names.

Tensor shapes follow the textbook: a row is a sample, ``[N, n]``; any leading shape will do where PyTorch takes it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaprop import core
from deltaprop.core import ACTIVATIONS, LOSSES, primitive

__all__ = [
    "binary_cross_entropy_per_sample", "binary_cross_entropy_with_logits", "cross_entropy", "elu", "gelu",
    "huber_loss", "identity", "l1_loss", "leaky_relu", "linear", "log_softmax", "mse_loss", "quadratic_loss",
    "relu", "sigmoid", "silu", "softmax", "softplus", "step", "tanh",
]  # fmt: skip


def _functions(table: dict[str, Any], *names: str) -> list[Callable[..., Tensor]]:
    functions = [primitive(table[name]) for name in names]
    for function, name in zip(functions, names, strict=True):
        function.__name__ = function.__qualname__ = name  # as error messages have it
    return functions


_linear: Callable[..., Tensor] = primitive(core.Linear)
_cast: Callable[..., Tensor] = primitive(core.Cast)
_step, _identity, _relu, _leaky_relu = _functions(ACTIVATIONS, "step", "identity", "relu", "leaky_relu")
_elu, _gelu, _silu, _softplus = _functions(ACTIVATIONS, "elu", "gelu", "silu", "softplus")
_sigmoid, _tanh, _softmax, _log_softmax = _functions(ACTIVATIONS, "sigmoid", "tanh", "softmax", "log_softmax")
_mse, _l1, _huber, _quadratic = _functions(LOSSES, "mse_loss", "l1_loss", "huber_loss", "quadratic_loss")
_binary, _binary_per_sample = _functions(LOSSES, "binary_cross_entropy_with_logits", "binary_cross_entropy_per_sample")
_cross_entropy: Callable[..., tuple[Tensor, Tensor]] = primitive(LOSSES["cross_entropy"])


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return z = a_prev Wᵀ + b (FWD).

    Args:
        input: a_prev, [..., n_in].
        weight: W, [n_out, n_in], or [n_in] for one neuron.
        bias: b, [n_out], or None.

    Returns:
        z, [..., n_out]; without the last axis where ``weight`` is [n_in].

    Raises:
        RuntimeError: If shapes or dtypes do not fit, as in ``torch.nn.functional.linear``.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 2, equation 25.
    """
    return _linear(input, weight, bias)


def step(input: Tensor) -> Tensor:
    """Return 1 where z > 0, else 0: the perceptron's activation.

    Its derivative is 0, so no gradient passes it: what stands before a step learns nothing by backpropagation.

    Args:
        input: z, any shape.

    Returns:
        a, shape and dtype of z.

    Source:
        Rosenblatt, The Perceptron, Psychological Review 65 (1958).
    """
    return _step(input)


def identity(input: Tensor) -> Tensor:
    """Return a = z.

    Args:
        input: z, any shape.

    Returns:
        a, shape of z, dtype of z.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 3, "linear neurons".
    """
    return _identity(input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return a = max(0, z);  σ'(z) = 1 where z > 0, else 0.

    Args:
        input: z, any shape.
        inplace: Refused if True.

    Returns:
        a, shape and dtype of z.

    Raises:
        ValueError: If ``inplace``.

    Source:
        Nair & Hinton, ICML 2010.
    """
    _refuse_inplace(inplace)
    return _relu(input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Return a = z where z > 0, else s z;  σ'(z) = 1 where z > 0, else s.

    Args:
        input: z, any shape.
        negative_slope: s.
        inplace: Refused if True.

    Returns:
        a, shape and dtype of z.

    Raises:
        ValueError: If ``inplace``.

    Source:
        Maas, Hannun & Ng, ICML 2013.
    """
    _refuse_inplace(inplace)
    return _leaky_relu(input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Return a = z where z > 0, else α (e^z − 1);  σ'(z) = 1 where z > 0, else α e^z.

    Args:
        input: z, any shape.
        alpha: α.
        inplace: Refused if True.

    Returns:
        a, shape and dtype of z.

    Raises:
        ValueError: If ``inplace``.

    Source:
        Clevert, Unterthiner & Hochreiter, arXiv 1511.07289 (2015).
    """
    _refuse_inplace(inplace)
    return _elu(input, alpha)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """Return a = z Φ(z);  σ'(z) = Φ(z) + z φ(z), Φ being the standard normal distribution and φ its density.

    Args:
        input: z, any shape.
        approximate: ``"none"``, or ``"tanh"`` for a = ½ z (1 + tanh(√(2/π) (z + 0.044715 z³))).

    Returns:
        a, shape of z, dtype of z.

    Raises:
        RuntimeError: If ``approximate`` is neither.

    Source:
        Hendrycks & Gimpel, arXiv 1606.08415 (2016).
    """
    return _gelu(input, approximate)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return a = z s with s = 1 / (1 + e^−z);  σ'(z) = s (1 + z (1 − s)).

    Args:
        input: z, any shape.
        inplace: Refused if True.

    Returns:
        a, shape and dtype of z.

    Raises:
        ValueError: If ``inplace``.

    Source:
        Elfwing, Uchibe & Doya, arXiv 1702.03118 (2017).
    """
    _refuse_inplace(inplace)
    return _silu(input)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """Return a = log(1 + e^{βz}) / β;  σ'(z) = 1 / (1 + e^{−βz}).

    Args:
        input: z, any shape.
        beta: β.
        threshold: Where βz exceeds it, a = z.

    Returns:
        a, shape of z, dtype of z.

    Source:
        Dugas et al., NIPS 2000.
    """
    return _softplus(input, beta, threshold)


def sigmoid(input: Tensor) -> Tensor:
    """Return a = σ(z) = 1 / (1 + e^−z);  σ'(z) = a (1 − a).

    Args:
        input: z, any shape.

    Returns:
        a, shape of z, dtype of z.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equation 3.

    Example:
        >>> z = torch.tensor([0.0], requires_grad=True)
        >>> sigmoid(z).backward()
        >>> z.grad  # a (1 − a) at a = ½
        tensor([0.2500])
    """
    return _sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    """Return a = tanh z;  σ'(z) = 1 − a².

    Args:
        input: z, any shape.

    Returns:
        a, shape of z, dtype of z.

    Source:
        LeCun et al., Efficient BackProp (1998), section 4.4.
    """
    return _tanh(input)


def softmax(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return a_i = e^{z_i} / Σ_j e^{z_j};  δ = a ⊙ (∂C/∂a − ⟨∂C/∂a, a⟩).

    Args:
        input: z, any shape.
        dim: The axis that j runs along.
        dtype: Cast z to it first.

    Returns:
        a, shape of z, dtype ``dtype`` or that of z.

    Raises:
        IndexError: If z has no such axis.

    Source:
        Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990).
    """
    return _softmax(_in_dtype(input, dtype), dim)


def log_softmax(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return a_i = z_i − log Σ_j e^{z_j};  δ = ∂C/∂a − p Σ ∂C/∂a with p = e^a. Nats.

    Args:
        input: z, any shape.
        dim: The axis that j runs along.
        dtype: Cast z to it first.

    Returns:
        a, shape of z, dtype ``dtype`` or that of z.

    Raises:
        IndexError: If z has no such axis.

    Source:
        Goodfellow, Bengio & Courville, Deep Learning (2016), section 4.1, for why it is computed in one.
    """
    return _log_softmax(_in_dtype(input, dtype), dim)


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """Return C = mean (a − y)² over all entries;  ∂C/∂a = 2 (a − y) / (number of entries).

    Args:
        input: a, [..., n].
        target: y, of the same shape; broadcast with a warning if not, as in PyTorch.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss an entry.
        weight: Weights of the entries, shape of a; the mean is then Σ w (a − y)² / Σ w.

    Returns:
        C, a scalar, or [..., n] for ``"none"``; the units of y, squared.

    Raises:
        ValueError: If ``reduction`` is unknown or ``weight`` has another shape.

    Source:
        Bishop, Pattern Recognition and Machine Learning (2006), equation 1.2, as a mean.
    """
    return _elementwise_loss(_mse, input, target, weight, reduction)


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """Return C = mean |a − y| over all entries;  ∂C/∂a = sign(a − y) / (number of entries).

    Args:
        input: a, [..., n].
        target: y, of the same shape; broadcast with a warning if not, as in PyTorch.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss an entry.
        weight: Weights of the entries, shape of a; the mean is then Σ w |a − y| / Σ w.

    Returns:
        C, a scalar, or [..., n] for ``"none"``; the units of y.

    Raises:
        ValueError: If ``reduction`` is unknown or ``weight`` has another shape.

    Source:
        Bishop, Pattern Recognition and Machine Learning (2006), section 1.5.5, q = 1.
    """
    return _elementwise_loss(_l1, input, target, weight, reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Return C = mean c(a − y), c(r) = ½ r² where |r| ≤ d, else d (|r| − ½ d);  c'(r) = r clipped to [−d, d].

    Args:
        input: a, [..., n].
        target: y, of the same shape; broadcast with a warning if not, as in PyTorch.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss an entry.
        delta: The threshold d > 0. (The one place where ``delta`` is not ∂C/∂z: it is PyTorch's name.)
        weight: Weights of the entries, shape of a; the mean is then Σ w c / (number of entries), as in PyTorch.

    Returns:
        C, a scalar, or [..., n] for ``"none"``.

    Raises:
        ValueError: If ``reduction`` is unknown or ``weight`` has another shape.
        RuntimeError: If ``delta`` is not positive.

    Source:
        Huber, Annals of Mathematical Statistics 35 (1964).
    """
    return _elementwise_loss(_huber, input, target, weight, reduction, delta)


def quadratic_loss(input: Tensor, target: Tensor) -> Tensor:
    """Return the textbook's C = 1/(2N) Σ_n ‖a_n − y_n‖²;  ∂C/∂a = (a − y) / N.

    A mean over the N samples and a sum over outputs: half of ``mse_loss`` times the number of outputs.

    Args:
        input: a, [N, n]; [n] is one sample.
        target: y, of the same shape; broadcast with a warning if not.

    Returns:
        C, a scalar.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equation 6.

    Example:
        >>> quadratic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))  # ½ (1² + 2²)
        tensor(2.5000)
    """
    return _elementwise_loss(_quadratic, input, target, None, "mean")


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return C = −mean_n log p_{n, y_n}, p = softmax(z), from logits;  δ = (p − y) / N.

    Args:
        input: The logits z, [N, C], [C] or [N, C, d1, …].
        target: Class labels (int64 or uint8) of z's shape without C; or class probabilities of z's shape.
        weight: w, [C], one weight a class; the mean over labels is then divided by Σ_n w_{y_n}.
        ignore_index: Samples with this label do not count.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss a sample.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) y + ε/C.

    Returns:
        C in nats, a scalar, or of the labels' shape for ``"none"``.

    Raises:
        IndexError: If a label is below 0 or above C − 1 (on CUDA: PyTorch's device assertion).
        ValueError: If ``reduction`` is unknown or z and labels differ in N.
        RuntimeError: If dtypes do not fit, ε is out of range, or gradients are asked for ``weight`` with labels.

    Source:
        Bridle (1990); smoothing: Szegedy et al., arXiv 1512.00567 (2015).

    Example:
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> cross_entropy(z, torch.tensor([0])).backward()
        >>> z.grad  # p − y = [½, ½] − [1, 0]
        tensor([[-0.5000,  0.5000]])
    """
    _check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    if input.dim() and target.shape == input.shape:
        _check_probabilities(input, target, weight, ignore_index)
    elif target.is_floating_point():
        raise RuntimeError(f"expected labels of int64 or uint8 for target {list(target.shape)}, got {target.dtype}")
    elif weight is not None and weight.requires_grad:
        raise RuntimeError("weight is a constant of cross_entropy over labels: pass weight.detach()")
    loss, _ = _cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
    return loss


def _check_probabilities(z: Tensor, y: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    if not y.is_floating_point():
        raise RuntimeError(f"expected floating point type for target with class probabilities, got {y.dtype}")
    if ignore_index >= 0:
        raise RuntimeError("ignore_index is not supported for floating point target")
    classes = z.shape[0 if z.dim() == 1 else 1]
    if weight is not None and (weight.dim() != 1 or weight.numel() != classes):
        raise RuntimeError(f"weight must hold one number a class, [{classes}], got {list(weight.shape)}")


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return C = −mean [p y log σ(z) + (1 − y) log(1 − σ(z))] from logits;  δ = (σ(z) − y) / (number of entries).

    Args:
        input: The logits z, [..., n].
        target: y in [0, 1], of the same shape.
        weight: Weights of the entries, broadcast to z.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss an entry.
        pos_weight: p, the weight of the positive target, broadcast to z.

    Returns:
        C in nats, a scalar, or [..., n] for ``"none"``.

    Raises:
        ValueError: If ``reduction`` is unknown or z and y differ in shape.
        RuntimeError: If gradients are asked for ``weight`` or ``pos_weight``.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 3, equation 57, from z instead of a.
    """
    for name, constant in (("weight", weight), ("pos_weight", pos_weight)):
        if constant is not None and constant.requires_grad:
            raise RuntimeError(f"{name} is a constant of binary_cross_entropy_with_logits: pass {name}.detach()")
    _check_reduction(reduction)
    return _binary_loss(_binary, input, target, weight, reduction, pos_weight)


def binary_cross_entropy_per_sample(input: Tensor, target: Tensor) -> Tensor:
    """Return the textbook's C = −1/N Σ_n Σ_j [y log σ(z) + (1 − y) log(1 − σ(z))] from logits;  δ = (σ(z) − y) / N.

    A mean over the N samples and a sum over outputs: ``binary_cross_entropy_with_logits`` times their number.

    Args:
        input: The logits z, [N, n].
        target: y in [0, 1], of the same shape.

    Returns:
        C in nats, a scalar.

    Raises:
        ValueError: If z and y differ in shape.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 3, equation 63, from z instead of a.
    """
    return _binary_loss(_binary_per_sample, input, target, None, "mean", None)


def _binary_loss(
    loss: Callable[..., Tensor], z: Tensor, y: Tensor, weight: Tensor | None, reduction: str, pos_weight: Tensor | None
) -> Tensor:
    if y.shape != z.shape:
        raise ValueError(f"Target size ({y.shape}) must be the same as input size ({z.shape})")
    return loss(z, y, weight, reduction, pos_weight)


def _elementwise_loss(
    loss: Callable[..., Tensor], a: Tensor, y: Tensor, weight: Tensor | None, reduction: str, *constants: Any
) -> Tensor:
    """Check the arguments, as PyTorch does before it computes anything."""
    _check_reduction(reduction)
    if weight is not None and weight.shape != a.shape:
        raise ValueError(f"weight must have the input's shape, {list(a.shape)}, got {list(weight.shape)}")
    if y.shape != a.shape and not torch.compiler.is_compiling():  # the compiler cannot trace a warning
        warnings.warn(
            f"target of shape {list(y.shape)} against input of shape {list(a.shape)}: they are broadcast, "
            "which is rarely intended; give them the same shape",
            stacklevel=3,
        )
    return loss(a, y, weight, reduction, *constants)


def _in_dtype(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    return t if dtype is None or t.dtype == dtype else _cast(t, dtype)


if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        """Return the function of a row that was added to ``ACTIVATIONS`` or ``LOSSES`` at run time."""
        if name in ACTIVATIONS or name in LOSSES:
            return _added(name, ACTIVATIONS.get(name) or LOSSES[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _added(name: str, definition: type[core.Activation | core.Loss]) -> Callable[..., Tensor]:
    """Return the function of an added definition: ``input``, ``target`` for a loss, and its constants or options."""
    if issubclass(definition, core.Loss):
        options = {"input": inspect.Parameter.empty, "target": inspect.Parameter.empty, **definition.options()}
    else:
        _, *constants = inspect.signature(definition.forward).parameters.values()
        options = {"input": inspect.Parameter.empty, **{constant.name: constant.default for constant in constants}}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(each, kind, default=value) for each, value in options.items()])
    call = primitive(definition)
    if issubclass(definition, core.ElementwiseLoss):
        call = functools.partial(_elementwise_loss, call)

    def function(*args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        output = call(*bound.arguments.values())
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    function.__name__ = function.__qualname__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]  # functions have it
    return function


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction: 'mean', 'sum' or 'none'")


def _refuse_inplace(inplace: bool) -> None:
    if inplace:
        raise ValueError("inplace=True is not possible here: the δ formulas read what it would overwrite")
