"""Autograd's rules for a backward method: which gradients it returns, their shapes, and no side effects."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import deltaprop.functional as F
from deltaprop import core
from tests.core.cases import ACTIVATIONS, BINARY, CASES, LINEAR, ONE_PER_OP, RESIDUAL, SOFT, Case, over
from tests.core.compare import assert_raw_gradients, assert_same, our_nodes, raw_gradients, value_and_gradients

# --- which gradients ---


@over(CASES)
def test_every_combination_of_inputs_that_require_grad(case: Case, device):
    """For every set of inputs that require grad, these get PyTorch's gradients and the others None."""
    for count in range(1, len(case.differentiable) + 1):
        for requires_grad in itertools.combinations(case.differentiable, count):
            inputs = case.inputs(device=device, requires_grad=requires_grad)
            _, gradients, grad_output = value_and_gradients(case.ours, inputs)
            assert_same(gradients, value_and_gradients(case.theirs, inputs, grad_output)[1])
            case.ours(*inputs).backward(grad_output)
            assert [t.grad is not None for t in inputs] == [name in requires_grad for name in case.names]


@over(CASES)
def test_no_graph_if_no_input_requires_grad(case: Case, device):
    """No graph is recorded if no input requires grad, nor under no_grad."""
    assert not case.ours(*case.inputs(device=device, requires_grad=())).requires_grad
    with torch.no_grad():
        assert not case.ours(*case.inputs(device=device)).requires_grad


@over(CASES)
def test_raw_gradients(case: Case, device):
    """Backward returns a gradient in its input's shape and dtype for each input that requires grad, else None.

    This is tested without autograd, which would sum or cast a wrong gradient and hide the error.
    """
    for count in range(1, len(case.differentiable) + 1):
        for requires_grad in itertools.combinations(case.differentiable, count):
            assert_raw_gradients(case.ours(*case.inputs(device=device, requires_grad=requires_grad)))


@over([*RESIDUAL, *SOFT, *BINARY])
def test_raw_gradients_of_mixed_dtypes(case: Case, device):
    """If a is float32 and y float64, backward returns each gradient in the dtype of its input."""
    a, *others = case.inputs(device=device)
    assert_raw_gradients(case.ours(a.detach().float().requires_grad_(), *others))


# The shapes that PyTorch accepts: a bias [4, 1] or [4, 2] has a row for each of four samples.
BIASES = {(): [(2,), (1,), (), (1, 2)], (4,): [(2,), (1,), (), (1, 2), (4, 2), (4, 1)], (3, 4): [(2,), (1,), (4, 2)]}


@pytest.mark.parametrize(
    ("leading", "shape"), [(leading, shape) for leading, shapes in BIASES.items() for shape in shapes], ids=str
)
def test_bias_of_every_shape(leading, shape, device):
    """∂C/∂b is summed exactly over the axes along which b was broadcast, for every bias shape of PyTorch."""
    a_prev, weight = torch.randn(*leading, 3, device=device), torch.randn(2, 3, device=device)
    bias = torch.randn(torch.Size(shape), device=device, requires_grad=True)
    z = F.linear(a_prev, weight, bias)
    _, raw = raw_gradients(z)
    assert raw[2].shape == bias.shape
    delta = torch.randn_like(z)
    (ours,) = torch.autograd.grad(z, bias, delta)
    (theirs,) = torch.autograd.grad(torch.nn.functional.linear(a_prev, weight, bias), bias, delta)
    assert_same(ours, theirs)


