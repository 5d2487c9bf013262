"""First and second derivatives against finite differences, in every mode of autograd."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.core.cases import CASES, PAIRWISE, Case, over
from tests.core.compare import assert_same, frozen


@over(PAIRWISE)
def test_gradcheck(case: Case, device):
    """Backward and jvp agree with finite differences; batched gradients, batched tangents and undefined ones work."""
    inputs = case.inputs(device=device)
    differentiable = [inputs[i] for i in case.at]
    assert gradcheck(
        frozen(case, case.ours, inputs),
        differentiable,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@over(PAIRWISE)
def test_gradgradcheck(case: Case, device):
    """The derivative of the gradient agrees with finite differences, also with forward over backward."""
    inputs = case.inputs(device=device)
    differentiable = [inputs[i] for i in case.at]
    assert gradgradcheck(
        frozen(case, case.ours, inputs), differentiable, check_fwd_over_rev=True, check_batched_grad=True
    )


@over(CASES)
def test_second_derivative(case: Case, device):
    """The gradient of ⟨gradient, v⟩ with respect to every input and ∂C/∂output equals PyTorch's, for a random v."""
    inputs = case.inputs(device=device)
    differentiable = [inputs[i] for i in case.at]
    output = case.ours(*inputs)
    grad_output = torch.randn_like(output).requires_grad_()
    directions = [torch.randn_like(t) for t in differentiable]

    def second(function):
        gradients = torch.autograd.grad(function(*inputs), differentiable, grad_output, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
        by = [*differentiable, grad_output]
        if not along.requires_grad:  # the gradient is always 0
            return [torch.zeros_like(t) for t in by]
        return torch.autograd.grad(along, by, materialize_grads=True)

    assert_same(second(case.ours), second(case.theirs), tolerance=1e-11)  # two more products than a first derivative
