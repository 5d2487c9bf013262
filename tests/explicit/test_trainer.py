"""The trainer's calls: epochs, callbacks, and parameters that stay the user's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from deltaprop.explicit import batches
from tests.explicit.compare import (
    F64,
    X,
    Y,
    assert_same,
    by_autograd,
    twin_of,
    weights,
)


class TestEpoch:
    def test_order_is_that_of_the_rows_given(self, trainer: dp.ExplicitTrainer):
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

    @pytest.mark.parametrize("reads", [True, False])
    @pytest.mark.parametrize("broken_off", [1, 2, 3])
    def test_an_epoch_broken_off_and_resumed_is_the_whole_epoch(
        self, trainer: dp.ExplicitTrainer, broken_off: int, reads: bool
    ):
        whole = twin_of(trainer)
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: step == broken_off, on_step_reads=reads)
        trainer.epoch(X, Y, 8, start=broken_off, on_step=steps.append, on_step_reads=reads)
        whole.epoch(X, Y, 8, on_step=lambda step: None, on_step_reads=reads)
        assert torch.equal(weights(trainer), weights(whole))
        assert steps == list(range(broken_off + 1, 4))

    def test_an_epoch_broken_off_between_blocks_adds_up_its_losses_to_the_same_bits(
        self, trainer: dp.ExplicitTrainer, monkeypatch: pytest.MonkeyPatch
    ):
        """Blocks of 3 batches of 4 rows, and what is left: 23 rows make 5 batches and one of 3."""
        monkeypatch.setattr(batches, "MOST_BATCHES", 3)
        whole, order = twin_of(trainer), torch.randperm(23)
        ends: list[int] = []
        expected = whole.epoch(X, Y, 4, order=order, on_block=ends.append)
        assert ends == [3, 5, 6]
        total = X.new_zeros(())
        mean, start = None, 0
        for end in ends:
            mean = trainer.epoch(X, Y, 4, order=order, start=start, total=total, on_block=lambda done: True)
            start = end
        assert torch.equal(weights(trainer), weights(whole))
        assert torch.equal(mean, expected)
        assert torch.equal(total / 23, expected)

    def test_a_block_is_short_enough_to_wait_for(self):
        """2^31 multiply-adds: of a wide net one batch."""
        x = torch.randn(64, 16)
        assert batches.batches_per_block(x, 8, outputs=2, weights=1000) == 48
        assert batches.batches_per_block(x, 8, outputs=2, weights=16 * 2**20) == 5
        assert batches.batches_per_block(x, 8, outputs=2, weights=2**30) == 1

    @pytest.mark.parametrize("taken", [1, 2, 3])
    def test_the_mean_loss_counts_the_steps_taken(self, trainer: dp.ExplicitTrainer, taken: int):
        trainer.epoch(X, Y, 8, on_step=lambda step: None)  # leaves its own losses in the block
        other = twin_of(trainer)
        mean = trainer.epoch(X, Y, 8, on_step=lambda step: step == taken)
        batches = list(zip(X.split(8), Y.split(8), strict=True))[:taken]  # the last one of 7
        total = sum(other.step(x, y) * len(x) for x, y in batches)
        torch.testing.assert_close(mean, total / sum(len(x) for x, _ in batches), rtol=1e-12, atol=0)

    def test_no_step_no_loss(self, trainer: dp.ExplicitTrainer):
        assert trainer.epoch(X, Y, 8, start=3).isnan()

    @pytest.mark.parametrize("reads", [True, False])
    def test_on_step_counts(self, trainer: dp.ExplicitTrainer, reads: bool):
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=steps.append, on_step_reads=reads)
        assert steps == [1, 2, 3]

    def test_on_step_sees_every_step(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        seen: list[Tensor] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: seen.append(weights(trainer)))
        for batch, (x, y) in enumerate(zip(X.split(8), Y.split(8), strict=True)):
            other.step(x, y)
            assert torch.equal(seen[batch], weights(other))

    def test_on_step_may_change_parameters_and_train_on(self, trainer: dp.ExplicitTrainer):
        """It runs outside inference mode, so that what it makes can be trained."""

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
    @pytest.mark.parametrize("rows", [23, 24], ids=["and a smaller batch to come", "and none"])
    def test_what_on_step_changes_in_the_model_counts_from_the_next(
        self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any], rows: int
    ):
        x, y = torch.randn(rows, 5, dtype=F64), torch.arange(rows) % 3
        model = copy.deepcopy(trainer.model)
        tape = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer.epoch(x, y, 4, on_step=lambda step: change(trainer.model) if step == 2 else None)
        by_autograd(model, F.cross_entropy, tape, x[:8], y[:8], 4)
        change(model)
        tape.zero_grad()  # what is frozen has none from here on
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
    def test_a_step_within_on_step_after_a_change_leaves_nothing_of_the_old(
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

    def test_targets_of_another_dtype_are_converted_and_what_is_written_to_them_is_seen(self):
        """Also by NumPy, behind PyTorch's back."""
        model = dp.MLP([5, 7, 3], dtype=F64)
        other = copy.deepcopy(model)
        trainer, fresh = (
            dp.ExplicitTrainer(m, "cross_entropy", dp.SGD(m.parameters(), lr=0.1)) for m in (model, other)
        )
        behind = Y.to(torch.uint8).numpy().copy()
        narrow = torch.from_numpy(behind)
        for _ in range(2):
            trainer.epoch(X, narrow, 8)
            fresh.epoch(X, narrow.long(), 8)
            assert torch.equal(weights(trainer), weights(fresh))
            behind[:] = 2 - behind

    def test_sync_brings_parameters_and_velocities_up_to_date(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def look(step: int) -> None:
            if step == 2:
                trainer.sync()
                seen[step] = weights(trainer), velocity(trainer)

        trainer.epoch(X, Y, 8, on_step=look, on_step_reads=False)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2, on_step_reads=False)
        assert torch.equal(seen[2][0], weights(other))
        assert torch.equal(seen[2][1], velocity(other))

    def test_an_interrupted_epoch_leaves_the_steps_taken(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)

        def interrupt(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.epoch(X, Y, 8, on_step=interrupt, on_step_reads=False)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2)
        torch.testing.assert_close(weights(trainer), weights(other), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("reads", [True, False])
    def test_options_changed_between_steps_count_from_the_next(self, trainer: dp.ExplicitTrainer, reads: bool):
        model = copy.deepcopy(trainer.model)
        optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def change(step: int) -> None:
            for group in (*trainer.optimizer.param_groups, *optimizer.param_groups):
                group.update(lr=0.1 / step, momentum=(0.9, 0.0, 0.5)[step - 1], nesterov=step == 3)

        trainer.epoch(X, Y, 4, on_step=lambda step: change(step) if step < 4 else None, on_step_reads=reads)
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


def velocity(trainer: dp.ExplicitTrainer) -> Tensor:
    """Return all momentum buffers in a row."""
    buffers = [trainer.optimizer.state[p]["momentum_buffer"] for p in trainer.model.parameters()]
    return torch.cat([b.reshape(-1) for b in buffers])


class TestParametersStayTheUsers:
    def test_they_stay_ordinary(self, trainer: dp.ExplicitTrainer):
        pointers = [p.data_ptr() for p in trainer.model.parameters()]
        trainer.epoch(X, Y, 8)
        trainer.step(X, Y)
        for p, pointer in zip(trainer.model.parameters(), pointers, strict=True):
            assert p.is_contiguous()
            assert p.data_ptr() == pointer
            assert not p.is_inference()
            assert p.grad is None
        save_safetensors(trainer.model.state_dict())
        torch.save(trainer.model.state_dict(), io.BytesIO())
        copy.deepcopy(trainer.model)(X).sum().backward()

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: nn.init.constant_(m[0].weight, 0.1),
            lambda m: m.load_state_dict({k: 0.5 * v for k, v in m.state_dict().items()}),
            lambda m: nn.utils.vector_to_parameters(torch.linspace(-1, 1, 66, dtype=F64), m.parameters()),
            lambda m: setattr(m[0].weight, "data", 0.3 * m[0].weight.data),
            lambda m: m[0].weight.data.mul_(0.3),
            lambda m: m[2].requires_grad_(False),
            lambda m: setattr(m[1], "negative_slope", 0.5),
        ],
        ids=["init", "load_state_dict", "vector_to_parameters", "data replaced", "data written", "frozen", "constant"],
    )
    def test_what_others_write_between_calls_is_heeded(self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any]):
        trainer.model[1] = nn.LeakyReLU()  # PyTorch's, which has a constant
        trainer.epoch(X, Y, 8)
        trainer.step(X, Y)
        change(trainer.model)
        other = twin_of(trainer)
        for p, q in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
            q.requires_grad_(p.requires_grad)
        for t in (trainer, other):
            t.step(X, Y)
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_velocities_that_are_loaded_are_heeded(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        state = copy.deepcopy(trainer.optimizer.state_dict())
        start = weights(trainer)
        trainer.epoch(X, Y, 8)
        after = weights(trainer)
        nn.utils.vector_to_parameters(start, trainer.model.parameters())
        trainer.optimizer.load_state_dict(state)
        trainer.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), after)

    def test_a_model_made_double_goes_on(self):
        model = dp.MLP([5, 7, 3])
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        trainer.epoch(X.float(), Y, 8)
        model.double()
        other = copy.deepcopy(model)
        trainer.epoch(X, Y, 8)
        by_autograd(other, F.cross_entropy, dp.SGD(other.parameters(), lr=0.1), X, Y, 8)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)

    def test_a_replaced_layer_is_read_again(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        trainer.model[1] = dp.ReLU()
        other = twin_of(trainer)
        for t in (trainer, other):
            t.optimizer.param_groups[0]["lr"] = 0.2
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_the_loss_is_an_ordinary_tensor(self, trainer: dp.ExplicitTrainer):
        total = trainer.step(X, Y)
        total += trainer.step(X, Y)
        total += trainer.epoch(X, Y, 8)
        assert not total.requires_grad

    @pytest.mark.parametrize("kind", [float, torch.tensor], ids=["a number", "a tensor"])
    def test_schedulers_work(self, kind: Callable[[float], Any]):
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        ours, tape = (torch.optim.SGD(m.parameters(), lr=kind(0.1)) for m in (model, twin))
        schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1) for optimizer in (ours, tape)]
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        for _ in range(3):
            trainer.epoch(X, Y, 8)
            by_autograd(twin, F.cross_entropy, tape, X, Y, 8)
            for schedule in schedules:
                schedule.step()
        # A tensor holds η in float32.
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)

    def test_good_weights_loaded_after_a_nan_are_good(self, trainer: dp.ExplicitTrainer):
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        trainer.optimizer.load_state_dict(options)
        assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_good_velocities_after_a_nan_are_good(self, trainer: dp.ExplicitTrainer):
        """Those of the packed matrix have a padding, which a NaN has reached."""
        trainer.epoch(X, Y, 8)
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        for p, state in zip(trainer.model.parameters(), options["state"].values(), strict=True):
            trainer.optimizer.state[p]["momentum_buffer"].copy_(state["momentum_buffer"])  # the tensors stay
        for _ in range(2):
            assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_a_look_within_an_epoch_disturbs_nothing(self, trainer: dp.ExplicitTrainer):
        """And sees the weights as they are then."""
        other = twin_of(trainer)
        seen: list[Tensor] = []

        def look(step: int) -> None:
            seen.append(trainer.look(X, Y)[-1].a.clone())

        trainer.epoch(X, Y, 4, on_step=look, on_step_reads=False)
        other.epoch(X, Y, 4, on_step=lambda step: step == 2)
        torch.testing.assert_close(seen[1], other.model(X).detach(), rtol=1e-12, atol=1e-14)
        other.epoch(X, Y, 4, start=2)
        torch.testing.assert_close(weights(trainer), weights(other), rtol=1e-12, atol=1e-14)

    def test_what_it_refused_once_it_takes_when_mended(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        trainer.model.requires_grad_(False)
        with pytest.raises(UserError, match="nothing to learn"):
            trainer.epoch(X, Y, 8)
        trainer.model.requires_grad_(True)
        trainer.epoch(X, Y, 8)
        trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
        other = twin_of(trainer)
        for t in (trainer, other):
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_a_block_is_no_larger_than_the_data_or_the_cache(self):
        """What losses keep counts, where outputs are many."""
        model = dp.MLP([4, 8, 1000])
        trainer = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters(), lr=0.1))
        trainer.epoch(torch.randn(32, 4), torch.randn(32, 1000), 16)
        assert [stage.batches for stage in trainer._layout._stages.values()] == [2]
        trainer.epoch(torch.randn(2**10, 4), torch.randn(2**10, 1000), 16)
        (_, stage) = trainer._layout._stages.values()
        assert 4 * stage.loss.kept.numel() <= 2**20

    def test_tiles_and_packing_follow_from_the_layers(self, trainer: dp.ExplicitTrainer):
        """7 neurons below a packed layer are written as 8; softmax has no packed layer above."""
        trainer.epoch(X, Y, 8)
        assert [packed.width for packed in trainer._layout.packed] == [8, 3]
        model = dp.MLP([5, 7, 7, 3], ["softmax", "tanh"], dtype=F64)
        rows = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        rows.epoch(X, Y, 8)
        assert [packed.width for packed in rows._layout.packed] == [7, 3]

    def test_memory_of_sizes_long_unused_is_given_back(self, trainer: dp.ExplicitTrainer):
        for rows in range(1, 20):
            trainer.epoch(X[:rows], Y[:rows], rows)
        assert len(trainer._layout._stages) <= 8

    def test_looking_is_no_step_for_a_scheduler(self, trainer: dp.ExplicitTrainer):
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
        trainer.look(X, Y)
        with pytest.warns(UserWarning, match="before `optimizer.step"):
            scheduler.step()

    def test_memory_follows_the_rows_there_are(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 10**9, order=torch.arange(5))
        assert len(trainer._layout._buffers[0]._a) == 5
        trainer.epoch(X, Y, 10**9)
        assert len(trainer._layout._buffers[0]._a) == 23

    @pytest.mark.parametrize("name", ["model", "optimizer", "precision"])
    def test_what_it_was_made_of_stays(self, trainer: dp.ExplicitTrainer, name: str):
        """To set another would be to train with the old one, and say nothing."""
        with pytest.raises(AttributeError):
            setattr(trainer, name, None)


def test_a_trainer_can_be_copied_and_pickled_at_any_time():
    """Copies go on from where it is, on parameters and velocities of their own."""
    model = dp.MLP([5, 4, 3], dtype=F64)
    trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=0.9))
    trainer.epoch(X, Y, 8)
    twins = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
    trainer.epoch(X, Y, 8)
    for twin in twins:
        assert not torch.equal(twin.model[0].weight, model[0].weight)
        twin.epoch(X, Y, 8)
        for p, q in zip(twin.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)
