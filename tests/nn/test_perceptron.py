"""Rosenblatt's perceptron: it converges on separable data, and reports when it has not converged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import UserError


def separable(n: int = 40, margin: float = 0.1) -> tuple[Tensor, Tensor, float, float]:
    """Return samples and labels split by a line, and Novikoff's R and γ for them (bias as a constant 1 appended)."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.tensor([0.6, -0.8, 0.3])  # w and b
    normal = normal / normal.norm()
    x = 2 * torch.rand(n, 2, generator=generator) - 1
    homogeneous = torch.cat([x, torch.ones(n, 1)], dim=1)
    distance = homogeneous @ normal
    kept = distance.abs() > margin
    y = (distance[kept] > 0).long()
    assert 0 < y.sum() < len(y)
    return x[kept], y, homogeneous[kept].norm(dim=1).max().item(), distance[kept].abs().min().item()


def test_perceptron_converges():
    """On separable data it classifies every sample correctly after at most (R/γ)² mistakes (Novikoff 1962)."""
    x, y, radius, gamma = separable()
    neuron = dp.Perceptron(2)
    fit = neuron.fit(x, y, max_epochs=1000)
    assert fit.converged
    assert torch.equal(neuron(x), y.float())
    assert fit.mistakes[-1] == 0
    assert all(count > 0 for count in fit.mistakes[:-1])
    assert 0 < sum(fit.mistakes) <= (radius / gamma) ** 2
    assert str(fit) == f"converged in epoch {len(fit.mistakes)}: every sample on its side"


def test_perceptron_by_hand():
    """AND, one epoch from w = 0, b = 0.

    (0,0), (0,1), (1,0) have z = 0, a = 0, right. (1,1): z = 0, a = 0, y = 1: w = (1, 1), b = 1. One mistake.
    The second epoch: (0,0): z = 1, a = 1, y = 0: b = 0. (0,1): z = 1, wrong: w = (1, 0), b = -1.
    (1,0): z = 0, a = 0, right. (1,1): z = 0, a = 0, wrong: w = (2, 1), b = 0. Three mistakes.
    """
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0, 0, 1])
    neuron = dp.Perceptron(2)
    assert neuron.fit(x, y, max_epochs=1).mistakes == [1]
    assert (neuron.weight.tolist(), neuron.bias.tolist()) == ([[1.0, 1.0]], [1.0])
    assert neuron.fit(x, y, max_epochs=1).mistakes == [3]
    assert (neuron.weight.tolist(), neuron.bias.tolist()) == ([[2.0, 1.0]], [0.0])


def test_perceptron_reports_that_it_has_not_converged():
    """XOR has no separating line: the fit ends without convergence and reports it."""
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1, 1, 0])
    fit = dp.Perceptron(2).fit(x, y, max_epochs=50)
    assert not fit.converged
    assert len(fit.mistakes) == 50
    assert min(fit.mistakes) > 0
    assert str(fit).startswith(f"not converged after 50 epochs: {fit.mistakes[-1]} mistakes in the last; no line may")


def test_perceptron_does_not_use_autograd():
    """Its parameters require no gradient, and fit builds no graph."""
    neuron = dp.Perceptron(2)
    assert not any(p.requires_grad for p in neuron.parameters())
    neuron.fit(torch.ones(1, 2), torch.tensor([1]))
    assert neuron.weight.is_leaf


def test_perceptron_takes_labels_of_any_dtype():
    """Labels may be int, float or bool; the data float64."""
    x, y, *_ = separable()
    expected = None
    for labels in (y, y.float(), y.bool()):
        neuron = dp.Perceptron(2, dtype=torch.float64)
        assert neuron.fit(x.double(), labels, max_epochs=1000).converged
        expected = neuron.weight if expected is None else expected
        assert torch.equal(neuron.weight, expected)


def test_perceptron_accepts_any_number_of_dimensions():
    """The forward pass maps [..., n] to [...]."""
    assert dp.Perceptron(2)(torch.ones(4, 3, 2)).shape == (4, 3)
    assert dp.Perceptron(2)(torch.ones(2)).shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.fit(torch.ones(4, 3), torch.zeros(4)), r"x must be \[N, 2\] and y \[N\], got \[4, 3\] and \[4\]"),
        (lambda n: n.fit(torch.ones(4, 2), torch.zeros(3)), r"got \[4, 2\] and \[3\]"),
        (lambda n: n.fit(torch.ones(4, 2), torch.zeros(4, 1)), r"got \[4, 2\] and \[4, 1\]"),
        (lambda n: n.fit(torch.ones(2), torch.zeros(2)), r"got \[2\] and \[2\]"),
        (lambda n: n.fit(torch.ones(2, 2), torch.tensor([-1, 1])), r"labels must be 0 or 1, got \[-1, 1\]"),
        (lambda n: n.fit(torch.ones(2, 2), torch.tensor([0, 1]), max_epochs=0), "max_epochs must be at least 1, got 0"),
        (lambda n: dp.Perceptron(0), "in_features must be at least 1, got 0"),
    ],
    ids=["features", "too few labels", "label column", "one sample", "labels of -1", "no epoch", "no features"],
)
def test_invalid_data_is_refused_by_the_perceptron(call, message):
    """Invalid data or arguments are refused with a reason; the weights do not change."""
    neuron = dp.Perceptron(2)
    with pytest.raises(UserError, match=message):
        call(neuron)
    assert not neuron.weight.any()
