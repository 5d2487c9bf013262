"""Corner cases in which the explicit engine could train wrongly, or stop in the middle of an update."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import UserError, core
from deltaprop import functional as F
from deltaprop.nn import activation_module
from tests.explicit.compare import F64, both


def sgd(model: nn.Module, **options: float) -> dp.SGD:
    return dp.SGD(model.parameters(), lr=0.1, **options)


def assert_refused_unchanged(trainer: dp.ExplicitTrainer, x: Tensor, y: Tensor, message: str) -> None:
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(UserError, match=message):
        trainer.step(x, y)
    assert all(map(torch.equal, before, trainer.model.parameters()))


class Cube(core.Elementwise):
    """a = z³;  σ'(z) = 3 z², with its own delta."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z**3

    @classmethod
    def delta(cls, grad_a: Tensor, saved: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad_a * saved * saved


class Scaled(core.Elementwise):
    """a = s z;  σ'(z) = s, s a tensor."""

    @staticmethod
    def forward(z: Tensor, s: Tensor) -> Tensor:
        return s * z

    @staticmethod
    def derivative(z: Tensor, s: Tensor) -> Tensor:
        return s.expand_as(z)


@pytest.fixture
def rows() -> Iterator[None]:
    """Register two activations, as a user would."""
    core.ACTIVATIONS.update(cube=Cube, scaled=Scaled)
    yield
    del core.ACTIVATIONS["cube"], core.ACTIVATIONS["scaled"]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("hidden", [4, 3000])
def test_an_elementwise_activation_with_its_own_delta(hidden: int):
    both(dp.MLP([3, hidden, 2], "cube", dtype=F64), "mse_loss", torch.rand(30, 3, dtype=F64), torch.rand(30, 2), 30)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("hidden", [4, 3000])  # the wide layer is computed in pieces of rows
def test_a_constant_for_each_sample(hidden: int):
    """A tensor that replaces the constant is used."""
    x, y = torch.rand(30, 3, dtype=F64), torch.rand(30, 2, dtype=F64)
    model = nn.Sequential(dp.Linear(3, hidden), activation_module("scaled")(torch.rand(30, 1)), dp.Linear(hidden, 2))
    model = model.to(F64)
    twin = copy.deepcopy(model)
    trainer, tape = dp.ExplicitTrainer(model, "mse", sgd(model)), sgd(twin)
    for _ in range(2):
        model[1].s = twin[1].s = torch.rand(30, 1, dtype=F64)
        trainer.step(x, y)
        tape.zero_grad()
        F.mse_loss(twin(x), y).backward()
        tape.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("option", ["weight", "pos_weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_wider_dtype(option: str, dtype: torch.dtype):
    """Autograd accepts them, and only the loss is computed in the wider dtype."""
    model = dp.MLP([3, 4, 2], dtype=dtype)
    twin = copy.deepcopy(model)
    loss = functools.partial(F.binary_cross_entropy_with_logits, **{option: torch.tensor([1.0, 2.0], dtype=F64)})
    x, y = torch.rand(6, 3, dtype=dtype), torch.rand(6, 2).to(dtype)
    trainer, tape = dp.ExplicitTrainer(model, loss, sgd(model)), sgd(twin)
    for step in (trainer.step, functools.partial(trainer.epoch, batch_size=6)):
        tape.zero_grad()
        expected = loss(twin(x), y)
        expected.backward()
        tape.step()
        torch.testing.assert_close(step(x, y).to(F64), expected.detach().to(F64), rtol=1e-2, atol=1e-3)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_forward_replaced_later_is_refused():
    model = dp.MLP([3, 3, 3], "tanh")
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model))
    model[1].forward = lambda z: z
    assert_refused_unchanged(trainer, torch.rand(4, 3), torch.rand(4, 3), "a forward of its own")


def test_parameters_in_the_same_memory_are_refused():
    model = dp.MLP([3, 3, 3, 3], "tanh")
    model[4].weight.data = model[2].weight.data
    with pytest.raises(UserError, match="layers share a parameter"):
        dp.ExplicitTrainer(model, "mse", sgd(model))


def test_momentum_of_another_dtype_is_refused_before_any_update():
    model = dp.MLP([3, 4, 2])
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model, momentum=0.9))
    trainer.step(torch.rand(4, 3), torch.rand(4, 2))
    model.double()
    x, y = torch.rand(4, 3, dtype=F64), torch.rand(4, 2, dtype=F64)
    assert_refused_unchanged(
        trainer, x, y, r"momentum buffer .*float64 on cpu, is \[4, 3\] torch.float32 on cpu: make the optimizer"
    )


def test_another_dtype_in_the_same_memory_is_detected():
    """This happens if an allocator returns the old address."""
    model = dp.MLP([3, 4, 2], dtype=torch.bfloat16)
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model))
    trainer.step(torch.rand(4, 3).bfloat16(), torch.rand(4, 2).bfloat16())
    for p in model.parameters():
        p.data = p.data.view(torch.float16).fill_(0.1)
    x, y = torch.rand(4, 3).half(), torch.rand(4, 2).half()
    expected = F.mse_loss(model(x), y).detach()
    torch.testing.assert_close(trainer.step(x, y), expected)


def test_complex_targets_are_refused():
    model = dp.MLP([3, 2])
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model))
    assert_refused_unchanged(trainer, torch.rand(4, 3), torch.zeros(4, 2) + 1j, "targets must be real numbers")


@pytest.mark.parametrize("enabled", [False, True])
def test_on_step_has_the_callers_grad_mode(enabled: bool):
    model, seen = dp.MLP([3, 2]), []
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model))
    with torch.set_grad_enabled(enabled):
        trainer.epoch(torch.rand(4, 3), torch.rand(4, 2), 2, on_step=lambda _: seen.append(torch.is_grad_enabled()))
    assert seen == [enabled] * 2


def test_no_unused_memory_is_allocated():
    """∂C/∂a^L is memory of the loss, and below the lowest trainable layer there is no ∂C/∂a."""
    model = dp.MLP([3, 5, 4, 2])
    model[0].requires_grad_(False)
    trainer = dp.ExplicitTrainer(model, "mse", sgd(model))
    trainer.step(torch.rand(4, 3), torch.rand(4, 2))
    assert [layer.grad_a_out is None for layer in trainer._workspace.layers] == [True, False, True]
