"""What a step costs, in tensor calls and in memory: figures that no clock can blur."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deltaprop as dp
from deltaprop import functional as F
from deltaprop import ops
from deltaprop.ops.kernels import _ROWS as KERNELS
from tests.explicit.compare import F64, SGD_OPTIONS, targets
from tests.explicit.test_losses import CASES as LOSSES
from tests.explicit.test_losses import OUTPUTS


class Counter(TorchDispatchMode):
    """Counts calls of tensor operations, and those that return new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.allocations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        if isinstance(out, Tensor):
            known = {t.untyped_storage().data_ptr() for t in [*args, *(kwargs or {}).values()] if isinstance(t, Tensor)}
            if out.untyped_storage().data_ptr() not in known:
                self.allocations.append(str(func))
        return out


class TestCost:
    """What a step calls. These numbers are the speed: raise one only if the benchmarks are better for it."""

    @pytest.mark.parametrize(
        ("sizes", "options", "calls"),
        [
            # FWD 2 products, 1 activation; loss 2; BP2 1 product, 1 kernel; 2 updates
            ([784, 30, 10], {}, 9),
            ([784, 30, 10], {"momentum": 0.9}, 11),
            # one layer more: a product and an activation, a product and a kernel, an update; two are too wide to be
            # packed, and so take BP3 by a call of its own
            ([784, 512, 512, 10], {}, 9 + 5 + 2),
        ],
        ids=str,
    )
    def test_a_step_within_an_epoch(self, sizes: list[int], options: dict[str, Any], calls: int):
        trainer, stage = self.ready(dp.MLP(sizes, "sigmoid"), options)
        with torch.inference_mode(), Counter() as counter:
            trainer._teacher.heed_rates(stage)
            stage.step(1)
        assert len(counter.calls) == calls, counter.calls
        assert counter.allocations == []

    @pytest.mark.parametrize("activation", [name for name, op in ops.ACTIVATIONS.items() if op in KERNELS])
    @pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
    def test_no_step_allocates(self, activation: str, options: dict[str, Any]):
        trainer, stage = self.ready(dp.MLP([20, 16, 10], activation), options)
        with torch.inference_mode(), Counter() as counter:
            trainer._teacher.heed_rates(stage)
            stage.step(1)
        assert counter.allocations == []

    @pytest.mark.parametrize("activation", [name for name, op in ops.ACTIVATIONS.items() if op in KERNELS])
    @pytest.mark.parametrize("n", [16, 30])
    def test_no_kernel_allocates_within(self, activation: str, n: int):
        """As one does that is told to write where numbers do not lie side by side, and cannot."""
        trainer, stage = self.ready(dp.MLP([20, n, n, 10], activation), {})
        with torch.inference_mode():
            trainer._teacher.heed_rates(stage)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
                stage.step(1)
        of_a_number = 8  # bytes: what a 0 is compared with
        taken = {e.name: e.cpu_memory_usage for e in seen.events() if e.cpu_memory_usage > of_a_number}
        assert taken == {}

    @pytest.mark.parametrize(("name", "options"), LOSSES, ids=str)
    def test_no_loss_allocates_in_a_step(self, name: str, options: dict[str, Any]):
        """Its values follow late, once a block."""
        model = dp.MLP([20, 16, OUTPUTS], "sigmoid", dtype=F64)
        trainer, stage = self.ready(model, {}, functools.partial(getattr(F, name), **options))
        with torch.inference_mode(), Counter() as counter:
            trainer._teacher.heed_rates(stage)
            stage.step(1)
        assert counter.allocations == []

    def test_a_step_taken_singly(self):
        model = dp.MLP([784, 30, 10], "sigmoid")
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        x, y = torch.rand(10, 784), torch.randint(10, (10,))
        trainer.step(x, y)
        with Counter() as counter:
            trainer.step(x, y)
        counted = [call for call in counter.calls if "detach" not in call and "view" not in call]
        assert len(counted) <= 14, counted  # one of them asks whether C is a number

    @staticmethod
    def ready(model: dp.MLP, options: dict[str, Any], loss: Any = F.cross_entropy) -> tuple[dp.ExplicitTrainer, Any]:
        """Return a trainer with a block of two batches loaded, past the first steps."""
        trainer = dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters(), **{"lr": 0.1, **options}))
        first, last = model[0], model[-1]
        x = torch.rand(20, first.in_features, dtype=first.weight.dtype)
        y = targets(trainer.loss.name, 20, last.out_features, x.dtype)
        trainer.epoch(x, y, 10)
        key = next(key for key in trainer._layout._stages if key[0] == 10)
        stage = trainer._layout._stages[key]
        stage.load(x[: 10 * stage.batches], y[: 10 * stage.batches], 10 * min(2, stage.batches))
        return trainer, stage
