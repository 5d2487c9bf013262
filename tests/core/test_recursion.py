"""The recursion as a loop: one step by hand, the order in which gradients are passed, and the use of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deltaprop.core import ACTIVATIONS, Elementwise
from deltaprop.core.recursion import Layer, back_propagate, feed_forward, store_gradients
from deltaprop.core.sgd import SGDOptions, sgd_step
from tests.core.compare import assert_same

F64 = torch.float64
SGD = SGDOptions(lr=0.1)

# A network of one neuron per layer, with a leaky relu of slope ½ between: x = 1, y = −7.5, C = ½ (a² − y)².
# FWD: z¹ = 2 · 1 − 5 = −3, a¹ = −1.5, z² = 3 · (−1.5) − 1 = −5.5, C = ½ · 2² = 2
# BP1: δ² = a² − y = 2.  BP2: δ¹ = δ² W² σ'(z¹) = 2 · 3 · ½ = 3
# BP3: ∂C/∂b² = 2, ∂C/∂b¹ = 3.  BP4: ∂C/∂W² = 2 · (−1.5) = −3, ∂C/∂W¹ = 3 · 1 = 3
X, Y = torch.tensor([[1.0]], dtype=F64), torch.tensor([[-7.5]], dtype=F64)


def net() -> list[Layer]:
    def number(value: float, dim: int) -> Tensor:
        return torch.full([1] * dim, value, dtype=F64)

    first = Layer(number(2, 2), number(-5, 1), ACTIVATIONS["leaky_relu"], (0.5,))
    return [first, Layer(number(3, 2), number(-1, 1))]


def update(param: Tensor, gradient: Callable[..., Tensor]) -> None:
    """Update the parameter at once, with η = 0.1."""
    sgd_step(param, None, gradient, SGD)


def test_forward_on_paper():
    layers = net()
    assert feed_forward(layers, X).item() == -5.5
    assert [layer.a_prev.item() for layer in layers] == [1, -1.5]
    assert [layer.z.item() for layer in layers] == [-3, -5.5]
    assert [layer.a.item() for layer in layers] == [-1.5, -5.5]


def test_backward_on_paper():
    layers = net()
    store_gradients(layers, feed_forward(layers, X) - Y)
    assert [layer.delta.item() for layer in layers] == [3, 2]
    assert [(layer.grad_weight.item(), layer.grad_bias.item()) for layer in layers] == [(3, 3), (-3, 2)]


def test_one_step_on_paper():
    """With η = 0.1: W¹ = 2 − 0.3, b¹ = −5 − 0.3, W² = 3 + 0.3, b² = −1 − 0.2."""
    layers = net()
    back_propagate(layers, feed_forward(layers, X) - Y, update)
    params = [p.item() for layer in layers for p in (layer.weight, layer.bias)]
    assert params == pytest.approx([1.7, -5.3, 3.3, -1.2], rel=1e-15)


def test_delta_below_is_formed_from_the_old_weights():
    """W² is already updated to 3.3; with it δ¹ would be 2 · 3.3 · ½ = 3.3, and W¹ = 1.67."""
    layers = net()
    back_propagate(layers, feed_forward(layers, X) - Y, update)
    assert layers[1].weight.item() == pytest.approx(3.3)
    assert layers[0].delta.item() == 3
    assert layers[0].weight.item() == pytest.approx(1.7)


def test_gradients_are_passed_from_the_last_layer_to_the_first():
    """Each is a function that returns the gradient, or adds it to a tensor: 7 · ½ + 3 · 2 for W¹."""
    layers, seen = net(), []

    def use(param: Tensor, gradient: Callable[..., Tensor]) -> None:
        into = torch.full_like(param, 7.0)
        assert gradient(into, 0.5, 2.0) is into
        seen.append((param, gradient().item(), into.item()))

    back_propagate(layers, feed_forward(layers, X) - Y, use)
    second, first = layers[1], layers[0]
    expected = [(second.bias, 2, 7.5), (second.weight, -3, -2.5), (first.bias, 3, 9.5), (first.weight, 3, 9.5)]
    for (param, *numbers), (should_be, *expected_numbers) in zip(seen, expected, strict=True):
        assert param is should_be
        assert numbers == expected_numbers


@pytest.mark.parametrize("learns", [(True, False), (False, True), (False, False)])
def test_gradients_of_frozen_parameters_are_not_passed(learns: tuple[bool, bool]):
    layers, seen = net(), []
    layers[1].learns = learns
    back_propagate(layers, feed_forward(layers, X) - Y, lambda param, gradient: seen.append(param))
    second = [layers[1].bias] * learns[1] + [layers[1].weight] * learns[0]
    assert [id(p) for p in seen] == [id(p) for p in [*second, layers[0].bias, layers[0].weight]]
    assert layers[0].delta.item() == 3  # δ passes through a frozen layer


def test_a_layer_without_bias():
    layers = net()
    layers[0].bias = None
    store_gradients(layers, feed_forward(layers, X) - Y)
    assert layers[0].z.item() == 2
    assert layers[0].grad_bias is None


class TestStoreGradients:
    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
    @pytest.mark.parametrize("bias", [True, False])
    def test_gradients_match_autograd(self, activation: str | None, bias: bool):
        """PyTorch differentiates the same forward pass: z = a Wᵀ + b and the forward of σ."""
        layers = random_layers([4, 6, 5, 3], activation, bias)
        x, grad_a = torch.randn(7, 4, dtype=F64), torch.randn(7, 3, dtype=F64)
        feed_forward(layers, x)
        store_gradients(layers, grad_a)
        params = [p.clone().requires_grad_() for layer in layers for p in (layer.weight, layer.bias) if p is not None]
        zs, a, remaining = [], x, iter(params)
        for layer in layers:
            z = a @ next(remaining).T
            if layer.bias is not None:
                z = z + next(remaining)
            zs.append(z)
            a = layer.activation.forward(z) if layer.activation is not None else z
        gradients = torch.autograd.grad(a, [*zs, *params], grad_a, allow_unused=True)
        expected = [
            torch.zeros_like(t) if g is None else g for t, g in zip([*zs, *params], gradients, strict=True)
        ]  # step has no gradient
        assert_same([layer.delta for layer in layers], expected[: len(layers)])
        stored = [g for layer in layers for g in (layer.grad_weight, layer.grad_bias) if g is not None]
        assert_same(stored, expected[len(layers) :])

    @pytest.mark.parametrize("frozen", [(0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")])
    def test_gradients_of_frozen_parameters_are_0(self, frozen: tuple[int, str]):
        number, name = frozen
        layers = random_layers([4, 6, 3], "tanh", bias=True)
        layers[number].learns = (name != "weight", name != "bias")
        store_gradients(layers, feed_forward(layers, torch.randn(7, 4, dtype=F64)))
        for at, layer in enumerate(layers):
            for of in ("weight", "bias"):
                gradient = getattr(layer, f"grad_{of}")
                assert gradient.shape == getattr(layer, of).shape
                assert gradient.any() != ((at, of) == frozen)

    def test_gradients_of_frozen_parameters_are_0_even_if_delta_is_nan(self):
        """After divergence δ is NaN, and 0 · NaN would be NaN too."""
        layers = random_layers([4, 6, 3], "tanh", bias=True)
        layers[0].learns = (False, False)
        feed_forward(layers, torch.randn(7, 4, dtype=F64))
        store_gradients(layers, torch.full((7, 3), torch.nan, dtype=F64))
        assert layers[1].grad_weight.isnan().all()
        assert not layers[0].grad_weight.any()
        assert not layers[0].grad_bias.any()

    def test_weights_are_unchanged(self):
        layers = random_layers([4, 6, 3], "tanh", bias=True)
        before = [layer.weight.clone() for layer in layers]
        store_gradients(layers, feed_forward(layers, torch.randn(7, 4, dtype=F64)))
        assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, before, strict=True))


class TestDerivative:
    """``Layer.derivative`` is σ'(z): checked by a finite difference; 1 without σ, None if it is a matrix."""

    @pytest.mark.parametrize("name", [name for name, op in ACTIVATIONS.items() if issubclass(op, Elementwise)])
    def test_derivative_matches_a_finite_difference(self, name: str):
        """(σ(z + h) − σ(z − h))/2h with h = 10⁻⁶, for random z at least 0.01 away from the kink at 0."""
        z = torch.randn(7, 5, dtype=F64)
        z = torch.where(z.abs() < 0.01, z + 0.1, z)
        layer = Layer(torch.eye(5, dtype=F64), None, ACTIVATIONS[name])
        feed_forward([layer], z)
        sigma, h = ACTIVATIONS[name].forward, 1e-6
        difference = (sigma(z + h) - sigma(z - h)) / (2 * h)
        torch.testing.assert_close(layer.derivative(), difference, rtol=1e-7, atol=1e-8)

    def test_constants_are_used(self):
        layers = net()
        feed_forward(layers, X)
        assert layers[0].derivative().item() == 0.5

    def test_derivative_is_1_without_activation(self):
        layers = net()
        feed_forward(layers, X)
        assert torch.equal(layers[1].derivative(), torch.ones(1, 1, dtype=F64))

    @pytest.mark.parametrize("name", ["softmax", "log_softmax"])
    def test_derivative_is_none_if_it_is_a_matrix(self, name: str):
        layer = Layer(torch.eye(3), None, ACTIVATIONS[name])
        feed_forward([layer], torch.randn(2, 3))
        assert layer.derivative() is None


