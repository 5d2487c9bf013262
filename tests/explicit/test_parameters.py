"""Parameters, velocities and losses stay ordinary tensors, which can be read, changed, saved and trained."""

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
from tests.explicit.compare import (
    F64,
    X,
    Y,
    assert_same,
    by_autograd,
    twin_of,
    weights,
)


class TestParameters:
    def test_parameters_stay_ordinary_tensors(self, trainer: dp.ExplicitTrainer):
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
    def test_changes_between_calls_take_effect(self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any]):
        trainer.model[1] = nn.LeakyReLU()  # PyTorch's module, which has a constant
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

    def test_loaded_velocities_are_used(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        state = copy.deepcopy(trainer.optimizer.state_dict())
        start = weights(trainer)
        trainer.epoch(X, Y, 8)
        after = weights(trainer)
        nn.utils.vector_to_parameters(start, trainer.model.parameters())
        trainer.optimizer.load_state_dict(state)
        trainer.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), after)

    def test_a_model_converted_to_double_can_be_trained(self):
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

    def test_training_recovers_from_nan_when_weights_are_loaded(self, trainer: dp.ExplicitTrainer):
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        trainer.optimizer.load_state_dict(options)
        assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_training_recovers_from_nan_when_velocities_are_restored(self, trainer: dp.ExplicitTrainer):
        """NaN in the memory of the layers is overwritten."""
        trainer.epoch(X, Y, 8)
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        for number, p in enumerate(trainer.model.parameters()):
            buffer = trainer.optimizer.state[p]["momentum_buffer"]
            buffer.copy_(options["state"][number]["momentum_buffer"])  # in place
        for _ in range(2):
            assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_an_autograd_pass_within_an_epoch_changes_nothing(self, trainer: dp.ExplicitTrainer):
        """It uses the current weights."""
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

    def test_a_refused_model_is_accepted_after_the_fix(self, trainer: dp.ExplicitTrainer):
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

    def test_memory_depends_on_the_number_of_rows(self, trainer: dp.ExplicitTrainer):
        """It does not depend on the requested batch size."""
        for rows, expected in ((5, 5), (23, 23), (5, 23)):
            trainer.epoch(X, Y, 10**9, order=torch.arange(rows))
            memory = [layer.z_out.untyped_storage().nbytes() for layer in trainer._workspace.layers]
            assert memory == [8 * expected * n for n in (7, 3)]

    def test_the_returned_loss_can_be_used_by_autograd(self, trainer: dp.ExplicitTrainer):
        """C of a step or an epoch can be saved for a backward pass; tensors of inference mode cannot."""
        scale = torch.ones((), dtype=F64, requires_grad=True)
        for c in (trainer.step(X, Y), trainer.epoch(X, Y, 8), trainer.epoch(X, Y, 8, on_step=lambda step: True)):
            assert not c.is_inference()
            scale.grad = None
            (scale * c).backward()
            assert scale.grad == c

    def test_the_returned_loss_is_not_overwritten(self, trainer: dp.ExplicitTrainer):
        """It is not memory of the trainer, which the next step would overwrite."""
        first, mean = trainer.step(X, Y), trainer.epoch(X, Y, 8)
        before = first.clone(), mean.clone()
        trainer.step(2 * X, Y)
        trainer.epoch(2 * X, Y, 8)
        assert (first, mean) == before

    @pytest.mark.parametrize("kind", [dp.SGD, torch.optim.SGD])
    @pytest.mark.parametrize("call", ["step", "epoch"])
    def test_autograd_can_continue_the_training(self, kind: type[torch.optim.Optimizer], call: str):
        """With the same optimizer, whose momentum buffers the trainer created."""
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

    def test_an_added_parameter_group_is_trained(self):
        """Also after load_state_dict, which replaces the groups of the optimizer."""
        model = dp.MLP([5, 7, 3], dtype=F64)
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model[2].parameters(), lr=0.1))
        trainer.epoch(X, Y, 8)
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())
        trainer.optimizer.add_param_group({"params": list(model[0].parameters())})
        before = model[0].weight.clone()
        trainer.epoch(X, Y, 8)
        assert not torch.equal(model[0].weight, before)

    @pytest.mark.parametrize("name", ["model", "optimizer", "precision"])
    def test_constructor_arguments_cannot_be_replaced(self, trainer: dp.ExplicitTrainer, name: str):
        """A replacement would have no effect, so it is refused."""
        with pytest.raises(AttributeError):
            setattr(trainer, name, None)


def test_a_trainer_can_be_copied_and_pickled_at_any_time():
    """Copies continue from the current state with their own parameters and velocities."""
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
