"""Products in bf16 beside weights in float32: which numbers are rounded, and which are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.explicit import mixed, precision
from tests.explicit.compare import by_autograd


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand in for CUDA: the factors are rounded alike, the sums are float32 in both."""
    monkeypatch.setattr(mixed, "DEVICES", {"cpu", "cuda"})
    monkeypatch.setattr(precision, "_has", lambda *_: True)


def rounded(t: Tensor) -> Tensor:
    return t.to(torch.bfloat16).to(t.dtype)


def test_the_factors_are_rounded_and_nothing_else():
    """One step of a 3-4-2 net on five samples, with every factor rounded by hand."""
    model = dp.MLP([3, 4, 2], "tanh")
    w1, b1, w2, b2 = (p.detach().clone() for p in model.parameters())
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.5), precision="bf16").step(x, y)
    a1 = torch.tanh(rounded(x) @ rounded(w1).T + b1)
    delta2 = (rounded(a1) @ rounded(w2).T + b2 - y) / 5
    delta1 = (rounded(delta2) @ rounded(w2)) * (1 - a1**2)
    expected = [
        w1 - 0.5 * rounded(delta1).T @ rounded(x),
        b1 - 0.5 * delta1.sum(0),
        w2 - 0.5 * rounded(delta2).T @ rounded(a1),
        b2 - 0.5 * delta2.sum(0),
    ]
    for p, should_be in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), should_be, rtol=1e-6, atol=1e-6)


def test_an_epoch_packs_no_layer():
    """A packed layer's products are float32."""
    model = dp.MLP([3, 4, 2], "tanh")
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.5), precision="bf16")
    twin = copy.deepcopy(model)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    trainer.epoch(x, y, 5)
    dp.ExplicitTrainer(twin, "quadratic_loss", dp.SGD(twin.parameters(), lr=0.5), precision="bf16").step(x, y)
    assert trainer._layout.packed == []
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_steps_too_small_for_a_bf16_weight_add_up():
    """W = 1 takes 100 steps of 10⁻⁴; the next bf16 number below 1 is 2⁻⁸ away."""
    model = dp.MLP([1, 1])
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.fill_(0)
    trainer = dp.ExplicitTrainer(model, "l1_loss", dp.SGD(model.parameters(), lr=1e-4), precision="bf16")
    for _ in range(100):
        trainer.step(torch.ones(1, 1), torch.full((1, 1), -10.0))
    assert model[0].weight.item() == pytest.approx(0.99, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_learns_as_float32_does(device: str, options: dict[str, Any], bias: bool):
    """Within what eight bits allow: weights after a few steps part by about a percent of what they moved."""
    torch.manual_seed(0)
    model = dp.MLP([20, 30, 10], "sigmoid", bias=bias).to(device)
    start = [p.detach().clone() for p in model.parameters()]
    twin = copy.deepcopy(model)
    x, y = torch.randn(64, 20, device=device), torch.randint(10, (64,), device=device)
    trainer = dp.ExplicitTrainer(
        model, "cross_entropy", dp.SGD(model.parameters(), lr=0.5, **options), precision="bf16"
    )
    for _ in range(2):
        mean = float(trainer.epoch(x, y, 16))
    tape = dp.SGD(twin.parameters(), lr=0.5, **options)
    for _ in range(2):
        expected = by_autograd(twin, F.cross_entropy, tape, x, y, 16)
    assert mean == pytest.approx(expected, rel=1e-2)
    for p, q, before in zip(model.parameters(), twin.parameters(), start, strict=True):
        assert p.dtype == torch.float32
        assert (p - q).norm() <= 0.03 * (q - before).norm()
        assert not torch.equal(p, q)  # something was rounded
