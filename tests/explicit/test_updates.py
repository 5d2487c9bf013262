"""The fused update is ``optim.sgd_update``: over steps, with every option."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deltaprop.explicit.updates import Rates, decay, update
from deltaprop.optim import sgd_update

OPTIONS = [
    {},
    {"weight_decay": 0.2},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.2},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.2},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2, "maximize": True},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_fused_update_is_the_readable_rule(options: dict[str, Any]):
    lr = 0.1
    theta = torch.randn(3, 4, dtype=torch.float64)
    expected, expected_v = theta.clone(), None
    velocity = torch.zeros_like(theta) if options.get("momentum") else None
    rates = Rates(lr, *(options.get(name, 0.0) for name in Rates._fields[1:]))
    for step in range(4):
        gradient = torch.randn_like(theta)

        def add(target: Tensor, beta: float, alpha: float, gradient: Tensor = gradient) -> None:
            target.mul_(beta).add_(gradient, alpha=alpha)

        update(theta, velocity, add, rates, decay(theta, velocity, rates), fresh=step == 0)()
        expected, expected_v = sgd_update(expected, gradient, expected_v, lr=lr, **options)
        torch.testing.assert_close(theta, expected, rtol=1e-13, atol=1e-13)
        if velocity is not None:
            torch.testing.assert_close(velocity, expected_v, rtol=1e-13, atol=1e-13)


def test_parts_may_decay_differently():
    """Rows of one matrix, the first with λ = 0.5, the second with none: 1 − 0.1 · 0.5 = 0.95 of the first remains."""
    theta = torch.ones(2, 3)
    rates = Rates(0.1, 0.0, 0.0, 0.5, False, False)
    update(theta, None, lambda target, beta, alpha: target.mul_(beta), rates, decay(theta[0], None, rates), False)()
    torch.testing.assert_close(theta, torch.tensor([[0.95] * 3, [1.0] * 3]))


def test_options_are_told_apart():
    """No two of the cases above lead to the same parameters: a test that mixed them up could not pass."""
    ends = []
    for options in OPTIONS:
        theta, v = torch.ones(2, dtype=torch.float64), None
        for _ in range(3):
            theta, v = sgd_update(theta, torch.full_like(theta, 0.3), v, lr=0.1, **options)
        ends.append(theta[0].item())
    assert all(a != b for a, b in pairwise(sorted(ends)))
