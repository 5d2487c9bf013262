"""What a trainer has read of a model, and the memory that it trains in.

A layout is never changed. When the model has, or a batch is larger than its memory, the trainer makes a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop import ops
from deltaprop.errors import UserError
from deltaprop.explicit import mixed
from deltaprop.explicit.batches import Stage
from deltaprop.explicit.epilogue import EpilogueLayer, takes
from deltaprop.explicit.graph import Captured
from deltaprop.explicit.layers import Buffers, Layer, Plan
from deltaprop.explicit.losses import Loss, Rule
from deltaprop.explicit.packing import Packed, in_tiles, pays, stored_by_input
from deltaprop.explicit.precision import check_precision
from deltaprop.explicit.reading import check_optimizer, check_parameters, hook_tables, read_layers, step_hooks
from deltaprop.modules import GLOBAL_HOOKS

_flags = attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")
MOST_STAGES = 8  # a full batch, a last one, and a few sizes more, before memory counts


class Layout:
    """A model as it has been read, and memory for batches of up to so many rows.

    Args:
        model: What to read.
        rule: The loss.
        optimizer: Says which parameters learn.
        rows: The largest batch; 0 to make no memory yet.
        precision: Of the products, one of ``precision.PRECISIONS``.

    Attributes:
        params: The parameters, in order.
        learning: Those that learn.
        outputs: n_L.
        weights: Σ n_l n_{l−1}.
        packed: The packed matrices that stages with ``packs`` work on.
        checked: The stage of the last batch that was taken singly, by what it looked like: not to be checked again.

    Raises:
        UserError: If the model is not what the recursion takes, nothing learns, or the device lacks the precision.
    """

    def __init__(
        self, model: nn.Module, rule: Rule, optimizer: torch.optim.Optimizer, rows: int, precision: str
    ) -> None:
        self._rule, self._optimizer, self._capacity = rule, optimizer, rows
        check_optimizer(optimizer)
        found, self._children = read_layers(model)
        self._hooks = [*GLOBAL_HOOKS, *hook_tables(model.modules()), *step_hooks(optimizer)]
        self._dictionaries = [linear._parameters for linear, *_ in found]
        self._constants = [
            (module, name) for _, sigma, module in found if sigma is not None for name in sigma.constants
        ]
        self.params = check_parameters([linear for linear, *_ in found])
        self.device = self.params[0].device
        check_precision(precision, self.device, self.params[0].dtype)
        self._mixes = precision == "bf16" and self.device.type in mixed.DEVICES
        given = {p for group in optimizer.param_groups for p in group["params"]}
        self.learning = [p for p in self.params if p.requires_grad and p in given]
        if not self.learning:
            raise UserError("nothing to learn: no parameter both requires a gradient and is in the optimizer")
        last = found[-1][1]
        if last is not None and type(last).__name__ in rule.contains:
            raise UserError(f"{rule.name} already contains {type(last).__name__}: leave it out of the model")
        learning = set(self.learning)
        self._plans = [
            Plan(linear, sigma, (linear.weight in learning, linear.bias in learning)) for linear, sigma, _ in found
        ]
        self.outputs = self._plans[-1].outputs
        self.weights = sum(linear.weight.numel() for linear, *_ in found)
        self._by_neuron = rule.wants_by_neuron(self.outputs, self.device)
        self._lowest = next(i for i, plan in enumerate(self._plans) if any(plan.learns))
        self.packed: list[Packed] = []
        self._stages: dict[tuple[Any, ...], Stage] = {}
        self._captured: dict[Stage, Captured] = {}
        self.checked: dict[tuple[Any, ...], Stage] = {}
        self._looking: tuple[Any, Stage] | None = None
        if rows:
            with torch.inference_mode(False), torch.no_grad():
                self._pack(rows)
                self._buffers = self._make_buffers(rows, self._lowest, self.packed)
        self._state = self._state_of_things()

    def holds(self, rows: int) -> bool:
        """Return whether the model is still as it was read, and a batch of so many rows fits."""
        return rows <= self._capacity and self._state_of_things() == self._state

    def _state_of_things(self) -> tuple[Any, ...]:
        """Return all that a layout hangs on; it is asked for at every step taken singly, and so in little Python."""
        return (
            [tuple(modules.values()) for modules in self._children],
            [id(p) for parameters in self._dictionaries for p in parameters.values()],
            [(p.data_ptr(), p.shape, p.is_contiguous(), *_flags(p)) for p in self.params],
            [getattr(module, name) for module, name in self._constants],
            any(self._hooks),
            [list(map(id, group["params"])) for group in self._optimizer.param_groups],
        )

    def stage(self, rows: int, batches: int, kind: type[Loss], packs: bool) -> Stage:
        """Return the stage for batches of so many rows, B at a time; see :class:`Stage`."""
        key = (rows, batches, kind, packs)
        stage = self._stages.get(key)
        if stage is None:
            if len(self._stages) >= MOST_STAGES:
                self._captured.pop(self._stages.pop(next(iter(self._stages))), None)
            stage = self._stages[key] = self._make_stage(self._buffers, self._lowest, *key)
        return stage

    def looking_stage(self, rows: int, kind: type[Loss]) -> Stage:
        """Return a stage with buffers of its own, whose layers have a δ each and learn nothing."""
        if self._looking is None or self._looking[0] != (rows, kind):
            self._looking = (rows, kind), self._make_stage(self._make_buffers(rows, 0, []), 0, rows, 0, kind, False)
        return self._looking[1]

    def _make_stage(
        self, buffers: Sequence[Buffers], lowest: int, rows: int, batches: int, kind: type[Loss], packs: bool
    ) -> Stage:
        with torch.inference_mode(False), torch.no_grad():  # inference tensors could not be written to outside
            loss = kind(self._rule.options, max(batches, 1), rows, self.outputs, self.params[0])
            return Stage(self._plans, buffers, loss, lowest, rows, batches, packs, self._layer_of)

    def _layer_of(self, plan: Plan) -> type[Layer]:
        """Return the class of a layer that is not packed."""
        if self._mixes:
            return mixed.MixedLayer
        return EpilogueLayer if takes(plan) else Layer

    def captured(self, stage: Stage, x: Tensor, y: Tensor, units: Tensor | None, total: Tensor) -> Captured:
        """Return the step of a stage on rows of x and y, to be captured in a graph."""
        captured = self._captured.get(stage)
        if captured is None or not captured.fits(x, y, units, total):
            with torch.inference_mode(False), torch.no_grad():
                captured = self._captured[stage] = Captured(stage, x, y, units, total)
        return captured

    def _pack(self, rows: int) -> None:
        """Make packed matrices of the layers that it pays for."""
        if self._mixes:
            return
        packs = [all(plan.learns) and pays(plan.linear.weight, plan.linear.bias) for plan in self._plans]
        for i, below in enumerate(self._plans[:-1]):
            # A packed layer reads rows with a 1 between them; softmax would take new memory to write such.
            packs[i + 1] &= below.sigma is None or issubclass(below.sigma.op, ops.Elementwise)
        for i, plan in enumerate(self._plans):
            if packs[i]:
                n_out, n_in = plan.linear.weight.shape
                above_is_packed = any(packs[i + 1 : i + 2])
                width = in_tiles(n_out) if above_is_packed else n_out
                by_neuron = self._by_neuron and i == len(self._plans) - 1
                by_input = stored_by_input(rows, n_in, n_out, passes_back=i > self._lowest, width=width)
                plan.packed = Packed(plan.linear, by_input and not by_neuron, width)
                self.packed.append(plan.packed)

    def _make_buffers(self, rows: int, lowest: int, packed: Sequence[Packed]) -> list[Buffers]:
        """Return memory for the layers: δ from the lowest on, wide activations below those that are packed."""
        top = len(self._plans) - 1
        above = [plan.packed in packed for plan in self._plans[1:]] + [False]
        return [
            Buffers(plan, rows, wide, i >= lowest, self._by_neuron and i == top)
            for i, (plan, wide) in enumerate(zip(self._plans, above, strict=True))
        ]