class TestMemory:
    """A engine may preallocate the memory of the layers; the numbers are the same."""

    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
    def test_preallocated_memory_gives_the_same_numbers(self, activation: str | None):
        plain, preallocated = random_layers([4, 6, 5, 3], activation, bias=True), []
        for layer in plain:
            size = (7, len(layer.weight))
            preallocated.append(Layer(layer.weight, layer.bias, layer.activation))
            preallocated[-1].z_out, preallocated[-1].grad_a_out = (
                torch.full(size, torch.nan, dtype=F64) for _ in range(2)
            )
        x, grad_a = torch.randn(7, 4, dtype=F64), torch.randn(7, 3, dtype=F64)
        for layers in (plain, preallocated):
            feed_forward(layers, x)
            store_gradients(layers, grad_a.clone())
        for first, second in zip(preallocated, plain, strict=True):
            assert first.z.data_ptr() == first.z_out.data_ptr()
            for name in ("a_prev", "z", "a", "delta", "grad_weight", "grad_bias"):
                assert torch.equal(getattr(first, name), getattr(second, name)), name

    def test_without_preallocated_memory_inputs_are_unchanged(self):
        layers = random_layers([4, 6, 3], "sigmoid", bias=True)
        inputs = x, grad_a = torch.randn(7, 4, dtype=F64), torch.randn(7, 3, dtype=F64)
        before = [t.clone() for t in inputs]
        feed_forward(layers, x)
        activations = [(layer.z.clone(), layer.a.clone()) for layer in layers]
        store_gradients(layers, grad_a)
        assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))
        for layer, (z, a) in zip(layers, activations, strict=True):
            assert torch.equal(layer.z, z)
            assert torch.equal(layer.a, a)


@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_no_gradient_is_computed_below_the_lowest_given_layer(lowest: int):
    layers = random_layers([4, 6, 5, 3], "tanh", bias=True)
    grad_a = feed_forward(layers, torch.randn(7, 4, dtype=F64))
    back_propagate(layers[lowest:], grad_a, lambda param, gradient: None)
    assert [hasattr(layer, "delta") for layer in layers] == [number >= lowest for number in range(3)]


def random_layers(sizes: list[int], activation: str | None, bias: bool) -> list[Layer]:
    """Return layers with random float64 weights; all but the last have an activation."""
    random = partial(torch.randn, dtype=F64)
    layers: list[Layer] = []
    for n_in, n_out in pairwise(sizes):
        definition: Any = ACTIVATIONS[activation] if activation else None
        layers.append(Layer(random(n_out, n_in), random(n_out) if bias else None, definition))
    layers[-1].activation = None
    return layers
