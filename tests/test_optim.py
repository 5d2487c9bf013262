"""SGD against torch.optim.SGD: options, groups, schedules, resumed runs; and the pure update.

The bits are equal, except with weight decay or Nesterov momentum: there the order of sums differs, and results agree
up to rounding (``core/test_sgd.py`` has the bound of a step).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

import deltaprop as dp
from deltaprop.optim import sgd_update
from tests.core.test_sgd import AS_TORCH, GRID, REORDERED, name_of

STEPS = 20


def twins(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return two lists of equal parameters: a weight, a bias, and a scalar."""
    generator = torch.Generator().manual_seed(2)
    ours = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in [(3, 4), (3,), ()]]
    return ours, copy.deepcopy(ours)


def set_gradients(ours: list[nn.Parameter], theirs: list[nn.Parameter], step: int) -> None:
    """Give both lists the same random gradients."""
    generator = torch.Generator().manual_seed(100 + step)
    for one, other in zip(ours, theirs, strict=True):
        one.grad = torch.randn(one.shape, generator=generator, dtype=one.dtype)
        other.grad = one.grad.clone()


def assert_same_bits(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    """Assert that two lists of parameters are equal to the bit."""
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def assert_close(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    """Assert that two lists of parameters agree to 10⁻¹³ of numbers of size 1: 450 roundings in float64."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


# --- the optimizer ---


@pytest.mark.parametrize("options", AS_TORCH, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_bits_of_torch(options, dtype):
    """After each of 20 steps the parameters, and at the end the velocities, are torch.optim.SGD's to the bit."""
    ours, theirs = twins(dtype)
    start = [p.detach().clone() for p in ours]
    one, other = dp.SGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, **options)
    for step in range(STEPS):
        set_gradients(ours, theirs, step)
        assert one.step() is None
        other.step()
        assert_same_bits(ours, theirs)
    assert not any(torch.equal(p, s) for p, s in zip(ours, start, strict=True))
    for p, q in zip(ours, theirs, strict=True):
        velocities = [o.state[t].get("momentum_buffer") for o, t in ((one, p), (other, q))]
        assert (velocities[0] is None) == (velocities[1] is None) == (not options["momentum"])
        assert not options["momentum"] or torch.equal(*velocities)


@pytest.mark.parametrize("options", REORDERED, ids=name_of)
def test_weight_decay_and_nesterov_match_torch_up_to_rounding(options):
    """After each of 20 steps the parameters, and the velocities with them."""
    ours, theirs = twins()
    one, other = dp.SGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, **options)
    for step in range(STEPS):
        set_gradients(ours, theirs, step)
        one.step()
        other.step()
        assert_close(ours, theirs)
        if options["momentum"]:
            velocities = [
                [o.state[p]["momentum_buffer"] for p in params] for o, params in ((one, ours), (other, theirs))
            ]
            assert_close(*velocities)


def test_defaults():
    """The defaults are PyTorch's: lr 0.001, everything else off."""
    ours, theirs = twins()
    one, other = dp.SGD(ours).defaults, torch.optim.SGD(theirs).defaults
    assert one == {name: other[name] for name in one}
    assert one["lr"] == 1e-3


def test_positional_arguments():
    """lr, momentum, dampening, weight_decay and nesterov have PyTorch's positions."""
    ours, theirs = twins()
    one, other = dp.SGD(ours, 0.1, 0.9, 0.0, 0.01, True), torch.optim.SGD(theirs, 0.1, 0.9, 0.0, 0.01, True)
    assert one.defaults == {name: other.defaults[name] for name in one.defaults}


def test_groups():
    """Each group uses its own options, and the optimizer's for those it does not set."""
    ours, theirs = twins()

    def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": params[:1], "lr": 0.5, "momentum": 0.9, "nesterov": True},
            {"params": params[1:2], "weight_decay": 0.1, "maximize": True},
            {"params": params[2:], "momentum": 0.5, "dampening": 0.2},
        ]

    one, other = dp.SGD(groups(ours), lr=0.1), torch.optim.SGD(groups(theirs), lr=0.1)
    for step in range(STEPS):
        set_gradients(ours, theirs, step)
        one.step()
        other.step()
    assert_close(ours, theirs)
    assert_same_bits(ours[2:], theirs[2:])


