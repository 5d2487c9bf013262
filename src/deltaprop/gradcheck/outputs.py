"""What backward itself returns: shapes and dtypes, the same values at each call, and no memory left behind."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaprop._torch_compat import output_metadata
from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, on_error
from deltaprop.gradcheck.target import gradients, python_nodes


def _raw_gradients(context: CheckContext) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield each gradient that the backward of a custom node returns, with shape, dtype and device of its input.

    Autograd sums a gradient that is too large, and casts one of another dtype, before anybody sees it.
    """
    leaves = context.target.leaves()
    outputs = context.target.run(leaves)
    nodes = list(python_nodes(outputs))
    if not nodes:
        raise Skipped("it has no custom Function")
    received: dict[int, tuple[Tensor | None, ...]] = {}
    hooks = [node.register_prehook(partial(received.__setitem__, at)) for at, node in enumerate(nodes)]
    try:
        gradients(outputs, leaves, context.v, retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    for at, node in enumerate(nodes):
        if at not in received or any(t is None for t in received[at]):
            continue  # it was not reached, or an output of it was not used
        with on_error(Skipped, "its backward cannot be called a second time:"), torch.no_grad():
            raw = node.apply(*received[at])
        raw = raw if isinstance(raw, tuple) else (raw,)
        edges = iter([edge for edge in node.next_functions if edge[0] is not None])
        for number, (gradient, needed) in enumerate(zip(raw, node.needs_input_grad, strict=False)):
            like = output_metadata(*next(edges)) if needed else None
            if needed and gradient is not None:
                yield f"{type(node).__name__.removesuffix('Backward')} input {number}", gradient, like


def check_shapes(context: CheckContext) -> None:
    """Each gradient has its input's shape; one that autograd has to sum was not reduced over the batch."""
    for label, gradient, like in _raw_gradients(context):
        if gradient.shape != torch.Size(like.shape):
            raise Warned(
                f"{label}: the gradient has shape {list(gradient.shape)}, the input {list(like.shape)}; autograd sums "
                "it to that shape, but direct calls of backward do not (is a sum over the batch missing?)"
            )


def check_dtypes(context: CheckContext) -> None:
    """Each gradient has its input's dtype and device; autograd would cast it silently."""
    for label, gradient, like in _raw_gradients(context):
        if gradient.dtype != like.dtype or gradient.device != like.device:
            raise Failed(
                f"{label}: the gradient is {gradient.dtype} on {gradient.device}, "
                f"the input {like.dtype} on {like.device}; autograd casts it silently"
            )


def check_deterministic(context: CheckContext) -> None:
    """The same inputs give the same gradients."""
    runs = []
    for number in range(2 if context.fast else 4):
        leaves = context.target.leaves()
        outputs = context.target.run(leaves)
        torch.manual_seed(number)  # forward draws the same each time, backward does not
        runs.append(gradients(outputs, leaves, context.v))
    for expected, got in itertools.permutations(runs, 2):
        context.compare(got, expected, "differs from call to call")
    for expected, got in itertools.permutations(runs, 2):
        context.compare(
            got, expected, "differs from call to call", "by rounding only", tolerance=lambda _: 0.0, outcome=Warned
        )


def check_leak(context: CheckContext) -> None:
    """When the outputs go out of scope their memory is freed, without the garbage collector."""
    enabled, alive = gc.isenabled(), []
    gc.disable()
    try:
        outputs = context.target.run(context.target.leaves())
        alive = [weakref.ref(node) for node in python_nodes(outputs)]
        if not alive:
            raise Skipped("it has no custom Function")
        del outputs
        if any(node() is not None for node in alive):
            raise Failed(
                "the graph outlives its outputs until the garbage collector runs: is an output stored on ctx instead "
                "of by save_for_backward?"
            )
    finally:
        if enabled:
            gc.enable()
