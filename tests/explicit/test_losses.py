"""The losses at work: ∂C/∂a is that of the public function, and so are the values told late."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from deltaprop.explicit.losses import Loss, ResidualLoss, Rule
from tests.explicit.compare import targets

N, OUTPUTS = 6, 4
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("mse_loss", {}),
    ("mse_loss", {"reduction": "sum"}),
    ("l1_loss", {}),
    ("l1_loss", {"reduction": "sum"}),
    ("huber_loss", {"delta": 0.3}),
    ("huber_loss", {"reduction": "sum"}),
    ("quadratic_loss", {}),
    ("binary_cross_entropy_with_logits", {}),
    ("binary_cross_entropy_with_logits", {"reduction": "sum"}),
    ("binary_cross_entropy_with_logits", {"weight": WEIGHT, "pos_weight": 1 + WEIGHT}),
    ("binary_cross_entropy_per_sample", {}),
    ("cross_entropy", {}),
    ("cross_entropy", {"reduction": "sum"}),
    ("cross_entropy", {"ignore_index": 2}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"weight": WEIGHT}),
    ("cross_entropy", {"weight": WEIGHT, "label_smoothing": 0.2}),
    ("cross_entropy", {"weight": WEIGHT, "reduction": "sum", "label_smoothing": 0.1}),
]


class Top:
    """The top layer as a loss sees it, and as it wants it to lie in memory."""

    def __init__(self, a: Tensor, loss: Loss) -> None:
        self.a = a.t().contiguous().t() if loss.wants_by_neuron(a.shape[1], a.device) else a
        self.delta = torch.zeros_like(self.a)
        self.a_t, self.delta_t = self.a.t(), self.delta.t()


def compare(name: str, options: dict[str, Any], a: Tensor, y: Tensor, batches: int) -> None:
    """Compare with the public function, batch by batch of a block."""
    rule = Rule(functools.partial(getattr(F, name), **options))
    loss = rule.kind(y)(rule.options, batches, N, OUTPUTS, a)
    loss.targets.copy_(y)
    loss.begin(loss.targets)
    expected = []
    for batch, (part, target) in enumerate(zip(a.split(N), y.split(N), strict=True)):
        part = part.clone().requires_grad_()
        c = getattr(F, name)(part, target, **options)
        expected.append(c.detach())
        loss.show(batch)
        top = Top(part.detach(), loss)
        loss.differentiate(top)
        torch.testing.assert_close(top.delta, torch.autograd.grad(c, part)[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(loss.values(batches), torch.stack(expected), rtol=1e-13, atol=1e-14)
    for number in range(1, batches + 1):  # of a block that is broken off, the first alone count
        torch.testing.assert_close(loss.total_value(number), sum(expected[:number]), rtol=1e-13, atol=1e-14)
        if isinstance(loss, ResidualLoss):
            units = torch.tensor([3.0], dtype=a.dtype)
            told = loss.values(number, units)
            assert not torch.allclose(told, loss.values(number))
            torch.testing.assert_close(loss.total_value(number, units), told.sum(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_differential_and_values_are_the_public_function(name: str, options: dict[str, Any], batches: int):
    a = 3 * torch.randn(batches * N, OUTPUTS, dtype=torch.float64)
    compare(name, options, a, targets(name, len(a), OUTPUTS), batches)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"weight": WEIGHT}, {"reduction": "sum"}], ids=str)
def test_ignored_labels_do_not_count(options: dict[str, Any]):
    a = torch.randn(2 * N, OUTPUTS, dtype=torch.float64)
    y = torch.tensor([0, -100, 2, 1, -100, 3, *[1, 2, 0, -100, -100, -100]])
    compare("cross_entropy", options, a, y, 2)


def test_a_batch_of_ignored_labels_is_nan_and_moves_nothing():
    a, y = torch.randn(N, OUTPUTS), torch.full((N,), 9)
    rule = Rule(functools.partial(F.cross_entropy, ignore_index=9))
    loss = rule.kind(y)(rule.options, 1, N, OUTPUTS, a)
    loss.begin(y)
    top = Top(a, loss)
    loss.differentiate(top)
    assert loss.total_value(1).isnan()
    assert not top.delta.any()


def test_a_class_that_is_impossible_is_no_matter_for_the_others():
    """A logit of −∞ at a class that is not the label's: C is finite, as PyTorch's; 0 · (−∞) would be no number."""
    z, y = torch.randn(2 * N, OUTPUTS, dtype=torch.float64), torch.arange(2 * N) % 2
    z[:, 2] = -torch.inf
    loss = Rule("cross_entropy").kind(y)({}, 2, N, OUTPUTS, z)
    loss.targets.copy_(y)
    loss.begin(loss.targets)
    for batch, part in enumerate(z.split(N)):
        loss.show(batch)
        loss.differentiate(Top(part, loss))
    expected = torch.stack([F.cross_entropy(a, b) for a, b in zip(z.split(N), y.split(N), strict=True)])
    torch.testing.assert_close(loss.values(2), expected)
    torch.testing.assert_close(loss.total_value(2), expected.sum())


def test_class_probabilities():
    a = torch.randn(2 * N, OUTPUTS, dtype=torch.float64)
    y = torch.softmax(torch.randn_like(a), 1)
    for options in ({}, {"label_smoothing": 0.1, "weight": WEIGHT}, {"reduction": "sum"}):
        compare("cross_entropy", options, a, y, 2)


def test_more_classes_than_the_table_of_one_hot_rows_takes():
    z, y = torch.randn(5, 300, dtype=torch.float64, requires_grad=True), torch.randint(300, (5,))
    loss = Rule("cross_entropy").kind(y)({}, 1, 5, 300, z)
    loss.begin(y)
    top = Top(z.detach(), loss)
    loss.differentiate(top)
    torch.testing.assert_close(top.delta, torch.autograd.grad(F.cross_entropy(z, y), z)[0])


def test_logits_of_800_are_no_matter():
    z, y = torch.tensor([[800.0, -800.0]], dtype=torch.float64), torch.tensor([1])
    loss = Rule("cross_entropy").kind(y)({}, 1, 1, 2, z)
    loss.begin(y)
    top = Top(z, loss)
    loss.differentiate(top)
    assert loss.total_value(1) == 1600  # log(1 + e^−1600) + 1600
    assert top.delta.tolist() == [[1, -1]]  # p − y


def test_a_loss_of_a_minus_y_is_told_in_other_units():
    """Residuals of 1 and 2, in units of 10: (100 + 400)/2."""
    loss = Rule("mse_loss").kind(torch.zeros(1))({}, 1, 1, 2, torch.zeros(1))
    loss.begin(torch.tensor([[0.0, 0.0]]))
    loss.differentiate(Top(torch.tensor([[1.0, 2.0]]), loss))
    assert loss.values(1, torch.tensor([10.0, 10.0])).tolist() == [250]


class TestRefusals:
    def test_a_function_it_does_not_know(self):
        with pytest.raises(UserError, match=r"no δ for the loss mine: take one of cross_entropy.*--engine autograd"):
            Rule(mine)

    def test_an_unknown_name(self):
        with pytest.raises(UserError, match=r"unknown loss 'cross_entrpy': did you mean 'cross_entropy'"):
            Rule("cross_entrpy")

    def test_an_unknown_option(self):
        with pytest.raises(UserError, match="mse_loss has no option 'smoothing'"):
            Rule(functools.partial(F.mse_loss, smoothing=1))

    def test_a_table_of_losses(self):
        with pytest.raises(UserError, match=r"must be one number: reduction 'mean' or 'sum', got 'none'"):
            Rule(functools.partial(F.mse_loss, reduction="none"))

    def test_weights_of_entries(self):
        with pytest.raises(UserError, match="mse_loss with weights of the entries"):
            Rule(functools.partial(F.mse_loss, weight=torch.ones(1)))

    def test_options_by_position(self):
        with pytest.raises(UserError, match="by keyword"):
            Rule(functools.partial(F.mse_loss, torch.ones(1)))


def test_pytorchs_own_functions_stand_for_ours():
    assert Rule(torch.nn.functional.cross_entropy).name == "cross_entropy"


def mine(a: Tensor, y: Tensor) -> Tensor:
    """A loss of the user's."""
    return (a - y).abs().max()


