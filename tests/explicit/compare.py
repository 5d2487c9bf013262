"""Helpers that train both engines on the same batches and compare them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import functional as F

ELSEWHERE = [hypothesis.HealthCheck.differing_executors]  # tests/compiled runs these tests, too
TOLERANCE = 1e-12  # relative, in float64
F64 = torch.float64
SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "lr": 0.01},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.05},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
]
X, Y = torch.randn(23, 5, dtype=F64, generator=torch.Generator().manual_seed(1)), torch.arange(23) % 3


def targets(loss: str, rows: int, outputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return targets for a loss: labels for cross_entropy, else numbers in [0, 1]."""
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
    """Train one epoch with autograd; return the mean loss over the samples."""
    total = seen = 0.0
    for batch_x, batch_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        c = loss(model(batch_x), batch_y)
        optimizer.zero_grad()
        c.backward()
        optimizer.step()
        counts = counted(loss, batch_y)
        total += c.item() * counts if counts else 0.0
        seen += counts
    return total / seen


def counted(loss: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> float:
    """Return the weight of a batch in a mean: the sum of the class weights of the labels that are not ignored."""
    options = loss.keywords if isinstance(loss, functools.partial) else {}
    if y.is_floating_point() or options.get("reduction") == "sum":
        return len(y)
    labels = [label for label in y.tolist() if label != options.get("ignore_index", -100)]
    weight = options.get("weight")
    return len(labels) if weight is None else sum(weight[label].item() for label in labels)


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
    """Train a model with both engines and assert that parameters, velocities and losses agree; return the trainer."""
    twin = copy.deepcopy(model)
    function = functools.partial(getattr(F, loss), **(loss_options or {}))
    tape, ours = (dp.SGD(trainable(m), **{"lr": 0.1, **sgd}) for m in (twin, model))
    trainer = dp.ExplicitTrainer(model, function, ours)
    for _ in range(epochs):
        expected = by_autograd(twin, function, tape, x, y, batch_size)
        if not abs(expected) < 1e6:  # divergence magnifies rounding errors
            hypothesis.reject()
        torch.testing.assert_close(float(trainer.epoch(x, y, batch_size)), expected, rtol=1e-11, atol=1e-12)
    assert_same(model, twin, ours, tape)
    return trainer


def trainable(model: nn.Module) -> list[nn.Parameter]:
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


def problem(sizes: list[int], loss: str = "cross_entropy", rows: int = 23) -> tuple[Tensor, Tensor]:
    """Return inputs and targets."""
    return torch.randn(rows, sizes[0], dtype=F64), targets(loss, rows, sizes[-1])


def weights(trainer: dp.ExplicitTrainer) -> Tensor:
    """Return all parameters as one vector."""
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()


def twin_of(trainer: dp.ExplicitTrainer) -> dp.ExplicitTrainer:
    """Return a trainer of a copy of the model and optimizer."""
    model = copy.deepcopy(trainer.model)
    optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(
        copy.deepcopy(trainer.optimizer.state_dict())
    )  # without deepcopy they would share the velocities
    return dp.ExplicitTrainer(model, "cross_entropy", optimizer)


def velocity(trainer: dp.ExplicitTrainer) -> Tensor:
    """Return all momentum buffers as one vector."""
    buffers = [trainer.optimizer.state[p]["momentum_buffer"] for p in trainer.model.parameters()]
    return torch.cat([b.reshape(-1) for b in buffers])
