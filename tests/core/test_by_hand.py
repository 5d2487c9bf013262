"""Every formula on numbers that can be checked by hand.

The logits are logarithms of whole numbers, so that probabilities are fractions: σ(ln 3) = 3/4, tanh(½ ln 3) = 1/2,
softmax(0, ln 2, ln 5) = (1, 2, 5)/8. Batches hold N = 2 samples, so that a 1/N missing or applied twice shows.
"""

from __future__ import annotations

import math
from math import log

import pytest
import torch
from torch import Tensor

import deltaprop as dp
import deltaprop.functional as F
from deltaprop.core.linear import linear_forward, linear_grad_bias, linear_grad_input, linear_grad_weight
from tests.core.compare import assert_same


def table(*numbers) -> Tensor:
    """Return numbers as a float64 tensor."""
    return torch.tensor(numbers, dtype=torch.float64)


def leaf(*numbers) -> Tensor:
    """Return numbers as a float64 tensor that requires grad."""
    return table(*numbers).requires_grad_()


# --- linear ---

# Two samples, two inputs, three outputs; no two of the sizes that could be confused in a product are equal in effect.
A_PREV = table([1, 2], [3, -1])
WEIGHT = table([2, 1], [0, 3], [-1, 1])
BIAS = table(10, 20, 30)
DELTA = table([1, 0, 2], [-1, 1, 0])


def test_fwd():
    """FWD, z = a Wᵀ + b: first row (2+2, 6, -1+2) + b, second (6-1, -3, -3-1) + b."""
    expected = table([14, 26, 31], [15, 17, 26])
    assert_same(linear_forward(A_PREV, WEIGHT, BIAS), expected)
    assert_same(F.linear(A_PREV, WEIGHT, BIAS), expected)


def test_bp2_left_factor():
    """BP2, δ W: first row 1·(2, 1) + 2·(-1, 1), second -1·(2, 1) + 1·(0, 3)."""
    assert_same(linear_grad_input(DELTA, WEIGHT), table([0, 3], [-2, 2]))


def test_bp3():
    """BP3, Σ_n δ_n: (1-1, 0+1, 2+0), a sum over samples, not a mean."""
    assert_same(linear_grad_bias(DELTA), table(0, 1, 2))


def test_bp4():
    """BP4, δᵀ a: rows 1·(1, 2) - 1·(3, -1); 1·(3, -1); 2·(1, 2)."""
    assert_same(linear_grad_weight(DELTA, A_PREV), table([-2, 3], [3, -1], [2, 4]))


def test_linear_gradients():
    """Autograd returns these three gradients."""
    a_prev, weight, bias = (t.clone().requires_grad_() for t in (A_PREV, WEIGHT, BIAS))
    F.linear(a_prev, weight, bias).backward(DELTA)
    assert_same(
        [a_prev.grad, weight.grad, bias.grad],
        [table([0, 3], [-2, 2]), table([-2, 3], [3, -1], [2, 4]), table(0, 1, 2)],
    )


def test_one_neuron_without_output_axis():
    """With W of shape [2], z = (1·2 + 2·1, 3·2 - 1·1); ∂C/∂W = 1·(1, 2) + 10·(3, -1); ∂C/∂a_prev = (1; 10) (2, 1)."""
    a_prev, weight = A_PREV.clone().requires_grad_(), leaf(2, 1)
    z = F.linear(a_prev, weight)
    assert_same(z.detach(), table(4, 5))
    z.backward(table(1, 10))
    assert_same([weight.grad, a_prev.grad], [table(31, -8), table([2, 1], [20, 10])])


# --- activations ---

LN3 = log(3)

