"""Value and gradient are PyTorch's for normal, extreme, empty and non-finite inputs."""

from __future__ import annotations

import math

import pytest
import torch

import deltaprop.functional as F
from deltaprop import core
from tests.core.cases import ACTIVATIONS, CASES, LOSSES, RESIDUAL, Case, over
from tests.core.compare import assert_same, value_and_gradients

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def test_every_op_has_a_case():
    """Every public function has a case, and no two cases have the same name."""
    assert {case.op for case in CASES} == set(F.__all__) | set(core.ACTIVATIONS)
    assert set(core.ACTIVATIONS) == {case.op for case in ACTIVATIONS}
    assert len({case.name for case in CASES}) == len(CASES)


@over(CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_value_and_gradient(case: Case, dtype, device):
    """Value and every gradient equal PyTorch's for a random ∂C/∂output, with the same shape and dtype."""
    inputs = case.inputs(dtype, device)
    value, gradients, grad_output = value_and_gradients(case.ours, inputs)
    assert_same((value, gradients), value_and_gradients(case.theirs, inputs, grad_output)[:2])


@over([case for case in CASES if case.batched])
def test_no_samples(case: Case, device):
    """For an empty batch the value is PyTorch's (NaN for a mean) and the gradients are zero."""
    inputs = case.inputs(device=device)
    empty = [
        (t[:0] if name in case.batched else t).detach().requires_grad_(t.requires_grad)
        for name, t in zip(case.names, inputs, strict=True)
    ]
    value, gradients, grad_output = value_and_gradients(case.ours, empty)
    assert_same((value, gradients), value_and_gradients(case.theirs, empty, grad_output)[:2], equal_nan=True)


@over(ACTIVATIONS)
def test_activations_at_the_kink(case: Case, device):
    """At 0, at -0, and at softplus's threshold (0.5 in one case) value and derivative are those of PyTorch."""
    z = torch.tensor([0.0, -0.0, 0.5], dtype=torch.float64, device=device)
    z = z.reshape([3, 1, 1] if case.options.get("dim") == 0 else [1, 3, 1] if case.options.get("dim") == 1 else [3])
    z.requires_grad_()
    value, gradients, grad_output = value_and_gradients(case.ours, [z])
    assert_same((value, gradients), value_and_gradients(case.theirs, [z], grad_output)[:2])


@over([case for case in RESIDUAL if not case.warns])
def test_residuals_at_the_kink(case: Case, device):
    """At a = y, and where |a - y| is Huber's threshold, value and derivative are those of PyTorch."""
    a, y, *weight = case.inputs(device=device)
    with torch.no_grad():
        y.zero_()
        a.copy_(torch.tensor([0.0, 0.7, -0.7], dtype=a.dtype))
    inputs = [a, y, *weight]
    value, gradients, grad_output = value_and_gradients(case.ours, inputs)
    assert_same((value, gradients), value_and_gradients(case.theirs, inputs, grad_output)[:2])


EXTREME = [-1e4, -800.0, -89.0, -20.5, -1.0, 0.25, 2.0, 21.0, 89.0, 1e4]  # e^89 overflows float32, e^800 float64


@over(ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_extreme_activations(case: Case, dtype, device):
    """Value, δ and σ'' stay finite where e^z overflows, and equal PyTorch's."""
    z = torch.tensor(EXTREME, dtype=dtype, device=device)
    z = z.reshape([10, 1, 1] if case.options.get("dim") == 0 else [1, 10, 1] if case.options.get("dim") == 1 else [10])
    z.requires_grad_()
    value, gradients, grad_output = value_and_gradients(case.ours, [z])
    assert_same((value, gradients), value_and_gradients(case.theirs, [z], grad_output)[:2])
    (delta,) = torch.autograd.grad(case.ours(z), z, grad_output, create_graph=True)
    second = torch.autograd.grad(delta.sum(), z)[0] if delta.requires_grad else z
    assert all(t.isfinite().all() for t in (value, delta, second))


@over([case for case in LOSSES if case.op in ("cross_entropy", "binary_cross_entropy_with_logits")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_extreme_logits(case: Case, dtype, device):
    """For logits of ±10⁴ loss and gradients are finite and PyTorch's: they are computed from logits."""
    z, *others = case.inputs(dtype, device)
    z = (1e4 * z.detach().sign()).requires_grad_()
    value, gradients, grad_output = value_and_gradients(case.ours, [z, *others])
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert_same((value, gradients), value_and_gradients(case.theirs, [z, *others], grad_output)[:2])


@over(CASES)
@pytest.mark.parametrize("name", NOT_FINITE)
def test_not_finite(case: Case, name, device):
    """A NaN or infinity in the first input affects value and gradient in the same entries as in PyTorch."""
    first, *others = case.inputs(device=device)
    with torch.no_grad():
        first.view(-1)[0] = NOT_FINITE[name]
    inputs = [first, *others]
    value, gradients, grad_output = value_and_gradients(case.ours, inputs)
    expected = value_and_gradients(case.theirs, inputs, grad_output)[:2]
    if (case.op, name) == ("elu", "nan"):  # PyTorch's is 1 or NaN, depending on the position in a SIMD vector
        assert gradients[0].view(-1)[0].isnan()
        expected[1][0].view(-1)[0] = math.nan
    if (case.op, name) == ("relu", "nan"):  # PyTorch passes ∂C/∂a on if a is NaN; torch.sign(NaN) is 0
        assert gradients[0].view(-1)[0] == 0
        expected[1][0].view(-1)[0] = 0
    assert_same((value, gradients), expected, equal_nan=True)
