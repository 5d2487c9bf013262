"""Both engines in sequences of training steps, changed settings, frozen layers, reloads and other operations."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deltaprop as dp
from deltaprop import functional as F
from tests.explicit.compare import (
    ELSEWHERE,
    F64,
    assert_same,
    by_autograd,
    problem,
)


class Twins:
    """A model trained by both engines, with operations that are applied to both."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.model = dp.MLP([5, 7, 6, 3], ["tanh", "gelu"], dtype=F64).to(device)
        self.twin = copy.deepcopy(self.model)
        self.ours, self.tape = (
            dp.SGD([{"params": [p for p in m.parameters() if p.dim() == d]} for d in (2, 1)], lr=0.1, momentum=0.9)
            for m in (self.model, self.twin)
        )
        self.trainer = dp.ExplicitTrainer(self.model, "cross_entropy", self.ours)
        self.x, self.y = (t.to(device) for t in problem([5, 7, 6, 3]))
        self.start = copy.deepcopy(self.model.state_dict())

    def do(self, operation: str) -> None:
        """Apply one operation of a sequence to both."""
        name, _, value = operation.partition(" ")
        getattr(self, name)(*map(float, value.split()))

    def epoch(self, batch_size: float, rows: float = 23) -> None:
        n, m = int(batch_size), int(rows)
        self.trainer.epoch(self.x[:m], self.y[:m], n)
        self.train_by_autograd(m, n)

    def train_by_autograd(self, rows: int, batch_size: int) -> None:
        by_autograd(self.twin, F.cross_entropy, self.tape, self.x[:rows], self.y[:rows], batch_size)

    def parts(self, batch_size: float, *ends: float) -> None:
        """Train an epoch that is interrupted after some steps."""
        n, done = int(batch_size), 0
        for end in map(int, ends):
            self.trainer.epoch(self.x, self.y, n, start=done, on_step=lambda step, end=end: step == end)  # type: ignore[misc]
            done = end
        self.trainer.epoch(self.x, self.y, n, start=done)
        self.train_by_autograd(23, n)

    def within(self, batch_size: float, rows: float, at: float = 2) -> None:
        """Train an epoch, with a single step within it."""
        n, m = int(batch_size), int(rows)
        first = int(at) * n

        def on_step(step: int) -> None:
            if step == at:
                self.trainer.step(self.x[:m], self.y[:m])

        self.trainer.epoch(self.x, self.y, n, on_step=on_step)
        self.train_by_autograd(first, n)
        self.train_by_autograd(m, m)
        by_autograd(self.twin, F.cross_entropy, self.tape, self.x[first:], self.y[first:], n)

    def step(self, rows: float) -> None:
        n = int(rows)
        self.trainer.step(self.x[:n], self.y[:n])
        self.train_by_autograd(n, n)

    def backward(self, rows: float) -> None:
        """Train the trainer's model with autograd for a step, with the trainer's optimizer."""
        n = int(rows)
        by_autograd(self.model, F.cross_entropy, self.ours, self.x[:n], self.y[:n], n)
        self.ours.zero_grad()
        self.train_by_autograd(n, n)

    def refused(self) -> None:
        """Assert that invalid batches are refused; they change nothing."""
        for x, y in ((self.x[:, :4], self.y), (self.x, self.y + 3), (self.x, self.y[:5])):
            for call in (lambda x=x, y=y: self.trainer.step(x, y), lambda x=x, y=y: self.trainer.epoch(x, y, 8)):  # type: ignore[misc]
                with pytest.raises(dp.UserError):
                    call()

    def copied(self) -> None:
        """Continue with a copy."""
        self.trainer = copy.deepcopy(self.trainer)
        self.model, self.ours = self.trainer.model, self.trainer.optimizer  # type: ignore[assignment]

    def pickled(self) -> None:
        """Continue with a pickled and unpickled copy."""
        self.trainer = pickle.loads(pickle.dumps(self.trainer))
        self.model, self.ours = self.trainer.model, self.trainer.optimizer  # type: ignore[assignment]

    def lr(self, *values: float) -> None:
        self.change("lr", values)

    def momentum(self, *values: float) -> None:
        self.change("momentum", values)

    def weight_decay(self, *values: float) -> None:
        self.change("weight_decay", values)

    def nesterov(self, *values: float) -> None:
        self.change("nesterov", values)

    def change(self, option: str, values: tuple[float, ...]) -> None:
        for optimizer in (self.ours, self.tape):
            for group, value in zip(optimizer.param_groups, values * 2, strict=False):
                group[option] = value

    def freeze(self, number: float, requires_grad: float = 0) -> None:
        for m in (self.model, self.twin):
            list(m.parameters())[int(number)].requires_grad_(bool(requires_grad))
        self.tape.zero_grad()

    def thaw(self, number: float) -> None:
        self.freeze(number, 1)

    def activation(self, number: float) -> None:
        """Replace the first activation."""
        for m in (self.model, self.twin):
            m[1] = [dp.Tanh(), nn.LeakyReLU(0.2), dp.Softplus(2.0)][int(number)]

    def constant(self, value: float) -> None:
        """Set the constant of PyTorch's LeakyReLU."""
        for m in (self.model, self.twin):
            if isinstance(m[1], nn.LeakyReLU):
                m[1].negative_slope = value

    def reload(self) -> None:
        for optimizer in (self.ours, self.tape):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def forget(self) -> None:
        for optimizer in (self.ours, self.tape):
            optimizer.state.clear()

    def restart(self) -> None:
        for m in (self.model, self.twin):
            m.load_state_dict(self.start)

    def swap(self) -> None:
        """Exchange the groups of W² and b²."""
        for optimizer in (self.ours, self.tape):
            first, second = (group["params"] for group in optimizer.param_groups)
            first[1], second[1] = second[1], first[1]

    def toggle_bias(self) -> None:
        """Remove b¹ and its velocity from the optimizer, or add it again."""
        for m, optimizer in ((self.model, self.ours), (self.twin, self.tape)):
            biases, bias = optimizer.param_groups[1]["params"], m[0].bias
            others = [p for p in biases if p is not bias]
            optimizer.param_groups[1]["params"] = [*others, bias] if len(others) == len(biases) else others
            optimizer.state.pop(bias, None)
        self.twin.zero_grad()


