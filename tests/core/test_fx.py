"""``torch.fx`` traces each formula to a graph that computes the same bits.

Source code in other languages is generated from these graphs, so a formula may not use a tensor's values in an ``if``.
Its constants (a slope, a threshold) are Python numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from deltaprop import core
from deltaprop.core import Activation, Elementwise, ElementwiseLoss

F64 = torch.float64

# Constants besides the defaults, with which every row is tested.
CONSTANTS: dict[str, list[dict[str, Any]]] = {
    "leaky_relu": [{"negative_slope": 0.2}, {"negative_slope": -0.3}],
    "elu": [{"alpha": 0.7}],
    "gelu": [{"approximate": "tanh"}],
    "softplus": [{"beta": 2, "threshold": 1}],
    "softmax": [{"dim": 0}],
    "log_softmax": [{"dim": 0}],
    "huber_loss": [{"delta": 0.3}],
    "binary_cross_entropy_with_logits": [{"pos_weight": torch.tensor([0.5, 1.0, 2.5], dtype=F64)}],
}

# Kinks (0; 0.5, from where softplus of β = 2 and threshold 1 equals z) and both sides of them; numbers whose
# exponential overflows; infinities and NaN.
SPECIAL = [0.0, -0.0, 0.3, -0.3, 0.5, 1.0, -1.0, 30.0, -30.0, 800.0, -800.0, math.inf, -math.inf, math.nan]


def formulas(method: str, table: dict[str, Any], kind: type) -> Iterator[Any]:
    """Yield a method of each definition of a kind, once for each set of constants."""
    for row, definition in table.items():
        if not issubclass(definition, kind):
            continue
        for constants in [{}, *CONSTANTS.get(row, [])]:
            name_and_constants = ", ".join(
                [f"{row}.{method}", *[f"{name} {value}" for name, value in constants.items()]]
            )
            yield pytest.param(functools.partial(getattr(definition, method), **constants), id=name_and_constants)


MATRICES = {row: definition for row, definition in core.ACTIVATIONS.items() if not issubclass(definition, Elementwise)}
OF_Z = [*formulas("forward", core.ACTIVATIONS, Activation), *formulas("derivative", core.ACTIVATIONS, Elementwise)]
DELTAS = list(formulas("delta", MATRICES, Activation))
OF_A_AND_Y = [
    *formulas("value", core.LOSSES, ElementwiseLoss),
    *formulas("derivative", core.LOSSES, ElementwiseLoss),
]


def traced(formula: Callable[..., Tensor], inputs: int) -> fx.GraphModule:
    """Return the graph of a formula of one or two tensors."""
    return fx.symbolic_trace((lambda z: formula(z)) if inputs == 1 else (lambda a, y: formula(a, y)))


def operators(graph: fx.GraphModule) -> list[str]:
    """Return the names of the functions and methods that a graph calls."""
    called = [node.target for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
    return [call if isinstance(call, str) else call.__name__ for call in called]


def assert_traced(formula: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Assert that the graph computes what the formula does, to the bit.

    If the formula is a derivative or δ, assert that the graph calls nothing that is named backward.
    """
    graph = traced(formula, len(inputs))
    for dtype in (torch.float64, torch.float32):
        cast = [t.to(dtype) for t in inputs]
        expected, actual = formula(*cast), graph(*cast)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    assert operators(graph)
    assert not [name for name in operators(graph) if "backward" in name]


@pytest.fixture
def z() -> Tensor:
    """Special numbers and normal ones, [14 + 10, 3]."""
    return torch.cat([torch.tensor([SPECIAL] * 3, dtype=F64).T, torch.randn(10, 3, dtype=F64)])


@pytest.mark.parametrize("formula", OF_Z)
def test_activations(formula: Callable[..., Tensor], z: Tensor):
    """Forward and derivative of every activation."""
    assert_traced(formula, z)


@pytest.mark.parametrize("formula", DELTAS)
def test_deltas_of_matrices(formula: Callable[..., Tensor], z: Tensor):
    """The delta of every activation whose σ' is a matrix."""
    assert_traced(formula, z, z.flip(0))


@pytest.mark.parametrize("formula", OF_A_AND_Y)
def test_losses(formula: Callable[..., Tensor], z: Tensor):
    """Value and derivative of every element-wise loss."""
    assert_traced(formula, z, torch.rand(len(z), 3, dtype=F64))


def test_a_backward_kernel_is_detected():
    """A derivative that calls a backward kernel is detected in its graph."""
    with pytest.raises(AssertionError, match="sigmoid_backward"):
        assert_traced(lambda a: torch.ops.aten.sigmoid_backward(torch.ones_like(a), a), torch.zeros(2, 3))


def test_an_if_on_values_cannot_be_traced():
    """A formula that uses a tensor's values in an ``if`` cannot be traced."""
    with pytest.raises(fx.proxy.TraceError):
        assert_traced(lambda z: z if z.sum() > 0 else -z, torch.ones(2, 3))


def test_a_different_result_is_detected():
    """A formula that gives another result at each call differs from its graph."""
    results = iter([1.0, 2.0, 3.0])  # the first is used by the tracing
    with pytest.raises(AssertionError):
        assert_traced(lambda z: z + next(results), torch.zeros(2, 3))
