"""torch.compile without graph breaks and with the same numbers, and torch.export."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

import deltaprop as dp
import deltaprop.functional as F
from tests.core.cases import CASES, ONE_PER_OP, Case, over
from tests.core.compare import assert_same, value_and_gradients

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # The compiler instantiates the Function class that it traces.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
]

# They warn in eager mode, which the compiler cannot trace.
BROADCAST = [case for case in CASES if case.name in ("mse_loss, broadcast target", "quadratic_loss, broadcast target")]


@over([*ONE_PER_OP, *BROADCAST])
def test_one_graph(case: Case):
    """torch.compile compiles every op without a graph break; value and gradients are those of eager mode."""
    inputs = case.inputs()
    value, gradients, grad_output = value_and_gradients(case.ours, inputs)
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same(value_and_gradients(compiled, inputs, grad_output)[:2], (value, gradients))


# One op of each kind: σ' from z or from a, with constants, with its own δ; a layer; losses of each base class.
EACH_WAY = {"gelu", "sigmoid", "leaky_relu", "softmax", "linear", "mse_loss", "cross_entropy", "quadratic_loss"}


@over([case for case in ONE_PER_OP if case.op in EACH_WAY])
def test_one_graph_without_gradients(case: Case):
    """Without gradients there is no graph break either: the compiler takes another code path then.

    Every formula is compiled above, so one op of each kind is enough here.
    """
    inputs = case.inputs(requires_grad=())
    compiled = torch.compile(case.ours, fullgraph=True, backend="eager", dynamic=False)
    assert_same(compiled(*inputs), case.ours(*inputs))


def test_the_compiler_uses_the_backward_written_here():
    """The compiler traces the backward of the definition, not PyTorch's: doubling δ doubles the gradient."""
    op = dp.core.activations.Tanh
    forward, delta = op.forward, op.delta

    class Doubled(dp.core.Activation):
        from_output = True

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return forward(z)

        @staticmethod
        def delta(grad_a: Tensor, a: Tensor) -> Tensor:
            return 2 * delta(grad_a, a)

    doubled = dp.core.primitive(Doubled)
    z = torch.tensor([0.0], requires_grad=True)  # tanh' = 1
    torch.compile(doubled, fullgraph=True, backend="aot_eager")(z).backward()
    assert z.grad.item() == 2.0


def _loss(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.cross_entropy(F.sigmoid(F.linear(x, weight, bias)), y)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor():
    """The default backend, with generated code: a layer, an activation and a loss."""
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    weight, bias = torch.randn(2, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    inputs = [x, y, weight, bias]
    value, gradients, grad_output = value_and_gradients(_loss, inputs)
    compiled = torch.compile(_loss, fullgraph=True, dynamic=False)
    assert_same(value_and_gradients(compiled, inputs, grad_output)[:2], (value, gradients))


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_compiled_transforms(name):
    """torch.func within torch.compile gives the same numbers; it uses PyTorch's derivatives there (issue 193279)."""
    function, z = getattr(F, name), torch.randn(5, dtype=torch.float64)
    for transform in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(f))):
        compiled = torch.compile(transform(function), fullgraph=True, backend="aot_eager", dynamic=False)
        assert_same(compiled(z), transform(function)(z))


def test_dynamic_batch():
    """One graph is used for batches of every size."""
    model = dp.MLP([3, 4, 2], activation="tanh")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for n in (5, 7, 11):
        x = torch.randn(n, 3)
        assert_same(compiled(x).detach(), model(x).detach())
    assert len(graphs) == 1


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(strict):
    """torch.export of a model gives a graph with the model's values, for every batch size."""
    model = dp.MLP([3, 4, 2], activation="sigmoid", output_activation=dp.Softmax(-1))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model, (torch.randn(5, 3),), dynamic_shapes={"input": {0: batch}}, strict=strict
    ).module()
    for n in (5, 8):
        x = torch.randn(n, 3)
        assert_same(exported(x).detach(), model(x).detach())