SEQUENCES = [
    ["epoch 8", "reload", "lr 0.5", "epoch 8"],
    ["lr 0.1 0.3", "epoch 8", "swap", "epoch 8"],
    ["freeze 1", "epoch 8", "thaw 1", "epoch 8", "step 5", "epoch 8"],
    ["momentum 0.9 0", "epoch 8", "momentum 0.9", "epoch 8", "epoch 8"],
    ["epoch 8 20", "momentum 0", "epoch 8 16", "momentum 0.9", "epoch 8 20", "epoch 8 20"],
    ["epoch 8 20", "momentum 0", "epoch 8 16", "momentum 0.9", "epoch 8 4", "epoch 8 20"],
    ["step 3", "epoch 5", "backward 7", "epoch 8", "step 20"],
    ["epoch 8", "backward 8", "backward 23", "within 4 10", "backward 2", "step 8"],
    ["within 4 3", "parts 4 1 3 5", "within 8 20", "epoch 1"],
    ["activation 1", "epoch 8", "constant 0.5", "epoch 8", "constant -0.3", "step 5", "activation 2", "epoch 8"],
    ["epoch 8", "reload", "toggle_bias", "epoch 8", "reload", "toggle_bias", "epoch 8"],
    ["nesterov 1", "epoch 8", "nesterov 0 1", "forget", "epoch 8", "copied", "epoch 8", "pickled", "epoch 8"],
    ["refused", "epoch 8", "refused", "step 3", "refused", "epoch 5"],
]
OPERATIONS = [
    *("epoch 8", "epoch 5 20", "epoch 5 4", "epoch 40", "parts 8 1", "parts 4 2 3", "within 8 3", "within 5 20 3"),
    *("step 8", "step 5", "step 20", "backward 8", "backward 3", "refused", "copied", "pickled"),
    *("lr 0.2", "lr 0.1 0.05", "momentum 0", "momentum 0.9", "momentum 0.9 0.5", "momentum 0 0.9"),
    *("weight_decay 0.1", "weight_decay 0.1 0", "weight_decay 0", "nesterov 1", "nesterov 0 1", "nesterov 0"),
    *("freeze 0", "thaw 0", "freeze 3", "thaw 3", "freeze 4", "thaw 4", "reload", "forget", "restart", "swap"),
    *("activation 0", "activation 1", "activation 2", "constant 0.5", "constant 0.1", "toggle_bias"),
]


class TestSequences:
    """After any sequence of operations both engines have the same parameters and velocities."""

    @pytest.mark.parametrize("operations", SEQUENCES, ids=", ".join)
    def test_fixed_sequences(self, operations: list[str]):
        twins = Twins(0)
        for operation in operations:
            twins.do(operation)
        assert_same(twins.model, twins.twin, twins.ours, twins.tape)

    @settings(max_examples=100, deadline=None, suppress_health_check=ELSEWHERE)
    @given(operations=st.lists(st.sampled_from(OPERATIONS), min_size=3, max_size=14), seed=st.integers(0, 2**32))
    def test_random_sequences(self, operations: list[str], seed: int):
        twins = Twins(seed)
        for operation in operations:
            twins.do(operation)
        assert_same(twins.model, twins.twin, twins.ours, twins.tape)
