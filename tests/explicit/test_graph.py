"""The step as a graph: replayed, it is the step. On CUDA a CUDA graph; elsewhere one that keeps to its rules."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import functional as F
from deltaprop import ops
from deltaprop.explicit import batches, epilogue, graph, losses, trainer
from tests.explicit import recorder
from tests.explicit.compare import by_autograd, targets

SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.5, "dampening": 0.2, "weight_decay": 0.1, "maximize": True},
]


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch, device: str) -> list[str]:
    """Count captures and replays; let the CPU be a device that Python runs ahead of."""
    seen: list[str] = []
    take = recorder.capture if device == "cpu" else graph.capture

    def counted(work: Any, on: torch.device) -> Any:
        replay = take(work, on)
        seen.append("capture")

        def again() -> None:
            seen.append("replay")
            replay()

        return again

    monkeypatch.setattr(graph, "capture", counted)
    for module in (batches, losses):
        monkeypatch.setattr(module, "on_host", lambda device: False)
    monkeypatch.setattr(epilogue, "DEVICES", {device})
    monkeypatch.setattr(trainer, "can_capture", lambda device: True)
    return seen


def both(loss: str, device: str, activation: str = "tanh", loss_options: Any = None, **sgd: Any) -> None:
    """Train twins for some epochs, one by graphs and one by autograd, and compare."""
    model = dp.MLP([4, 6, 5, 3], activation, dtype=torch.float64).to(device)
    twin = copy.deepcopy(model)
    function = partial(getattr(F, loss), **(loss_options or {}))
    x = torch.randn(30, 4, dtype=torch.float64, device=device)
    y = targets(loss, 30, 3).to(device)
    ours, tape = (dp.SGD(m.parameters(), **{"lr": 0.1, **sgd}) for m in (model, twin))
    t = dp.ExplicitTrainer(model, function, ours)
    for _ in range(2):
        mean = float(t.epoch(x, y, 4))
        assert mean == pytest.approx(by_autograd(twin, function, tape, x, y, 4), rel=1e-11)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_replayed_steps_are_the_steps(options: dict[str, Any], device: str, graphs: list[str]):
    """Eight batches, the last a smaller one; the first steps go operation by operation."""
    both("cross_entropy", device, **options)
    assert graphs.count("capture") >= 1
    assert graphs.count("replay") >= 10


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_every_activation_can_be_captured(activation: str, device: str, graphs: list[str]):
    both("quadratic_loss", device, activation, lr=0.01)
    assert "replay" in graphs


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("mse_loss", {}),
        ("l1_loss", {"reduction": "sum"}),
        ("huber_loss", {"delta": 0.3}),
        ("binary_cross_entropy_with_logits", {}),
        ("binary_cross_entropy_per_sample", {}),
        ("cross_entropy", {"label_smoothing": 0.2}),
        ("cross_entropy", {"ignore_index": 1}),
        ("cross_entropy", {"reduction": "sum"}),
    ],
    ids=str,
)
def test_every_loss_can_be_captured(loss: str, options: dict[str, Any], device: str, graphs: list[str]):
    both(loss, device, loss_options=options, lr=0.01)
    assert "replay" in graphs


class Net:
    """A small net with a trainer, and rows for ten batches of three."""

    def __init__(self, device: str, activation: str = "relu", **sgd: Any) -> None:
        self.model = dp.MLP([4, 6, 3], activation, dtype=torch.float64).to(device)
        self.sgd = dp.SGD(self.model.parameters(), **{"lr": 0.1, **sgd})
        self.trainer = dp.ExplicitTrainer(self.model, "cross_entropy", self.sgd)
        self.x = torch.randn(30, 4, dtype=torch.float64, device=device)
        self.y = torch.randint(3, (30,), device=device)

    def epoch(self, **options: Any) -> Tensor:
        return self.trainer.epoch(self.x, self.y, 3, **options)

    def twin(self) -> Net:
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.sgd = dp.SGD(other.model.parameters(), lr=0.1)
        return other

    def by_tape(self) -> float:
        return by_autograd(self.model, F.cross_entropy, self.sgd, self.x, self.y, 3)


def test_one_capture_serves_epoch_after_epoch(device: str, graphs: list[str]):
    net = Net(device)
    for _ in range(4):
        net.epoch()
    assert graphs.count("capture") == 1
    assert graphs.count("replay") == 4 * 10 - 1  # the very first step is taken operation by operation


def test_another_lr_is_captured_anew(device: str, graphs: list[str]):
    """And what stood in the old graph is not used again."""
    net = Net(device)
    tape = net.twin()
    for lr in (0.1, 0.05, 0.2):
        net.sgd.param_groups[0]["lr"] = tape.sgd.param_groups[0]["lr"] = lr
        assert float(net.epoch()) == pytest.approx(tape.by_tape(), rel=1e-11)
    assert graphs.count("capture") == 3


def test_an_lr_that_changes_at_every_step_is_not_captured(device: str, graphs: list[str]):
    net = Net(device)

    def warm_up(step: int) -> None:
        net.sgd.param_groups[0]["lr"] = 0.01 * step

    net.epoch(on_step=warm_up)
    assert graphs == []


def test_other_data_is_captured_anew(device: str, graphs: list[str]):
    net = Net(device)
    tape = net.twin()
    for _ in range(2):
        assert float(net.epoch()) == pytest.approx(tape.by_tape(), rel=1e-11)
        net.x = tape.x = torch.randn_like(net.x)
    assert graphs.count("capture") == 2


def test_data_written_to_in_place_is_seen(device: str, graphs: list[str]):
    net = Net(device)
    tape = net.twin()
    for _ in range(2):
        assert float(net.epoch()) == pytest.approx(tape.by_tape(), rel=1e-11)
        net.x.mul_(0.5)
    assert graphs.count("capture") == 1


def test_an_order_is_followed_and_may_change(device: str, graphs: list[str]):
    net = Net(device)
    tape = net.twin()
    for _ in range(3):
        order = torch.randperm(30, device=device)
        mean = net.epoch(order=order)
        tape.x, tape.y = net.x[order], net.y[order]
        assert float(mean) == pytest.approx(tape.by_tape(), rel=1e-11)
    assert graphs.count("capture") == 1


def test_the_epoch_can_end_after_any_step_and_go_on(device: str):
    net = Net(device)
    tape = net.twin()
    net.epoch()
    tape.by_tape()
    net.epoch(on_step=lambda step: step == 4)
    net.epoch(start=4)
    tape.by_tape()
    for p, q in zip(net.model.parameters(), tape.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_parameters_may_be_looked_at_and_changed_between_replays(device: str):
    net = Net(device)
    tape = net.twin()
    net.epoch()
    tape.by_tape()
    with torch.no_grad():
        for model in (net.model, tape.model):
            model[0].weight.mul_(0.5)
    net.epoch(on_step=lambda step: None)
    tape.by_tape()
    for p, q in zip(net.model.parameters(), tape.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_the_loss_is_told_in_other_units(device: str):
    model = dp.MLP([4, 2], dtype=torch.float64).to(device)
    t = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters(), lr=0.0))
    x, y = torch.randn(2, 12, 4, dtype=torch.float64, device=device)
    y, units = y[:, :2].contiguous(), torch.tensor([2.0, 3.0], dtype=torch.float64, device=device)
    expected = F.mse_loss(model(x) * units, y * units)
    for _ in range(2):
        torch.testing.assert_close(t.epoch(x, y, 3, units=units), expected.detach())


def test_a_device_with_neither_cache_nor_graphs_trains_too(device: str, monkeypatch: pytest.MonkeyPatch):
    """As mps is."""
    monkeypatch.setattr(trainer, "can_capture", lambda device: False)
    both("cross_entropy", device)


def test_an_activation_without_a_kernel_runs_operation_by_operation(
    monkeypatch: pytest.MonkeyPatch, device: str, graphs: list[str]
):
    """One of the user's may ask the device for a number, which no graph can hold."""

    class Asking(ops.Elementwise):
        """a = z if Σ z is a number, as one hopes."""

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z * float(z.sum().isfinite())

        @staticmethod
        def slope(z: Tensor) -> Tensor:
            return torch.ones_like(z)

    monkeypatch.setitem(ops.ACTIVATIONS, "asking", Asking)
    monkeypatch.setitem(ops.activation, "asking", ops.primitive(Asking))
    net = Net(device, "asking")
    tape = net.twin()
    for _ in range(2):
        assert float(net.epoch()) == pytest.approx(tape.by_tape(), rel=1e-11)
    assert graphs == []