class TestOptionsThatDoNotFit:
    """What would broadcast wrongly, or fail on the last, smaller batch, is refused before anything is trained."""

    @staticmethod
    def train(loss: str, options: dict[str, Any], y: Tensor) -> None:
        model = dp.MLP([2, 3])
        t = dp.ExplicitTrainer(model, functools.partial(getattr(F, loss), **options), dp.SGD(model.parameters()))
        t.epoch(torch.ones(len(y), 2), y, 2)

    @pytest.mark.parametrize("weight", [torch.ones(2), torch.ones(1, 3), torch.ones(3, dtype=torch.float64)], ids=str)
    def test_class_weights(self, weight: Tensor):
        with pytest.raises(UserError, match=r"weight must hold one number a class, \[3\] of torch.float32, got"):
            self.train("cross_entropy", {"weight": weight}, torch.tensor([0, 1, 2]))

    @pytest.mark.parametrize("name", ["weight", "pos_weight"])
    @pytest.mark.parametrize("shape", [(2, 3), (2,), (3, 1)])
    def test_weights_of_entries_that_differ_by_sample(self, name: str, shape: tuple[int, ...]):
        with pytest.raises(UserError, match=rf"{name} must be one number an output, \[3\], got .*autograd"):
            self.train("binary_cross_entropy_with_logits", {name: torch.ones(shape)}, torch.ones(5, 3))

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3)])
    def test_weights_of_entries_that_do_not(self, shape: tuple[int, ...]):
        self.train("binary_cross_entropy_with_logits", {"weight": torch.ones(shape)}, torch.ones(5, 3))

    def test_ignored_labels_among_probabilities(self):
        with pytest.raises(UserError, match="ignore_index is for labels"):
            self.train("cross_entropy", {"ignore_index": 0}, torch.full((4, 3), 1 / 3))
