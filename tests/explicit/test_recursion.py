"""The recursion by hand: every number of one step checkable on paper."""

from __future__ import annotations

import torch

import deltaprop as dp


def net() -> dp.MLP:
    """1 − 1 − 1 with relu: W¹ = 2, b¹ = 1, W² = 3, b² = −1."""
    model = dp.MLP([1, 1, 1], "relu", dtype=torch.float64)
    with torch.no_grad():
        for p, value in zip(model.parameters(), (2.0, 1.0, 3.0, -1.0), strict=True):
            p.fill_(value)
    return model


def test_one_step_on_paper():
    """X = 1, y = 6: z¹ = 3, a¹ = 3, z² = 8, C = ½ (8 − 6)² = 2, δ² = 2, δ¹ = 2 · 3 = 6; η = 0.1."""
    model = net()
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    x, y = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[6.0]], dtype=torch.float64)
    assert trainer.step(x, y) == 2
    # W¹ −= 0.1 · 6 · 1, b¹ −= 0.1 · 6, W² −= 0.1 · 2 · 3, b² −= 0.1 · 2
    expected = [1.4, 0.4, 2.4, -1.2]
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.item(), value)


def test_delta_below_is_formed_from_the_old_weights():
    """With the new W² = 2.4, δ¹ would be 4.8 and W¹ would become 1.52."""
    model = net()
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    trainer.epoch(torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 6.0, dtype=torch.float64), 1)
    torch.testing.assert_close(model[0].weight.item(), 1.4)


def test_a_look_shows_z_a_and_delta_and_learns_nothing():
    model = net()
    before = [p.clone() for p in model.parameters()]
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    first, second = trainer.look(torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 6.0, dtype=torch.float64))
    assert (first.a.item(), second.a.item()) == (3, 8)
    assert (first.delta.item(), second.delta.item()) == (6, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