# op, options, z, a, σ'(z)
SLOPES = {
    "step": ({}, (-2, 0, 3), (0, 0, 1), (0, 0, 0)),
    "identity": ({}, (-2, 0, 3), (-2, 0, 3), (1, 1, 1)),
    "relu": ({}, (-2, 0, 3), (0, 0, 3), (0, 0, 1)),  # 0 at the kink
    "leaky_relu": ({}, (-2, 0, 3), (-0.02, 0, 3), (0.01, 0.01, 1)),
    "leaky_relu, slope -2": ({"negative_slope": -2}, (-2, 3), (4, 3), (-2, 1)),  # a > 0 on both sides
    "elu": ({}, (-log(2), 0, 3), (1 / 2 - 1, 0, 3), (1 / 2, 1, 1)),
    # the kink goes with the left branch, where σ' = α
    "elu, alpha 3": ({"alpha": 3}, (-log(2), 0, 3), (3 * (1 / 2 - 1), 0, 3), (3 / 2, 3, 1)),
    # a = z s and σ' = s (1 + z (1 - s)) with s = σ(ln 3) = 3/4
    "silu": ({}, (0, LN3), (0, 3 / 4 * LN3), (1 / 2, 3 / 4 * (1 + LN3 / 4))),
    "softplus": ({}, (0, LN3), (log(2), log(4)), (1 / 2, 3 / 4)),
    "softplus, beta 2": ({"beta": 2}, (0, LN3 / 2), (log(2) / 2, log(4) / 2), (1 / 2, 3 / 4)),
    # beta z = 3 > 2 is beyond the threshold; beta z = ln 3 = 1.1 is not
    "softplus, threshold 2": ({"threshold": 2}, (3, LN3), (3, log(4)), (1, 3 / 4)),
    "sigmoid": ({}, (0, LN3, -LN3), (1 / 2, 3 / 4, 1 / 4), (1 / 4, 3 / 16, 3 / 16)),
    "tanh": ({}, (0, LN3 / 2, -LN3 / 2), (0, 1 / 2, -1 / 2), (1, 3 / 4, 3 / 4)),
    # Tables of the normal distribution: Φ(1) = 0.841344746068543, φ(1) = 0.241970724519143
    "gelu": ({}, (0, 1), (0, 0.841344746068543), (1 / 2, 0.841344746068543 + 0.241970724519143)),
}


@pytest.mark.parametrize("name", SLOPES)
def test_bp1_elementwise(name):
    """BP1, δ = ∂C/∂a ⊙ σ'(z), with ∂C/∂a = (2, -3, 5): a and σ' as the table derives them."""
    options, z_numbers, a_numbers, slopes = SLOPES[name]
    z, grad_a = leaf(*z_numbers), table(2, -3, 5)[: len(z_numbers)]
    a = getattr(F, name.split(",")[0])(z, **options)
    a.backward(grad_a)
    assert_same((a.detach(), z.grad), (table(*a_numbers), grad_a * table(*slopes)))


def test_gelu_tanh():
    """At z = 1: t = tanh(√(2/π) · 1.044715); a = ½ (1 + t); σ' = ½ (1 + t) + ½ (1 - t²) √(2/π) (1 + 0.134145)."""
    z = leaf(1)
    a = F.gelu(z, approximate="tanh")
    a.backward()
    k = math.sqrt(2 / math.pi)
    t = math.tanh(k * 1.044715)
    assert_same(a.detach(), table((1 + t) / 2))
    assert_same(z.grad, table((1 + t) / 2 + (1 - t * t) * k * 1.134145 / 2))


def test_bp1_softmax():
    """P = (1, 2, 5)/8; ∂C/∂a = (8, 0, 0), so ⟨∂C/∂a, p⟩ = 1 and δ = p ⊙ ((8, 0, 0) - 1) = (7, -2, -5)/8."""
    z = leaf(0, log(2), log(5))
    a = F.softmax(z, -1)
    a.backward(table(8, 0, 0))
    assert_same((a.detach(), z.grad), (table(1, 2, 5) / 8, table(7, -2, -5) / 8))


