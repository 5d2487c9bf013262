"""Strides do not matter: with every layout of the inputs and ∂C/∂output the results are PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deltaprop.functional as F
from tests.core.cases import ACTIVATIONS, CASES, Case, over
from tests.core.compare import assert_same, value_and_gradients


def transposed(t: Tensor) -> Tensor:
    """Return the same numbers, stored column by column."""
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t


def expanded(t: Tensor) -> Tensor:
    """Return the first row repeated, stored once: stride 0."""
    return t[:1].expand_as(t) if t.dim() else t


def stepped(t: Tensor) -> Tensor:
    """Return the same numbers as every second entry of a wider tensor."""
    return torch.stack([t, torch.zeros_like(t)], dim=-1)[..., 0]


def flipped(t: Tensor) -> Tensor:
    """Return the same numbers at an offset, as a view of a view."""
    return torch.cat([torch.zeros_like(t[:1]), t])[1:] if t.dim() else t


@over(CASES)
@pytest.mark.parametrize("layout", [transposed, expanded, stepped, flipped])
def test_layouts(case: Case, layout, device):
    """Value and gradients are PyTorch's whatever the strides of inputs and of ∂C/∂output."""
    inputs = case.inputs(device=device, layout=layout)
    grad_output = layout(torch.randn_like(case.ours(*inputs)).detach())
    value, gradients, _ = value_and_gradients(case.ours, inputs, grad_output)
    assert_same((value, gradients), value_and_gradients(case.theirs, inputs, grad_output)[:2])


@over([case for case in ACTIVATIONS if case.options.get("dim") != 1])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (2, 0, 3)], ids=str)
def test_any_shape(case: Case, shape, device):
    """An activation accepts z of any shape: a scalar, a vector, three axes, no entries."""
    z = torch.randn(torch.Size(shape), dtype=torch.float64, device=device, requires_grad=True)
    value, gradients, grad_output = value_and_gradients(case.ours, [z])
    assert_same((value, gradients), value_and_gradients(case.theirs, [z], grad_output)[:2])


@pytest.mark.parametrize("leading", [(), (4,), (2, 4)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize(("n_in", "n_out"), [(0, 2), (3, 0)], ids=["no inputs", "no outputs"])
def test_linear_without_neurons(leading, n_in, n_out, device):
    """A layer with no inputs (z = b) or no outputs has PyTorch's value and gradients of the right shape."""
    inputs = [
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in [(*leading, n_in), (n_out, n_in), (n_out,)]
    ]
    value, gradients, grad_output = value_and_gradients(F.linear, inputs)
    assert_same((value, gradients), value_and_gradients(torch.nn.functional.linear, inputs, grad_output)[:2])
