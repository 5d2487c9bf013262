"""What each layer learns by: the optimizer's options, made into the update that follows a product.

They are read at every step, or once for the steps of a block where nobody is asked in between.

Making an update costs as much as many steps. So it is made once for the layers of a stage, and anew when an option has
changed, as by a scheduler, or when others have put new velocities in place of the old, as ``load_state_dict`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaprop.errors import UserError
from deltaprop.explicit.batches import Stage
from deltaprop.explicit.layers import Layer, PackedLayer
from deltaprop.explicit.updates import Rates, decay, read_rates, update


class Teacher:
    """Teaches the layers of stages how to learn.

    Args:
        optimizer: Its param_groups hold the options, its state the velocities.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._learning: Sequence[Tensor] = ()
        self.lesson = 0  # counts what every stage must be taught anew for
        self._rates: list[tuple[Any, ...]] = []  # the options of each group
        self._velocity_ids: list[int] = []

    def begin(self, learning: Sequence[Tensor]) -> None:
        """Teach these parameters from now on, and every stage anew."""
        self._learning = learning
        self.lesson += 1

    def heed_rates(self, stage: Stage) -> None:
        """Let every layer of a stage learn by the options that the optimizer has now."""
        rates = [_numbers(read_rates(group)) for group in self.optimizer.param_groups]
        if rates != self._rates:
            self._rates = rates
            self.lesson += 1
        if stage.lesson == self.lesson:
            return
        group_of = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        with torch.inference_mode(False), torch.no_grad():
            fresh = [self._teach(layer, group_of) for layer in stage.learning]
        self._velocity_ids = self._ids_of_velocities()
        # The first velocity is the gradient; from the second step on it is carried.
        stage.lesson = None if any(fresh) else self.lesson

    def heed_velocities(self) -> None:
        """See to momentum buffers that others have put in place of the old ones."""
        if self._ids_of_velocities() != self._velocity_ids:
            self.lesson += 1

    def _ids_of_velocities(self) -> list[int]:
        state = self.optimizer.state
        return [id(state[p].get("momentum_buffer")) for p in self._learning if p in state] if state else []

    def _teach(self, layer: Layer, group_of: dict[Tensor, dict[str, Any]]) -> bool:
        """Set what a layer learns by; return whether a velocity of its is still to be born."""
        plan = layer.plan
        learning = [p for p, learns in zip((plan.linear.weight, plan.linear.bias), plan.learns, strict=True) if learns]
        rates = [Rates(*_numbers(read_rates(group_of[p]))) for p in learning]
        if any(rate.nesterov and rate.dampening for rate in rates):
            raise UserError("nesterov needs a dampening of 0")
        velocities: list[Tensor | None] = []
        fresh: list[bool] = []
        for param, rate in zip(learning, rates, strict=True):
            state = self.optimizer.state[param] if rate.momentum else {}
            fresh.append(bool(rate.momentum) and state.get("momentum_buffer") is None)
            if fresh[-1]:
                state["momentum_buffer"] = torch.zeros_like(param)
            velocities.append(state.get("momentum_buffer"))
        if isinstance(layer, PackedLayer):
            layer.descend = _learn_packed(layer, rates, velocities, fresh)
        else:
            rules = []
            for p, v, rate, new in zip(learning, velocities, rates, fresh, strict=True):
                theta = p.detach()
                add = layer.add_bias_gradient if p is plan.linear.bias else layer.add_weight_gradient
                rules.append(update(theta, v, add, rate, decay(theta, v, rate), new))
            layer.descend = _all(rules)
        return any(fresh)


def _learn_packed(
    layer: PackedLayer, rates: list[Rates], public: list[Tensor | None], fresh: list[bool]
) -> Callable[[], object]:
    """Return what a packed layer learns by: one product where W and b learn alike."""
    packed = layer.packed
    packed.carry(tuple(public))
    parts = (packed.weight, packed.bias)
    velocities = [v if there is not None else None for v, there in zip(packed.velocity_parts(), public, strict=True)]
    decays = [decay(*part) for part in zip(parts, velocities, rates, strict=True)]
    first, second = (rate._replace(weight_decay=0.0) for rate in rates)
    if first == second and fresh[0] == fresh[1]:
        together = decays[0] + decays[1]
        if together and rates[0] == rates[1]:
            together = decay(packed.matrix, packed.velocity, rates[0])
        return update(packed.matrix, packed.velocity, layer.add_weight_gradient, first, together, fresh[0])
    # W and b learn differently: the gradient is stored after all, and each takes its part.
    grad = torch.zeros_like(packed.matrix)
    rules = (
        update(theta, v, _adder(part), rate, of, new)
        for theta, v, part, rate, of, new in zip(
            parts, velocities, packed.parts(grad), rates, decays, fresh, strict=True
        )
    )
    return _all([lambda: layer.add_weight_gradient(grad, 0.0, 1.0), *rules])


def _numbers(rates: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the options of a group with η as a number: a tensor would be the same object whatever it holds."""
    lr, *others = rates
    return (lr.item(), *others) if isinstance(lr, Tensor) else rates


def _adder(gradient: Tensor) -> Callable[[Tensor, float, float], object]:
    """Return what adds a gradient that is stored."""
    return lambda target, beta, alpha: target.mul_(beta).add_(gradient, alpha=alpha)


def _all(parts: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Return what does one part after the other."""
    parts = list(parts)
    if not parts:
        return lambda: None
    if len(parts) == 1:
        return parts[0]

    def every() -> None:
        for part in parts:
            part()

    return every
