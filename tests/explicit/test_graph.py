"""Steps replayed from a captured graph: a CUDA graph on CUDA, elsewhere a stand-in that follows its rules."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import core
from deltaprop import functional as F
from deltaprop.epoch_state import EpochState
from deltaprop.explicit import graph, trainer, workspace
from tests.explicit import recorder
from tests.explicit.compare import F64, SGD_OPTIONS, assert_same, by_autograd, targets
from tests.explicit.test_losses import CASES, OUTPUTS
from tests.explicit.test_sequences import SEQUENCES, Twins


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch, device: str) -> list[str]:
    """Record captures and replays; treat the CPU as a device that has graphs."""
    events: list[str] = []
    real_capture = recorder.capture if device == "cpu" else graph.capture

    def counted(work: Any, on: torch.device) -> Any:
        replay = real_capture(work, on)
        events.append("capture")

        def recorded_replay() -> None:
            events.append("replay")
            replay()

        return recorded_replay

    monkeypatch.setattr(graph, "capture", counted)
    monkeypatch.setattr(trainer, "can_capture", lambda device: True)
    return events


def both(loss: str, device: str, activation: str = "tanh", loss_options: Any = None, **sgd: Any) -> None:
    """Train two copies of a model, one with graphs and one with autograd, and compare them."""
    model = dp.MLP([4, 6, 5, OUTPUTS], activation, dtype=F64).to(device)
    twin = copy.deepcopy(model)
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in (loss_options or {}).items()}
    function = partial(getattr(F, loss), **options)
    x, y = torch.randn(30, 4, dtype=F64, device=device), targets(loss, 30, OUTPUTS).to(device)
    ours, tape = (dp.SGD(m.parameters(), **{"lr": 0.1, **sgd}) for m in (model, twin))
    t = dp.ExplicitTrainer(model, function, ours)
    for _ in range(2):
        mean = float(t.epoch(x, y, 4))
        assert mean == pytest.approx(by_autograd(twin, function, tape, x, y, 4), rel=1e-11)
    assert_same(model, twin, ours, tape)


class TestReplayedSteps:
    """Eight batches, the last one smaller; the first steps run without a graph."""

    @pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
    def test_every_option_of_sgd(self, options: dict[str, Any], device: str, graphs: list[str]):
        both("cross_entropy", device, **options)
        assert graphs.count("capture") >= 1
        assert graphs.count("replay") >= 10

    @pytest.mark.parametrize("activation", sorted(core.ACTIVATIONS))
    def test_every_activation(self, activation: str, device: str, graphs: list[str]):
        both("quadratic_loss", device, activation, lr=0.01)
        assert "replay" in graphs

    @pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
    def test_every_loss(self, loss: str, options: dict[str, Any], device: str, graphs: list[str]):
        both(loss, device, loss_options=options, lr=0.01)
        assert "replay" in graphs


class Net:
    """A small net with a trainer, and rows for ten batches of three."""

    def __init__(self, device: str, activation: str = "relu", **sgd: Any) -> None:
        self.model = dp.MLP([4, 6, 3], activation, dtype=F64).to(device)
        self.sgd = dp.SGD(self.model.parameters(), **{"lr": 0.1, **sgd})
        self.trainer = dp.ExplicitTrainer(self.model, "cross_entropy", self.sgd)
        self.x, self.y = torch.randn(30, 4, dtype=F64, device=device), torch.randint(3, (30,), device=device)

    def epoch(self, **options: Any) -> Tensor:
        return self.trainer.epoch(self.x, self.y, 3, **options)

    def twin(self) -> Net:
        """Return a copy that continues from here on the same data."""
        other = copy.copy(self)
        other.trainer = copy.deepcopy(self.trainer)
        other.model, other.sgd = other.trainer.model, other.trainer.optimizer
        return other

    def train_by_autograd(self) -> float:
        return by_autograd(self.model, F.cross_entropy, self.sgd, self.x, self.y, 3)

    def assert_same(self, other: Net) -> None:
        assert_same(self.model, other.model, self.sgd, other.sgd)


def assert_same_epochs(net: Net, tape: Net, epochs: int = 1) -> None:
    """Train one with graphs and the other with autograd, and assert that they have the same losses."""
    for _ in range(epochs):
        assert float(net.epoch()) == pytest.approx(tape.train_by_autograd(), rel=1e-11)


class TestCapture:
    def test_one_capture_serves_epoch_after_epoch(self, device: str, graphs: list[str]):
        net = Net(device)
        for _ in range(4):
            net.epoch()
        assert graphs.count("capture") == 1
        assert graphs.count("replay") == 4 * 10 - 1  # the first step runs without a graph

    def test_with_momentum_after_two_steps(self, device: str, graphs: list[str]):
        """The first step creates the momentum buffers, so its update differs from the later ones."""
        Net(device, momentum=0.9).epoch()
        assert graphs.count("replay") == 10 - 2

    def test_another_lr_is_captured_again(self, device: str, graphs: list[str]):
        """The old graph with the old learning rate is not used again."""
        net = Net(device)
        tape = net.twin()
        for lr in (0.1, 0.05, 0.2):
            net.sgd.param_groups[0]["lr"] = tape.sgd.param_groups[0]["lr"] = lr
            assert_same_epochs(net, tape)
        net.assert_same(tape)
        assert graphs.count("capture") == 3

    def test_an_lr_that_changes_at_every_step_is_not_captured(self, device: str, graphs: list[str]):
        net = Net(device)

        def warm_up(step: int) -> None:
            net.sgd.param_groups[0]["lr"] = 0.01 * step

        net.epoch(on_step=warm_up)
        assert graphs == []

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_loaded_momentum_buffers_are_used(self, nesterov: bool, device: str, graphs: list[str]):
        """The optimizer then holds other tensors, and the old graph would write to the old ones."""
        net = Net(device, momentum=0.9, nesterov=nesterov)
        tape = net.twin()
        for _ in range(3):
            assert_same_epochs(net, tape)
            for sgd in (net.sgd, tape.sgd):
                sgd.load_state_dict(copy.deepcopy(sgd.state_dict()))
        net.assert_same(tape)
        assert graphs.count("capture") == 3

    def test_deleted_momentum_buffers_start_again(self, device: str):
        net = Net(device, momentum=0.9)
        tape = net.twin()
        for _ in range(2):
            assert_same_epochs(net, tape)
            for sgd in (net.sgd, tape.sgd):
                sgd.state.clear()
        assert_same_epochs(net, tape, epochs=2)
        net.assert_same(tape)

    def test_a_frozen_layer_is_captured_again(self, device: str, graphs: list[str]):
        net = Net(device, momentum=0.9)
        tape = net.twin()
        for requires_grad in (True, False, True):
            for model in (net.model, tape.model):
                model[0].requires_grad_(requires_grad)
            tape.sgd.zero_grad()
            assert_same_epochs(net, tape)
        net.assert_same(tape)
        assert graphs.count("capture") == 3

    def test_a_user_defined_activation_is_not_captured(
        self, monkeypatch: pytest.MonkeyPatch, device: str, graphs: list[str]
    ):
        """A user's formula may synchronize with the device, which a graph cannot do."""

        class Synchronizing(core.Elementwise):
            """a = z if Σ z is finite, else 0."""

            @staticmethod
            def forward(z: Tensor) -> Tensor:
                return z * float(z.sum().isfinite())

            @staticmethod
            def derivative(z: Tensor) -> Tensor:
                return torch.ones_like(z)

        monkeypatch.setitem(core.ACTIVATIONS, "synchronizing", Synchronizing)
        net = Net(device, "synchronizing")
        assert_same_epochs(net, net.twin(), epochs=2)
        assert graphs == []

    def test_a_synchronization_cannot_be_captured(self, device: str):
        """The reason for the test above; the stand-in must follow this rule too."""
        if device == "cpu":  # on CUDA the failure would break the device for later tests
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
                graph.capture(lambda: torch.ones(2).sum().item(), torch.device(device))

    def test_a_device_without_graphs_trains(self, device: str, graphs: list[str], monkeypatch: pytest.MonkeyPatch):
        """Such as mps."""
        monkeypatch.setattr(trainer, "can_capture", lambda device: False)
        both("cross_entropy", device)
        assert graphs == []


