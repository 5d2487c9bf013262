"""Both drivers through whatever their users do to them: stories of steps, changes, freezes, reloads and looks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deltaprop as dp
from deltaprop import functional as F
from tests.explicit.compare import (
    F64,
    assert_same,
    by_autograd,
    problem,
)


class Twins:
    """A model by both drivers, through whatever their users do to them."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = dp.MLP([5, 7, 6, 3], ["tanh", "gelu"], dtype=F64)
        self.twin = copy.deepcopy(self.model)
        self.ours, self.tape = (
            dp.SGD([{"params": [p for p in m.parameters() if p.dim() == d]} for d in (2, 1)], lr=0.1, momentum=0.9)
            for m in (self.model, self.twin)
        )
        self.trainer = dp.ExplicitTrainer(self.model, "cross_entropy", self.ours)
        self.x, self.y = problem([5, 7, 6, 3])
        self.start = copy.deepcopy(self.model.state_dict())

    def do(self, what: str) -> None:
        """Take one of the steps of the story on both sides."""
        name, _, value = what.partition(" ")
        getattr(self, name)(*map(float, value.split()))

    def epoch(self, batch_size: float, rows: float = 23, reads: float = 1) -> None:
        n, m = int(batch_size), int(rows)
        on_step = None if reads == 2 else lambda step: None
        self.trainer.epoch(self.x[:m], self.y[:m], n, on_step=on_step, on_step_reads=bool(reads))
        by_autograd(self.twin, F.cross_entropy, self.tape, self.x[:m], self.y[:m], n)

    def step(self, rows: float) -> None:
        n = int(rows)
        self.trainer.step(self.x[:n], self.y[:n])
        by_autograd(self.twin, F.cross_entropy, self.tape, self.x[:n], self.y[:n], n)

    def look(self, rows: float) -> None:
        self.trainer.look(self.x[: int(rows)], self.y[: int(rows)])

    def lr(self, *values: float) -> None:
        self.change("lr", values)

    def momentum(self, *values: float) -> None:
        self.change("momentum", values)

    def weight_decay(self, *values: float) -> None:
        self.change("weight_decay", values)

    def change(self, option: str, values: tuple[float, ...]) -> None:
        for optimizer in (self.ours, self.tape):
            for group, value in zip(optimizer.param_groups, values * 2, strict=False):
                group[option] = value

    def freeze(self, number: float, requires_grad: float = 0) -> None:
        for m in (self.model, self.twin):
            list(m.parameters())[int(number)].requires_grad_(bool(requires_grad))

    def thaw(self, number: float) -> None:
        self.freeze(number, 1)

    def reload(self) -> None:
        for optimizer in (self.ours, self.tape):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def restart(self) -> None:
        for m in (self.model, self.twin):
            m.load_state_dict(self.start)

    def swap(self) -> None:
        """Let W² and b² change groups."""
        for optimizer in (self.ours, self.tape):
            first, second = (group["params"] for group in optimizer.param_groups)
            first[1], second[1] = second[1], first[1]


STORIES = [
    ["epoch 8", "reload", "lr 0.5", "epoch 8"],
    ["lr 0.1 0.3", "epoch 8", "swap", "epoch 8"],
    ["freeze 1", "epoch 8", "thaw 1", "epoch 8", "step 5", "epoch 8"],
    ["momentum 0.9 0", "epoch 8", "momentum 0.9", "epoch 8", "epoch 8"],
    ["epoch 8 20", "momentum 0", "epoch 8 16", "momentum 0.9", "epoch 8 20", "epoch 8 20"],
    ["epoch 8 20", "momentum 0", "epoch 8 16", "momentum 0.9", "epoch 8 4", "epoch 8 20"],
    ["step 3", "look 20", "epoch 5", "look 7", "epoch 8 23 2", "step 20"],
]
DEEDS = [
    *(
        "epoch 8 23 2",
        "epoch 8 23 0",
        "epoch 8",
        "epoch 5 20 2",
        "epoch 5 4 2",
        "step 8",
        "step 5",
        "look 20",
        "look 3",
    ),
    *("lr 0.2", "lr 0.1 0.05", "momentum 0", "momentum 0.9", "momentum 0.9 0.5", "momentum 0 0.9"),
    *("weight_decay 0.1", "weight_decay 0.1 0", "weight_decay 0"),
    *("freeze 0", "thaw 0", "freeze 3", "thaw 3", "freeze 4", "thaw 4", "reload", "restart", "swap"),
]


class TestStories:
    """Whatever is done between steps, in whatever order, both drivers stay together."""

    @pytest.mark.parametrize("deeds", STORIES, ids=", ".join)
    @pytest.mark.parametrize("reads", [1, 2], ids=["in place", "packed"])
    def test_told(self, deeds: list[str], reads: int):
        twins = Twins(0)
        for deed in deeds:
            words = deed.split()
            if words[0] == "epoch":
                deed = " ".join([*words, "23"][:3]) + f" {reads}" if len(words) < 4 else deed
            twins.do(deed)
        assert_same(twins.model, twins.twin, twins.ours, twins.tape)

    @settings(max_examples=60, deadline=None)
    @given(deeds=st.lists(st.sampled_from(DEEDS), min_size=3, max_size=14), seed=st.integers(0, 2**32))
    def test_drawn(self, deeds: list[str], seed: int):
        twins = Twins(seed)
        for deed in deeds:
            twins.do(deed)
        assert_same(twins.model, twins.twin, twins.ours, twins.tape)
