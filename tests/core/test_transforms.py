"""torch.func and forward mode: every op under vmap, grad, jacrev, jacfwd, hessian and jvp, also nested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.core.cases import CASES, ONE_PER_OP, PAIRWISE, Case, over
from tests.core.compare import assert_same, frozen

DRAWS = 3


def plain(case: Case, device: str, *, draw: int = 0) -> list[Tensor]:
    """Return the inputs without requires_grad, as torch.func expects them."""
    return [t.detach() for t in case.inputs(device=device, draw=draw)]


def scalar(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    """Return the function ⟨output², v⟩ for a fixed random v: a scalar with a second derivative for every op."""
    generator = torch.Generator(inputs[0].device).manual_seed(1)
    output = function(*inputs)
    v = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
    return lambda *tensors: (function(*tensors).square() * v).sum()


@over(CASES)
def test_vmap(case: Case, device):
    """Vmap over a new axis of every input: each slice is PyTorch's result for that slice."""
    draws = [plain(case, device, draw=draw) for draw in range(DRAWS)]
    stacked = [torch.stack(ts) for ts in zip(*draws, strict=True)]
    assert_same(vmap(case.ours)(*stacked), torch.stack([case.theirs(*inputs) for inputs in draws]))


@over(CASES)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # by PyTorch's huber_loss
def test_vmap_over_one_input(case: Case, device):
    """Vmap over the last axis of one differentiable input; the others are shared."""
    inputs = plain(case, device)
    for i in case.at:
        draws = [plain(case, device, draw=draw)[i] for draw in range(DRAWS)]
        in_dims = tuple(-1 if j == i else None for j in range(len(inputs)))
        stacked = [torch.stack(draws, dim=-1) if j == i else t for j, t in enumerate(inputs)]
        expected = [case.theirs(*[one if j == i else t for j, t in enumerate(inputs)]) for one in draws]
        assert_same(vmap(case.ours, in_dims)(*stacked), torch.stack(expected))


@over(CASES)
def test_per_sample_gradients(case: Case, device):
    """vmap(grad(·)): the gradient of each of several draws at once."""
    draws = [plain(case, device, draw=draw) for draw in range(DRAWS)]
    stacked = [torch.stack(ts) for ts in zip(*draws, strict=True)]
    ours = vmap(grad(scalar(case.ours, draws[0]), argnums=case.at))(*stacked)
    theirs = [grad(scalar(case.theirs, draws[0]), argnums=case.at)(*inputs) for inputs in draws]
    assert_same(ours, [torch.stack(ts) for ts in zip(*theirs, strict=True)])


@over(CASES)
def test_jacobians(case: Case, device):
    """Row by row (jacrev) and column by column (jacfwd), the Jacobian is PyTorch's."""
    inputs = plain(case, device)
    expected = jacrev(case.theirs, argnums=case.at)(*inputs)
    assert_same(jacrev(case.ours, argnums=case.at)(*inputs), expected)
    assert_same(jacfwd(case.ours, argnums=case.at)(*inputs), expected)


ORDERS = {
    "forward over reverse": hessian,
    "forward over forward": lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
    "reverse over forward": lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
}


@over(PAIRWISE)
def test_second_derivatives(case: Case, device):
    """The Hessian is PyTorch's in every order of modes; forward over forward is silently 0 in a plain Function.

    Source: pytorch issue 197867.
    """
    inputs = plain(case, device)
    expected = jacrev(jacrev(scalar(case.theirs, inputs), case.at), case.at)(*inputs)
    for derivatives in ORDERS.values():
        found = derivatives(scalar(case.ours, inputs), case.at)(*inputs)
        assert_same(found, expected, tolerance=1e-11)


@over(CASES)
def test_jvp_and_vjp(case: Case, device):
    """Jvp and vjp give value and product; ⟨v, J u⟩ = ⟨Jᵀ v, u⟩."""
    inputs = plain(case, device)
    differentiable = tuple(inputs[i] for i in case.at)
    u = tuple(torch.randn_like(t) for t in differentiable)
    value, along = jvp(frozen(case, case.ours, inputs), differentiable, u)
    again, pull = vjp(frozen(case, case.ours, inputs), *differentiable)
    expected, their_along = jvp(frozen(case, case.theirs, inputs), differentiable, u)
    assert_same((value, along, again), (expected, their_along, expected))
    v = torch.randn_like(value)
    pulled = pull(v)
    assert_same((v * along).sum(), sum((g * t).sum() for g, t in zip(pulled, u, strict=True)))


@over(CASES)
def test_one_tangent(case: Case, device):
    """A dual number in one input alone: the other inputs have no tangent, which is not the same as a tangent of 0."""
    inputs = plain(case, device)
    for i in case.at:
        tangent = torch.randn_like(inputs[i])
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(t, tangent) if j == i else t for j, t in enumerate(inputs)]
            ours, theirs = (forward_ad.unpack_dual(function(*dual)).tangent for function in (case.ours, case.theirs))
        # PyTorch gives None for a function that does not depend on it to first order.
        assert_same(ours, torch.zeros_like(ours) if theirs is None else theirs)


@over(ONE_PER_OP)
def test_forward_mode_over_the_tape(case: Case, device):
    """A gradient of the tape taken inside a forward-mode level has a tangent: the Hessian times u."""
    inputs = case.inputs(device=device)
    differentiable = [inputs[i] for i in case.at]
    u = [torch.randn_like(t) for t in differentiable]

    ours = frozen(case, scalar(case.ours, inputs), inputs)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, d) for t, d in zip(differentiable, u, strict=True)]
        gradients = torch.autograd.grad(ours(*dual), dual, create_graph=True)
        product = [forward_ad.unpack_dual(g).tangent for g in gradients]

    theirs = frozen(case, scalar(case.theirs, inputs), inputs)
    gradients = torch.autograd.grad(theirs(*differentiable), differentiable, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(gradients, u, strict=True))
    # The Hessian is symmetric: PyTorch's by reverse over reverse, for its huber_loss lacks the other way.
    expected = [torch.zeros_like(t) for t in differentiable]
    if along.requires_grad:
        expected = torch.autograd.grad(along, differentiable, materialize_grads=True)
    assert_same(product, expected, tolerance=1e-11)


@over(ONE_PER_OP)
def test_vmap_of_vmap(case: Case, device):
    """Two levels of vmap."""
    draws = [[plain(case, device, draw=2 * row + column) for column in range(2)] for row in range(2)]
    stacked = [
        torch.stack([torch.stack([draws[row][column][i] for column in range(2)]) for row in range(2)])
        for i in range(len(case.names))
    ]
    expected = torch.stack([torch.stack([case.theirs(*inputs) for inputs in row]) for row in draws])
    assert_same(vmap(vmap(case.ours))(*stacked), expected)
