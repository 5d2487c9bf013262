"""`capture_layers`: a batch layer by layer, with the textbook's values and without side effects."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deltaprop import MLP, core
from deltaprop import functional as F
from deltaprop.tracing.capture import capture_layers, dead_share, delta_norm, saturated_share


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)


def test_delta_and_gradients_follow_the_recursion(batch: tuple[torch.Tensor, torch.Tensor]):
    """BP1 to BP4 by hand on a 3-4-2 sigmoid network with the quadratic cost."""
    x, y = batch
    model = MLP([3, 4, 2], "sigmoid", "sigmoid", dtype=torch.float64)
    first, second = capture_layers(model, F.quadratic_loss, x, y)
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    z1 = x @ w1.T + b1
    a1 = 1 / (1 + torch.exp(-z1))
    z2 = a1 @ w2.T + b2
    a2 = 1 / (1 + torch.exp(-z2))
    delta2 = (a2 - y) / 6 * a2 * (1 - a2)  # BP1, N = 6
    delta1 = a1 * (1 - a1) * (delta2 @ w2)  # BP2
    for layer, expected in (
        (first, (z1, a1, delta1, delta1.T @ x, delta1.sum(0))),
        (second, (z2, a2, delta2, delta2.T @ a1, delta2.sum(0))),
    ):
        actual = (layer.z, layer.a, layer.delta, layer.grad_weight, layer.grad_bias)
        for tensor, by_hand in zip(actual, expected, strict=True):
            assert_close(tensor, by_hand)
    assert_close(first.derivative(), a1 * (1 - a1))


def test_the_delta_norm_is_the_mean_norm_over_samples(batch: tuple[torch.Tensor, torch.Tensor]):
    """The same samples twice: the same norm, although each δ_n is half as large."""
    x, y = batch
    model = MLP([3, 4, 2], "tanh", dtype=torch.float64)
    once = delta_norm(capture_layers(model, F.mse_loss, x, y)[0])
    twice = delta_norm(capture_layers(model, F.mse_loss, x.repeat(2, 1), y.repeat(2, 1))[0])
    assert once == pytest.approx(twice)


def test_saturated_and_dead_shares():
    """Two relu units: one always 0 (bias −100: dead), one active for the positive half of the samples."""
    model = MLP([1, 2, 1], "relu")
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-100.0, 0.0]))
    x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    first, last = capture_layers(model, F.mse_loss, x, x)
    assert saturated_share(first) == 6 / 8  # 4 and 2 entries of 8
    assert dead_share(first) == 1 / 2
    assert saturated_share(last) is dead_share(last) is None  # no activation


def test_a_sigmoid_is_saturated_below_5_percent_of_its_largest_derivative():
    """σ'(z) = 0.0125 at z = ln 78.99 = ±4.37: 4.3 is not saturated, 4.5 is."""
    model = MLP([2, 2], output_activation="sigmoid", bias=False)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    (layer,) = capture_layers(model, F.quadratic_loss, torch.tensor([[4.3, -4.5]]), torch.zeros(1, 2))
    assert (saturated_share(layer), dead_share(layer)) == (0.5, 0.5)


def test_capturing_leaves_no_gradient_and_no_hook(batch: tuple[torch.Tensor, torch.Tensor]):
    x, y = batch
    model = MLP([3, 4, 2], dtype=torch.float64)
    capture_layers(model, F.mse_loss, x, y)
    assert all(p.grad is None for p in model.parameters())
    assert not x.requires_grad
    assert not any(m._forward_hooks for m in model.modules())


def test_frozen_layers_and_plain_torch_modules_are_captured(batch: tuple[torch.Tensor, torch.Tensor]):
    x, y = batch
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    model[0].requires_grad_(False)
    first, second = capture_layers(model, F.mse_loss, x, y)
    assert first.delta.abs().sum() > 0
    assert first.grad_weight.abs().sum() == 0
    assert second.grad_bias is None
    assert_close(first.derivative(), 1 - first.a**2)  # deltaprop has a counterpart of torch.nn.Tanh


@pytest.mark.parametrize("loss", core.LOSSES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "softmax"])
@pytest.mark.parametrize("frozen", [(), ("0.weight", "2.bias", "4.weight")], ids=["none frozen", "some frozen"])
def test_gradients_are_those_of_autograd(loss: str, activation: str, frozen: tuple[str, ...]):
    """The gradients are those of ``loss.backward()``; a frozen parameter's is 0."""
    model = MLP([4, 6, 5, 3], activation, dtype=torch.float64)
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    x, labels = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    y = labels if loss == "cross_entropy" else nn.functional.one_hot(labels, 3).double()
    getattr(F, loss)(model(x), y).backward()
    layers = capture_layers(model, loss, x, y)
    for layer, linear in zip(layers, [m for m in model if isinstance(m, nn.Linear)], strict=True):
        for gradient, p in ((layer.grad_weight, linear.weight), (layer.grad_bias, linear.bias)):
            assert_close(gradient, torch.zeros_like(p) if p.grad is None else p.grad, rtol=1e-12, atol=1e-14)


def test_a_frozen_gradient_is_0_even_if_delta_is_nan():
    """If δ is NaN, a product with 0 would be NaN too."""
    model = MLP([4, 3, 2], dtype=torch.float64)
    model[0].requires_grad_(False)
    x = torch.full((5, 4), torch.nan, dtype=torch.float64)
    first, last = capture_layers(model, "mse_loss", x, torch.zeros(5, 2, dtype=torch.float64))
    assert last.grad_weight.isnan().all()
    assert not first.grad_weight.any()
    assert not first.grad_bias.any()