def test_bp1_log_softmax():
    """A = ln p, p = (1, 2, 5)/8; ∂C/∂a = (1, 0, 1) adds up to 2, so δ = (1, 0, 1) - 2p = (6, -4, -2)/8."""
    z = leaf(0, log(2), log(5))
    a = F.log_softmax(z, -1)
    a.backward(table(1, 0, 1))
    assert_same((a.detach(), z.grad), ((table(1, 2, 5) / 8).log(), table(6, -4, -2) / 8))


# --- losses of a residual: N = 2 samples of 3 outputs ---

Y = table([1, 1, 1], [2, 2, 2])
R = table([1, 0, 2], [-3, 1, -1])  # a - y: the squares add up to 16, the magnitudes to 8

# name, options, C, ∂C/∂a
RESIDUAL = {
    "mse_loss": ({}, 16 / 6, 2 * R / 6),
    "mse_loss, sum": ({"reduction": "sum"}, 16, 2 * R),
    "mse_loss, none": ({"reduction": "none"}, R * R, 2 * R),
    "l1_loss": ({}, 8 / 6, R.sign() / 6),
    "l1_loss, sum": ({"reduction": "sum"}, 8, R.sign()),
    # d = 2: ½, 0, ½ 2²; 2 (3 - 1), ½, ½ add up to 7.5
    "huber_loss": ({"delta": 2}, 7.5 / 6, table([1, 0, 2], [-2, 1, -1]) / 6),
    # d = 1: ½, 0, 2 - ½; 3 - ½, ½, ½ add up to 5.5
    "huber_loss, sum": ({"reduction": "sum"}, 5.5, table([1, 0, 1], [-1, 1, -1])),
    "quadratic_loss": ({}, 16 / (2 * 2), R / 2),  # 1/(2N) of 16; not 1/(2 N n)
    # weights 1, 1, 1; 2, 2, 2 add up to 9; weighted squares 5 + 2·11, magnitudes 3 + 2·5
    "mse_loss, weight": ({"weight": Y}, 27 / 9, 2 * Y * R / 9),
    "l1_loss, weight": ({"weight": Y}, 13 / 9, Y * R.sign() / 9),
    # divided by the 6 entries, not by Σ w, as PyTorch has it: (½ + 0 + 3/2) + 2 (5/2 + ½ + ½) = 9
    "huber_loss, weight": ({"weight": Y}, 9 / 6, Y * table([1, 0, 1], [-1, 1, -1]) / 6),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_losses(name):
    """C and ∂C/∂a as derived in the table; ∂C/∂y is -∂C/∂a."""
    options, loss, gradient = RESIDUAL[name]
    a, y = (Y + R).requires_grad_(), Y.clone().requires_grad_()
    ours = getattr(F, name.split(",")[0])(a, y, **options)
    ours.backward(torch.ones_like(ours))
    assert_same(ours.detach(), torch.as_tensor(loss, dtype=torch.float64))
    assert_same((a.grad, y.grad), (gradient, -gradient))


# --- cross-entropy: N = 2 samples, 3 classes ---

# p = (1, 2, 5)/8 and (1, 1, 2)/4; labels 2 and 0: p_y = 5/8 and 1/4, losses ln 1.6 and ln 4
LOGITS = ([0, log(2), log(5)], [0, 0, log(2)])
P = table([1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 2 / 4])
ONE_HOT = table([0, 0, 1], [1, 0, 0])
LOSS = (log(1.6), log(4))
W = table(1, 2, 3)
# Sum of -log p over the classes: ln 8 + ln 4 + ln 1.6 and ln 4 + ln 4 + ln 2
UNIFORM = (log(51.2), log(32))

# options, C, δ
LABELS = {
    "mean": ({}, (LOSS[0] + LOSS[1]) / 2, (P - ONE_HOT) / 2),  # δ = (p - y)/N
    "sum": ({"reduction": "sum"}, LOSS[0] + LOSS[1], P - ONE_HOT),
    "none": ({"reduction": "none"}, table(*LOSS), P - ONE_HOT),
    # w_y = 3 and 1: divided by D = 4
    "weight": ({"weight": W}, (3 * LOSS[0] + LOSS[1]) / 4, table([3], [1]) * (P - ONE_HOT) / 4),
    # the second label, 0, does not count: D = 1
    "ignored": ({"ignore_index": 0}, LOSS[0], table([1], [0]) * (P - ONE_HOT)),
    # ε = 0.3: y becomes 0.7 y + 0.1
    "smoothing": (
        {"label_smoothing": 0.3},
        (0.7 * LOSS[0] + 0.1 * UNIFORM[0] + 0.7 * LOSS[1] + 0.1 * UNIFORM[1]) / 2,
        (P - 0.7 * ONE_HOT - 0.1) / 2,
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_cross_entropy_of_labels(name):
    """C and δ as derived in the table."""
    options, loss, delta = LABELS[name]
    z = leaf(*LOGITS)
    ours = F.cross_entropy(z, torch.tensor([2, 0]), **options)
    ours.backward(torch.ones_like(ours))
    assert_same((ours.detach(), z.grad), (torch.as_tensor(loss, dtype=torch.float64), delta))


def test_cross_entropy_of_probabilities():
    """Targets (½, 0, ½) and (0, 0, 1): C = ½ [½ ln 8 + ½ ln 1.6 + ln 2]; δ = (p - y)/2; ∂C/∂y = -ln p / 2."""
    z, y = leaf(*LOGITS), leaf([0.5, 0, 0.5], [0, 0, 1])
    loss = F.cross_entropy(z, y)
    loss.backward()
    assert_same(loss.detach(), table((0.5 * log(8) + 0.5 * log(1.6) + log(2)) / 2).squeeze())
    assert_same((z.grad, y.grad), ((P - y.detach()) / 2, -P.log() / 2))


def test_labels_and_one_hot_probabilities_agree():
    """Labels 2 and 0, and (0, 0, 1) and (1, 0, 0), are the same target: the same C and δ, with smoothing too."""
    results = []
    for target in (torch.tensor([2, 0]), ONE_HOT):
        z = leaf(*LOGITS)
        loss = F.cross_entropy(z, target, label_smoothing=0.3)
        loss.backward()
        results.append((loss.detach(), z.grad))
    assert_same(*results)


# z = (ln 3, 0), y = (1, 0): σ = (3/4, 1/2), losses ln 4/3 and ln 2
BINARY = {
    "mean": ({}, (log(4 / 3) + log(2)) / 2, (-1 / 4 / 2, 1 / 2 / 2)),  # δ = (σ - y)/2
    "sum": ({"reduction": "sum"}, log(4 / 3) + log(2), (-1 / 4, 1 / 2)),
    "weight": ({"weight": table(3, 5)}, (3 * log(4 / 3) + 5 * log(2)) / 2, (-3 / 4 / 2, 5 / 2 / 2)),
    # p weighs the entry whose target is 1 alone
    "pos_weight": ({"pos_weight": table(7)}, (7 * log(4 / 3) + log(2)) / 2, (-7 / 4 / 2, 1 / 2 / 2)),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_cross_entropy(name):
    """C and δ as derived in the table."""
    options, loss, delta = BINARY[name]
    z = leaf(LN3, 0)
    ours = F.binary_cross_entropy_with_logits(z, table(1, 0), **options)
    ours.backward()
    assert_same((ours.detach(), z.grad), (table(loss).squeeze(), table(*delta)))


def test_binary_cross_entropy_by_the_target():
    """C = softplus(z) - y z without weights, so ∂C/∂y = -z/2; with p = 7 it is ln(1 - σ) - 7 ln σ, halved."""
    for options, gradient in [
        ({}, (-LN3 / 2, 0)),
        ({"pos_weight": table(7)}, ((log(1 / 4) - 7 * log(3 / 4)) / 2, (log(1 / 2) - 7 * log(1 / 2)) / 2)),
    ]:
        y = leaf(1, 0)
        F.binary_cross_entropy_with_logits(table(LN3, 0), y, **options).backward()
        assert_same(y.grad, table(*gradient))


# --- a net of two layers, worked through ---


class Net:
    """Two inputs, two sigmoid neurons, one output without activation; quadratic loss; N = 2.

    The comments derive the numbers; each test below checks one equation.
    """

    def __init__(self) -> None:
        self.x = table([1, 0], [0, 2])
        self.w1, self.b1 = leaf([LN3, -LN3 / 2], [0, LN3 / 2]), leaf(0, 0)
        self.w2, self.b2 = leaf([4, -4]), leaf(0)
        # z1 = x W1ᵀ + b1: (ln 3, 0) and 2·(-½ ln 3, ½ ln 3)
        self.z1 = F.linear(self.x, self.w1, self.b1)
        # a1 = σ(z1): (3/4, 1/2), (1/4, 3/4); σ' = a (1 - a): (3/16, 1/4), (3/16, 3/16)
        self.a1 = F.sigmoid(self.z1)
        # z2 = 4·(3/4 - 1/2) = 1 and 4·(1/4 - 3/4) = -2
        self.z2 = F.linear(self.a1, self.w2, self.b2)
        # y = 0 for both: C = 1/(2·2) (1² + 2²) = 5/4
        self.loss = F.quadratic_loss(self.z2, table([0], [0]))
        for t in (self.z1, self.a1, self.z2):
            t.retain_grad()
        self.loss.backward()
        self.parameters = [self.w1, self.b1, self.w2, self.b2]


@pytest.fixture
def net() -> Net:
    """The network after one backward pass."""
    return Net()


def test_net_fwd(net):
    """FWD through both layers, and C = 5/4."""
    assert_same(net.z1.detach(), table([LN3, 0], [-LN3, LN3]))
    assert_same(net.a1.detach(), table([3 / 4, 1 / 2], [1 / 4, 3 / 4]))
    assert_same(net.z2.detach(), table([1], [-2]))
    assert_same(net.loss.detach(), table(5 / 4).squeeze())


def test_net_bp1(net):
    """BP1: δ² = ∂C/∂a² ⊙ 1 = (a - y)/N = (1/2, -1): 1/N occurs only here."""
    assert_same(net.z2.grad, table([1 / 2], [-1]))


def test_net_bp2(net):
    """BP2: δ² W² = (2, -2), (-4, 4); times σ': δ¹ = (3/8, -1/2), (-3/4, 3/4)."""
    assert_same(net.a1.grad, table([2, -2], [-4, 4]))
    assert_same(net.z1.grad, table([3 / 8, -1 / 2], [-3 / 4, 3 / 4]))


def test_net_bp3(net):
    """BP3: Σ_n δ²_n = 1/2 - 1; Σ_n δ¹_n = (3/8 - 3/4, -1/2 + 3/4)."""
    assert_same((net.b2.grad, net.b1.grad), (table(-1 / 2), table(-3 / 8, 1 / 4)))


def test_net_bp4(net):
    """BP4: (δ²)ᵀ a¹ = ½ (3/4, 1/2) - (1/4, 3/4); (δ¹)ᵀ x has column 1 from sample 1, column 2 twice from sample 2."""
    assert_same(net.w2.grad, table([1 / 8, -1 / 2]))
    assert_same(net.w1.grad, table([3 / 8, -3 / 2], [-1 / 2, 3 / 2]))


def test_net_sgd(net):
    """SGD with η = 0.4: each parameter less 0.4 times the gradients above."""
    dp.SGD(net.parameters, lr=0.4).step()
    expected = [
        table([LN3 - 0.15, -LN3 / 2 + 0.6], [0.2, LN3 / 2 - 0.6]),
        table(0.15, -0.1),
        table([4 - 0.05, -4 + 0.2]),
        table(0.2),
    ]
    assert_same([p.detach() for p in net.parameters], expected)
