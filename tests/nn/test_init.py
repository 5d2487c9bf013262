"""Weight initialisation by name: the documented distributions, and PyTorch's bits for the same seed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import deltaprop as dp
from deltaprop import UserError
from deltaprop.nn.init import INITS
from tests.nn.test_modules import same_bits

N_IN, N_OUT = 400, 300
# The sample variance of n normal numbers has a relative standard error of √(2/n): 0.41 % for 120 000 weights, 8.2 % for
# 300 biases. The tests allow five and four standard errors.
WEIGHT_TOLERANCE, BIAS_TOLERANCE = 0.02, 0.33

# name: weight variance, bound of the weights or None, bias variance
STATISTICS = {
    "torch": (1 / (3 * N_IN), 1 / math.sqrt(N_IN), 1 / (3 * N_IN)),  # U(±b) has the variance b²/3
    "xavier": (2 / (N_IN + N_OUT), math.sqrt(6 / (N_IN + N_OUT)), 0),
    "kaiming": (2 / N_IN, None, 0),
    "lecun": (1 / N_IN, None, 1),
    "normal": (1, None, 1),
}


def test_every_initialisation_is_tested():
    """The tests below run over all rows of the table."""
    assert set(STATISTICS) == set(INITS)


@pytest.mark.parametrize("name", STATISTICS)
def test_mean_variance_and_bounds(name):
    """Mean 0, the variance and the bounds of the docstring's table."""
    layer = dp.MLP([N_IN, N_OUT], init=name)[0]
    variance, bound, bias_variance = STATISTICS[name]
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert abs(weight.mean()) < 4 * math.sqrt(variance / weight.numel())  # four standard errors
    assert weight.var().item() == pytest.approx(variance, rel=WEIGHT_TOLERANCE)
    if bound is None:
        assert weight.abs().max() > 3 * math.sqrt(variance)  # normal: 1 in 370 beyond three sigma
    else:
        assert 0.99 * bound < weight.abs().max() <= bound
    assert bias.var().item() == pytest.approx(bias_variance, rel=BIAS_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("xavier", nn.init.xavier_uniform_),
        ("kaiming", lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        ("lecun", lambda w: nn.init.normal_(w, std=1 / math.sqrt(w.shape[1]))),
        ("normal", nn.init.normal_),
    ],
)
def test_same_bits_as_torch_init(name, fill):
    """With the same seed each layer has the weights of torch.nn.init, bit for bit."""
    model = dp.MLP([5, 4, 3])
    torch.manual_seed(11)
    assert dp.initialize(model, name) is model
    torch.manual_seed(11)
    for layer in (model[0], model[2]):
        assert torch.equal(layer.weight, fill(torch.empty_like(layer.weight)))
        expected = torch.randn_like(layer.bias) if STATISTICS[name][2] else torch.zeros_like(layer.bias)
        assert torch.equal(layer.bias, expected)


def test_init_torch_is_the_default():
    """init="torch" draws the same weights as a new nn.Linear."""
    torch.manual_seed(11)
    fresh = nn.Linear(5, 4)
    layer = dp.Linear(5, 4)
    torch.manual_seed(11)
    assert same_bits(dp.initialize(layer, "torch"), fresh)


def test_initialize_takes_any_module():
    """Linear layers at any depth, also PyTorch's, with and without bias; no other parameter changes."""
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 2, bias=False), nn.LayerNorm(2)), "b": nn.Linear(2, 2)})
    before = copy.deepcopy(model.state_dict())
    dp.initialize(model, "xavier")
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"a.0.weight", "b.weight", "b.bias"}


def test_unknown_initialisation_is_refused():
    """An unknown name is refused, and the nearest known one suggested."""
    with pytest.raises(UserError, match=r"unknown initialisation 'kaming': did you mean 'kaiming'?"):
        dp.initialize(dp.Linear(2, 2), "kaming")
