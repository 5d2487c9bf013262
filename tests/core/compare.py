"""Comparisons of results, and of the autograd graph behind a result, for the tests in this folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaprop.gradcheck.target import python_nodes
from tests.core.cases import Case

# float64: thousands of units in the last place, but far below any error in a formula; float32: some 20 units.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def assert_same(ours: Any, theirs: Any, *, equal_nan: bool = False, tolerance: float | None = None) -> None:
    """Assert equal structure, shape, dtype and device, and values equal up to rounding.

    The tolerance is relative to the largest entry of a tensor, as the rounding of a sum is, but to at least 10⁻³, so
    that 10⁻¹⁷ counts as 0.
    """
    if not isinstance(theirs, Tensor):
        assert isinstance(ours, tuple | list)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, equal_nan=equal_nan, tolerance=tolerance)
        return
    rtol = tolerance or TOLERANCE.get(theirs.dtype, 0.0)
    largest = max([1e-3, *theirs.detach()[theirs.isfinite()].abs().flatten().tolist()])
    atol = rtol * largest
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=equal_nan)


def value_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Return the value, the gradients of the inputs that require grad, and the ∂C/∂value that was used.

    Without ``grad_output`` a random one is drawn: with ones a formula that ignores it would pass.
    """
    output = function(*inputs)
    if grad_output is None:
        grad_output = torch.randn_like(output)
    differentiable = [t for t in inputs if t.requires_grad]
    gradients = torch.autograd.grad(output, differentiable, grad_output) if differentiable else ()
    return output.detach(), gradients, grad_output


def frozen(case: Case, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Return the function of its differentiable inputs only; the others are fixed."""

    def of_differentiable(*differentiable: Tensor) -> Tensor:
        full = list(inputs)
        for place, value in zip(case.at, differentiable, strict=True):
            full[place] = value
        return function(*full)

    return functools.wraps(function)(of_differentiable)


# --- the graph ---


def our_nodes(output: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph that are written in Python, which are those of this library."""
    return python_nodes([output])


def raw_gradients(output: Tensor) -> tuple[Any, tuple[Tensor | None, ...]]:
    """Return the library's node and the result of its backward, before autograd sums or casts anything."""
    (node,) = our_nodes(output)
    received: list[tuple[Tensor | None, ...]] = []
    hook = node.register_prehook(received.append)
    output.backward(torch.randn_like(output), retain_graph=True)
    hook.remove()
    with torch.no_grad():
        raw = node.apply(*received[0])
    return node, raw if isinstance(raw, tuple) else (raw,)


def assert_raw_gradients(output: Tensor) -> None:
    """Assert that backward returns a gradient in its input's shape and dtype for each input that needs one, else None.

    Autograd would sum or cast it otherwise, so a missing Σ_n in ∂C/∂b passes every other test (pytorch issue 65244).
    """
    if not list(our_nodes(output)):  # only the weights of the entries require grad: a product outside the op
        return
    node, raw = raw_gradients(output)
    edges = iter([edge for edge in node.next_functions if edge[0] is not None])
    for gradient, needed in zip(raw, node.needs_input_grad, strict=True):
        if not needed:
            assert gradient is None
            continue
        next_node, place = next(edges)
        expected = next_node._input_metadata[place]
        assert gradient.shape == torch.Size(expected.shape)
        assert gradient.dtype == expected.dtype
