"""The explicit driver takes the steps of autograd: over every op and option, to 1e-12 in float64."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import deltaprop as dp
from deltaprop import UserError, ops
from deltaprop import functional as F
from deltaprop.explicit.losses import _ROWS as LOSSES
from deltaprop.initialization import INITS
from deltaprop.ops.kernels import _ROWS as KERNELS
from tests.explicit.compare import assert_same, both, by_autograd, learning, targets

F64 = torch.float64
SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "lr": 0.01},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.05},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
]


def problem(sizes: list[int], loss: str = "cross_entropy", rows: int = 23) -> tuple[Tensor, Tensor]:
    """Return inputs and targets."""
    return torch.randn(rows, sizes[0], dtype=F64), targets(loss, rows, sizes[-1])


class TestEquality:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("activation", ops.ACTIVATIONS)
    def test_every_activation_with_every_loss(self, activation: str, loss: str):
        """23 rows in batches of 8: the last batch has 7."""
        sizes = [5, 7, 6, 3]
        both(dp.MLP(sizes, activation, dtype=F64), loss, *problem(sizes, loss), 8, momentum=0.5)

    @pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
    @pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
    def test_every_option_of_sgd(self, activation: str, options: dict[str, Any]):
        sizes = [5, 7, 6, 3]
        both(dp.MLP(sizes, activation, dtype=F64), "cross_entropy", *problem(sizes), 8, **options)

    @pytest.mark.parametrize("output", [name for name in ops.ACTIVATIONS if "softmax" not in name])
    @pytest.mark.parametrize("loss", ["mse_loss", "cross_entropy"])
    def test_every_output_activation(self, output: str, loss: str):
        sizes = [5, 7, 3]
        both(dp.MLP(sizes, "tanh", output, dtype=F64), loss, *problem(sizes, loss), 8)

    @pytest.mark.parametrize("init", INITS)
    def test_every_initialisation(self, init: str):
        sizes = [5, 7, 3]
        both(dp.MLP(sizes, init=init, dtype=F64), "cross_entropy", *problem(sizes), 8)

    def test_an_activation_for_each_layer_with_constants(self):
        sizes = [5, 7, 6, 3]
        model = dp.MLP(sizes, [dp.LeakyReLU(0.3), dp.Softplus(2.0, 3.0)], dtype=F64)
        both(model, "cross_entropy", *problem(sizes), 8)

    def test_no_hidden_layer(self):
        both(dp.MLP([5, 3], dtype=F64), "cross_entropy", *problem([5, 3]), 8)

    def test_without_biases(self):
        both(dp.MLP([5, 7, 3], bias=False, dtype=F64), "cross_entropy", *problem([5, 7, 3]), 8, momentum=0.9)

    def test_batches_of_one(self):
        both(dp.MLP([5, 7, 3], dtype=F64), "cross_entropy", *problem([5, 7, 3], rows=5), 1)

    @pytest.mark.parametrize("sizes", [[784, 30, 10], [64, 64, 10], [600, 300, 10], [16, 64, 128, 10]], ids=str)
    @pytest.mark.parametrize("batch_size", [10, 40])
    def test_layers_packed_either_way_and_not_at_all(self, sizes: list[int], batch_size: int):
        both(dp.MLP(sizes, "sigmoid", dtype=F64), "cross_entropy", *problem(sizes, rows=90), batch_size, momentum=0.9)

    @pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "4.bias", "first", "last", "all but 2.bias"])
    def test_frozen_parameters(self, frozen: str):
        model = dp.MLP([5, 7, 6, 3], dtype=F64)
        names = {"first": ["0.weight", "0.bias"], "last": ["4.weight", "4.bias"]}.get(frozen, [frozen])
        if frozen == "all but 2.bias":
            names = [name for name, _ in model.named_parameters() if name != "2.bias"]
        before = {name: p.clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.requires_grad_(name not in names)
        both(model, "cross_entropy", *problem([5, 7, 6, 3]), 8, momentum=0.9, weight_decay=0.1)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]) == (name in names), name

    def test_a_parameter_that_the_optimizer_does_not_have_stays(self):
        model = dp.MLP([5, 7, 3], dtype=F64)
        before = model[0].weight.clone()
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model[2].parameters(), lr=0.1))
        trainer.epoch(*problem([5, 7, 3]), 8)
        assert torch.equal(model[0].weight, before)

    @pytest.mark.parametrize(
        "biases",
        [{"weight_decay": 0.0}, {"lr": 0.01}, {"momentum": 0.0}, {"momentum": 0.5, "weight_decay": 0.3, "lr": 0.2}],
        ids=str,
    )
    @pytest.mark.parametrize("nesterov", [False, True])
    def test_groups_that_part_weights_from_biases(self, biases: dict[str, Any], nesterov: bool):
        if nesterov and not biases.get("momentum", 0.9):
            biases = {**biases, "nesterov": False}
        model = dp.MLP([5, 7, 3], "tanh", dtype=F64)
        twin = copy.deepcopy(model)
        x, y = problem([5, 7, 3])
        ours, tape = (
            dp.SGD(
                [
                    {"params": [p for p in m.parameters() if p.dim() == 2]},
                    {"params": [p for p in m.parameters() if p.dim() == 1], **biases},
                ],
                lr=0.1,
                momentum=0.9,
                weight_decay=0.1,
                nesterov=nesterov,
            )
            for m in (model, twin)
        )
        trainer = dp.ExplicitTrainer(model, F.cross_entropy, ours)
        for _ in range(2):
            by_autograd(twin, F.cross_entropy, tape, x, y, 8)
            trainer.epoch(x, y, 8)
        assert_same(model, twin, ours, tape)

    def test_steps_taken_singly(self):
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        ours, tape = (dp.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        x, y = problem([5, 7, 3], rows=24)
        for batch_x, batch_y in zip(x.split(7), y.split(7), strict=True):  # and a last one of 3
            expected = by_autograd(twin, F.cross_entropy, tape, batch_x, batch_y, 7)
            assert trainer.step(batch_x, batch_y).item() == pytest.approx(expected, rel=1e-12)
        assert_same(model, twin, ours, tape)

    def test_torch_modules_and_the_torch_optimizer(self):
        model = nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(7, 3))).to(F64)
        twin = copy.deepcopy(model)
        ours, tape = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
        x, y = problem([5, 7, 3])
        dp.ExplicitTrainer(model, nn.functional.cross_entropy, ours).epoch(x, y, 8)
        by_autograd(twin, nn.functional.cross_entropy, tape, x, y, 8)
        assert_same(model, twin, ours, tape)

    def test_a_non_contiguous_batch(self):
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        x, y = torch.randn(5, 8, dtype=F64).t(), torch.randint(3, (16,))[::2]
        ours, tape = (dp.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        trainer.step(x, y)
        trainer.epoch(x, y, 3)
        by_autograd(twin, F.cross_entropy, tape, x, y, 8)
        by_autograd(twin, F.cross_entropy, tape, x, y, 3)
        assert_same(model, twin, ours, tape)

    def test_float32_agrees_but_for_rounding(self):
        model = dp.MLP([20, 30, 5], "sigmoid")
        twin = copy.deepcopy(model)
        x, y = torch.randn(200, 20), torch.randint(5, (200,))
        ours, tape = (dp.SGD(m.parameters(), lr=0.5) for m in (model, twin))
        dp.ExplicitTrainer(model, "cross_entropy", ours).epoch(x, y, 10)
        by_autograd(twin, F.cross_entropy, tape, x, y, 10)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_sizes_batches_and_options(self, data: st.DataObject):
        torch.manual_seed(data.draw(st.integers(0, 2**32)))
        sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
        hidden = [data.draw(st.sampled_from(list(ops.ACTIVATIONS))) for _ in sizes[2:]]
        loss = data.draw(st.sampled_from(list(LOSSES)))
        rows = data.draw(st.integers(1, 70))
        momentum = data.draw(st.sampled_from([0.0, 0.5, 0.9]))
        nesterov = momentum > 0 and data.draw(st.booleans())
        maximize = data.draw(st.booleans())
        both(
            dp.MLP(sizes, hidden, bias=data.draw(st.booleans()), dtype=F64),
            loss,
            *problem(sizes, loss, rows),
            data.draw(st.integers(1, 40)),
            lr=0.001 if maximize else data.draw(st.sampled_from([0.01, 0.1])),  # uphill there is no end
            momentum=momentum,
            nesterov=nesterov,
            dampening=0.0 if nesterov else data.draw(st.sampled_from([0.0, 0.3])),
            weight_decay=data.draw(st.sampled_from([0.0, 0.1])),
            maximize=maximize,
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


@pytest.fixture
def trainer() -> dp.ExplicitTrainer:
    """Return a trainer of a small net with momentum."""
    model = dp.MLP([5, 7, 3], "tanh", dtype=F64)
    return dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=0.9))


def weights(trainer: dp.ExplicitTrainer) -> Tensor:
    """Return all parameters in a row."""
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()


def twin_of(trainer: dp.ExplicitTrainer) -> dp.ExplicitTrainer:
    """Return a trainer of a copy, as it is now."""
    model = copy.deepcopy(trainer.model)
    optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))  # it would share the velocities
    return dp.ExplicitTrainer(model, "cross_entropy", optimizer)


X, Y = torch.randn(23, 5, dtype=F64, generator=torch.Generator().manual_seed(1)), torch.arange(23) % 3


class TestEpoch:
    def test_order_is_that_of_the_rows_given(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        order = torch.randperm(23)
        trainer.epoch(X, Y, 8, order=order)
        other.epoch(X[order], Y[order], 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_a_generator_draws_the_order(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        trainer.epoch(X, Y, 8, generator=torch.Generator().manual_seed(3))
        other.epoch(X, Y, 8, order=torch.randperm(23, generator=torch.Generator().manual_seed(3)))
        assert torch.equal(weights(trainer), weights(other))

    def test_an_order_may_leave_rows_out(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        trainer.epoch(X, Y, 8, order=torch.arange(11))
        other.epoch(X[:11], Y[:11], 8)
        assert torch.equal(weights(trainer), weights(other))

    @pytest.mark.parametrize("reads", [True, False])
    @pytest.mark.parametrize("broken_off", [1, 2, 3])
    def test_an_epoch_broken_off_and_resumed_is_the_whole_epoch(
        self, trainer: dp.ExplicitTrainer, broken_off: int, reads: bool
    ):
        whole = twin_of(trainer)
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: step == broken_off, on_step_reads=reads)
        trainer.epoch(X, Y, 8, start=broken_off, on_step=steps.append, on_step_reads=reads)
        whole.epoch(X, Y, 8, on_step=lambda step: None, on_step_reads=reads)
        assert torch.equal(weights(trainer), weights(whole))
        assert steps == list(range(broken_off + 1, 4))

    def test_the_mean_loss_counts_the_steps_taken(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        mean = trainer.epoch(X, Y, 8, on_step=lambda step: step == 2)
        losses = [other.step(X[:8], Y[:8]), other.step(X[8:16], Y[8:16])]
        torch.testing.assert_close(mean, sum(losses) / 2, rtol=1e-12, atol=0)

    def test_no_step_no_loss(self, trainer: dp.ExplicitTrainer):
        assert trainer.epoch(X, Y, 8, start=3).isnan()

    @pytest.mark.parametrize("reads", [True, False])
    def test_on_step_counts(self, trainer: dp.ExplicitTrainer, reads: bool):
        steps: list[int] = []
        trainer.epoch(X, Y, 8, on_step=steps.append, on_step_reads=reads)
        assert steps == [1, 2, 3]

    def test_on_step_sees_every_step(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        seen: list[Tensor] = []
        trainer.epoch(X, Y, 8, on_step=lambda step: seen.append(weights(trainer)))
        for batch, (x, y) in enumerate(zip(X.split(8), Y.split(8), strict=True)):
            other.step(x, y)
            assert torch.equal(seen[batch], weights(other))

    def test_on_step_may_change_parameters_and_train_on(self, trainer: dp.ExplicitTrainer):
        """It runs outside inference mode, so that what it makes can be trained."""

        def zero(step: int) -> None:
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p.zero_()
            (torch.ones(2, requires_grad=True) * torch.ones(2)).sum().backward()

        trainer.epoch(X, Y, 8, on_step=zero)
        assert not weights(trainer).any()

    def test_sync_brings_parameters_and_velocities_up_to_date(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def look(step: int) -> None:
            if step == 2:
                trainer.sync()
                seen[step] = weights(trainer), velocity(trainer)

        trainer.epoch(X, Y, 8, on_step=look, on_step_reads=False)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2, on_step_reads=False)
        assert torch.equal(seen[2][0], weights(other))
        assert torch.equal(seen[2][1], velocity(other))

    def test_an_interrupted_epoch_leaves_the_steps_taken(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)

        def interrupt(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.epoch(X, Y, 8, on_step=interrupt, on_step_reads=False)
        other.epoch(X, Y, 8, on_step=lambda step: step == 2)
        torch.testing.assert_close(weights(trainer), weights(other), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("reads", [True, False])
    def test_options_changed_between_steps_count_from_the_next(self, trainer: dp.ExplicitTrainer, reads: bool):
        model = copy.deepcopy(trainer.model)
        optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def change(step: int) -> None:
            for group in (*trainer.optimizer.param_groups, *optimizer.param_groups):
                group.update(lr=0.1 / step, momentum=(0.9, 0.0, 0.5)[step - 1], nesterov=step == 3)

        trainer.epoch(X, Y, 4, on_step=lambda step: change(step) if step < 4 else None, on_step_reads=reads)
        optimizer.param_groups[0].update(lr=0.1, momentum=0.9, nesterov=False)
        for step, (x, y) in enumerate(zip(X.split(4), Y.split(4), strict=True), start=1):
            by_autograd(model, F.cross_entropy, optimizer, x, y, 4)
            if step < 4:
                change(step)
        assert_same(trainer.model, model, trainer.optimizer, optimizer)

    def test_the_same_seed_gives_the_same_bits(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)
        for t in (trainer, other):
            t.epoch(X, Y, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(weights(trainer), weights(other))


def velocity(trainer: dp.ExplicitTrainer) -> Tensor:
    """Return all momentum buffers in a row."""
    buffers = [trainer.optimizer.state[p]["momentum_buffer"] for p in trainer.model.parameters()]
    return torch.cat([b.reshape(-1) for b in buffers])


class TestParametersStayTheUsers:
    def test_they_stay_ordinary(self, trainer: dp.ExplicitTrainer):
        pointers = [p.data_ptr() for p in trainer.model.parameters()]
        trainer.epoch(X, Y, 8)
        trainer.step(X, Y)
        for p, pointer in zip(trainer.model.parameters(), pointers, strict=True):
            assert p.is_contiguous()
            assert p.data_ptr() == pointer
            assert not p.is_inference()
            assert p.grad is None
        save_safetensors(trainer.model.state_dict())
        torch.save(trainer.model.state_dict(), io.BytesIO())
        copy.deepcopy(trainer.model)(X).sum().backward()

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: nn.init.constant_(m[0].weight, 0.1),
            lambda m: m.load_state_dict({k: 0.5 * v for k, v in m.state_dict().items()}),
            lambda m: nn.utils.vector_to_parameters(torch.linspace(-1, 1, 66, dtype=F64), m.parameters()),
            lambda m: setattr(m[0].weight, "data", 0.3 * m[0].weight.data),
            lambda m: m[0].weight.data.mul_(0.3),
            lambda m: m[2].requires_grad_(False),
        ],
        ids=["init", "load_state_dict", "vector_to_parameters", "data replaced", "data written", "frozen"],
    )
    def test_what_others_write_between_calls_is_heeded(self, trainer: dp.ExplicitTrainer, change: Callable[[Any], Any]):
        trainer.epoch(X, Y, 8)
        trainer.step(X, Y)
        change(trainer.model)
        other = twin_of(trainer)
        for p, q in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
            q.requires_grad_(p.requires_grad)
        for t in (trainer, other):
            t.step(X, Y)
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_velocities_that_are_loaded_are_heeded(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        state = copy.deepcopy(trainer.optimizer.state_dict())
        start = weights(trainer)
        trainer.epoch(X, Y, 8)
        after = weights(trainer)
        nn.utils.vector_to_parameters(start, trainer.model.parameters())
        trainer.optimizer.load_state_dict(state)
        trainer.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), after)

    def test_a_model_made_double_goes_on(self):
        model = dp.MLP([5, 7, 3])
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        trainer.epoch(X.float(), Y, 8)
        model.double()
        other = copy.deepcopy(model)
        trainer.epoch(X, Y, 8)
        by_autograd(other, F.cross_entropy, dp.SGD(other.parameters(), lr=0.1), X, Y, 8)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)

    def test_a_replaced_layer_is_read_again(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        trainer.model[1] = dp.ReLU()
        other = twin_of(trainer)
        for t in (trainer, other):
            t.optimizer.param_groups[0]["lr"] = 0.2
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_the_loss_is_an_ordinary_tensor(self, trainer: dp.ExplicitTrainer):
        total = trainer.step(X, Y)
        total += trainer.step(X, Y)
        total += trainer.epoch(X, Y, 8)
        assert not total.requires_grad

    @pytest.mark.parametrize("kind", [float, torch.tensor], ids=["a number", "a tensor"])
    def test_schedulers_work(self, kind: Callable[[float], Any]):
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        ours, tape = (torch.optim.SGD(m.parameters(), lr=kind(0.1)) for m in (model, twin))
        schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1) for optimizer in (ours, tape)]
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        for _ in range(3):
            trainer.epoch(X, Y, 8)
            by_autograd(twin, F.cross_entropy, tape, X, Y, 8)
            for schedule in schedules:
                schedule.step()
        # A tensor holds η in float32.
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)

    def test_good_weights_loaded_after_a_nan_are_good(self, trainer: dp.ExplicitTrainer):
        good, options = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
        trainer.epoch(X * torch.nan, Y, 8)
        trainer.model.load_state_dict(good)
        trainer.optimizer.load_state_dict(options)
        assert trainer.epoch(X, Y, 8).isfinite()
        assert weights(trainer).isfinite().all()

    def test_a_look_within_an_epoch_disturbs_nothing(self, trainer: dp.ExplicitTrainer):
        other = twin_of(trainer)

        def look(step: int) -> None:
            trainer.sync()
            trainer.look(X, Y)

        trainer.epoch(X, Y, 4, on_step=look, on_step_reads=False)
        other.epoch(X, Y, 4)
        assert torch.equal(weights(trainer), weights(other))

    def test_what_it_refused_once_it_takes_when_mended(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 8)
        trainer.model.requires_grad_(False)
        with pytest.raises(UserError, match="nothing to learn"):
            trainer.epoch(X, Y, 8)
        trainer.model.requires_grad_(True)
        trainer.epoch(X, Y, 8)
        trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
        other = twin_of(trainer)
        for t in (trainer, other):
            t.epoch(X, Y, 8)
        assert torch.equal(weights(trainer), weights(other))

    def test_memory_follows_the_rows_there_are(self, trainer: dp.ExplicitTrainer):
        trainer.epoch(X, Y, 10**9)
        assert len(trainer._layout._buffers[0]._a) == 23


class Counter(TorchDispatchMode):
    """Counts calls of tensor operations, and those that return new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.allocations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        if isinstance(out, Tensor):
            known = {t.untyped_storage().data_ptr() for t in [*args, *(kwargs or {}).values()] if isinstance(t, Tensor)}
            if out.untyped_storage().data_ptr() not in known:
                self.allocations.append(str(func))
        return out