class _Products(TorchDispatchMode):
    """Counts matrix products by the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize(
    ("requires_grad", "products"),
    [
        (("weight", "bias"), [(2, 3)]),  # the first layer: δᵀ a alone, no δ W for the data
        (("input", "weight", "bias"), [(5, 3), (2, 3)]),
        (("input",), [(5, 3)]),  # a frozen layer
        (("bias",), []),
    ],
    ids=["first layer", "all", "frozen layer", "bias alone"],
)
def test_no_matrix_product_for_unneeded_gradients(requires_grad, products):
    """The first layer computes no ∂C/∂x and a frozen one no ∂C/∂W: N = 5, n_in = 3, n_out = 2."""
    inputs = {"input": torch.randn(5, 3), "weight": torch.randn(2, 3), "bias": torch.randn(2)}
    for name in requires_grad:
        inputs[name].requires_grad_()
    z = F.linear(**inputs)
    with _Products() as counted:
        z.backward(torch.randn(5, 2))
    assert counted.shapes == products


def test_first_layer_of_a_net():
    """In a 784-30-10 network backward computes three products: δ² W², δ²ᵀ a¹ and δ¹ᵀ x."""
    x, y = torch.randn(7, 784), torch.randint(0, 10, (7,))
    w1, w2 = torch.randn(30, 784, requires_grad=True), torch.randn(10, 30, requires_grad=True)
    loss = F.cross_entropy(F.linear(F.sigmoid(F.linear(x, w1)), w2), y)
    with _Products() as counted:
        loss.backward()
    assert sorted(counted.shapes) == [(7, 30), (10, 30), (30, 784)]


# --- no side effects ---


@over(CASES)
@pytest.mark.parametrize("spread", [False, True], ids=["", "expanded grad_output"])
def test_nothing_is_written_in_place(case: Case, spread, device):
    """Forward and backward leave the inputs and ∂C/∂output unchanged: the same numbers and version counters."""
    inputs = case.inputs(device=device)
    output = case.ours(*inputs)
    grad_output = torch.tensor(1.5, dtype=output.dtype, device=device).expand_as(output)
    grad_output = grad_output if spread else grad_output.clone()
    watched = [*inputs, output, grad_output]
    before = [(t._version, t.detach().clone()) for t in watched]
    torch.autograd.grad(output, [inputs[i] for i in case.at], grad_output, create_graph=True)
    for t, (version, numbers) in zip(watched, before, strict=True):
        assert t._version == version
        assert torch.equal(t, numbers)


@over(CASES)
def test_no_gradient_shares_memory(case: Case, device):
    """The tensor in .grad is not a view of ∂C/∂output or of an input, so an optimizer may modify it in place."""
    inputs = case.inputs(device=device)
    output = case.ours(*inputs)
    grad_output = torch.randn_like(output)
    before = grad_output.clone()
    output.backward(grad_output)
    values = [t.detach().clone() for t in inputs]
    with torch.no_grad():
        for i in case.at:
            inputs[i].grad.mul_(2).add_(1)
    assert torch.equal(grad_output, before)
    assert all(torch.equal(t, value) for t, value in zip(inputs, values, strict=True))


@over(CASES)
def test_an_overwritten_input_raises(case: Case, device):
    """If a saved tensor was modified in place, backward raises as in PyTorch, instead of a wrong gradient."""
    inputs = [t.clone() for t in case.inputs(device=device)]
    output = case.ours(*inputs)
    saved = [t for node in our_nodes(output) for t in node.saved_tensors if t is not None]
    for t in inputs:
        if any(t.data_ptr() == s.data_ptr() for s in saved):
            with torch.no_grad():
                t.zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                output.sum().backward()
            return
    assert all(s.data_ptr() != t.data_ptr() for s in saved for t in inputs)


@over(CASES)
def test_memory_is_freed_immediately(case: Case, device):
    """When the output is deleted, its graph and saved tensors are freed without the cyclic garbage collector."""
    inputs = case.inputs(device=device)
    gc.disable()
    try:
        output = case.ours(*inputs)
        nodes = [weakref.ref(node) for node in our_nodes(output)]
        output_alive = weakref.ref(output)
        assert nodes
        del output
        assert output_alive() is None
        assert all(node() is None for node in nodes)
    finally:
        gc.enable()


# --- what is saved ---


def saved_by(case: Case, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and the tensors that saved_tensors_hooks receive."""
    seen: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        return case.ours(*inputs), seen


@over(ACTIVATIONS)
def test_one_tensor_is_saved(case: Case, device):
    """An activation saves one tensor: a where σ' follows from a (z can then be freed), else z."""
    (z,) = inputs = case.inputs(device=device)
    a, seen = saved_by(case, inputs)
    assert len(seen) == 1
    expected = a if core.ACTIVATIONS[case.op].from_output else z
    assert seen[0].data_ptr() == expected.data_ptr()


@over(LINEAR)
def test_linear_saves_no_bias(case: Case, device):
    """A linear layer saves a_prev and W, since no formula of its backward pass uses b."""
    inputs = case.inputs(device=device)
    _, seen = saved_by(case, inputs)
    assert {t.data_ptr() for t in seen} == {t.data_ptr() for t in inputs[:2]}


@over(CASES)
def test_saved_tensors_can_be_packed_by_hooks(case: Case, device):
    """If hooks pack the saved tensors as bytes, backward unpacks them and the gradient is the same to the bit."""
    inputs = case.inputs(device=device)
    _, expected, grad_output = value_and_gradients(case.ours, inputs)
    unpacked = []

    def unpack(packed: bytes) -> Tensor:
        unpacked.append(pickle.loads(packed))
        return unpacked[-1].to(device)

    with saved_tensors_hooks(lambda t: pickle.dumps(t.detach().cpu()), unpack):
        _, gradients, _ = value_and_gradients(case.ours, inputs, grad_output)
    assert unpacked
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


@over(CASES)
def test_checkpoint(case: Case, device):
    """With torch.utils.checkpoint, which recomputes the forward pass, the gradient is the same to the bit."""
    inputs = case.inputs(device=device)
    _, expected, grad_output = value_and_gradients(case.ours, inputs)
    _, gradients, _ = value_and_gradients(
        lambda *tensors: checkpoint(case.ours, *tensors, use_reentrant=False), inputs, grad_output
    )
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


@over(CASES)
def test_backward_twice(case: Case, device):
    """A retained graph gives the same gradient again; a freed one raises."""
    inputs = case.inputs(device=device)
    differentiable = [inputs[i] for i in case.at]
    output = case.ours(*inputs)
    grad_output = torch.randn_like(output)
    first = torch.autograd.grad(output, differentiable, grad_output, retain_graph=True)
    second = torch.autograd.grad(output, differentiable, grad_output)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output, differentiable, grad_output)


@over(ONE_PER_OP)
def test_hooks_see_the_gradient(case: Case, device):
    """A hook on an input receives ∂C/∂input, and its result replaces the gradient."""
    inputs = case.inputs(device=device)
    _, expected, grad_output = value_and_gradients(case.ours, inputs)
    for i in case.at:
        inputs[i].register_hook(lambda gradient: 2 * gradient)
    case.ours(*inputs).backward(grad_output)
    assert_same([inputs[i].grad for i in case.at], [2 * gradient for gradient in expected])


@pytest.mark.parametrize("name", F.__all__)
def test_functions_are_pickled_by_name(name):
    """A function of deltaprop.functional is pickled and copied by reference."""
    function = getattr(F, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function
