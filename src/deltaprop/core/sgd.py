"""Gradient descent: θ ← θ − η ∂C/∂θ, with momentum and weight decay.

::

    g = s ∂C/∂θ + λ θ         s = −1 to maximize, else 1
    v ← μ v + (1 − τ) g       v = g at the first step
    θ ← θ − η d               d = g without momentum, v with it, g + μ v by Nesterov

The update asks for the gradient as ``add_gradient(into, beta, alpha)``, which does into ← β into + α ∂C/∂θ. So a
caller with a stored ∂C/∂θ adds that, and a caller with its factors adds their product (BP4) without storing it.

Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equations 20 and 21. Momentum: Sutskever et al.,
ICML 2013, as PyTorch writes it: v is not multiplied by η.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

AddGradient = Callable[[Tensor, float, float], object]
"""``add_gradient(into, beta, alpha)``: into ← β into + α ∂C/∂θ, in place."""


class SGDOptions(NamedTuple):
    """η, μ, τ, λ and the two switches, named as in ``torch.optim.SGD``."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> SGDOptions:
        """Return the options of a parameter group; a learning rate given as a tensor is converted to a number."""
        options = cls(*[group[name] for name in cls._fields])
        return options._replace(lr=options.lr.item()) if isinstance(options.lr, Tensor) else options


def sgd_step(
    param: Tensor, velocity: Tensor | None, add_gradient: AddGradient, options: SGDOptions, first_step: bool = False
) -> None:
    """Update θ, and v where there is momentum, in place.

    Args:
        param: θ, any shape.
        velocity: v, shape of θ; None without momentum.
        add_gradient: Adds a multiple of ∂C/∂θ to a tensor of θ's shape.
        options: Options of θ's parameter group.
        first_step: True on the first momentum step, where v = g.
    """
    lr, momentum, dampening, weight_decay, nesterov, maximize = options
    sign = -1.0 if maximize else 1.0
    if velocity is not None:
        carried, share = (0.0, 1.0) if first_step else (momentum, 1 - dampening)
        add_gradient(velocity, carried, share * sign)  # v ← μ v + (1 − τ) g
        if weight_decay:
            velocity.add_(param, alpha=share * weight_decay)  # the λ θ in g
    if velocity is None or nesterov:
        add_gradient(param, 1 - lr * weight_decay, -lr * sign)  # SGD: θ ← θ − η g, g = s ∂C/∂θ + λ θ
    if velocity is not None:
        param.add_(velocity, alpha=-lr * momentum if nesterov else -lr)  # θ ← θ − η v;  − ημ v by Nesterov
