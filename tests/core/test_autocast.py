"""Mixed precision: under autocast to bfloat16 the dtypes are PyTorch's, and backward works inside and outside of it."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import deltaprop.functional as F
from deltaprop import core
from tests.core.cases import CASES, Case, over
from tests.core.compare import assert_raw_gradients, assert_same, value_and_gradients

# bfloat16 has 8 bits: each rounding has an error of 2⁻⁸ = 0.004 of the largest entry, and there are several.
BFLOAT16 = 0.03


def _run(function, inputs: list[Tensor], grad_output: Tensor | None, device: str, *, backward_inside: bool):
    """Forward under autocast, backward in it or after it."""
    with torch.autocast(device, dtype=torch.bfloat16) as _, contextlib.ExitStack() as stack:
        output = function(*inputs)
        if grad_output is None:
            grad_output = torch.randn_like(output)
        if not backward_inside:
            stack.enter_context(torch.autocast(device, enabled=False))
        gradients = torch.autograd.grad(output, [t for t in inputs if t.requires_grad], grad_output)
    return output.detach(), gradients, grad_output


@over(CASES)
@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_autocast(case: Case, narrow, backward_inside, device):
    """The output has PyTorch's dtype, each gradient its input's, and the values are close.

    ``narrow``: the first input is already bfloat16, like the output of a linear layer under autocast.
    """
    inputs = case.inputs(torch.float32, device)
    if narrow:
        inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    value, gradients, grad_output = _run(case.ours, inputs, None, device, backward_inside=backward_inside)
    expected, their_gradients, _ = _run(case.theirs, inputs, grad_output, device, backward_inside=backward_inside)
    assert value.dtype == expected.dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs if t.requires_grad]
    assert_same((value, gradients), (expected, their_gradients), tolerance=BFLOAT16)


@over(CASES)
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_raw_gradients_under_autocast(case: Case, narrow, device):
    """Backward itself returns each gradient in its input's dtype, whatever dtype the products ran in."""
    inputs = case.inputs(torch.float32, device)
    if narrow:
        inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        output = case.ours(*inputs)
    assert_raw_gradients(output)


@over(CASES)
def test_bfloat16_without_autocast(case: Case, device):
    """With bfloat16 inputs, as after model.bfloat16(), value and gradients are bfloat16 and close to PyTorch's."""
    inputs = case.inputs(torch.bfloat16, device)
    value, gradients, grad_output = value_and_gradients(case.ours, inputs)
    expected = value_and_gradients(case.theirs, inputs, grad_output)[:2]
    assert_same((value, gradients), expected, tolerance=BFLOAT16)


def test_a_bfloat16_z_is_widened_first():
    """If autocast widens a (softplus on CUDA), σ' is computed in the precision of the gradient, not of z."""
    z, grad_a = torch.randn(100).bfloat16(), torch.randn(100)
    context = SimpleNamespace(saved_tensors=(z,), constants=(1.0, 20.0))
    delta, *_ = core.activations.Softplus.backward(context, grad_a)
    assert torch.equal(delta, grad_a * torch.sigmoid(z.float()))


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
def test_a_net_under_autocast(backward_inside, device):
    """For two layers, an activation and a loss, the gradients of the parameters are float32 and close to PyTorch's."""
    x, y = torch.randn(8, 5, device=device), torch.randint(0, 3, (8,), device=device)
    shapes = [(6, 5), (6,), (3, 6), (3,)]
    parameters = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]

    def loss(functional):
        def of(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
            a = functional.sigmoid(functional.linear(x, w1, b1))
            return functional.cross_entropy(functional.linear(a, w2, b2), y)

        return of

    value, gradients, grad_output = _run(loss(F), parameters, None, device, backward_inside=backward_inside)
    expected = _run(loss(torch.nn.functional), parameters, grad_output, device, backward_inside=backward_inside)[:2]
    assert all(g.dtype == torch.float32 for g in gradients)
    assert_same((value, gradients), expected, tolerance=BFLOAT16)
