"""The explicit driver: an MLP trained without a tape, in place on its Parameters.

What it takes is checked here, memory is laid out, and Parameters are kept true for everyone who looks. The step itself
is in ``recursion.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop.errors import UserError
from deltaprop.explicit.batches import Stage, batches_per_block
from deltaprop.explicit.layers import Buffers, Layer, PackedLayer, Plan
from deltaprop.explicit.losses import ResidualLoss, Rule
from deltaprop.explicit.packing import Packed, pays, stored_by_input
from deltaprop.explicit.reading import ELSEWHERE, check_parameters, hook_tables, read_layers
from deltaprop.explicit.recursion import back_propagate, feed_forward
from deltaprop.explicit.updates import Rates, decay, read_rates, update
from deltaprop.optim import SGD

__all__ = ["ExplicitTrainer"]


class ExplicitTrainer:
    """Trains an MLP by the δ recursion, with no tape: the same steps as by autograd, only faster.

    It works in place on the model's own Parameters and on the optimizer's momentum buffers, and leaves ``.grad`` alone:
    with plain SGD no ∂C/∂W is ever stored. Between two calls Parameters are up to date, and so in an ``on_step`` that
    reads them; they may be read, saved, and written to in place. Learning rate and the other options are read from
    ``optimizer.param_groups`` at every step, so schedulers work as always.

    Args:
        model: An :class:`~deltaprop.MLP`, or an ``nn.Sequential`` of linear layers, each with one activation or none
            after it (ours or PyTorch's).
        loss: A function of :mod:`deltaprop.functional`, its name, or a ``functools.partial`` of one with options.
        optimizer: An :class:`~deltaprop.SGD` or ``torch.optim.SGD`` over the model's parameters.

    Raises:
        UserError: If one of them is what it cannot train: a module of another kind, hooks, weights that layers share,
            an output activation that the loss already contains, another optimizer. It says so at once.

    Example:
        >>> from deltaprop import MLP
        >>> model = MLP([4, 8, 3])
        >>> trainer = ExplicitTrainer(model, "cross_entropy", SGD(model.parameters(), lr=0.1))
        >>> x, y = torch.randn(100, 4), torch.randint(3, (100,))
        >>> mean = trainer.epoch(x, y, batch_size=16, generator=torch.Generator().manual_seed(0))
    """

    def __init__(self, model: nn.Module, loss: str | Callable[..., Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.loss = Rule(loss)
        self.optimizer = optimizer
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        if type(optimizer) not in (SGD, torch.optim.SGD) or any(hooks):
            raise UserError(
                f"the explicit driver fuses SGD itself into its products, got {type(optimizer).__name__}"
                f"{' with step hooks' if any(hooks) else ''}: {ELSEWHERE}"
            )
        self._stages: dict[tuple[Any, ...], Stage] = {}
        self._packed: list[Packed] = []
        self._behind: list[Packed] = []  # whose Parameters are not up to date
        self._velocity_ids: list[int] = []
        self._rates: list[tuple[Any, ...]] = []  # the options of each group
        self._lesson = 0  # counts what every stage must be taught anew for: other options, other velocities
        self._running = False  # within an epoch
        self._looking: tuple[Any, Stage] | None = None
        self._laid_out: tuple[Any, ...] = ()
        self._lay_out(None)

    # --- what users call ---

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step on a batch.

        Args:
            x: Inputs, [N, n_0].
            y: Targets, as the loss takes them.

        Returns:
            C before the step, a scalar on the device.

        Raises:
            UserError: If x or y do not fit the model.
        """
        if self._behind:
            raise UserError("a step within an epoch needs on_step_reads=True: parameters are not up to date")
        rows = _rows(x, y)
        self._enter(rows)
        y = self._checked(x, y, rows)
        stage = self._stage(rows, 0, y, packs=False)
        with torch.inference_mode():
            stage.take(x, y)
            self._heed_rates(stage)
            stage.train()
        return stage.loss.value()

    def epoch(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        order: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: int = 0,
        on_step: Callable[[int], object] | None = None,
        on_step_reads: bool = True,
        units: Tensor | None = None,
    ) -> Tensor:
        """Take one pass over the rows.

        Args:
            x: Inputs, [M, n_0].
            y: Targets, [M, …].
            batch_size: Rows a step; the last step takes what is left.
            order: Indices of the rows, in order. With neither order nor generator, rows as they come.
            generator: Draws an order.
            start: The first batch, counted from 0: what is left of an epoch that was broken off after so many steps.
            on_step: Called after each step with the number of steps done in this epoch, those before ``start``
                included. If it returns True, the epoch ends there.
            on_step_reads: Whether ``on_step`` may look at parameters and momentum buffers, or change them. With False
                steps are as fast as without it: it may not change them, and they are behind until it calls
                :meth:`sync`; and it runs in inference mode. The two differ in rounding (``packing.py``).
            units: What one unit of the targets is in the units that the mean loss is to be told in, [n_L] or a scalar;
                for losses of a − y.

        Returns:
            The mean of C over the steps taken, each sample counting once, a scalar on the device; NaN if none was.

        Raises:
            UserError: If something does not fit; nothing has been changed then.
        """
        rows = _rows(x, y)
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        if self._running:
            raise UserError("an epoch within an epoch of the same trainer would write over its batches")
        self._enter(min(batch_size, rows))
        y = self._checked(x, y, rows)
        if units is not None and not issubclass(self.loss.kind(y), ResidualLoss):
            raise UserError(f"units are for losses of a − y, got {self.loss.name}")
        self.loss.kind(y).check_values(self.loss.options, y, self._plans[-1].outputs)
        if order is None and generator is not None:
            order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
        elif order is not None:
            _check_order(order, x)
        rows = len(x) if order is None else len(order)
        steps = math.ceil(rows / batch_size)
        if not 0 <= start <= steps:
            raise UserError(f"start must be a step of the epoch, 0 to {steps}, got {start}")
        packs = on_step is None or not on_step_reads
        self._behind, self._running = self._packed if packs else [], True
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        done, seen = start, 0
        with torch.inference_mode():
            for packed in self._behind:
                packed.read()
            try:
                while done < steps:
                    first = done * batch_size
                    here = min(batch_size, rows - first)
                    stage = self._stage(here, batches_per_block(x, batch_size) if here == batch_size else 1, y, packs)
                    batches = min(stage.batches, (rows - first) // here)
                    block = slice(first, first + batches * here)
                    if order is None:
                        stage.load(x[block], y[block], batches * here)
                    else:
                        stage.load(x, y, batches * here, order[block])
                    ended, taken = self._block(stage, batches, done, on_step, on_step_reads)
                    total += stage.loss.values(batches, units)[:taken].sum() * here
                    done, seen = done + taken, seen + taken * here
                    if ended:
                        break
            finally:
                self.sync()
                self._behind, self._running = [], False
        return total / seen if seen else total + math.nan

    def _block(
        self,
        stage: Stage,
        batches: int,
        done: int,
        on_step: Callable[[int], object] | None,
        on_step_reads: bool,
    ) -> tuple[bool, int]:
        """Take the steps of a block; return whether ``on_step`` ended the epoch, and how many steps were taken."""
        for batch in range(batches):
            self._heed_rates(stage)
            stage.step(batch)
            if on_step is None:
                continue
            if on_step_reads:
                with torch.inference_mode(False):
                    ended = on_step(done + batch + 1)
                self._heed_velocities()
            else:
                ended = on_step(done + batch + 1)
            if ended is True:
                return True, batch + 1
        return False, batches

    def sync(self) -> None:
        """Bring parameters and momentum buffers up to date, in an ``on_step`` that reads them only now and then."""
        for packed in self._behind:
            packed.write()

    def look(self, x: Tensor, y: Tensor) -> Sequence[Layer]:
        """Feed a batch forward and back and learn nothing from it.

        Returns:
            The layers from the first, with a_prev, a and δ in their buffers; the next look writes over them.
        """
        rows = _rows(x, y)
        self._enter(0)  # it has buffers of its own
        y = self._checked(x, y, rows)
        key = (rows, self.loss.kind(y))
        with torch.no_grad():
            if self._looking is None or self._looking[0] != key:
                buffers = [Buffers(plan, rows, wide=False, differs=True) for plan in self._plans]
                self._looking = key, self._make_stage(buffers, 0, rows, 0, y, packs=False)
            stage = self._looking[1]
            stage.take(x, y)
            feed_forward(stage.layers)
            back_propagate(stage.layers, stage.loss)
        return stage.layers

    # --- what a step needs ---

    def _heed_rates(self, stage: Stage) -> None:
        """Let every layer learn by the options that the optimizer has now."""
        rates = [_numbers(read_rates(group)) for group in self.optimizer.param_groups]
        if rates != self._rates:
            self._rates = rates
            self._lesson += 1
        if stage.lesson == self._lesson:
            return
        self._group_of = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        with torch.inference_mode(False), torch.no_grad():
            fresh = [self._teach(layer) for layer in stage.learning]
        self._velocity_ids = self._ids_of_velocities()
        # The first velocity is the gradient; from the second step on it is carried.
        stage.lesson = None if any(fresh) else self._lesson

    def _teach(self, layer: Layer) -> bool:
        """Set what a layer learns by; return whether a velocity of its is still to be born."""
        plan = layer.plan
        learning = [p for p, learns in zip((plan.linear.weight, plan.linear.bias), plan.learns, strict=True) if learns]
        rates = [Rates(*_numbers(read_rates(self._group_of[p]))) for p in learning]
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
            layer.descend = self._learn_packed(layer, rates, velocities, fresh)
        else:
            adders = [
                layer.add_weight_gradient if p is plan.linear.weight else layer.add_bias_gradient for p in learning
            ]
            layer.descend = _all(
                update(p.detach(), v, add, rate, decay(p.detach(), v, rate), new)
                for p, v, add, rate, new in zip(learning, velocities, adders, rates, fresh, strict=True)
            )
        return any(fresh)

    def _learn_packed(
        self, layer: PackedLayer, rates: list[Rates], public: list[Tensor | None], fresh: list[bool]
    ) -> Callable[[], object]:
        packed = layer.packed
        packed.carry(tuple(public))
        parts = (packed.weight, packed.bias)
        velocities = [
            v if there is not None else None for v, there in zip(packed.velocity_parts(), public, strict=True)
        ]
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

    def _stage(self, rows: int, batches: int, y: Tensor, packs: bool) -> Stage:
        kind = self.loss.kind(y)
        key = (rows, batches, kind, packs)
        stage = self._stages.get(key)
        if stage is None:
            if len(self._stages) >= MOST_STAGES:
                del self._stages[next(iter(self._stages))]
            with torch.inference_mode(False), torch.no_grad():  # inference tensors could not be written to outside
                stage = self._make_stage(self._buffers, self._lowest, rows, batches, y, packs)
            self._stages[key] = stage
        return stage

    def _make_stage(
        self, buffers: Sequence[Buffers], lowest: int, rows: int, batches: int, y: Tensor, packs: bool
    ) -> Stage:
        last = self._plans[-1]
        loss = self.loss.kind(y)(self.loss.options, max(batches, 1), rows, last.outputs, last.linear.weight)
        return Stage(self._plans, buffers, loss, lowest, rows, batches, packs)

    # --- what is there before a step: checked, and laid out anew when something has changed ---

    def _checked(self, x: Tensor, y: Tensor, rows: int) -> Tensor:
        """Return targets as a block holds them.

        Raises:
            UserError: If x or y do not fit the model.
        """
        like, last = self._params[0], self._plans[-1]
        if x.dim() != 2 or x.shape[1] != like.shape[1] or rows == 0:
            raise UserError(f"inputs must be [N, {like.shape[1]}] with N at least 1, got {list(x.shape)}")
        if x.dtype != like.dtype:
            raise UserError(f"inputs must have the model's dtype, {like.dtype}, got {x.dtype}")
        if x.device != like.device or y.device != like.device:
            raise UserError(
                f"inputs and targets must be on {like.device} with the model, got {x.device} and {y.device}"
            )
        return self.loss.kind(y).check(self.loss.options, y, rows, last.outputs, like.dtype)

    def _enter(self, rows: int) -> None:
        """Make sure that what was laid out still fits, and take over what others have written."""
        if self._state_of_things() != self._laid_out or rows > self._capacity:
            self._lay_out(rows)
        self._heed_velocities()
        # What a scheduler looks at to warn of a `step` that came before the optimizer's.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _heed_velocities(self) -> None:
        """See to momentum buffers that others have put in place of the old ones, as ``load_state_dict`` does."""
        if self._ids_of_velocities() != self._velocity_ids:
            self._lesson += 1

    def _ids_of_velocities(self) -> list[int]:
        state = self.optimizer.state
        return [id(state[p].get("momentum_buffer")) for p in self._learning if p in state]

    def _state_of_things(self) -> tuple[Any, ...]:
        """Return what a layout depends on, to see whether it has changed."""
        return (
            [tuple(modules.values()) for modules in self._children],
            [id(p) for parameters in self._dictionaries for p in parameters.values()],
            [p.data_ptr() for p in self._params],
            [p.requires_grad for p in self._params],
            [getattr(sigma, name) for sigma in self._sigmas for name in sigma.constants],
            sum(map(len, self._hooks)),
            [bool(p._backward_hooks or p._post_accumulate_grad_hooks) for p in self._params],
            [[id(p) for p in group["params"]] for group in self.optimizer.param_groups],
        )

    def _lay_out(self, rows: int | None) -> None:
        """Read the model and make memory for batches of so many rows; None for none yet."""
        self._laid_out = ()  # until all of it has gone well
        found, self._children = read_layers(self.model)
        self._hooks = hook_tables(self.model.modules())
        self._dictionaries = [linear._parameters for linear, _ in found]
        self._sigmas = [sigma for _, sigma in found if sigma is not None]
        self._params = check_parameters([linear for linear, _ in found])
        given = {p for group in self.optimizer.param_groups for p in group["params"]}
        self._learning = [p for p in self._params if p.requires_grad and p in given]
        if not self._learning:
            raise UserError("nothing to learn: no parameter both requires a gradient and is in the optimizer")
        last = found[-1][1]
        if last is not None and type(last).__name__ in self.loss.contains:
            raise UserError(f"{self.loss.name} already contains {type(last).__name__}: leave it out of the model")
        learning = set(self._learning)
        self._plans = [
            Plan(linear, sigma, (linear.weight in learning, linear.bias in learning)) for linear, sigma in found
        ]
        self._lowest = next(i for i, plan in enumerate(self._plans) if any(plan.learns))
        self._stages, self._packed, self._looking = {}, [], None
        self._capacity = rows or 0
        if rows is not None:
            with torch.inference_mode(False), torch.no_grad():
                self._make_memory(rows)
        self._laid_out = self._state_of_things()

    def _make_memory(self, rows: int) -> None:
        for i, plan in enumerate(self._plans):
            weight, bias = plan.linear.weight, plan.linear.bias
            if all(plan.learns) and pays(weight, bias):
                by_input = stored_by_input(rows, weight.shape[1], weight.shape[0], passes_back=i > self._lowest)
                plan.packed = Packed(plan.linear, by_input)
                self._packed.append(plan.packed)
        above = [plan.packed is not None for plan in self._plans[1:]] + [False]
        self._buffers = [
            Buffers(plan, rows, wide, i >= self._lowest)
            for i, (plan, wide) in enumerate(zip(self._plans, above, strict=True))
        ]


MOST_STAGES = 8  # a full batch, a last one, and a few sizes more, before memory counts


def _numbers(rates: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the options of a group with η as a number: a tensor would be the same object whatever it holds."""
    lr, *others = rates
    return (lr.item(), *others) if isinstance(lr, Tensor) else rates


def _rows(x: Tensor, y: Tensor) -> int:
    """Return how many rows there are.

    Raises:
        UserError: If inputs and targets are no tensors.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"inputs and targets must be tensors, got {type(x).__name__} and {type(y).__name__}")
    return x.shape[0] if x.dim() else 0


def _check_order(order: Tensor, x: Tensor) -> None:
    """Refuse an order that is not one of indices of rows.

    Raises:
        UserError: If it is not.
    """
    if not isinstance(order, Tensor):
        raise UserError(f"order must be a tensor of row indices, got {type(order).__name__}")
    if order.dim() != 1 or order.dtype not in (torch.int64, torch.int32):
        raise UserError(f"order must be row indices [M] of int64, got {order.dtype} {list(order.shape)}")
    if order.device != x.device:
        raise UserError(f"order must be on {x.device} with the inputs, got {order.device}")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise UserError(f"order must hold rows 0 to {len(x) - 1}, got {int(order.min())} to {int(order.max())}")


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
