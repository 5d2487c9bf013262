"""The graph behind C: every node is a Function of this library, and no step runs a kernel named backward.

There are two checks. The graph is walked from C to the leaves, and each node must come from a Function of the library;
PyTorch's own nodes have no Function. A dispatch mode records the name of each operator of a step, with either engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode

import deltaprop as dp
import deltaprop.functional as F
from deltaprop import core
from tests.core.cases import CASES, Case, over

F64 = torch.float64
DEFINITIONS = [*core.ACTIVATIONS.values(), *core.LOSSES.values(), core.Linear, core.Cast]


# --- the checks ---


def nodes_behind(output: Tensor) -> Iterator[Any]:
    """Yield every node of the graph behind a tensor once."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [below for below, _ in node.next_functions]


def is_ours(node: Any) -> bool:
    """Return whether a node was made by ``primitive`` from a definition of ``core``, or stores a leaf's gradient.

    The node of a Python Function has its class as an attribute, PyTorch's own nodes do not; ``primitive`` makes these
    classes in ``core/function.py`` and names each after its definition.
    """
    if node.name() == "torch::autograd::AccumulateGrad":
        return True
    made_of = getattr(node, "_forward_cls", None)
    names = {definition.__name__ for definition in DEFINITIONS}
    return made_of is not None and made_of.__module__ == core.primitive.__module__ and made_of.__name__ in names


def assert_all_ours(output: Tensor) -> None:
    """Assert that there are nodes behind a tensor, and that all are the library's."""
    nodes = list(nodes_behind(output))
    assert nodes
    assert not [node.name() for node in nodes if not is_ours(node)]


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and record its name."""
        self.names.append(func.name().partition(".")[0])  # without its overload
        return func(*args, **(kwargs or {}))

    def assert_none_backward(self, *expected: str) -> None:
        """Assert that no name contains backward, and that the expected names were recorded."""
        assert set(expected) <= set(self.names)
        assert not [name for name in self.names if "backward" in name.lower()]


# --- one call of each op ---


@over(CASES)
def test_a_call_is_one_node(case: Case):
    """A call of an activation, a loss or a linear layer, with any option, records one node, of the library."""
    output = case.ours(*case.inputs())
    assert_all_ours(output)
    assert sum(node.name() != "torch::autograd::AccumulateGrad" for node in nodes_behind(output)) == 1


@over(CASES)
def test_no_kernel_named_backward_runs(case: Case):
    """The backward pass of an op calls no backward kernel of PyTorch."""
    inputs = case.inputs()
    with Operators() as operators:
        output = case.ours(*inputs)
        torch.autograd.grad(output, [t for t in inputs if t.requires_grad], torch.ones_like(output))
    operators.assert_none_backward()
    assert operators.names


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_cast_is_a_node_of_the_library(name: str):
    """With a dtype argument softmax casts by a Function of the library."""
    z = torch.randn(4, 3, requires_grad=True)
    with Operators() as operators:
        a = getattr(F, name)(z, -1, dtype=F64)
        assert [node.name() for node in nodes_behind(a)][1] == "CastBackward"
        assert_all_ours(a)
        a.backward(torch.ones_like(a))
    operators.assert_none_backward()


# --- a training step ---

SHAPES = [(3,), (5, 3), (2, 5, 3)]
WEIGHT = torch.tensor([0.5, 3.0], dtype=F64)
SOFT = torch.tensor([[0.25, 0.75]] * 5, dtype=F64)
LABELS = torch.tensor([0, 1, 1, 0, 1])
IGNORED = torch.tensor([0, -100, 1, 0, 1])
BINARY = "binary_cross_entropy_with_logits"

# Each loss with its options, and targets for five outputs of two numbers.
STEPS: list[tuple[str, dict[str, Any], Tensor]] = [
    *[(loss, {"reduction": r}, SOFT) for loss in ("mse_loss", "l1_loss", BINARY) for r in ("mean", "sum")],
    *[("huber_loss", {"reduction": r, "delta": 0.3}, SOFT) for r in ("mean", "sum")],
    *[(BINARY, {"reduction": r, "weight": WEIGHT, "pos_weight": WEIGHT}, SOFT) for r in ("mean", "sum")],
    *[
        ("cross_entropy", {"reduction": r, **options}, y)
        for r in ("mean", "sum")
        for options, y in [
            ({}, LABELS),
            ({}, SOFT),
            ({}, IGNORED),
            ({"weight": WEIGHT}, LABELS),
            ({"weight": WEIGHT}, SOFT),
            ({"label_smoothing": 0.1}, LABELS),
            ({"label_smoothing": 0.1}, SOFT),
            ({"label_smoothing": 0.1, "weight": WEIGHT}, SOFT),
            ({"label_smoothing": 0.1, "weight": WEIGHT, "ignore_index": 0}, LABELS),
        ]
    ],
]
# All other losses, including new ones, without options.
STEPS += [
    (name, {}, LABELS if loss.takes_labels else SOFT)
    for name, loss in core.LOSSES.items()
    if name not in {step[0] for step in STEPS}
]

over_steps = pytest.mark.parametrize(
    ("loss", "options", "y"),
    STEPS,
    ids=[f"{loss} {' '.join(options)} {y.dtype} {i}" for i, (loss, options, y) in enumerate(STEPS)],
)
over_activations = pytest.mark.parametrize("activation", core.ACTIVATIONS)
over_momentum = pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}], ids=str)


def step_by_autograd(
    model: dp.MLP, loss: Callable[..., Tensor], x: Tensor, y: Tensor, sgd: dict[str, Any] | None = None
) -> Operators:
    """Take a step with autograd, assert that all nodes are the library's, and return the operators."""
    optimizer = dp.SGD(model.parameters(), lr=0.1, **(sgd or {}))
    with Operators() as operators:
        c = loss(model(x), y)
        assert_all_ours(c)
        c.backward()
        optimizer.step()
    return operators


