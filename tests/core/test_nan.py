"""A NaN in an input or a weight makes C and δ NaN, so that training can detect it.

There are two exceptions, as in PyTorch:

- ``step`` compares z with 0, and a comparison with NaN is false: the next layer gets 0.
- ``l1_loss`` has the derivative sign(a − y), and ``torch.sign`` of NaN is 0: C is NaN, ∂C/∂a is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deltaprop as dp
import deltaprop.functional as F
from deltaprop import core
from deltaprop.loss_spec import parse_loss
from deltaprop.tracing.capture import capture_layers

F64 = torch.float64
ACTIVATIONS = [name for name in core.ACTIVATIONS if name != "step"]
LOSSES = [name for name in core.LOSSES if name != "l1_loss"]


def x_with_nan(model: dp.MLP, x: Tensor) -> None:
    """Put a NaN into one input of one sample."""
    x[1, 2] = math.nan


def first_weight_with_nan(model: dp.MLP, x: Tensor) -> None:
    """Put a NaN into W of the first layer: z^1 of one neuron is NaN."""
    model[0].weight[1, 2] = math.nan


def hidden_weight_with_nan(model: dp.MLP, x: Tensor) -> None:
    """Put a NaN into W of a hidden layer: z^2 of one neuron is NaN, and z^1 of none."""
    model[2].weight[1, 2] = math.nan


PutNan = Callable[[dp.MLP, Tensor], None]
everywhere = pytest.mark.parametrize(
    "put_nan", [x_with_nan, first_weight_with_nan, hidden_weight_with_nan], ids=lambda put_nan: put_nan.__name__
)


def loss_and_lowest_delta(
    activation: str, loss: str, put_nan: PutNan, output_activation: str | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return C and δ^1, [5, 4], of a 3-4-4-2 network on five samples: by ``capture_layers`` and by autograd."""
    model = dp.MLP([3, 4, 4, 2], activation, output_activation, dtype=F64)
    x, y = torch.randn(5, 3, dtype=F64), torch.rand(5, 2, dtype=F64)
    if core.LOSSES[loss].takes_labels:
        y = torch.arange(5) % 2
    with torch.no_grad():
        put_nan(model, x)
    layers = capture_layers(model, loss, x, y)
    observed = parse_loss(loss).forward(layers[-1].a, y)[0]
    lowest, *others = model
    z = lowest(x)
    c = getattr(F, loss)(functools.reduce(lambda a, module: module(a), others, z), y)
    (delta,) = torch.autograd.grad(c, z)
    return [(observed, layers[0].delta), (c.detach(), delta)]


def pairs(losses: list[str], activations: list[str]) -> pytest.MarkDecorator:
    """Pair activations and losses so that each occurs: how a NaN passes one layer does not depend on the others."""
    each = [(activation, losses[at % len(losses)]) for at, activation in enumerate(activations)]
    each += [("sigmoid", loss) for loss in losses if ("sigmoid", loss) not in each]
    return pytest.mark.parametrize(("activation", "loss"), each)


@pairs(LOSSES, ACTIVATIONS)
@everywhere
def test_a_nan_reaches_the_loss_and_the_lowest_layer(activation: str, loss: str, put_nan: PutNan):
    """C is NaN, and so is at least one entry of δ^1, with every activation in the hidden layers."""
    for c, delta in loss_and_lowest_delta(activation, loss, put_nan):
        assert c.isnan()
        assert delta.isnan().any()


@pairs([name for name in LOSSES if not core.LOSSES[name].contains], ACTIVATIONS)
@everywhere
def test_a_nan_passes_the_output_activation(activation: str, loss: str, put_nan: PutNan):
    """The same with every activation at the output too."""
    for c, delta in loss_and_lowest_delta(activation, loss, put_nan, output_activation=activation):
        assert c.isnan()
        assert delta.isnan().any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@everywhere
def test_l1_has_a_nan_loss_but_a_finite_gradient(activation: str, put_nan: PutNan):
    """With l1_loss C is NaN, but ∂C/∂a is 0 at a NaN, as in PyTorch."""
    for c, _ in loss_and_lowest_delta(activation, "l1_loss", put_nan):
        assert c.isnan()
    a = torch.tensor([math.nan], requires_grad=True)
    for function in (F.l1_loss, torch.nn.functional.l1_loss):
        (grad_a,) = torch.autograd.grad(function(a, torch.zeros(1)), a)
        assert grad_a.item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@everywhere
def test_step_hides_a_nan(loss: str, put_nan: PutNan):
    """With step C is finite, and δ^1 is 0 unless δ^2 is multiplied by a W^2 that contains the NaN."""
    for c, delta in loss_and_lowest_delta("step", loss, put_nan):
        assert c.isfinite()
        assert delta.isnan().any() if put_nan is hidden_weight_with_nan else not delta.any()


@pairs([*core.LOSSES], [*ACTIVATIONS, "step"])
def test_without_a_nan_all_results_are_finite(activation: str, loss: str):
    """The same networks on the same samples have finite C and δ, so the NaN above comes from the inserted one."""
    for c, delta in loss_and_lowest_delta(activation, loss, lambda model, x: None):
        assert c.isfinite()
        assert delta.isfinite().all()
