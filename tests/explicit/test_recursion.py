"""The recursion by hand: every number of one step checkable on paper."""

from __future__ import annotations

import torch

import deltaprop as dp

X, Y = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[-7.5]], dtype=torch.float64)


def net() -> dp.MLP:
    """1 − 1 − 1 with a leaky relu of slope ½: W¹ = 2, b¹ = −5, W² = 3, b² = −1."""
    model = dp.MLP([1, 1, 1], dp.LeakyReLU(0.5), dtype=torch.float64)
    with torch.no_grad():
        for p, value in zip(model.parameters(), (2.0, -5.0, 3.0, -1.0), strict=True):
            p.fill_(value)
    return model


def test_one_step_on_paper():
    """X = 1, y = −7.5: z¹ = −3, a¹ = −1.5, z² = −5.5, C = ½ · 2² = 2, δ² = 2, δ¹ = 2 · 3 · ½ = 3; η = 0.1."""
    model = net()
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    assert trainer.step(X, Y) == 2
    # W¹ −= 0.1 · 3 · 1, b¹ −= 0.1 · 3, W² −= 0.1 · 2 · (−1.5), b² −= 0.1 · 2
    expected = [1.7, -5.3, 3.3, -1.2]
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.item(), value)


def test_delta_below_is_formed_from_the_old_weights():
    """With the new W² = 3.3, δ¹ would be 3.3 and W¹ would become 1.67."""
    model = net()
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    trainer.epoch(X, Y, 1)
    torch.testing.assert_close(model[0].weight.item(), 1.7)


def test_a_look_shows_z_a_and_delta_and_learns_nothing():
    model = net()
    before = [p.clone() for p in model.parameters()]
    trainer = dp.ExplicitTrainer(model, "quadratic_loss", dp.SGD(model.parameters(), lr=0.1))
    first, second = trainer.look(X, Y)
    assert (first.a.item(), second.a.item()) == (-1.5, -5.5)
    assert (first.delta.item(), second.delta.item()) == (3, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