def steps_explicitly(
    model: dp.MLP, loss: Callable[..., Tensor], x: Tensor, y: Tensor, sgd: dict[str, Any] | None = None
) -> Operators:
    """Take a step and an epoch of two steps with the explicit engine, and return the operators."""
    trainer = dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters(), lr=0.1, **(sgd or {})))
    with Operators() as operators:
        trainer.step(x, y)
        trainer.epoch(x, y, batch_size=3, order=torch.arange(5))
    return operators


@over_steps
def test_a_step_with_any_loss(loss: str, options: dict[str, Any], y: Tensor):
    """For every loss and option all nodes are the library's, and no engine runs a backward kernel of PyTorch."""
    model, x = dp.MLP([3, 4, 2], "tanh", dtype=F64), torch.randn(5, 3, dtype=F64)
    function = functools.partial(getattr(F, loss), **options)
    step_by_autograd(model, function, x, y).assert_none_backward("aten::tanh", "aten::mm")
    steps_explicitly(model, function, x, y).assert_none_backward("aten::tanh", "aten::addmm")


@over_activations
@over_momentum
def test_a_step_with_any_activation(activation: str, sgd: dict[str, Any]):
    """The same for every activation, in hidden layers and at the output, and with momentum."""
    model, x = dp.MLP([3, 4, 2], activation, activation, dtype=F64), torch.randn(5, 3, dtype=F64)
    step_by_autograd(model, F.mse_loss, x, SOFT, sgd).assert_none_backward("aten::mm")
    steps_explicitly(model, F.mse_loss, x, SOFT, sgd).assert_none_backward("aten::addmm")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_on_any_shape(shape: tuple[int, ...], bias: bool):
    """The same for inputs of one, two and three axes, with and without biases, with autograd."""
    model, x = dp.MLP([3, 4, 2], "sigmoid", bias=bias, dtype=F64), torch.randn(*shape, dtype=F64)
    step_by_autograd(model, F.quadratic_loss, x, torch.zeros(*shape[:-1], 2, dtype=F64)).assert_none_backward()


