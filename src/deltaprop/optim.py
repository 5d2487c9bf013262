"""The optimizer of gradient descent, θ ← θ − η ∂C/∂θ: it holds the state; :mod:`deltaprop.core.sgd` the update."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deltaprop._torch_compat import without_compiler
from deltaprop.core.linear import add_scaled
from deltaprop.core.sgd import SGDOptions, sgd_step


def sgd_update(
    param: Tensor, grad: Tensor, velocity: Tensor | None = None, *, lr: float, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the new parameter θ − η g and the new velocity (None without momentum); nothing is written in place.

    Args:
        param: θ, any shape.
        grad: ∂C/∂θ, shape of θ.
        velocity: v of the step before, shape of θ; None at the first.
        lr: The learning rate η.
        **options: ``momentum`` μ, ``dampening`` τ, ``weight_decay`` λ (the ∂/∂θ of a penalty ½ λ ‖θ‖²), ``nesterov``,
            ``maximize``.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 1, equations 20 and 21. Momentum: Sutskever et al.,
        ICML 2013, as PyTorch writes it: v is not multiplied by η.

    Example:
        >>> theta, _ = sgd_update(torch.tensor([1.0]), torch.tensor([0.5]), lr=0.1)
        >>> theta  # 1 − 0.1 · 0.5
        tensor([0.9500])
    """
    updated, chosen = param.clone(), SGDOptions(lr, **options)
    first_step = velocity is None
    if not chosen.momentum:
        carried, new = velocity, None
    else:
        carried = new = torch.zeros_like(param) if velocity is None else velocity.clone()
    sgd_step(updated, new, partial(add_scaled, grad), chosen, first_step)
    return updated, carried


class SGD(Optimizer):
    """Stochastic gradient descent by :func:`~deltaprop.core.sgd.sgd_step`.

    Without weight decay and Nesterov's momentum it is ``torch.optim.SGD`` bit for bit on CPU. With them the same sums
    are taken in another order, and a step agrees with PyTorch's to 4 units in the last place of the sizes of its terms,
    |θ| + η (|g| + λ|θ| + μ|v|).

    It takes parameter groups and works with ``torch.optim.lr_scheduler``; its state_dict loads into
    ``torch.optim.SGD`` and back.

    Args:
        params: Parameters, or groups of them as dictionaries.
        lr: The learning rate η ≥ 0.
        momentum: μ ≥ 0.
        dampening: τ.
        weight_decay: λ ≥ 0, added as λ θ to every gradient of the group.
        nesterov: Nesterov's momentum; needs μ > 0 and τ = 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: If one of them is out of its range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SGD([weight], lr=0.1)
        >>> (2 * weight).sum().backward()
        >>> optimizer.step()
        >>> weight.data  # 1 − 0.1 · 2
        tensor([0.8000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        PyTorch wraps this method to exclude it from compilation, and the wrapper imports the compiler, which takes a
        second. Where the compiler is not imported the wrapper is not needed.

        Args:
            param_group: The parameters as ``"params"``, and the group's own options.
        """
        if "torch._dynamo" in sys.modules:
            super().add_param_group(param_group)
        else:
            without_compiler(Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, without the profiler entry of PyTorch's, which takes longer than the reset.

        Args:
            set_to_none: Set gradients to None; with False, to 0.
        """
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # its stub has two
        """Update every parameter that has a gradient.

        Args:
            closure: Recomputes the loss and its gradients; its loss is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = SGDOptions.of(group)
            for param in group["params"]:
                if param.grad is None:
                    continue
                velocity, first_step = None, False
                if options.momentum:
                    velocity = self.state[param].get("momentum_buffer")
                    first_step = velocity is None
                    if velocity is None:
                        velocity = self.state[param]["momentum_buffer"] = torch.zeros_like(param)
                sgd_step(param, velocity, partial(add_scaled, param.grad), options, first_step)
        return loss