def test_add_param_group():
    """A group added later is updated with its options."""
    ours, theirs = twins()
    one, other = dp.SGD(ours[:2], lr=0.1), torch.optim.SGD(theirs[:2], lr=0.1)
    one.add_param_group({"params": ours[2:], "lr": 0.2})
    other.add_param_group({"params": theirs[2:], "lr": 0.2})
    set_gradients(ours, theirs, 0)
    one.step()
    other.step()
    assert_same_bits(ours, theirs)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=STEPS),  # changes momentum too
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    """The groups' lr and momentum are read at each step: with every schedule the bits are PyTorch's."""
    ours, theirs = twins()
    one, other = dp.SGD(ours, lr=0.1, momentum=0.9), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    schedules = SCHEDULES[name](one), SCHEDULES[name](other)
    rates = set()
    for step in range(STEPS):
        set_gradients(ours, theirs, step)
        one.step()
        other.step()
        rates.add(one.param_groups[0]["lr"])
        for schedule in schedules:
            schedule.step()
    assert len(rates) > 3
    assert_same_bits(ours, theirs)


def test_no_gradient_no_step():
    """A parameter without gradient and its velocity are unchanged, also with weight decay; a zero gradient counts."""
    ours, theirs = twins()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    one, other = dp.SGD(ours, **options), torch.optim.SGD(theirs, **options)
    for step in range(4):
        set_gradients(ours, theirs, step)
        ours[step % 2].grad = theirs[step % 2].grad = None
        for params in (ours, theirs):
            params[2].grad = torch.zeros_like(params[2])
        before = ours[step % 2].detach().clone()
        one.step()
        other.step()
        assert torch.equal(ours[step % 2], before)
        assert_close(ours, theirs)


def test_nothing_to_do():
    """Without any gradient a step changes nothing."""
    ours, theirs = twins()
    dp.SGD(ours, lr=0.1, momentum=0.9).step()
    assert_same_bits(ours, theirs)