class TestCost:
    """What a step calls. These numbers are the speed: raise one only if the benchmarks are better for it."""

    @pytest.mark.parametrize(
        ("sizes", "options", "calls"),
        [
            # FWD 2 products, 1 activation; loss 2; BP2 1 product, 1 kernel; 2 updates
            ([784, 30, 10], {}, 9),
            ([784, 30, 10], {"momentum": 0.9}, 11),
            # one layer more: a product and an activation, a product and a kernel, an update; two are too wide to be
            # packed, and so take BP3 by a call of its own
            ([784, 512, 512, 10], {}, 9 + 5 + 2),
        ],
        ids=str,
    )
    def test_a_step_within_an_epoch(self, sizes: list[int], options: dict[str, Any], calls: int):
        trainer, stage = self.ready(dp.MLP(sizes, "sigmoid"), options)
        with torch.inference_mode(), Counter() as counter:
            trainer._teacher.heed_rates(stage)
            stage.step(1)
        assert len(counter.calls) == calls, counter.calls
        assert counter.allocations == []

    @pytest.mark.parametrize("activation", [name for name, op in ops.ACTIVATIONS.items() if op in KERNELS])
    @pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
    def test_no_step_allocates(self, activation: str, options: dict[str, Any]):
        trainer, stage = self.ready(dp.MLP([20, 16, 10], activation), options)
        with torch.inference_mode(), Counter() as counter:
            trainer._teacher.heed_rates(stage)
            stage.step(1)
        assert counter.allocations == []

    def test_a_step_taken_singly(self):
        model = dp.MLP([784, 30, 10], "sigmoid")
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        x, y = torch.rand(10, 784), torch.randint(10, (10,))
        trainer.step(x, y)
        with Counter() as counter:
            trainer.step(x, y)
        counted = [call for call in counter.calls if "detach" not in call and "view" not in call]
        assert len(counted) <= 13, counted

    @staticmethod
    def ready(model: dp.MLP, options: dict[str, Any]) -> tuple[dp.ExplicitTrainer, Any]:
        """Return a trainer with a block of two batches loaded, past the first steps."""
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), **{"lr": 0.1, **options}))
        n_in = model[0].in_features
        x, y = torch.rand(20, n_in), torch.randint(10, (20,))
        trainer.epoch(x, y, 10)
        key = next(key for key in trainer._layout._stages if key[0] == 10)
        stage = trainer._layout._stages[key]
        stage.load(x[: 10 * stage.batches], y[: 10 * stage.batches], 10 * min(2, stage.batches))
        return trainer, stage


