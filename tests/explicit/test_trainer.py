"""The trainer's calls: epochs, callbacks, and parameters that stay the user's."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from deltaprop.epoch_state import EpochState
from tests.explicit.compare import (
    F64,
    X,
    Y,
    assert_same,
    by_autograd,
    targets,
    twin_of,
    weights,
)
from tests.explicit.test_losses import CASES, OUTPUTS


class TestOnPaper:
    """``core/test_recursion.py`` derives the numbers: W¹ = 2, b¹ = −5, W² = 3, b² = −1, x = 1, y = −7.5, η = 0.1."""

    @staticmethod
    def trained(call: Callable[[dp.ExplicitTrainer, Tensor, Tensor], Tensor]) -> tuple[float, list[float]]:
        """Return C and the parameters after it."""
        model = dp.MLP([1, 1, 1], dp.LeakyReLU(0.5), dtype=F64)
        with torch.no_grad():
            for p, value in zip(model.parameters(), (2.0, -5.0, 3.0, -1.0), strict=True):
                p.fill_(value)
        trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
        c = call(trainer, torch.tensor([[1.0]], dtype=F64), torch.tensor([[-7.5]], dtype=F64))
        return c.item(), [p.item() for p in model.parameters()]

    def test_a_step(self):
        c, learnt = self.trained(lambda trainer, x, y: trainer.step(x, y))
        assert c == 2
        assert learnt == pytest.approx([1.7, -5.3, 3.3, -1.2], rel=1e-15)

    def test_an_epoch_of_one_step(self):
        c, learnt = self.trained(lambda trainer, x, y: trainer.epoch(x, y, 1))
        assert c == 2
        assert learnt == pytest.approx([1.7, -5.3, 3.3, -1.2], rel=1e-15)


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

    @pytest.mark.parametrize("broken_off", [1, 2, 3])
    def test_an_epoch_broken_off_and_resumed_is_the_whole_epoch(self, trainer: dp.ExplicitTrainer, broken_off: int):
        whole = twin_of(trainer)
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: step == broken_off)
        trainer.epoch(X, Y, 8, start=broken_off, on_step=steps.append)
        whole.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(whole))
        assert torch.equal(velocity(trainer), velocity(whole))
        assert steps == list(range(broken_off + 1, 4))

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

    def test_on_step_counts(self, trainer: dp.ExplicitTrainer):
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=steps.append)
        assert steps == [1, 2, 3]

    @pytest.mark.parametrize("result", [1, "yes", torch.tensor(True), None])
    def test_only_true_ends_the_epoch(self, trainer: dp.ExplicitTrainer, result: Any):
        """What a callback happens to return, such as the length of a list, does not."""
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

    def test_with_a_callback_and_without_it_is_the_same_epoch(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        assert torch.equal(trainer.epoch(X, Y, 8), other.epoch(X, Y, 8, on_step=lambda step: None))
        assert torch.equal(weights(trainer), weights(other))

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

    def test_an_interrupted_epoch_leaves_the_steps_taken(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)

        def interrupt(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.epoch(X, Y, 8, on_step=interrupt)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2)
        assert torch.equal(weights(trainer), weights(other))
        for t in (trainer, other):  # and goes on
            t.epoch(X, Y, 8, start=2)
        assert torch.equal(weights(trainer), weights(other))

    def test_options_changed_between_steps_count_from_the_next(self, trainer: dp.ExplicitTrainer):
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
        """What has been NaN in the memory of the layers is written over."""
        trainer.epoch(X, Y, 8)
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        for number, p in enumerate(trainer.model.parameters()):
            buffer = trainer.optimizer.state[p]["momentum_buffer"]
            buffer.copy_(options["state"][number]["momentum_buffer"])  # the tensors stay
        for _ in range(2):
            assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_a_pass_by_autograd_within_an_epoch_disturbs_nothing(self, trainer: dp.ExplicitTrainer):
        """And sees the weights as they are then."""
        other = twin_of(trainer)
        seen: list[Tensor] = []

        def look(step: int) -> None:
            a = trainer.model(X)
            F.cross_entropy(a, Y).backward()
            seen.append(a.detach())
            trainer.optimizer.zero_grad()

        trainer.epoch(X, Y, 4, on_step=look)
        other.epoch(X, Y, 4, on_step=lambda step: step == 2)
        torch.testing.assert_close(seen[1], other.model(X).detach(), rtol=1e-12, atol=1e-14)
        other.epoch(X, Y, 4, start=2)
        assert torch.equal(weights(trainer), weights(other))

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

    def test_memory_follows_the_rows_there_are(self, trainer: dp.ExplicitTrainer):
        """And not the batch size that was asked for."""
        for rows, expected in ((5, 5), (23, 23), (5, 23)):
            trainer.epoch(X, Y, 10**9, order=torch.arange(rows))
            memory = [layer.z_out.untyped_storage().nbytes() for layer in trainer._workspace.layers]
            assert memory == [8 * expected * n for n in (7, 3)]

    def test_what_a_step_returns_may_be_used_by_autograd(self, trainer: dp.ExplicitTrainer):
        """C of a step or an epoch is saved for a backward pass like any tensor; those of inference mode cannot be."""
        scale = torch.ones((), dtype=F64, requires_grad=True)
        for c in (trainer.step(X, Y), trainer.epoch(X, Y, 8), trainer.epoch(X, Y, 8, on_step=lambda step: True)):
            assert not c.is_inference()
            scale.grad = None
            (scale * c).backward()
            assert scale.grad == c

    def test_what_a_step_returns_stays(self, trainer: dp.ExplicitTrainer):
        """It is not memory of the trainer's, which the next step would write over."""
        first, mean = trainer.step(X, Y), trainer.epoch(X, Y, 8)
        before = first.clone(), mean.clone()
        trainer.step(2 * X, Y)
        trainer.epoch(2 * X, Y, 8)
        assert (first, mean) == before

    @pytest.mark.parametrize("kind", [dp.SGD, torch.optim.SGD])
    @pytest.mark.parametrize("call", ["step", "epoch"])
    def test_autograd_goes_on_where_it_ends(self, kind: type[torch.optim.Optimizer], call: str):
        """With its optimizer, on momentum buffers that were made here."""
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        ours, tape = (kind(m.parameters(), lr=0.1, momentum=0.9, nesterov=True) for m in (model, twin))  # type: ignore[call-arg]
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        trainer.step(X, Y) if call == "step" else trainer.epoch(X, Y, 23)
        by_autograd(twin, F.cross_entropy, tape, X, Y, 23)
        for m, optimizer in ((model, ours), (twin, tape)):
            by_autograd(m, F.cross_entropy, optimizer, X, Y, 8)
        assert_same(model, twin, ours, tape)
        assert not any(ours.state[p]["momentum_buffer"].is_inference() for p in model.parameters())

    def test_one_optimizer_may_have_parameters_of_other_models(self, trainer: dp.ExplicitTrainer):
        other = nn.Linear(2, 2, dtype=F64)
        trainer.optimizer.add_param_group({"params": list(other.parameters()), "lr": 1.0})
        before = [p.clone() for p in other.parameters()]
        trainer.epoch(X, Y, 8)
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))

    def test_a_group_that_is_added_learns(self):
        """Also to an optimizer whose groups are others since it has loaded a state."""
        model = dp.MLP([5, 7, 3], dtype=F64)
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model[2].parameters(), lr=0.1))
        trainer.epoch(X, Y, 8)
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())
        trainer.optimizer.add_param_group({"params": list(model[0].parameters())})
        before = model[0].weight.clone()
        trainer.epoch(X, Y, 8)
        assert not torch.equal(model[0].weight, before)

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