def test_closure():
    """The closure is called once with gradients enabled, before the update; its loss is returned."""
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = dp.SGD([weight], lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(weight.item())
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 9.0
    assert calls == [3.0]
    assert weight.item() == pytest.approx(3 - 0.1 * 6)  # θ − η 2θ


def test_gradients_are_unchanged():
    """A step modifies no gradient, also with weight decay, maximize and momentum."""
    for options in GRID:
        ours, theirs = twins()
        optimizer = dp.SGD(ours, lr=0.1, **options)
        for step in range(2):
            set_gradients(ours, theirs, step)
            optimizer.step()
            assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_matches_torch(set_to_none: bool):
    """In every group, also for parameters without a gradient."""
    ours, theirs = ([nn.Parameter(torch.ones(2)) for _ in range(3)] for _ in range(2))
    for params, kind in ((ours, dp.SGD), (theirs, torch.optim.SGD)):
        for p in params[:2]:
            p.grad = torch.tensor([3.0, -1.0])
        kind([{"params": params[:1]}, {"params": params[1:]}], lr=0.1).zero_grad(set_to_none)
    for p, q in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_the_first_velocity_is_a_copy():
    """V ← g at the first step is a copy: zeroing the gradient in place does not change it."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = dp.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.state[weight]["momentum_buffer"].item() == 2.0


def test_the_velocity_keeps_its_memory():
    """The velocity is the same tensor from the first step on, as in PyTorch."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = dp.SGD([weight], lr=0.1, momentum=0.5)
    velocities = []
    for grad in (2.0, 4.0):
        weight.grad = torch.tensor([grad])
        optimizer.step()
        velocities.append(optimizer.state[weight]["momentum_buffer"])
    assert velocities[0] is velocities[1]
    assert velocities[0].item() == 0.5 * 2 + 4  # v ← μ v + g


def test_parameters_keep_their_memory():
    """The update is in place, so views of a parameter change too."""
    model = nn.Linear(3, 2)
    view, address = model.weight.view(-1), model.weight.data_ptr()
    before = view.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    dp.SGD(model.parameters(), lr=0.1).step()
    assert model.weight.data_ptr() == address
    assert not torch.equal(view, before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_dict_is_compatible_with_torch(momentum):
    """A state_dict can be loaded into torch.optim.SGD and back during a run, with the same bits."""
    ours, theirs = twins()
    options = {"lr": 0.1, "momentum": momentum, "dampening": 0.3}
    uninterrupted = torch.optim.SGD(theirs, **options)
    kinds = itertools.cycle([dp.SGD, torch.optim.SGD])
    optimizer = next(kinds)(ours, **options)
    for step in range(STEPS):
        if step % 5 == 4:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = next(kinds)(ours, lr=77.0)  # overridden by the loaded state
            optimizer.load_state_dict(state)
        set_gradients(ours, theirs, step)
        optimizer.step()
        uninterrupted.step()
        assert_same_bits(ours, theirs)
    assert type(optimizer) is dp.SGD


def test_deepcopy():
    """An optimizer is copied with its parameters and state."""
    ours, theirs = twins()
    optimizer = dp.SGD(ours, lr=0.1, momentum=0.9)
    set_gradients(ours, theirs, 0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    copied_params = copied.param_groups[0]["params"]
    set_gradients(ours, copied_params, 1)
    optimizer.step()
    copied.step()
    assert_same_bits(ours, copied_params)
    assert ours[0] is not copied_params[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"momentum": -0.9}, "momentum must be at least 0, got -0.9"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"nesterov": True}, "nesterov needs a momentum above 0 and a dampening of 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs a momentum above 0"),
    ],
    ids=["lr", "lr NaN", "momentum", "weight decay", "nesterov", "nesterov and dampening"],
)
def test_refused_options(options, message):
    """Options that PyTorch refuses are refused with the same exception type and a remedy."""
    weight = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match=message):
        dp.SGD(weight, **options)
    if "lr NaN" not in message and not math.isnan(options.get("lr", 0)):
        with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
            torch.optim.SGD(weight, **options)


@pytest.mark.parametrize(
    ("params", "error"), [([], ValueError), (torch.ones(1), TypeError), ([1.0], TypeError)], ids=str
)
def test_refused_parameters(params, error):
    """No parameters, a bare tensor and a number are refused as in PyTorch."""
    for kind in (dp.SGD, torch.optim.SGD):
        with pytest.raises(error):
            kind(params, lr=0.1)


# --- the pure update ---


def table(*numbers: float) -> Tensor:
    """Return numbers as a float64 tensor."""
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "params", "velocities"),
    [
        # θ = 1; ∂C/∂θ = 2 and then 4; η = 0.1. Two steps each.
        ({}, (0.8, 0.4), (None, None)),  # 1 − 0.2; − 0.4
        ({"maximize": True}, (1.2, 1.6), (None, None)),
        # λ = 0.5: g = 2 + 0.5 · 1, θ = 0.75; g = 4 + 0.5 · 0.75 = 4.375
        ({"weight_decay": 0.5}, (0.75, 0.3125), (None, None)),
        # μ = 0.5: v = 2, θ = 0.8; v = 1 + 4 = 5
        ({"momentum": 0.5}, (0.8, 0.3), (2, 5)),
        # τ = 0.25, not at the first step: v = 2; v = 1 + 0.75 · 4 = 4
        ({"momentum": 0.5, "dampening": 0.25}, (0.8, 0.4), (2, 4)),
        # direction g + μ v: 2 + 1 = 3, θ = 0.7; v = 1 + 4 = 5, 4 + 2.5 = 6.5, θ = 0.05
        ({"momentum": 0.5, "nesterov": True}, (0.7, 0.05), (2, 5)),
        # g = −2 + 0.5 · 1 = −1.5, θ = 1.15; g = −4 + 0.575 = −3.425: the sign of the penalty does not change
        ({"weight_decay": 0.5, "maximize": True}, (1.15, 1.4925), (None, None)),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else "",
)
def test_update_by_hand(options, params, velocities):
    """Two steps of sgd_update, as derived in the table."""
    theta, velocity = table(1), None
    for grad, expected, expected_velocity in zip((2, 4), params, velocities, strict=True):
        theta, velocity = sgd_update(theta, table(grad), velocity, lr=0.1, **options)
        torch.testing.assert_close(theta, table(expected), rtol=1e-14, atol=0)
        if expected_velocity is None:
            assert velocity is None
        else:
            torch.testing.assert_close(velocity, table(expected_velocity), rtol=1e-14, atol=0)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_update_is_pure(options):
    """sgd_update modifies none of its arguments and returns new tensors."""
    given_tensors = theta, grad, velocity = table(1, -2), table(3, 4), table(5, 6)
    before = [t.clone() for t in given_tensors]
    results = sgd_update(theta, grad, velocity, lr=0.1, **options)
    assert all(torch.equal(t, b) for t, b in zip(given_tensors, before, strict=True))
    assert results[0].data_ptr() not in {t.data_ptr() for t in given_tensors}
    if options["momentum"]:
        assert results[1].data_ptr() not in {t.data_ptr() for t in given_tensors}