class TestRefusals:
    """What it cannot train it names, before anything is trained, and says where to go."""

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (lambda: nn.Linear(2, 2), "takes an nn.Sequential, got Linear"),
            (
                lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
                r"module 1 \(Dropout\) is neither a linear layer nor",
            ),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2))), r"module 1.0 \(LayerNorm\)"),
            (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), r"module 0 \(ReLU\) does not follow a linear layer"),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), r"module 2 \(Tanh\) does not follow"),
            (lambda: nn.Sequential(), "no linear layer"),
            (
                lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)),
                "a layer of 3 outputs comes before",
            ),
            (lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2), "layers share a parameter"),
            (
                lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=F64)),
                "must all be torch.float32",
            ),
            (lambda: Hooked(), r"module 0 \(Linear\) has hooks or a forward"),
            (lambda: Own(nn.Linear(2, 2)), "the model has a forward or hooks"),
            (lambda: nn.Sequential(nn.Linear(2, 2), Steeper()), r"module 1 \(Steeper\) is neither"),
            (lambda: nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), "nothing to learn"),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), "cross_entropy already contains Softmax"),
        ],
    )
    def test_models(self, model: Callable[[], nn.Module], said: str):
        built = model()
        parameters = list(built.parameters()) or [nn.Parameter(torch.ones(1))]
        with pytest.raises(UserError, match=said):
            dp.ExplicitTrainer(built, "cross_entropy", dp.SGD(parameters))

    def test_hooks_on_all_modules(self):
        model = nn.Sequential(nn.Linear(2, 2))
        trainer = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            with pytest.raises(UserError, match="hooks on all modules"):
                trainer.step(torch.ones(1, 2), torch.ones(1, 2))
        finally:
            handle.remove()
        trainer.step(torch.ones(1, 2), torch.ones(1, 2))

    def test_a_users_module_is_sent_to_autograd(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        with pytest.raises(UserError, match="--engine autograd"):
            dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))

    def test_a_sigmoid_before_binary_cross_entropy(self):
        model = dp.MLP([2, 1], output_activation="sigmoid")
        with pytest.raises(UserError, match="already contains Sigmoid"):
            dp.ExplicitTrainer(model, F.binary_cross_entropy_with_logits, dp.SGD(model.parameters()))

    def test_other_optimizers(self):
        model = dp.MLP([2, 1])
        with pytest.raises(UserError, match=r"SGD.*got Adam"):
            dp.ExplicitTrainer(model, "mse_loss", torch.optim.Adam(model.parameters()))

    def test_a_hook_that_is_set_later(self, trainer: dp.ExplicitTrainer):
        trainer.step(X, Y)
        trainer.model[0].register_forward_hook(lambda *_: None)
        with pytest.raises(UserError, match="has hooks"):
            trainer.epoch(X, Y, 8)

    @pytest.mark.parametrize(
        ("x", "y", "said"),
        [
            (X[:, :4], Y, r"inputs must be \[N, 5\] with N at least 1, got \[23, 4\]"),
            (X[0], Y[:1], r"inputs must be \[N, 5\] with N at least 1, got \[5\]"),
            (X[:0], Y[:0], r"got \[0, 5\]"),
            (X.float(), Y, "inputs must have the model's dtype, torch.float64, got torch.float32"),
            (X, Y[:5], r"labels must be \[23\], one for each row, got \[5\]"),
            (X, Y + 1, "labels must be 0 to 2, as there are 3 outputs, got 3"),
            (X, Y - 1, "labels must be 0 to 2, as there are 3 outputs, got -1"),
        ],
    )
    def test_data(self, trainer: dp.ExplicitTrainer, x: Tensor, y: Tensor, said: str):
        before = weights(trainer)
        for call in (lambda: trainer.step(x, y), lambda: trainer.epoch(x, y, 8)):
            with pytest.raises(UserError, match=said):
                call()
        assert torch.equal(weights(trainer), before)

    def test_targets_that_would_be_broadcast(self):
        model = dp.MLP([5, 1], dtype=F64)
        trainer = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))
        with pytest.raises(UserError, match=r"targets must be \[23, 1\], as the outputs are, got \[23\]"):
            trainer.epoch(X, Y.double(), 8)

    @pytest.mark.parametrize(
        ("order", "said"),
        [
            (torch.arange(24), "order must hold rows 0 to 22, got 0 to 23"),
            (torch.tensor([-1]), "order must hold rows 0 to 22, got -1 to -1"),
            (torch.ones(23, dtype=torch.bool), r"order must be row indices \[M\] of int64, got torch.bool"),
        ],
    )
    def test_orders(self, trainer: dp.ExplicitTrainer, order: Tensor, said: str):
        before = weights(trainer)
        with pytest.raises(UserError, match=said):
            trainer.epoch(X, Y, 8, order=order)
        assert torch.equal(weights(trainer), before)

    def test_what_is_no_tensor(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="must be tensors, got ndarray and Tensor"):
            trainer.step(X.numpy(), Y)
        with pytest.raises(UserError, match="order must be a tensor of row indices, got list"):
            trainer.epoch(X, Y, 8, order=[1, 2])

    def test_units_of_a_loss_that_has_none(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="units are for losses of a − y, got cross_entropy"):
            trainer.epoch(X, Y, 8, units=torch.ones(3))

    def test_training_within_training(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="an epoch within an epoch"):
            trainer.epoch(X, Y, 8, on_step=lambda step: trainer.epoch(X, Y, 8))
        with pytest.raises(UserError, match="needs on_step_reads=True"):
            trainer.epoch(X, Y, 8, on_step=lambda step: trainer.step(X, Y), on_step_reads=False)

    def test_steps_of_the_optimizer_that_are_the_users(self):
        model = dp.MLP([2, 1])
        optimizer = dp.SGD(model.parameters())
        optimizer.register_step_pre_hook(lambda *_: None)
        with pytest.raises(UserError, match="SGD with step hooks"):
            dp.ExplicitTrainer(model, "mse_loss", optimizer)

    def test_batch_size_and_start(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="batch_size must be a whole number, at least 1, got 0"):
            trainer.epoch(X, Y, 0)
        with pytest.raises(UserError, match=r"batch_size must be a whole number, at least 1, got 2\.5"):
            trainer.epoch(X, Y, 2.5)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="start must be a step of the epoch, 0 to 3, got 4"):
            trainer.epoch(X, Y, 8, start=4)
        with pytest.raises(UserError, match=r"start must be a step of the epoch, 0 to 3, got 1\.0"):
            trainer.epoch(X, Y, 8, start=1.0)  # type: ignore[arg-type]


