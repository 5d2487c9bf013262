"""A whole stack of layers as one Function: the recursion of the δ's as one ``backward``.

What costs the tape its time in small nets is Python for each Function, not the products. So a stack of L layers, which
would be about 2 L Functions, is one: its ``forward`` is FWD from layer 1 to L, its ``backward`` BP1 to BP4 from L to 1,
by the same formulas as the Functions that stand for single layers.

A second derivative goes layer by layer: what is kept of the inside is neither an input nor an output, and to
differentiate it once more would be silently wrong (``linear.py`` and ``activations.py`` keep inputs and outputs alone).

Shapes: x [..., n_0], W^l [n_l, n_{l−1}], b^l [n_l], z^l, a^l and δ^l [..., n_l].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from deltaprop.ops.activations import Activation
from deltaprop.ops.kernels import kernel, may_fuse
from deltaprop.ops.linear import Linear, linear_forward, linear_grad_a_prev, linear_grad_bias, linear_grad_weight
from deltaprop.ops.primitive import in_plain_eager_mode, primitive, quick_apply


class Sigma(NamedTuple):
    """The activation of a layer: its definition, its callable and its constants."""

    op: type[Activation]
    call: Callable[..., Tensor]
    constants: tuple[Any, ...]


Sigmas = Sequence[Sigma | None]  # of the layers from the first; None where there is none

_linear = primitive(Linear)


def layer_by_layer(sigmas: Sigmas, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return a^L from x and W^1, b^1, W^2, b^2, …: a Function for each z and each a."""
    a = x
    for sigma, weight, bias in zip(sigmas, parameters[::2], parameters[1::2], strict=True):
        a = _linear(a, weight, bias)  # FWD
        if sigma is not None:
            a = sigma.call(a, *sigma.constants)
    return a


class Stack(Function):
    """a^L from x: z^l = a^{l−1} (W^l)ᵀ + b^l, a^l = σ(z^l);  δ^l = ∂C/∂a^l ⊙ σ'(z^l), ∂C/∂a^{l−1} = δ^l W^l."""

    @staticmethod
    def forward(ctx: Any, sigmas: Sigmas, x: Tensor, *parameters: Tensor | None) -> Tensor:
        a, kept, inputs = x, [], [x]
        for sigma, weight, bias in zip(sigmas, parameters[::2], parameters[1::2], strict=True):
            a = z = linear_forward(a, weight, bias)  # type: ignore[arg-type]  # FWD; a weight is never None
            if sigma is not None and sigma.op.from_output:
                kernel(sigma.op, sigma.constants).forward(z, z)  # a = σ(z), over z
            elif sigma is not None:
                a = sigma.op.forward(z, *sigma.constants)
            kept.append(None if sigma is None else a if sigma.op.from_output else z)
            inputs.append(a)
        ctx.sigmas = sigmas
        ctx.bias_shapes = [None if bias is None else bias.shape for bias in parameters[1::2]]
        ctx.save_for_backward(*inputs[:-1], *kept, *parameters)
        return a

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        grad_a = grad_output
        sigmas, saved, layers = ctx.sigmas, ctx.saved_tensors, len(ctx.sigmas)
        a_prev, kept, parameters = saved[:layers], saved[layers : 2 * layers], saved[2 * layers :]
        _, needs_x, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a graph of the gradients is asked for
            return None, *_layer_by_layer_again(sigmas, [saved[0], *parameters], [needs_x, *needed], grad_a)
        lowest = 0 if needs_x else next(i for i, needs in enumerate(needed) if needs) // 2
        ours = False  # whether ∂C/∂a may be written over
        grads: list[Tensor | None] = [None] * len(parameters)
        for i in range(layers - 1, lowest - 1, -1):
            sigma, delta = sigmas[i], grad_a
            if sigma is not None and ours:
                kernel(sigma.op, sigma.constants).bend(delta, kept[i])  # BP2, in place
            elif sigma is not None:
                delta = sigma.op.delta(grad_a, kept[i], *sigma.constants)  # BP1, BP2
            if needed[2 * i]:
                grads[2 * i] = linear_grad_weight(delta, a_prev[i])  # BP4
            if needed[2 * i + 1]:
                grads[2 * i + 1] = linear_grad_bias(delta, ctx.bias_shapes[i])  # BP3
            if i > lowest or needs_x:
                grad_a = linear_grad_a_prev(delta, parameters[2 * i])  # BP2, left factor
                ours = may_fuse(grad_a)
        return None, grad_a if needs_x else None, *grads


_apply = quick_apply(Stack)


def _layer_by_layer_again(
    sigmas: Sigmas, inputs: Sequence[Tensor | None], needed: Sequence[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Return the gradients of the inputs that need one, with a graph: the layers are run again, one by one."""
    # By other names: a tensor that is two inputs, or two that depend on each other, are each asked for their own part.
    aliases = [None if t is None else t.view_as(t) for t in inputs]
    x, *parameters = aliases
    a = layer_by_layer(sigmas, x, *parameters)  # type: ignore[arg-type]  # x is never None
    asked = [t for t, needs in zip(aliases, needed, strict=True) if needs]
    made = torch.autograd.grad(a, asked, grad_output, create_graph=True)  # type: ignore[arg-type]  # none is None
    grads = iter(made)
    return [next(grads) if needs else None for needs in needed]


def stack(sigmas: Sigmas, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return a^L from x and W^1, b^1, W^2, b^2, ….

    One Function in eager mode, where a tape is kept; layer by layer without one, for then each a is freed as soon as
    the next is there, under autocast, where dtypes differ from op to op, in ``torch.func`` and forward mode, and for
    the compiler.
    """
    if torch.is_grad_enabled() and in_plain_eager_mode() and _is_plain(x):
        a: Tensor = _apply(sigmas, x, *parameters)
        return a
    return layer_by_layer(sigmas, x, *parameters)


def _is_plain(x: Tensor) -> bool:
    """Return whether x is a tensor of real numbers on a device without autocast now."""
    if not isinstance(x, Tensor) or x.is_complex():
        return False
    kind = x.device.type
    known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)  # the meta device has none to ask for
    return not (known and torch.is_autocast_enabled(kind))
