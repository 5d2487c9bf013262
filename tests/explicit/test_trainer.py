"""The methods of the trainer: step, epoch, and the callback on_step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import functional as F
from tests.explicit.compare import (
    F64,
    X,
    Y,
    assert_same,
    by_autograd,
    twin_of,
    velocity,
    weights,
)


class TestOnPaper:
    """``core/test_recursion.py`` derives the numbers: W¹ = 2, b¹ = −5, W² = 3, b² = −1, x = 1, y = −7.5, η = 0.1."""

    @staticmethod
    def trained(call: Callable[[dp.ExplicitTrainer, Tensor, Tensor], Tensor]) -> tuple[float, list[float]]:
        """Return C and the updated parameters."""
        model = dp.MLP([1, 1, 1], dp.LeakyReLU(0.5), dtype=F64)
        with torch.no_grad():
            for p, value in zip(model.parameters(), (2.0, -5.0, 3.0, -1.0), strict=True):
                p.fill_(value)
        trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
        c = call(trainer, torch.tensor([[1.0]], dtype=F64), torch.tensor([[-7.5]], dtype=F64))
        return c.item(), [p.item() for p in model.parameters()]

    def test_a_step(self):
        c, params = self.trained(lambda trainer, x, y: trainer.step(x, y))
        assert c == 2
        assert params == pytest.approx([1.7, -5.3, 3.3, -1.2], rel=1e-15)

    def test_an_epoch_of_one_step(self):
        c, params = self.trained(lambda trainer, x, y: trainer.epoch(x, y, 1))
        assert c == 2
        assert params == pytest.approx([1.7, -5.3, 3.3, -1.2], rel=1e-15)


class TestEpoch:
    def test_order_selects_the_rows(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        order = torch.randperm(23)
        trainer.epoch(X, Y, 8, order=order)
        other.epoch(X[order], Y[order], 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_a_generator_draws_the_order(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        trainer.epoch(X, Y, 8, generator=torch.Generator().manual_seed(3))
        other.epoch(X, Y, 8, order=torch.randperm(23, generator=torch.Generator().manual_seed(3)))
        assert torch.equal(weights(trainer), weights(other))

    def test_an_order_may_leave_rows_out(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        trainer.epoch(X, Y, 8, order=torch.arange(11))
        other.epoch(X[:11], Y[:11], 8)
        assert torch.equal(weights(trainer), weights(other))

    @pytest.mark.parametrize("stopped_after", [1, 2, 3])
    def test_an_interrupted_and_resumed_epoch_equals_the_whole_epoch(
        self, trainer: dp.ExplicitTrainer, stopped_after: int
    ):
        whole = twin_of(trainer)
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: step == stopped_after)
        trainer.epoch(X, Y, 8, start=stopped_after, on_step=steps.append)
        whole.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(whole))
        assert torch.equal(velocity(trainer), velocity(whole))
        assert steps == list(range(stopped_after + 1, 4))

    @pytest.mark.parametrize("taken", [1, 2, 3])
    def test_the_mean_loss_counts_the_steps_taken(self, trainer: dp.ExplicitTrainer, taken: int):
        trainer.epoch(X, Y, 8, on_step=lambda step: None)  # leaves its losses in the reused memory
        other = twin_of(trainer)
        mean = trainer.epoch(X, Y, 8, on_step=lambda step: step == taken)
        batches = list(zip(X.split(8), Y.split(8), strict=True))[:taken]  # the last batch has 7 rows
        total = sum(other.step(x, y) * len(x) for x, y in batches)
        torch.testing.assert_close(mean, total / sum(len(x) for x, _ in batches), rtol=1e-12, atol=0)

    def test_the_mean_loss_of_no_step_is_nan(self, trainer: dp.ExplicitTrainer):
        assert trainer.epoch(X, Y, 8, start=3).isnan()

    def test_on_step_counts(self, trainer: dp.ExplicitTrainer):
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=steps.append)
        assert steps == [1, 2, 3]

    @pytest.mark.parametrize("result", [1, "yes", torch.tensor(True), None])
    def test_only_true_ends_the_epoch(self, trainer: dp.ExplicitTrainer, result: Any):
        """Any other return value, such as the length of a list, does not."""
        other = twin_of(trainer)
        trainer.epoch(X, Y, 8, on_step=lambda step: result)
        other.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_on_step_sees_parameters_and_velocities_of_every_step(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        seen: list[tuple[Tensor, Tensor]] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: seen.append((weights(trainer), velocity(trainer))))
        for batch, (x, y) in enumerate(zip(X.split(8), Y.split(8), strict=True)):
            other.step(x, y)
            assert torch.equal(seen[batch][0], weights(other))
            assert torch.equal(seen[batch][1], velocity(other))

    def test_a_callback_changes_no_bit(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        assert torch.equal(trainer.epoch(X, Y, 8), other.epoch(X, Y, 8, on_step=lambda step: None))
        assert torch.equal(weights(trainer), weights(other))

    def test_on_step_may_change_parameters_and_use_autograd(self, trainer: dp.ExplicitTrainer):
        """It runs outside inference mode, so its tensors can be used by autograd."""

        def zero(step: int) -> None:
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p.zero_()
            (torch.ones(2, requires_grad=True) * torch.ones(2)).sum().backward()

        trainer.epoch(X, Y, 8, on_step=zero)
        assert not weights(trainer).any()

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m[0].weight.requires_grad_(False),
            lambda m: setattr(m[2].weight, "data", 0.3 * m[2].weight.data),
            lambda m: m.__setitem__(1, dp.Sigmoid()),
        ],
        ids=["frozen", "data replaced", "another activation"],
    )
    @pytest.mark.parametrize("rows", [23, 24], ids=["a smaller last batch", "equal batches"])
    def test_model_changes_in_on_step_apply_from_the_next_step(
        self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any], rows: int
    ):
        x, y = torch.randn(rows, 5, dtype=F64), torch.arange(rows) % 3
        model = copy.deepcopy(trainer.model)
        tape = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer.epoch(x, y, 4, on_step=lambda step: change(trainer.model) if step == 2 else None)
        by_autograd(model, F.cross_entropy, tape, x[:8], y[:8], 4)
        change(model)
        tape.zero_grad()  # frozen parameters have no gradient from here on
        by_autograd(model, F.cross_entropy, tape, x[8:], y[8:], 4)
        assert_same(trainer.model, model, trainer.optimizer, tape)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m[0].weight.requires_grad_(False),
            lambda m: setattr(m[2].weight, "data", m[2].weight.data.clone()),
        ],
        ids=["frozen", "data replaced"],
    )
    def test_a_step_within_on_step_uses_the_changed_model(
        self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any]
    ):
        model = copy.deepcopy(trainer.model)
        tape = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def on_step(step: int) -> None:
            if step == 1:
                change(trainer.model)
                trainer.step(X[:5], Y[:5])

        trainer.epoch(X, Y, 4, on_step=on_step)
        by_autograd(model, F.cross_entropy, tape, X[:4], Y[:4], 4)
        change(model)
        tape.zero_grad()
        by_autograd(model, F.cross_entropy, tape, X[:5], Y[:5], 5)
        by_autograd(model, F.cross_entropy, tape, X[4:], Y[4:], 4)
        assert_same(trainer.model, model, trainer.optimizer, tape)

    def test_uint8_labels_are_accepted(self):
        """Also 156, which is −100, the ignored label, modulo 256."""
        model = dp.MLP([5, 200], dtype=F64)
        other = copy.deepcopy(model)
        y, results = torch.arange(23) + 140, []
        for m, labels in ((model, y.to(torch.uint8)), (other, y)):
            trainer = dp.ExplicitTrainer(m, "cross_entropy", dp.SGD(m.parameters(), lr=0.1))
            results.append((trainer.epoch(X, labels, 8), trainer.step(X, labels), weights(trainer)))
        for narrow, wide in zip(*results, strict=True):
            assert torch.equal(narrow, wide)

    def test_converted_targets_follow_in_place_changes(self):
        """Also changes through NumPy, which PyTorch does not notice."""
        model = dp.MLP([5, 7, 3], dtype=F64)
        other = copy.deepcopy(model)
        trainer, fresh = (
            dp.ExplicitTrainer(m, "cross_entropy", dp.SGD(m.parameters(), lr=0.1)) for m in (model, other)
        )
        array = Y.to(torch.uint8).numpy().copy()
        narrow = torch.from_numpy(array)
        for _ in range(2):
            trainer.epoch(X, narrow, 8)
            fresh.epoch(X, narrow.long(), 8)
            assert torch.equal(weights(trainer), weights(fresh))
            array[:] = 2 - array

    def test_an_interrupted_epoch_keeps_the_steps_taken(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)

        def interrupt(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.epoch(X, Y, 8, on_step=interrupt)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2)
        assert torch.equal(weights(trainer), weights(other))
        for t in (trainer, other):  # and resumes
            t.epoch(X, Y, 8, start=2)
        assert torch.equal(weights(trainer), weights(other))

    def test_options_changed_between_steps_apply_from_the_next_step(self, trainer: dp.ExplicitTrainer):
        model = copy.deepcopy(trainer.model)
        optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def change(step: int) -> None:
            for group in (*trainer.optimizer.param_groups, *optimizer.param_groups):
                group.update(lr=0.1 / step, momentum=(0.9, 0.0, 0.5)[step - 1], nesterov=step == 3)

        trainer.epoch(X, Y, 4, on_step=lambda step: change(step) if step < 4 else None)
        optimizer.param_groups[0].update(lr=0.1, momentum=0.9, nesterov=False)
        for step, (x, y) in enumerate(zip(X.split(4), Y.split(4), strict=True), start=1):
            by_autograd(model, F.cross_entropy, optimizer, x, y, 4)
            if step < 4:
                change(step)
        assert_same(trainer.model, model, trainer.optimizer, optimizer)

    def test_the_same_seed_gives_the_same_bits(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        for t in (trainer, other):
            t.epoch(X, Y, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(weights(trainer), weights(other))