@pytest.mark.filterwarnings("ignore:target of shape:UserWarning")
@pytest.mark.parametrize("loss", ["mse_loss", "l1_loss", "huber_loss", "quadratic_loss"])
@pytest.mark.parametrize("target", [(2,), (5, 1), ()], ids=str)
def test_a_step_on_broadcast_targets(loss: str, target: tuple[int, ...]):
    """The same if targets are broadcast to the outputs or outputs to targets, with autograd."""
    x, y = torch.randn(5, 3, dtype=F64), torch.zeros(target, dtype=F64)
    step_by_autograd(dp.MLP([3, 4, 2], dtype=F64), getattr(F, loss), x, y).assert_none_backward()
    step_by_autograd(dp.MLP([3, 4, 1], dtype=F64), getattr(F, loss), x, torch.zeros(5, 2)).assert_none_backward()


# --- tests of the checks ---


class ByPyTorch(Function):
    """a = σ(z), with δ by PyTorch's kernel."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return torch.ops.aten.sigmoid_backward(grad_output, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, z_dot: Tensor) -> Tensor:
        return torch.ops.aten.sigmoid_backward(z_dot, *ctx.saved_tensors)


@pytest.mark.parametrize("call", [ByPyTorch.apply, core.primitive(ByPyTorch), torch.sigmoid])
def test_a_backward_kernel_is_detected(call: Callable[[Tensor], Tensor]):
    """A Function whose backward calls a kernel of PyTorch is detected, and so is PyTorch's own sigmoid."""
    a = call(torch.zeros(2, requires_grad=True))
    with Operators() as operators:
        a.backward(torch.ones(2))
    with pytest.raises(AssertionError, match="aten::sigmoid_backward"):
        operators.assert_none_backward()


@pytest.mark.parametrize(
    ("op", "node"),
    [
        (lambda z: 2 * F.sigmoid(z), "MulBackward0"),  # after the library's node
        (lambda z: F.sigmoid(2 * z), "MulBackward0"),  # before it
        (lambda z: F.sigmoid(z)[0], "SelectBackward0"),
        (torch.sigmoid, "SigmoidBackward0"),
        (ByPyTorch.apply, "ByPyTorchBackward"),  # a Function that is not of this library
        (core.primitive(ByPyTorch), "ByPyTorchBackward"),
        (lambda z: F.mse_loss(z, torch.zeros(2)).exp(), "ExpBackward0"),
    ],
)
def test_a_foreign_node_is_detected(op: Callable[[Tensor], Tensor], node: str):
    """A node of PyTorch anywhere in the graph is detected, and so is a Function that is not the library's."""
    with pytest.raises(AssertionError, match=node):
        assert_all_ours(op(torch.zeros(2, requires_grad=True)))


def test_a_tensor_without_a_graph_is_refused():
    """A tensor without a graph is not accepted."""
    with pytest.raises(AssertionError):
        assert_all_ours(torch.zeros(2))


def test_a_kernel_in_the_explicit_engine_is_detected():
    """The dispatch mode also works in inference mode: it detects PyTorch's kernel in the explicit engine."""
    row = "sigmoid by pytorch"
    derivative = staticmethod(lambda a: torch.ops.aten.sigmoid_backward(torch.ones_like(a), a))
    core.ACTIVATIONS[row] = type("Sneaky", (core.ACTIVATIONS["sigmoid"],), {"derivative": derivative})
    try:
        model = dp.MLP([3, 4, 2], row, dtype=F64)
        x = torch.randn(5, 3, dtype=F64)
        trainer = dp.ExplicitTrainer(model, "mse", dp.SGD(model.parameters(), lr=0.1))
        for run in (lambda: trainer.step(x, SOFT), lambda: trainer.epoch(x, SOFT, batch_size=3)):
            with Operators() as operators:
                run()
            with pytest.raises(AssertionError, match="aten::sigmoid_backward"):
                operators.assert_none_backward()
    finally:
        del core.ACTIVATIONS[row]
