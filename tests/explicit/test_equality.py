"""Both engines take the same steps for every op and option, to 1e-12 in float64."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.core import ACTIVATIONS, LOSSES
from deltaprop.explicit.workspace import PIECE
from deltaprop.nn.init import INITS
from tests.explicit.compare import (
    ELSEWHERE,
    F64,
    SGD_OPTIONS,
    X,
    Y,
    assert_same,
    both,
    by_autograd,
    problem,
    targets,
    trainable,
)
from tests.explicit.test_losses import CASES, OUTPUTS


class TestEquality:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation_with_every_loss(self, activation: str, loss: str):
        """23 rows in batches of 8: the last batch has 7. At a higher η log-softmax in a hidden layer diverges."""
        sizes = [5, 7, 6, 3]
        both(dp.MLP(sizes, activation, dtype=F64), loss, *problem(sizes, loss), 8, momentum=0.5, lr=0.02)

    @pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
    @pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
    def test_every_option_of_sgd(self, activation: str, options: dict[str, Any]):
        sizes = [5, 7, 6, 3]
        both(dp.MLP(sizes, activation, dtype=F64), "cross_entropy", *problem(sizes), 8, **options)

    @pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
    def test_every_option_of_every_loss(self, loss: str, options: dict[str, Any]):
        """With class weights and ignored labels batches count differently, and the epoch mean is still the same."""
        sizes = [5, 7, OUTPUTS]
        both(dp.MLP(sizes, "tanh", dtype=F64), loss, *problem(sizes, loss), 8, lr=0.02, loss_options=options)

    @pytest.mark.parametrize("output", [name for name in ACTIVATIONS if "softmax" not in name])
    @pytest.mark.parametrize("loss", ["mse_loss", "cross_entropy"])
    def test_every_output_activation(self, output: str, loss: str):
        sizes = [5, 7, 3]
        both(dp.MLP(sizes, "tanh", output, dtype=F64), loss, *problem(sizes, loss), 8)

    @pytest.mark.parametrize("batch_size", [64, 65, 131])
    @pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
    def test_large_batches(self, loss: str, batch_size: int):
        """The compiled engine computes the losses of 64 rows at a time."""
        sizes = [5, 7, 3]
        both(dp.MLP(sizes, "tanh", dtype=F64), loss, *problem(sizes, loss, rows=131), batch_size)

    def test_what_an_ignored_row_holds_does_not_count_in_the_loss(self):
        x, y = problem([5, 3], rows=8)
        x[2, 0], y[2] = torch.inf, -100
        model = dp.MLP([5, 3], dtype=F64)
        expected = F.cross_entropy(model(x), y).detach()
        ours = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.0))
        assert expected.isfinite()
        torch.testing.assert_close(ours.step(x, y), expected)

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

    @pytest.mark.parametrize("sizes", [[784, 30, 10], [64, 64, 10], [16, 64, 128, 10]], ids=str)
    def test_wide_layers(self, sizes: list[int]):
        both(dp.MLP(sizes, "sigmoid", dtype=F64), "cross_entropy", *problem(sizes, rows=90), 40, momentum=0.9)

    @pytest.mark.parametrize("activation", ["relu", "gelu"])  # δ follows from a, from z
    def test_wide_layers_computed_in_pieces(self, activation: str):
        sizes = [6, 1500, 3]
        model = dp.MLP(sizes, activation, dtype=F64)
        x, y = problem(sizes, rows=2 * 50 + 33)  # the last batch, and the last piece of each batch, are smaller
        assert 2 * PIECE < 50 * 1500 * 8
        both(model, "cross_entropy", x, y, 50, momentum=0.9)

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

    def test_a_parameter_outside_the_optimizer_is_unchanged(self):
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
    def test_separate_groups_for_weights_and_biases(self, biases: dict[str, Any], nesterov: bool):
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

    def test_single_steps(self):
        model = dp.MLP([5, 7, 3], dtype=F64)
        twin = copy.deepcopy(model)
        ours, tape = (dp.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
        trainer = dp.ExplicitTrainer(model, "cross_entropy", ours)
        x, y = problem([5, 7, 3], rows=24)
        for batch_x, batch_y in zip(x.split(7), y.split(7), strict=True):  # the last batch has 3 rows
            expected = by_autograd(twin, F.cross_entropy, tape, batch_x, batch_y, 7)
            assert trainer.step(batch_x, batch_y).item() == pytest.approx(expected, rel=1e-12)
        assert_same(model, twin, ours, tape)

    @pytest.mark.parametrize("loss", [name for name in LOSSES if hasattr(nn.functional, name)])
    @pytest.mark.parametrize(
        "activation", [getattr(nn, op.__name__) for op in ACTIVATIONS.values() if hasattr(nn, op.__name__)]
    )
    def test_plain_pytorch_takes_the_same_steps(self, activation: type[nn.Module], loss: str):
        """The reference uses PyTorch's modules, loss, optimizer and derivatives only."""
        sigma = activation(-1) if "Softmax" in activation.__name__ else activation()
        model = nn.Sequential(nn.Linear(5, 7), nn.Sequential(sigma, nn.Linear(7, 3))).to(F64)
        twin = copy.deepcopy(model)
        ours, tape = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
        function = getattr(nn.functional, loss)
        x, y = problem([5, 7, 3], loss)
        dp.ExplicitTrainer(model, function, ours).epoch(x, y, 8)
        by_autograd(twin, function, tape, x, y, 8)
        assert_same(model, twin, ours, tape)

    def test_inplace_activations_of_pytorch(self):
        """With autograd they overwrite z; the explicit engine keeps z and a separately."""
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)).to(F64)
        both(model, "cross_entropy", X, Y, 8)

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

    def test_float32_agrees_up_to_rounding(self):
        model = dp.MLP([20, 30, 5], "sigmoid")
        twin = copy.deepcopy(model)
        x, y = torch.randn(200, 20), torch.randint(5, (200,))
        ours, tape = (dp.SGD(m.parameters(), lr=0.5) for m in (model, twin))
        dp.ExplicitTrainer(model, "cross_entropy", ours).epoch(x, y, 10)
        by_autograd(twin, F.cross_entropy, tape, x, y, 10)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

    @settings(max_examples=60, deadline=None, suppress_health_check=ELSEWHERE)
    @given(data=st.data())
    def test_any_sizes_batches_and_options(self, data: st.DataObject):
        torch.manual_seed(data.draw(st.integers(0, 2**32)))
        sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
        hidden = [data.draw(st.sampled_from(list(ACTIVATIONS))) for _ in sizes[2:]]
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
            lr=0.001 if maximize else data.draw(st.sampled_from([0.01, 0.1])),  # maximizing diverges
            momentum=momentum,
            nesterov=nesterov,
            dampening=0.0 if nesterov else data.draw(st.sampled_from([0.0, 0.3])),
            weight_decay=data.draw(st.sampled_from([0.0, 0.1])),
            maximize=maximize,
        )


def test_class_probabilities():
    model = dp.MLP([5, 7, 3], dtype=F64)
    y = torch.softmax(targets("mse_loss", 23, 3), 1)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    both(model, "cross_entropy", X, y, 8, loss_options={"label_smoothing": 0.1, "weight": weight})


def test_only_trainable_parameters_are_compared():
    """A test of the comparison: a frozen parameter is not in the optimizer."""
    model = dp.MLP([2, 2])
    model[0].bias.requires_grad_(False)
    assert [p.dim() for p in trainable(model)] == [2]


def test_functools_partial_of_a_torch_function():
    model = dp.MLP([5, 3], dtype=F64)
    loss = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)
    expected = loss(model(X), Y).detach()
    torch.testing.assert_close(dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters())).step(X, Y), expected)
