"""Backpropagation as one loop over the layers.

==================  ==============================================  ===================================
 tag                 equation                                        formula
==================  ==============================================  ===================================
 FWD                 z^l = a^{l−1} (W^l)ᵀ + b^l,  a^l = σ(z^l)       ``linear.py``, ``activations.py``
 BP1, left factor    ∂C/∂a^L                                         ``losses.py``, passed to the loop
 BP1, BP2            δ^l = ∂C/∂a^l ⊙ σ'(z^l)                         ``activations.py``
 BP2, left factor    ∂C/∂a^{l−1} = δ^l W^l                           ``linear.py``
 BP3                 ∂C/∂b^l = Σ_n δ^l_n                             ``linear.py``
 BP4                 ∂C/∂W^l = (δ^l)ᵀ a^{l−1}                        ``linear.py``
 SGD                 θ ← θ − η ∂C/∂θ                                 ``sgd.py``, by ``use_gradient``
==================  ==============================================  ===================================

Shapes: x [N, n_0]; a^l, z^l and δ^l [N, n_l]; W^l [n_l, n_{l−1}], b^l [n_l].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaprop.core.activations import Activation, Elementwise
from deltaprop.core.linear import linear_forward, linear_grad_bias, linear_grad_input, linear_grad_weight

UseGradient = Callable[[Tensor, Callable[..., Tensor]], object]
"""``use_gradient(param, gradient)``: ``gradient()`` is ∂C/∂θ, ``gradient(into, beta, alpha)`` adds it to a tensor."""


@dataclass(eq=False)
class Layer:
    """One layer: its parameters, and what it computes for the current batch.

    Attributes:
        weight: W, [n, n_prev].
        bias: b, [n], or None.
        activation: Its definition, a row of ``ACTIVATIONS``; None for a = z.
        constants: Constants of the activation, in the order of its ``forward``.
        learns: Whether W is trained, and whether b is.
        a_prev: a^{l−1}, [N, n_prev].
        z: Pre-activation, [N, n]; where ``a_out`` is its memory, a has overwritten it.
        a: Activation, [N, n].
        delta: δ = ∂C/∂z, [N, n], with the loss's 1/N in it.
        grad_weight: ∂C/∂W, [n, n_prev]; set by :func:`store_gradients` alone.
        grad_bias: ∂C/∂b, [n], or None; likewise.
        z_out: Memory for z, [N, n]; None allocates it in each pass.
        a_out: Memory for a, [N, n], which may be that of z where σ' follows from a; likewise.
        grad_a_out: Memory for ∂C/∂a, [N, n], from the layer above; likewise.
        rows_at_once: With ``a_out``, σ and δ are computed for so many rows at a time, which keeps their temporaries
            small; δ then overwrites ∂C/∂a.
    """

    weight: Tensor
    bias: Tensor | None
    activation: type[Activation] | None = None
    constants: tuple[Any, ...] = ()
    learns: tuple[bool, bool] = (True, True)
    a_prev: Tensor = field(init=False, repr=False)
    z: Tensor = field(init=False, repr=False)
    a: Tensor = field(init=False, repr=False)
    delta: Tensor = field(init=False, repr=False)
    grad_weight: Tensor = field(init=False, repr=False)
    grad_bias: Tensor | None = field(init=False, repr=False)
    z_out: Tensor | None = field(default=None, repr=False)
    a_out: Tensor | None = field(default=None, repr=False)
    grad_a_out: Tensor | None = field(default=None, repr=False)
    rows_at_once: int = field(default=1, repr=False)

    def activate(self) -> Tensor:
        """Return a = σ(z)."""
        if self.activation is None:
            return self.z
        if self.a_out is None:
            a: Tensor = self.activation.forward(self.z, *self.constants)
            return a
        for z, a in zip(self.z.split(self.rows_at_once), self.a_out.split(self.rows_at_once), strict=True):
            a.copy_(self.activation.forward(z, *self.constants))
        return self.a_out

    def apply_activation_grad(self, grad_a: Tensor) -> Tensor:
        """Return δ = ∂C/∂a ⊙ σ'(z)."""
        if self.activation is None:
            return grad_a
        if self.a_out is None:
            return self.activation.delta(grad_a, self.saved, *self.constants)
        for delta, saved in zip(grad_a.split(self.rows_at_once), self.saved.split(self.rows_at_once), strict=True):
            delta.copy_(self.activation.delta(delta, saved, *self.constants))
        return grad_a

    @property
    def saved(self) -> Tensor:
        """The tensor that σ' is computed from: a or z."""
        return self.a if self.activation is not None and self.activation.from_output else self.z

    def derivative(self) -> Tensor | None:
        """Return σ'(z), [N, n], 1 without an activation; None where it is a matrix, as for softmax."""
        if self.activation is None:
            return torch.ones_like(self.z)
        if not issubclass(self.activation, Elementwise):
            return None
        return self.activation.derivative(self.saved, *self.constants)


def feed_forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Compute z^l and a^l for l = 1 … L, and return a^L."""
    a = x
    for layer in layers:
        layer.a_prev = a
        layer.z = linear_forward(a, layer.weight, layer.bias, layer.z_out)  # FWD: z^l = a^{l−1} (W^l)ᵀ + b^l
        layer.a = a = layer.activate()  # FWD: a^l = σ(z^l)
    return a


def back_propagate(layers: Sequence[Layer], grad_a: Tensor, use_gradient: UseGradient) -> None:
    """Compute δ^l for l = L … 1, and pass on each gradient as soon as FWD's weights are no longer needed.

    Args:
        layers: From the lowest trained layer to the last; no δ is computed below it.
        grad_a: ∂C/∂a^L, [N, n_L]: the left factor of BP1.
        use_gradient: Called with each trained parameter and its gradient, to store it or to update the parameter.
    """
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        layer.delta = delta = layer.apply_activation_grad(grad_a)  # BP1, BP2: δ^l = ∂C/∂a^l ⊙ σ'(z^l)
        if number > 0:
            grad_a = linear_grad_input(delta, layer.weight, layers[number - 1].grad_a_out)  # BP2, left factor: δ^l W^l
        if layer.learns[1] and layer.bias is not None:
            use_gradient(layer.bias, partial(linear_grad_bias, delta))  # BP3, SGD: b^l ← b^l − η Σ_n δ^l_n
        if layer.learns[0]:
            # BP4, SGD: W^l ← W^l − η (δ^l)ᵀ a^{l−1}
            use_gradient(layer.weight, partial(linear_grad_weight, delta, layer.a_prev))


def store_gradients(layers: Sequence[Layer], grad_a: Tensor) -> None:
    """Compute δ^l and store each gradient in its layer; a frozen parameter gets 0."""
    gradients: dict[Tensor, Tensor] = {}
    back_propagate(layers, grad_a, lambda param, gradient: gradients.update({param: gradient()}))
    for layer in layers:
        layer.grad_weight = gradients.get(layer.weight, torch.zeros_like(layer.weight))
        layer.grad_bias = None if layer.bias is None else gradients.get(layer.bias, torch.zeros_like(layer.bias))
