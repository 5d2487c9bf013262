"""Both drivers on the same problem, step by step the same batches."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import functional as F

TOLERANCE = 1e-12  # relative, in float64


def targets(loss: str, rows: int, outputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return targets such as a loss takes: labels, numbers, or numbers in [0, 1]."""
    if loss == "cross_entropy":
        return torch.randint(outputs, (rows,))
    return torch.rand(rows, outputs, dtype=dtype)


def by_autograd(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    batch_size: int,
) -> float:
    """Take one pass over the rows by the tape; return the mean loss."""
    total = 0.0
    for batch_x, batch_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        c = loss(model(batch_x), batch_y)
        optimizer.zero_grad()
        c.backward()
        optimizer.step()
        total += c.item() * len(batch_x)
    return total / len(x)


def both(
    model: nn.Module,
    loss: str,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    *,
    epochs: int = 2,
    loss_options: Any = None,
    **sgd: Any,
) -> dp.ExplicitTrainer:
    """Train twins by both drivers and assert that parameters, velocities and losses agree; return the trainer."""
    twin = copy.deepcopy(model)
    function = functools.partial(getattr(F, loss), **(loss_options or {}))
    tape, ours = (dp.SGD(learning(m), **{"lr": 0.1, **sgd}) for m in (twin, model))
    trainer = dp.ExplicitTrainer(model, function, ours)
    for _ in range(2):
        expected = by_autograd(twin, function, tape, x, y, batch_size)
        torch.testing.assert_close(float(trainer.epoch(x, y, batch_size)), expected, rtol=1e-11, atol=1e-12)
    assert_same(model, twin, ours, tape)
    return trainer


def learning(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [p for p in model.parameters() if p.requires_grad]


def assert_same(model: nn.Module, twin: nn.Module, ours: torch.optim.Optimizer, tape: torch.optim.Optimizer) -> None:
    """Assert that two models and the velocities of their optimizers agree to 1e-12 of the largest entry."""
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), name)
        v, w = (o.state[t].get("momentum_buffer") if t in o.state else None for o, t in ((ours, p), (tape, q)))
        assert (v is None) == (w is None), name
        if v is not None:
            assert_close(v, w, f"velocity of {name}")


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Assert equality to 1e-12 of the largest entry."""
    assert torch.isfinite(actual).all(), what
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert error <= TOLERANCE, f"{what}: {error:.1e}"
