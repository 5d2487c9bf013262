"""Each parameter's SGD update, with the options and momentum buffers of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from deltaprop.core.linear import add_scaled
from deltaprop.core.sgd import SGDOptions, sgd_step
from deltaprop.errors import UserError


class Updater:
    """Updates each parameter as soon as :func:`~deltaprop.core.recursion.back_propagate` has its gradient.

    Without Nesterov a gradient is not stored: its product (BP4) is added directly to θ or v.

    Args:
        optimizer: Its param_groups hold the options, its state the momentum buffers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._options: list[SGDOptions] = []
        self._of: dict[Tensor, SGDOptions] = {}
        self._version: tuple[object, ...] | None = None

    @property
    def version(self) -> tuple[object, ...]:
        """Equal as long as the update is the same: same options, momentum buffers in the same memory."""
        if self._version is None:
            states = [self.optimizer.state.get(p, {}) for p in self._of]
            buffers = [state.get("momentum_buffer") for state in states]
            self._version = (*self._options, *[None if v is None else v.data_ptr() for v in buffers])
        return self._version

    def refresh(self) -> None:
        """Read the current options.

        Raises:
            UserError: If they contradict each other.
        """
        groups = self.optimizer.param_groups
        options = [SGDOptions.of(group) for group in groups]
        if any(group.nesterov and group.dampening for group in options):
            raise UserError("nesterov needs a dampening of 0")
        self._options = options
        self._of = {p: of for group, of in zip(groups, options, strict=True) for p in group["params"]}
        self._version = None

    def options(self, param: Tensor) -> SGDOptions:
        """Return the options of a parameter."""
        return self._of[param]

    def velocity(self, param: Tensor) -> tuple[Tensor | None, bool]:
        """Return the momentum buffer of a parameter, None without momentum, and whether it is new."""
        if not self._of[param].momentum:
            return None, False
        state = self.optimizer.state[param]
        first_step = state.get("momentum_buffer") is None
        if first_step:
            self._version = None
            with torch.inference_mode(False):  # else it could not be updated outside of inference mode
                state["momentum_buffer"] = torch.zeros_like(param)
        velocity: Tensor = state["momentum_buffer"]
        return velocity, first_step

    def __call__(self, param: Tensor, gradient: Callable[..., Tensor]) -> None:
        """Update a parameter; ``gradient(into, beta, alpha)`` adds ∂C/∂θ to a tensor."""
        options = self._of[param]
        velocity, first_step = self.velocity(param)
        if options.nesterov and velocity is not None:  # which adds it twice
            gradient = partial(add_scaled, gradient())
        sgd_step(param, velocity, gradient, options, first_step)
