"""``primitive`` makes a callable from a definition: which autograd class it uses when, and its name and docstring."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.func import grad, jacfwd, vmap

import deltaprop.functional as F
from deltaprop import core
from deltaprop.core import primitive

_contexts: list[str] = []


class Cube(Function):
    """a = c z³;  σ'(z) = 3 c z². An example of a user's definition."""

    @staticmethod
    def forward(z: Tensor, factor: float) -> Tensor:
        return factor * z**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.factor = inputs
        ctx.save_for_backward(z)
        _contexts.append(type(ctx).__name__)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad_output * 3 * ctx.factor * z**2, None

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return z_dot * 3 * ctx.factor * z**2


cube = primitive(Cube)


@pytest.fixture
def contexts() -> list[str]:
    """The list to which Cube adds the class names of its contexts, emptied."""
    _contexts.clear()
    return _contexts


def test_eager_mode_uses_the_lean_class(contexts):
    """Plain calls, also under no_grad, use the class without jvp, which needs no signature binding."""
    z = torch.tensor([2.0], requires_grad=True)
    a = cube(z, 0.5)
    assert type(a.grad_fn).__name__ == "CubeBackward"
    assert not {"setup_context", "jvp"} & set(vars(a.grad_fn._forward_cls))
    a.backward()
    assert z.grad.item() == 3 * 0.5 * 4
    with torch.no_grad():
        cube(z, 0.5)
    assert contexts == ["CubeBackward"] * 2


def test_forward_mode_uses_the_full_class(contexts):
    """Inside a forward-mode level the class with jvp is used."""
    with forward_ad.dual_level():
        a = cube(forward_ad.make_dual(torch.tensor([2.0]), torch.tensor([1.0])), 0.5)
        assert forward_ad.unpack_dual(a).tangent.item() == 6.0
    assert contexts == ["CubeFullBackward"]
    cube(torch.tensor([2.0]), 0.5)
    assert contexts[1:] == ["CubeBackward"]  # and afterwards the lean class again


@pytest.mark.parametrize("transform", [grad, jacfwd], ids=["grad", "jacfwd"])
def test_transforms_use_the_full_class(transform, contexts):
    """Under torch.func the class with setup_context is used, since PyTorch refuses the other."""
    assert transform(cube)(torch.tensor(2.0), 0.5).item() == 6.0
    assert contexts
    assert "CubeBackward" not in contexts


def test_vmap():
    """A definition works under vmap without a vmap rule: 0.5 z³ of 1, 2, 3."""
    z = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(vmap(cube, in_dims=(0, None))(z, 0.5), torch.tensor([0.5, 4.0, 13.5]))
    assert torch.equal(vmap(grad(cube), in_dims=(0, None))(z, 0.5), torch.tensor([1.5, 6.0, 13.5]))


def test_nested_forward_mode():
    """The second derivative of a user's op by forward over forward is 3 z at z = 2; a plain Function gives 0.

    Source: pytorch issue 197867.
    """
    assert jacfwd(jacfwd(cube))(torch.tensor(2.0), 0.5).item() == 6.0
    assert jacfwd(jacfwd(jacfwd(cube)))(torch.tensor(2.0), 0.5).item() == 3.0


def test_names():
    """The callable has the name and docstring of its definition, for users, profilers and pickle."""
    assert (cube.__name__, cube.__qualname__, cube.__module__) == ("cube", "cube", Cube.__module__)
    assert cube.__code__.co_name == "cube"
    assert cube.__doc__ == Cube.__doc__
    names = {call.__code__.co_name for call in map(core.primitive, core.ACTIVATIONS.values())}
    assert len(names) == len(core.ACTIVATIONS)


def test_the_node_is_named_after_the_op():
    """A graph viewer or an anomaly report shows the op's name."""
    z = torch.zeros(1, requires_grad=True)
    assert F.sigmoid(z).grad_fn.name() == "SigmoidBackward"
    assert F.linear(z, torch.zeros(1, 1)).grad_fn.name() == "LinearBackward"


def test_pickled_by_reference():
    """A callable that is an attribute of its module is pickled by its name."""
    assert pickle.loads(pickle.dumps(cube)) is cube


@pytest.mark.parametrize("op", [*core.ACTIVATIONS.values(), core.Linear, *core.LOSSES.values()])
def test_definitions_are_functions(op):
    """A definition is a torch.autograd.Function with the four methods of PyTorch's documentation."""
    assert issubclass(op, Function)
    for method in ("forward", "setup_context", "backward", "jvp"):
        assert getattr(op, method) is not getattr(Function, method, None)
    assert "ctx" not in inspect.signature(op.forward).parameters


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "identity", "silu"])
def test_complex_numbers_are_refused(name, dtype):
    """PyTorch accepts complex input here; these formulas hold for real numbers only, so it is refused."""
    with pytest.raises(TypeError, match=f"^{name} is written for real numbers, got torch.complex"):
        getattr(F, name)(torch.ones(2, dtype=dtype))


def test_complex_numbers_are_refused_by_linear_and_losses():
    """A complex matrix product or residual would have another gradient."""
    z = torch.ones(1, 2, dtype=torch.complex64)
    for call in (lambda: F.linear(z, z), lambda: F.mse_loss(z, z), lambda: F.quadratic_loss(z, z)):
        with pytest.raises(TypeError, match="is written for real numbers"):
            call()


def test_an_error_in_forward_is_raised_unchanged():
    """The error of PyTorch's kernel about an invalid argument is raised unchanged."""
    with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
        F.gelu(torch.ones(1), approximate="no such thing")
