"""An interrupted epoch that is resumed from its EpochState, as by the training loop, gives the same bits."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.epoch_state import EpochState
from tests.explicit.compare import (
    ELSEWHERE,
    X,
    Y,
    targets,
    twin_of,
    velocity,
)
from tests.explicit.test_losses import CASES, OUTPUTS


class Resumed:
    """A network that is trained in one or several parts, each with a new trainer, as in a new process."""

    def __init__(self, data: st.DataObject | None, seed: int) -> None:
        torch.manual_seed(seed)
        draw = (lambda strategy: data.draw(strategy)) if data is not None else (lambda strategy: None)
        self.dtype = draw(st.sampled_from([torch.float32, torch.float64])) or torch.float32
        sizes = draw(st.lists(st.integers(1, 50), min_size=2, max_size=4)) or [784, 30, 10]
        self.loss = draw(st.sampled_from(CASES)) or ("cross_entropy", {})
        sizes[-1] = OUTPUTS if "weight" in self.loss[1] else sizes[-1] + 2
        rows = draw(st.integers(1, 60)) or 23
        self.batch_size = draw(st.integers(1, 20)) or 10
        self.options = {"momentum": draw(st.sampled_from([0.0, 0.9])) or 0.0, "lr": 0.01}
        self.start = dp.MLP(sizes, "sigmoid", dtype=self.dtype)
        self.x, self.order = torch.randn(rows, sizes[0], dtype=self.dtype), torch.randperm(rows)
        self.y = targets(self.loss[0], rows, sizes[-1], self.dtype)
        self.steps = math.ceil(rows / self.batch_size)

    def trained(self, ends: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return parameters, velocities and mean loss after an epoch that was interrupted after these steps."""
        name, options = self.loss
        options = {k: v.to(self.dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        model, sgd = copy.deepcopy(self.start), None
        state = EpochState(self.x.new_zeros(()))
        for end in [*ends, self.steps]:
            previous, model = sgd, copy.deepcopy(model)
            sgd = dp.SGD(model.parameters(), **self.options)
            if previous is not None:
                sgd.load_state_dict(copy.deepcopy(previous.state_dict()))
            trainer = dp.ExplicitTrainer(model, functools.partial(getattr(F, name), **options), sgd)
            state = EpochState(state.total.clone(), state.done, state.seen, lambda done, end=end: done == end)  # type: ignore[misc]
            trainer._epoch(self.x, self.y, self.batch_size, self.order, state)
            assert state.done == end
        parameters = nn.utils.parameters_to_vector(model.parameters()).detach()
        return parameters, velocity(trainer) if self.options["momentum"] else parameters, state.mean()

    def assert_same_bits(self, ends: Sequence[int]) -> None:
        for whole, parts in zip(self.trained([]), self.trained(ends), strict=True):
            assert torch.equal(whole, parts) or (whole.isnan().all() and parts.isnan().all())


class TestResume:
    """An epoch that is interrupted after any step and resumed in another process gives the same bits."""

    @settings(max_examples=40, deadline=None, suppress_health_check=ELSEWHERE)
    @given(data=st.data(), seed=st.integers(0, 2**32))
    def test_resume_after_any_step(self, data: st.DataObject, seed: int):
        net = Resumed(data, seed)
        ends = data.draw(st.lists(st.integers(1, net.steps), max_size=3, unique=True).map(sorted))
        net.assert_same_bits([end for end in ends if end < net.steps])

    def test_resume_before_a_smaller_last_batch(self):
        """784-30-10 in batches of 10, 10 and 3: memory for 3 rows has another address, which may change rounding."""
        Resumed(None, 0).assert_same_bits([2])

    def test_pause_is_called_once_per_interval(self, trainer: dp.ExplicitTrainer):
        paused_at: list[int] = []
        state = EpochState(X.new_zeros(()), interval=2, pause=paused_at.append)  # type: ignore[arg-type]
        trainer._epoch(X, Y, 4, None, state)
        assert paused_at == [2, 4, 6]
        assert state.done == 6

    def test_a_report_is_summed_instead_of_the_loss(self, trainer: dp.ExplicitTrainer):
        """The mean a of each batch, times its rows, with the weights before the step, like C."""
        other = twin_of(trainer)
        state = EpochState(X.new_zeros(()), report=lambda a, y: a.mean() + y.double().mean())
        trainer._epoch(X, Y, 8, None, state)
        expected = 0.0
        for x, y in zip(X.split(8), Y.split(8), strict=True):
            expected += len(x) * (other.model(x).mean() + y.double().mean()).item()
            other.step(x, y)
        assert state.mean().item() == pytest.approx(expected / 23, rel=1e-12)