@pytest.mark.parametrize("operations", SEQUENCES, ids=", ".join)
def test_replayed_steps_match_autograd_in_every_sequence(operations: list[str], device: str):
    twins = Twins(0, device)
    for operation in operations:
        twins.do(operation)
    assert_same(twins.model, twins.twin, twins.ours, twins.tape)


class TestData:
    def test_other_data_is_captured_again(self, device: str, graphs: list[str]):
        net = Net(device)
        tape = net.twin()
        for _ in range(2):
            assert_same_epochs(net, tape)
            net.x = tape.x = torch.randn_like(net.x)
        assert graphs.count("capture") == 2

    def test_old_data_is_released(self, device: str):
        """Otherwise data that is streamed in shards would fill the device."""
        net = Net(device)
        net.epoch()
        before = weakref.ref(net.x)
        net.x = torch.randn_like(net.x)
        net.epoch()
        gc.collect()
        assert before() is None

    def test_graphs_are_kept_for_the_last_batch_sizes(self, device: str):
        net = Net(device)
        for rows in range(19, 0, -1):
            net.trainer.epoch(net.x, net.y, rows)
        assert list(net.trainer._workspace._captured)[-1] == 1
        assert len(net.trainer._workspace._captured) == workspace.MOST_CAPTURED

    def test_in_place_changes_of_the_data_take_effect(self, device: str, graphs: list[str]):
        net = Net(device)
        tape = net.twin()
        for _ in range(2):
            assert_same_epochs(net, tape)
            net.x.mul_(0.5)
        assert graphs.count("capture") == 1

    @pytest.mark.parametrize("ignored", [[4], [4, 9, 10, 11]], ids=["a label", "a whole batch"])
    def test_labels_ignored_in_one_epoch_and_not_in_the_next(self, ignored: list[int], device: str):
        """In the same memory: a graph captured for labels without ignored ones must not be used for others."""
        net = Net(device)
        tape = net.twin()
        whole = net.y.clone()
        some = whole.clone()
        some[ignored] = -100
        for labels in (whole, some, whole):
            net.y.copy_(labels)
            assert_same_epochs(net, tape)
        net.assert_same(tape)

    def test_an_order_is_followed_and_may_change(self, device: str, graphs: list[str]):
        net = Net(device)
        tape = net.twin()
        for _ in range(3):
            order = torch.randperm(30, device=device)
            mean = net.epoch(order=order)
            tape.x, tape.y = net.x[order], net.y[order]
            assert float(mean) == pytest.approx(tape.train_by_autograd(), rel=1e-11)
        assert graphs.count("capture") == 1

    @pytest.mark.parametrize("rows", [0, 1, 4])
    def test_an_order_of_few_rows_or_none(self, rows: int, device: str):
        """For an empty order no step is taken, and the weights do not decay."""
        net = Net(device, weight_decay=0.1)
        net.epoch()
        tape = net.twin()
        mean = net.epoch(order=torch.arange(rows, device=device))
        if rows:
            tape.x, tape.y = net.x[:rows], net.y[:rows]
            assert float(mean) == pytest.approx(tape.train_by_autograd(), rel=1e-11)
        else:
            assert mean.isnan()
        net.assert_same(tape)