class Steeper(dp.Tanh):
    """An activation that does not do what its base does."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Own(nn.Sequential):
    """A Sequential that does not do what Sequentials do."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Hooked(nn.Sequential):
    """A Sequential with a hook on its layer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self[0].register_forward_hook(lambda *_: None)


def test_label_smoothing_by_partial():
    model = dp.MLP([5, 7, 3], dtype=F64)
    both(model, "cross_entropy", X, Y, 8, loss_options={"label_smoothing": 0.1, "ignore_index": 2})


def test_only_what_learns_is_in_the_comparison():
    """The comparison itself: a frozen parameter is not in the optimizer."""
    model = dp.MLP([2, 2])
    model[0].bias.requires_grad_(False)
    assert [p.dim() for p in learning(model)] == [2]


def test_functools_partial_of_a_torch_function():
    model = dp.MLP([5, 3], dtype=F64)
    loss = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)
    expected = loss(model(X), Y).detach()
    torch.testing.assert_close(dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters())).step(X, Y), expected)


def test_a_trainer_can_be_copied_and_pickled_at_any_time():
    """Copies go on from where it is, on parameters and velocities of their own."""
    model = dp.MLP([5, 4, 3], dtype=F64)
    trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=0.9))
    trainer.epoch(X, Y, 8)
    twins = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
    trainer.epoch(X, Y, 8)
    for twin in twins:
        assert not torch.equal(twin.model[0].weight, model[0].weight)
        twin.epoch(X, Y, 8)
        for p, q in zip(twin.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)
