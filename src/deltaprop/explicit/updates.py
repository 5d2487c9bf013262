"""SGD fused into the product that makes the gradient: ∂C/∂W is added to what it changes, and never stored.

``optim.sgd_direction`` is the readable rule and stays the reference (``tests/explicit/test_updates.py``)::

    g = s ∂C/∂θ + λ θ         s = −1 to maximize, else 1
    v ← μ v + (1 − τ) g       v = g at the first step
    θ ← θ − η d               d = g without momentum, v with it, g + μ v by Nesterov

A product of matrices can be added to what is there, ``C ← β C + α A B``, at no cost. So with G = ∂C/∂θ = A B:

- plain:     θ ← (1 − ηλ) θ − ηs G: one product, and nothing else;
- momentum:  v ← μ v + (1 − τ) s G, the same way; v += (1 − τ) λ θ; θ −= η v;
- Nesterov:  g is not stored, but it is v' − μ v. With θ₁ = θ + ημ v taken first, v' = μ (1 − ηλ) v + s G + λ θ₁ and
  θ' = θ₁ − η (1 + μ) v'.

η, μ, … are host numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

AddGradient = Callable[[Tensor, float, float], object]
"""``add_gradient(target, beta, alpha)``: target ← β target + α ∂C/∂θ, in place."""


class Rates(NamedTuple):
    """The options of a parameter group, as the optimizer has them now."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


read_rates: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*Rates._fields)


class Decay(NamedTuple):
    """A part of θ that decays: a packed matrix holds weights and biases, and they may decay differently."""

    theta: Tensor
    velocity: Tensor | None
    weight_decay: float


def decay(theta: Tensor, velocity: Tensor | None, rates: Rates) -> list[Decay]:
    """Return θ as a part that decays, if it does."""
    return [Decay(theta, velocity, rates.weight_decay)] if rates.weight_decay else []


def update(
    theta: Tensor, velocity: Tensor | None, add_gradient: AddGradient, rates: Rates, decays: list[Decay], fresh: bool
) -> Callable[[], object]:
    """Return what takes one step of SGD on θ, once δ and a_prev are in their buffers.

    Args:
        theta: θ, in place.
        velocity: v, of θ's shape, in place; None without momentum.
        add_gradient: Adds a multiple of ∂C/∂θ to a tensor of θ's shape.
        rates: Of θ; its ``weight_decay`` is not read.
        decays: The parts of θ with a weight decay λ > 0.
        fresh: Whether v is still to be born, as v = g.
    """
    lr, mu, tau = rates.lr, rates.momentum, rates.dampening
    sign = -1.0 if rates.maximize else 1.0
    if velocity is None:
        if len(decays) == 1 and decays[0].theta is theta:
            beta = 1 - lr * decays[0].weight_decay
            return lambda: add_gradient(theta, beta, -lr * sign)  # BP4, SGD: θ ← (1 − ηλ) θ − η ∂C/∂θ
        if not decays:
            return lambda: add_gradient(theta, 1.0, -lr * sign)  # BP4, SGD: θ ← θ − η ∂C/∂θ

        def plain() -> None:
            for part, _, weight_decay in decays:
                part.mul_(1 - lr * weight_decay)
            add_gradient(theta, 1.0, -lr * sign)

        return plain
    if rates.nesterov and not fresh:

        def nesterov() -> None:
            theta.add_(velocity, alpha=lr * mu)
            for _, v, weight_decay in decays:
                v.mul_(1 - lr * weight_decay)  # type: ignore[union-attr]  # v is there with momentum
            add_gradient(velocity, mu, sign)
            for part, v, weight_decay in decays:
                v.add_(part, alpha=weight_decay)  # type: ignore[union-attr]  # v is there with momentum
            theta.add_(velocity, alpha=-lr * (1 + mu))

        return nesterov
    kept = 1.0 if fresh else 1 - tau
    carried = 0.0 if fresh else mu
    stride = -lr * (1 + mu) if rates.nesterov else -lr  # the first v is g, so g + μ v = (1 + μ) v

    def momentum() -> None:
        add_gradient(velocity, carried, kept * sign)  # v ← μ v + (1 − τ) ∂C/∂θ
        for part, v, weight_decay in decays:
            v.add_(part, alpha=kept * weight_decay)  # type: ignore[union-attr]  # v is there with momentum
        theta.add_(velocity, alpha=stride)  # SGD: θ ← θ − η v

    return momentum