class TestBetweenReplays:
    def test_the_epoch_can_stop_and_resume(self, device: str):
        net = Net(device)
        tape = net.twin()
        assert_same_epochs(net, tape)
        net.epoch(on_step=lambda step: step == 4)
        net.epoch(start=4)
        tape.train_by_autograd()
        net.assert_same(tape)

    @pytest.mark.parametrize("pause", [1, 4, 7])
    def test_an_epoch_with_pauses_gives_the_same_bits(self, pause: int, device: str):
        net = Net(device, momentum=0.9)
        whole = net.twin()
        states = []
        for one, interval in ((net, pause), (whole, 100)):
            state = EpochState(one.x.new_zeros(()), pause=lambda done: True, interval=interval)
            while state.done < 10:
                one.trainer._epoch(one.x, one.y, 3, None, state)
            states.append(state)
        assert torch.equal(states[0].mean(), states[1].mean())
        for p, q in zip(net.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_report_gets_the_outputs_of_each_batch(self, device: str):
        net = Net(device)
        tape = net.twin()
        seen: list[tuple[Tensor, Tensor]] = []

        def report(a: Tensor, y: Tensor) -> Tensor:
            seen.append((a.clone(), y.clone()))
            return a.new_ones(())

        for _ in range(2):
            state = EpochState(net.x.new_zeros(()), report=report)
            net.trainer._epoch(net.x, net.y, 3, None, state)
            assert state.mean() == 1
        batches = list(zip(net.x.split(3), net.y.split(3), strict=True))
        for (a, y), (x_batch, y_batch) in zip(seen, batches * 2, strict=True):
            assert torch.equal(y, y_batch)
            torch.testing.assert_close(a, tape.model(x_batch).detach(), rtol=1e-11, atol=1e-13)
            by_autograd(tape.model, F.cross_entropy, tape.sgd, x_batch, y_batch, 3)

    def test_single_steps_between_epochs_change_nothing_else(self, device: str, graphs: list[str]):
        """With as many rows, fewer, and more, for which memory is allocated."""
        net = Net(device, momentum=0.9)
        tape = net.twin()
        for rows in (3, 2, 20, 3):
            assert_same_epochs(net, tape)
            net.trainer.step(net.x[:rows], net.y[:rows])
            by_autograd(tape.model, F.cross_entropy, tape.sgd, net.x[:rows], net.y[:rows], rows)
        net.assert_same(tape)
        assert graphs.count("capture") == 2  # again when all memory is new

    def test_parameters_may_be_read_and_changed(self, device: str):
        net = Net(device)
        tape = net.twin()
        assert_same_epochs(net, tape)
        with torch.no_grad():
            for model in (net.model, tape.model):
                model[0].weight.mul_(0.5)
        seen: list[Tensor] = []
        net.epoch(on_step=lambda step: seen.append(net.model[0].weight.detach().clone()))
        tape.train_by_autograd()
        net.assert_same(tape)
        assert torch.equal(seen[-1], net.model[0].weight)
        assert not any(torch.equal(before, after) for before, after in pairwise(seen))
