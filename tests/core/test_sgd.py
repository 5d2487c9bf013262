"""The SGD update and the functions that add ∂C/∂θ to a tensor: by hand, and against torch.optim.SGD."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

import deltaprop as dp
from deltaprop.core.linear import add_scaled, linear_grad_bias, linear_grad_weight
from deltaprop.core.sgd import SGDOptions, sgd_step

F64 = torch.float64

# Every valid combination: Nesterov needs momentum and no dampening.
GRID: list[dict[str, Any]] = [
    {"momentum": momentum, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov, "maximize": maximize}
    for momentum, dampening, decay, nesterov, maximize in itertools.product(
        (0.0, 0.9), (0.0, 0.3), (0.0, 0.01), (False, True), (False, True)
    )
    if not nesterov or (momentum and not dampening)
]
AS_TORCH = [options for options in GRID if not options["weight_decay"] and not options["nesterov"]]
REORDERED = [options for options in GRID if options not in AS_TORCH]


def name_of(options: dict[str, Any]) -> str:
    """Return the options that are set, as a test ID."""
    return ", ".join(f"{name} {value:g}" for name, value in options.items() if value) or "plain"


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class TestByHand:
    """θ = 1, ∂C/∂θ = 2 and then 4, η = 0.1, two steps each."""

    @pytest.mark.parametrize(
        ("options", "params", "velocities"),
        [
            ({}, (0.8, 0.4), (0, 0)),  # 1 − 0.2; − 0.4
            ({"maximize": True}, (1.2, 1.6), (0, 0)),
            # λ = 0.5: g = 2 + 0.5 · 1, θ = 0.75; g = 4 + 0.5 · 0.75 = 4.375
            ({"weight_decay": 0.5}, (0.75, 0.3125), (0, 0)),
            # μ = 0.5: v = 2, θ = 0.8; v = 1 + 4 = 5
            ({"momentum": 0.5}, (0.8, 0.3), (2, 5)),
            # τ = 0.25, not at the first step: v = 2; v = 1 + 0.75 · 4 = 4
            ({"momentum": 0.5, "dampening": 0.25}, (0.8, 0.4), (2, 4)),
            # d = g + μ v: 2 + 1 = 3, θ = 0.7; v = 1 + 4 = 5, d = 4 + 2.5 = 6.5, θ = 0.05
            ({"momentum": 0.5, "nesterov": True}, (0.7, 0.05), (2, 5)),
            # μ = λ = 0.5: g = 2.5, v = 2.5, θ = 0.75; g = 4.375, v = 1.25 + 4.375 = 5.625, θ = 0.1875
            ({"momentum": 0.5, "weight_decay": 0.5}, (0.75, 0.1875), (2.5, 5.625)),
            # g = −2 + 0.5 · 1 = −1.5, θ = 1.15; g = −4 + 0.575 = −3.425: the sign of the penalty does not change
            ({"weight_decay": 0.5, "maximize": True}, (1.15, 1.4925), (0, 0)),
        ],
        ids=lambda value: name_of(value) if isinstance(value, dict) else "",
    )
    def test_two_steps(self, options: dict[str, Any], params: Any, velocities: Any):
        theta, v = numbers(1), torch.full((1,), torch.nan, dtype=F64)  # v is not read at the first step
        for step, grad in enumerate((2, 4)):
            velocity = v if options.get("momentum") else None
            sgd_step(theta, velocity, partial(add_scaled, numbers(grad)), SGDOptions(0.1, **options), step == 0)
            torch.testing.assert_close(theta, numbers(params[step]), rtol=1e-14, atol=0)
            if velocity is not None:
                torch.testing.assert_close(v, numbers(velocities[step]), rtol=1e-14, atol=0)

    def test_all_combinations_give_different_results(self):
        """So tests over the grid detect options that are mixed up. Dampening without momentum has no effect."""
        ends = []
        for options in GRID:
            if options["dampening"] and not options["momentum"]:
                continue
            theta, v = numbers(1), numbers(0)
            for step in range(3):
                velocity = v if options["momentum"] else None
                sgd_step(theta, velocity, partial(add_scaled, numbers(0.3)), SGDOptions(0.1, **options), step == 0)
            ends.append(theta.item())
        assert len({round(end, 9) for end in ends}) == len(ends)


class TestAgainstTorch:
    """Ten steps on normal numbers by dp.SGD, which passes the stored gradient to sgd_step, and by torch.optim.SGD."""

    @staticmethod
    def twins(options: dict[str, Any], dtype: torch.dtype, lr: float) -> tuple[Any, Any, Tensor, Tensor]:
        ours, theirs = (nn.Parameter(torch.randn(1000, dtype=dtype)) for _ in range(2))
        theirs.data.copy_(ours.data)
        return dp.SGD([ours], lr=lr, **options), torch.optim.SGD([theirs], lr=lr, **options), ours, theirs

    @pytest.mark.parametrize("options", AS_TORCH, ids=name_of)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_bits_are_equal(self, options: dict[str, Any], dtype: torch.dtype):
        """Parameters and velocities, without weight decay and Nesterov momentum."""
        one, other, ours, theirs = self.twins(options, dtype, 0.1)
        for _ in range(10):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
            one.step()
            other.step()
            assert torch.equal(ours, theirs)
        if options["momentum"]:
            assert torch.equal(one.state[ours]["momentum_buffer"], other.state[theirs]["momentum_buffer"])

    @pytest.mark.parametrize("options", REORDERED, ids=name_of)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    @pytest.mark.parametrize("lr", [0.1, 0.001])
    def test_equal_up_to_the_order_of_sums(self, options: dict[str, Any], dtype: torch.dtype, lr: float):
        """From the same θ and v a step differs by at most 4 ε of the sizes of its terms, ε = 2⁻²³ or 2⁻⁵².

        The largest difference seen is 3.1 ε, and 1.8 ε for v. Relative to the result there is no bound: where θ − η g
        is near 0, the remaining digits are all rounding.
        """
        one, other, ours, theirs = self.twins(options, dtype, lr)
        epsilon, mu, decay = torch.finfo(dtype).eps, options["momentum"], options["weight_decay"]
        v_before = torch.zeros_like(ours)
        for _ in range(10):
            theta, g = ours.detach().double().abs(), torch.randn_like(ours)
            ours.grad, theirs.grad = g, g.clone()
            one.step()
            other.step()
            of_v = mu * v_before.double().abs() + g.double().abs() + decay * theta
            of_theta = theta + lr * of_v
            assert ((ours - theirs).double().abs() <= 4 * epsilon * of_theta).all()
            if mu:
                v, expected = (o.state[p]["momentum_buffer"] for o, p in ((one, ours), (other, theirs)))
                assert ((v - expected).double().abs() <= 4 * epsilon * of_v).all()
                v_before = v.copy_(expected).clone()
            ours.data.copy_(theirs.data)  # the same start for the next step, so that each step is compared by itself

    @pytest.mark.parametrize("options", GRID, ids=name_of)
    def test_update_from_the_factors_of_a_gradient(self, options: dict[str, Any]):
        """Updating W and b from δ and a_prev, as the explicit engine does, equals updating from the gradient."""
        params = [nn.Parameter(torch.randn(shape, dtype=F64)) for shape in ((4, 3), (4,))]
        ours, velocities = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
        sgd = torch.optim.SGD(params, lr=0.1, **options)
        for step in range(10):
            delta, a_prev = torch.randn(5, 4, dtype=F64), torch.randn(5, 3, dtype=F64)
            params[0].grad, params[1].grad = delta.T @ a_prev, delta.sum(0)
            sgd.step()
            adds = partial(linear_grad_weight, delta, a_prev), partial(linear_grad_bias, delta)
            for theta, v, add in zip(ours, velocities, adds, strict=True):
                velocity = v if options["momentum"] else None
                sgd_step(theta, velocity, add, SGDOptions(0.1, **options), step == 0)
        for theta, p in zip(ours, params, strict=True):
            torch.testing.assert_close(theta, p.detach(), rtol=1e-12, atol=1e-13)


class TestGradientTarget:
    """∂C/∂θ is added directly to θ or to v, and with Nesterov to both; it is not stored."""

    @pytest.mark.parametrize(
        ("options", "targets"),
        [
            ({}, ["θ"]),
            ({"weight_decay": 0.1}, ["θ"]),
            ({"momentum": 0.9, "weight_decay": 0.1}, ["v"]),
            ({"momentum": 0.9, "nesterov": True}, ["v", "θ"]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("first_step", [True, False])
    def test_the_gradient_is_added_where_needed(self, options: dict[str, Any], targets: list[str], first_step: bool):
        theta, v, added_to = numbers(1), numbers(2), []

        def add(into: Tensor, beta: float, alpha: float) -> None:
            added_to.append("θ" if into is theta else "v")
            add_scaled(numbers(3), into, beta, alpha)

        sgd_step(theta, v if options.get("momentum") else None, add, SGDOptions(0.1, **options), first_step)
        assert added_to == targets


class TestOptions:
    def test_from_a_parameter_group(self):
        """The options of torch.optim.SGD; it has more, which do not change the result."""
        group = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, 0.9, 0.0, 0.01, True).param_groups[0]
        assert SGDOptions.of(group) == SGDOptions(0.1, 0.9, 0.0, 0.01, True, False)

    def test_a_tensor_learning_rate_becomes_a_float(self):
        options = SGDOptions.of({**SGDOptions(0.0)._asdict(), "lr": torch.tensor(0.25)})
        assert type(options.lr) is float
        assert options.lr == 0.25


# Leading shapes of δ, such as [4, 3] and [2, 4, 3], and of a_prev.
SHAPES: list[tuple[int, ...]] = [(4,), (2, 4), (1,)]


def factors(shape: tuple[int, ...], dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, 3, dtype=dtype), torch.randn(*shape, 5, dtype=dtype)


class TestAddingAGradient:
    """into ← β into + α gradient, in place, for a stored gradient, BP3's sum and BP4's product."""

    @pytest.fixture(params=["stored", "BP3", "BP4"])
    def gradient(self, request: pytest.FixtureRequest) -> Callable[..., Tensor]:
        """A function that returns a gradient, or adds it to a tensor."""
        delta, a_prev = factors((4,))
        stored = torch.randn(3, 5, dtype=F64)

        def of_stored(into: Tensor | None = None, beta: float = 0, alpha: float = 1) -> Tensor:
            return stored if into is None else add_scaled(stored, into, beta, alpha)

        by_name: dict[str, Callable[..., Tensor]] = {
            "stored": of_stored,
            "BP3": partial(linear_grad_bias, delta),
            "BP4": partial(linear_grad_weight, delta, a_prev),
        }
        return by_name[request.param]

    @pytest.mark.parametrize("beta", [0, 1, 0.5, -2.0])
    @pytest.mark.parametrize("alpha", [1, -0.1, 0, 3.0])
    def test_gradient_is_added_in_place(self, gradient: Callable[..., Tensor], beta: float, alpha: float):
        into = torch.randn_like(gradient())
        before, address = into.clone(), into.data_ptr()
        assert gradient(into, beta, alpha) is into
        assert into.data_ptr() == address
        torch.testing.assert_close(into, beta * before + alpha * gradient(), rtol=1e-14, atol=1e-14)

    def test_beta_0_ignores_the_old_values(self, gradient: Callable[..., Tensor]):
        """Uninitialized memory may hold NaN, and 0 · NaN is NaN."""
        for value in (torch.nan, torch.inf):
            into = torch.full_like(gradient(), value)
            gradient(into, 0, 1)
            assert torch.equal(into, gradient())

    def test_beta_1_propagates_nan(self, gradient: Callable[..., Tensor]):
        into = torch.full_like(gradient(), torch.nan)
        assert gradient(into, 1, 1).isnan().all()

    def test_the_gradient_is_unchanged(self, gradient: Callable[..., Tensor]):
        before = gradient().clone()
        gradient(torch.ones_like(before), 0.5, 2.0)
        assert torch.equal(gradient(), before)


class TestLinearGradients:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_gradients_equal_sum_and_product_to_the_bit(self, shape: tuple[int, ...], dtype: torch.dtype):
        delta, a_prev = factors(shape, dtype)
        flat, flat_a = delta.reshape(-1, 3), a_prev.reshape(-1, 5)
        assert torch.equal(linear_grad_bias(delta), flat.sum(0))
        assert torch.equal(linear_grad_weight(delta, a_prev), torch.mm(flat.T, flat_a))

    def test_gradients_of_an_empty_batch_are_0(self):
        """Also if they are written to memory that holds NaN."""
        delta, a_prev = factors((0,))
        assert not linear_grad_bias(delta).any()
        assert not linear_grad_weight(delta, a_prev).any()
        assert not linear_grad_bias(delta, torch.full((3,), torch.nan, dtype=F64)).any()
        assert not linear_grad_weight(delta, a_prev, torch.full((3, 5), torch.nan, dtype=F64)).any()

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_gradients_can_be_differentiated_twice(self, shape: tuple[int, ...]):
        delta, a_prev = (t.requires_grad_() for t in factors(shape))
        for check in (gradcheck, gradgradcheck):
            assert check(linear_grad_weight, (delta, a_prev))
            assert check(linear_grad_bias, (delta,))

    @pytest.mark.parametrize("beta", [0, 1, 0.5])
    def test_add_scaled_can_be_differentiated_twice(self, beta: float):
        """As ``create_graph=True`` needs it, through a tensor that is not a leaf."""
        gradient, into = (torch.randn(3, dtype=F64, requires_grad=True) for _ in range(2))
        for check in (gradcheck, gradgradcheck):
            assert check(lambda g, t: add_scaled(g, t.clone(), beta, 2.0), (gradient, into))

    def test_under_vmap(self):
        """Per-sample gradients: one product for each of the 6 pairs."""
        delta, a_prev = torch.randn(6, 4, 3, dtype=F64), torch.randn(6, 4, 5, dtype=F64)
        each = [torch.mm(d.T, a) for d, a in zip(delta, a_prev, strict=True)]
        torch.testing.assert_close(vmap(linear_grad_weight)(delta, a_prev), torch.stack(each), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(vmap(linear_grad_bias)(delta), delta.sum(1), rtol=1e-14, atol=1e-14)
        into = torch.randn(6, 3, dtype=F64)
        for beta in (0, 0.5):
            added = vmap(lambda d, t, beta=beta: add_scaled(d, t, beta, 2.0))(delta[:, 0], into.clone())
            torch.testing.assert_close(added, beta * into + 2 * delta[:, 0], rtol=1e-14, atol=1e-14)
