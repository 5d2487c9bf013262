"""What backward returns by itself: its shape and dtype, the same each time, and nothing kept alive behind it."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import torch
from torch import Tensor

from deltaprop._torch_compat import output_metadata
from deltaprop.gradcheck.context import CheckContext, Finding, Found, Skipped, difference
from deltaprop.gradcheck.target import gradients, python_nodes


def raw_gradients(context: CheckContext) -> list[tuple[str, Tensor | None, torch.Size, torch.dtype, torch.device]]:
    """Return what each custom node's backward returns by itself, with what its input is like.

    Autograd sums what has too many entries, and casts what is of another dtype, before anybody sees it.
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
    found = []
    for at, node in enumerate(nodes):
        if at not in received or any(t is None for t in received[at]):
            continue  # it was not reached, or an output of it was not used
        try:
            with torch.no_grad():
                raw = node.apply(*received[at])
        except Exception:
            raise Skipped("its backward cannot be called by hand a second time") from None
        raw = raw if isinstance(raw, tuple) else (raw,)
        edges = iter([edge for edge in node.next_functions if edge[0] is not None])
        for number, (gradient, needed) in enumerate(zip(raw, node.needs_input_grad, strict=False)):
            if needed:
                next_node, output_number = next(edges)
                like = output_metadata(next_node, output_number)
                label = f"{type(node).__name__.removesuffix('Backward')} input {number}"
                found.append((label, gradient, torch.Size(like.shape), like.dtype, like.device))
    return found


def shapes(context: CheckContext) -> Found:
    """Each gradient has its input's shape; one that autograd has to sum into it was never reduced over the batch."""
    for label, gradient, shape, _, _ in raw_gradients(context):
        if gradient is not None and gradient.shape != shape:
            return Finding(
                f"{label}: the gradient is {list(gradient.shape)}, the input {list(shape)}; autograd sums it into "
                "shape, but who calls backward by hand gets it as it is (is a sum over the batch missing?)",
                "warning",
            )
    return None


def dtypes(context: CheckContext) -> Found:
    """Each gradient has its input's dtype and lies on its device; autograd would cast it in silence."""
    for label, gradient, _, dtype, device in raw_gradients(context):
        if gradient is not None and (gradient.dtype != dtype or gradient.device != device):
            return Finding(
                f"{label}: the gradient is {gradient.dtype} on {gradient.device}, the input {dtype} on {device}"
            )
    return None


def deterministic(context: CheckContext) -> Found:
    """The same inputs give the same gradients."""
    runs = []
    for number in range(2 if context.fast else 4):
        leaves = context.target.leaves()
        outputs = context.target.run(leaves)
        torch.manual_seed(number)  # forward draws the same each time, backward does not
        runs.append(gradients(outputs, leaves, context.v))
    for name, first, *others in zip(context.target.names, *runs, strict=True):
        for other in others:
            if (first is None) != (other is None):
                return Finding(f"∂C/∂{name} is there at one call and not at the next")
            if first is not None and difference(first, other) > 0:
                gap = difference(first, other)
                by_rounding = context.close(first, other)
                text = f"∂C/∂{name} differs from call to call by {gap:.3g}"
                return Finding(
                    f"{text}, as rounding does" if by_rounding else text, "warning" if by_rounding else "error"
                )
    return None


def leak(context: CheckContext) -> Found:
    """When the outputs go out of scope their memory is free, without the garbage collector."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        outputs = context.target.run(context.target.leaves())
        alive = [weakref.ref(node) for node in python_nodes(outputs)]
        if not alive:
            raise Skipped("it has no custom Function")
        del outputs
        if any(ref() is not None for ref in alive):
            return Finding(
                "the graph outlives its outputs until the garbage collector runs: is an output kept on ctx instead of "
                "by save_for_backward?"
            )
    finally:
        gc.collect()
        if enabled:
            gc.enable()
    return None