def test_update_is_differentiable():
    """The pure update can be differentiated: ∂(θ − η g)/∂θ = 1 − η λ with weight decay, as for meta-learning."""
    theta = table(1).requires_grad_()
    new, _ = sgd_update(theta, table(2), lr=0.1, weight_decay=0.5)
    new.backward()
    torch.testing.assert_close(theta.grad, table(1 - 0.1 * 0.5))
    for options in GRID:
        inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        assert torch.autograd.gradcheck(lambda *args, o=options: sgd_update(*args, lr=0.1, **o)[0], inputs)
        assert torch.autograd.gradcheck(lambda *args, o=options: sgd_update(*args, lr=0.1, **o)[0], inputs[:2])


numbers = st.floats(-10, 10, width=32)


@settings(deadline=None, database=None, max_examples=100)
@given(
    theta=numbers,
    grads=st.lists(numbers, min_size=1, max_size=5),
    lr=st.floats(0, 2),
    momentum=st.floats(0, 1),
    dampening=st.floats(0, 1),
    weight_decay=st.floats(0, 1),
    nesterov=st.booleans(),
    maximize=st.booleans(),
)
@example(
    theta=1.0, grads=[2.0, 4.0], lr=0.1, momentum=0.5, dampening=0.25, weight_decay=0.5, nesterov=False, maximize=True
)
def test_any_options(theta, grads, lr, momentum, dampening, weight_decay, nesterov, maximize):
    """For any options and gradients optimizer and pure update agree to the bit, and torch.optim.SGD up to rounding."""
    nesterov = nesterov and momentum > 0
    options = {
        "momentum": momentum,
        "dampening": 0.0 if nesterov else dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    ours, theirs = (nn.Parameter(table(theta)) for _ in range(2))
    one, other = dp.SGD([ours], lr=lr, **options), torch.optim.SGD([theirs], lr=lr, **options)
    pure, velocity = table(theta), None
    largest = max(map(abs, [theta, *grads]))
    for grad in grads:
        ours.grad, theirs.grad = table(grad), table(grad)
        one.step()
        other.step()
        pure, velocity = sgd_update(pure, table(grad), velocity, lr=lr, **options)
        assert torch.equal(ours, pure)
        if not (weight_decay or nesterov):
            assert torch.equal(ours, theirs)
        largest = max(largest, abs(theirs.item()))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * largest)


def test_unknown_options_are_refused():
    """Otherwise a misspelt option would be ignored."""
    with pytest.raises(TypeError, match="momentun"):
        sgd_update(table(1), table(2), lr=0.1, momentun=0.9)


def test_a_model_learns():
    """Each of ten steps on a linear model lowers the loss, since η = 0.1 is below 2 / (largest curvature).

    C = 1/(2N) Σ ‖x w − y‖² has the curvature xᵀx/N, whose trace, a bound, is the mean ‖x‖² = 2.
    """
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)
    model = dp.MLP([2, 1], dtype=torch.float64)
    optimizer = dp.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = dp.functional.quadratic_loss(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
