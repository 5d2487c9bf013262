"""The activations as fused kernels, in place of the formulas of ``ops/activations.py``, which stay the reference.

A formula such as ``grad_a * a * (1 - a)`` makes a tensor for each operation. Here PyTorch's own kernel computes the
same in one pass, into a buffer that is there already. ``tests/ops/test_kernels.py`` holds each row to its formula.
An activation without a row (a new one, say) is computed by its formula, and copied: right, only slower.

Shapes: z, a, saved and delta are all [N, n].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from deltaprop.ops import activations as _a
from deltaprop.ops.primitive import transforming


class Kernel(NamedTuple):
    """One activation with its constants.

    Attributes:
        in_place: Whether a may overwrite z: σ' follows from a, and nobody needs z again.
        forward: Writes a = σ(z) into its second argument, which is z itself if ``in_place``.
        bend: Turns ∂C/∂a into δ = ∂C/∂a ⊙ σ'(z), in place; its second argument is a if ``in_place``, else z.
    """

    in_place: bool
    forward: Callable[[Tensor, Tensor], object]
    bend: Callable[[Tensor, Tensor], object]


def may_fuse(t: Tensor) -> bool:
    """Return whether kernels may write to t: nobody asks for a graph or a tangent of it, or maps over it (``vmap``)."""
    return not (
        is_compiling() or torch.is_grad_enabled() or transforming() or forward_ad._current_level >= 0 or _is_mapped(t)
    )


_is_mapped = torch._C._functorch.is_legacy_batchedtensor  # private: no public query exists, nor for `transforming`


@lru_cache(maxsize=256)
def kernel(op: type[_a.Activation], constants: tuple[Any, ...] = ()) -> Kernel:
    """Return the kernels of an activation.

    Args:
        op: Its definition.
        constants: Those of its formula, in the order of ``op.forward``.
    """
    if op in _ROWS:
        forward, bend = _ROWS[op](*constants)
    else:
        forward, bend = _by_formula(op, constants)
    return Kernel(op.from_output, forward, bend)


def has_kernel(op: type[_a.Activation]) -> bool:
    """Return whether an activation has kernels of its own; else it is computed by its formula."""
    return op in _ROWS


def _by_formula(op: type[_a.Activation], constants: tuple[Any, ...]) -> _Pair:
    return (
        lambda z, a: a.copy_(op.forward(z, *constants)),
        lambda delta, saved: delta.copy_(op.delta(delta, saved, *constants)),  # BP1, BP2 by the readable formula
    )


_Pair = tuple[Callable[[Tensor, Tensor], object], Callable[[Tensor, Tensor], object]]


def _backward(name: str, overload: str = "grad_input") -> Callable[..., Tensor]:
    """Return a backward kernel that writes into a tensor given to it.

    PyTorch has no function for it in Python, only the operator; ``_op`` is what the operator calls, a microsecond
    cheaper.
    """
    operator = getattr(getattr(torch.ops.aten, name), overload)
    call: Callable[..., Tensor] = getattr(operator, "_op", operator)
    return call


_threshold_backward = _backward("threshold_backward")
_sigmoid_backward = _backward("sigmoid_backward")
_tanh_backward = _backward("tanh_backward")
_leaky_relu_backward = _backward("leaky_relu_backward")
_elu_backward = _backward("elu_backward")
_gelu_backward = _backward("gelu_backward")
_silu_backward = _backward("silu_backward")
_softplus_backward = _backward("softplus_backward")
_nn: Any = torch._C._nn  # the functions of torch.nn.functional that take `out=`


def _sigmoid() -> _Pair:
    return (
        lambda z, a: z.sigmoid_(),  # a is z
        lambda delta, a: _sigmoid_backward(delta, a, grad_input=delta),  # σ' = a (1 − a)
    )


def _tanh() -> _Pair:
    return (
        lambda z, a: z.tanh_(),  # a is z
        lambda delta, a: _tanh_backward(delta, a, grad_input=delta),  # σ' = 1 − a²
    )


def _relu() -> _Pair:
    return (
        lambda z, a: z.relu_(),  # a is z
        lambda delta, a: _threshold_backward(delta, a, 0, grad_input=delta),  # σ' = 0 where a ≤ 0, else 1
    )


def _leaky_relu(negative_slope: float = 0.01) -> _Pair:
    return (
        lambda z, a: _nn.leaky_relu(z, negative_slope, out=a),
        lambda delta, z: _leaky_relu_backward(delta, z, negative_slope, False, grad_input=delta),
    )


def _elu(alpha: float = 1.0) -> _Pair:
    return (
        lambda z, a: _nn.elu(z, alpha, out=a),
        lambda delta, z: _elu_backward(delta, alpha, 1, 1, False, z, grad_input=delta),
    )


def _gelu(approximate: str = "none") -> _Pair:
    return (
        lambda z, a: _nn.gelu(z, approximate=approximate, out=a),
        lambda delta, z: _gelu_backward(delta, z, approximate=approximate, grad_input=delta),
    )


def _silu() -> _Pair:
    return (
        lambda z, a: _nn.silu(z, out=a),
        lambda delta, z: _silu_backward(delta, z, grad_input=delta),
    )


def _softplus(beta: float = 1, threshold: float = 20) -> _Pair:
    return (
        lambda z, a: _nn.softplus(z, beta, threshold, out=a),
        lambda delta, z: _softplus_backward(delta, z, beta, threshold, grad_input=delta),
    )


def _softmax(dim: int = -1) -> _Pair:
    backward: Any = torch._softmax_backward_data
    return (
        lambda z, a: torch.softmax(z, dim, out=a),
        lambda delta, a: backward(delta, a, dim, a.dtype, grad_input=delta),  # a ⊙ (∂C/∂a − ⟨∂C/∂a, a⟩)
    )


def _log_softmax(dim: int = -1) -> _Pair:
    backward: Any = torch._log_softmax_backward_data
    return (
        lambda z, a: torch.log_softmax(z, dim, out=a),
        lambda delta, a: backward(delta, a, dim, a.dtype, out=delta),  # ∂C/∂a − e^a Σ ∂C/∂a
    )


def _step() -> _Pair:
    return lambda z, a: torch.gt(z, 0, out=a), lambda delta, z: delta.zero_()  # σ' = 0


def _identity() -> _Pair:
    return lambda z, a: a.copy_(z), lambda delta, z: delta  # σ' = 1


_ROWS: dict[type[_a.Activation], Callable[..., _Pair]] = {
    _a.Step: _step,
    _a.Identity: _identity,
    _a.ReLU: _relu,
    _a.LeakyReLU: _leaky_relu,
    _a.ELU: _elu,
    _a.GELU: _gelu,
    _a.SiLU: _silu,
    _a.Softplus: _softplus,
    _a.Sigmoid: _sigmoid,
    _a.Tanh: _tanh,
    _a.Softmax: _softmax,
    _a.LogSoftmax: _log_softmax,
}