class Resumed:
    """A net that can be trained in one go or in parts, each part by a new process's trainer, as far as one can tell."""

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
        """Return parameters, velocities and mean loss after an epoch that was broken off after so many steps."""
        name, options = self.loss
        options = {k: v.to(self.dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        model, sgd = copy.deepcopy(self.start), None
        state = EpochState(self.x.new_zeros(()))
        for end in [*ends, self.steps]:
            held, model = sgd, copy.deepcopy(model)
            sgd = dp.SGD(model.parameters(), **self.options)
            if held is not None:
                sgd.load_state_dict(copy.deepcopy(held.state_dict()))
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
    """An epoch that is broken off anywhere and goes on in another process ends with the same bits."""

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), seed=st.integers(0, 2**32))
    def test_anywhere(self, data: st.DataObject, seed: int):
        net = Resumed(data, seed)
        ends = data.draw(st.lists(st.integers(1, net.steps), max_size=3, unique=True).map(sorted))
        net.assert_same_bits([end for end in ends if end < net.steps])

    def test_before_the_last_smaller_batch(self):
        """784-30-10 in batches of 10, 10 and 3: memory for 3 rows begins elsewhere, and products round by where."""
        Resumed(None, 0).assert_same_bits([2])

    def test_the_questions_come_every_so_many_steps(self, trainer: dp.ExplicitTrainer):
        asked: list[int] = []
        state = EpochState(X.new_zeros(()), interval=2, pause=asked.append)  # type: ignore[arg-type]
        trainer._epoch(X, Y, 4, None, state)
        assert asked == [2, 4, 6]
        assert state.done == 6

    def test_a_report_is_added_up_in_place_of_the_loss(self, trainer: dp.ExplicitTrainer):
        """Σ a of each batch, times its rows; by the weights before the step, as C is."""
        other = twin_of(trainer)
        state = EpochState(X.new_zeros(()), report=lambda a, y: a.sum() + y.sum())
        trainer._epoch(X, Y, 8, None, state)
        expected = 0.0
        for x, y in zip(X.split(8), Y.split(8), strict=True):
            expected += len(x) * (other.model(x).sum() + y.sum()).item()
            other.step(x, y)
        assert state.mean().item() == pytest.approx(expected / 23, rel=1e-12)
