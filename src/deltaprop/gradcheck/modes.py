"""The same function in other modes: float32, autocast, the compiler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from deltaprop._torch_compat import many_recompilations
from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, filled, largest, mismatch, on_error
from deltaprop.gradcheck.target import gradients

MAX_RECOMPILATIONS = 10**6  # the compiler counts how often it has compiled the same lines, and gives up at eight


def check_cancellation(context: CheckContext) -> None:
    """In float32 the gradient is that of float64, except for rounding."""
    if context.target.dtype != torch.float64:
        raise Skipped(f"the function is checked in {context.target.dtype}")
    narrow = context.target.cast(torch.float32)
    wide = narrow.cast(torch.float64)  # the same inputs, rounded
    v32 = [t.float() for t in context.v]
    with on_error(Skipped, "it does not accept float32:"):
        got = context.gradient(v32, narrow)
    context.compare(
        got,
        context.gradient([t.double() for t in v32], wide),
        "in float32, compared with float64",
        "cancellation: the difference of nearly equal numbers?",
        tolerance=lambda t: 1e-3 * max(largest([t]), 0.01 * context.scale),
        outcome=Warned,
    )


def check_autocast(context: CheckContext) -> None:
    """Under bf16 autocast the gradient is that of float32 to bf16's eight bits."""
    device = context.target.values[0].device.type
    if not torch.amp.is_autocast_available(device):
        raise Skipped(f"{device} has no autocast")
    narrow = context.target.cast(torch.float32)
    leaves = narrow.leaves()
    with on_error(Warned, "under autocast it raises"):
        expected = context.gradient([t.float() for t in context.v], narrow)
        with torch.autocast(device, torch.bfloat16):
            outputs = narrow.run(leaves)
        got = gradients(outputs, leaves, [v.to(t.dtype) for v, t in zip(context.v, outputs, strict=True)])
    for name, one, right in zip(context.target.names, filled(got, leaves), expected, strict=True):
        if right is None:
            continue
        gap, norm = float((one - right).norm()), float(right.norm())
        if not gap <= 0.25 * norm + 0.05 * context.scale:  # by its norm: bf16 closes or opens a gate here and there
            raise Failed(f"∂C/∂{name} under autocast: the norm of the error is {gap:.3g}, of the gradient {norm:.3g}")


def check_compile(context: CheckContext) -> None:
    """Compiled, f and its gradients are those of eager mode."""
    if context.fast:
        raise Skipped("not with fast=True")
    if context.random:
        raise Skipped("what it draws at random differs")
    target = context.target
    leaves = target.leaves()

    def f(*tensors: Tensor) -> Sequence[Tensor]:
        return target.all_outputs([t.clone() for t in tensors])  # an in-place operation modifies a copy

    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it reports each graph break at length
    try:
        with on_error(Skipped, "it does not compile:"), many_recompilations(MAX_RECOMPILATIONS):
            outputs = torch.compile(f, backend="aot_eager")(*leaves)
            outputs = tuple(t for t in outputs if t.requires_grad and t.is_floating_point())
            got = gradients(outputs, leaves, context.v)
    finally:
        log.setLevel(level)
    for k, (output, eager) in enumerate(zip(outputs, context.outputs, strict=True)):
        problem = mismatch(output, eager, _reordered(context, eager))
        if problem is not None:
            raise Failed(f"output {k} of the compiled function, compared with eager mode: {problem}")
    tolerance = partial(_reordered, context)
    context.compare(got, context.gradient(), "of the compiled function, compared with eager mode", tolerance=tolerance)


def _reordered(context: CheckContext, t: Tensor) -> float:
    """Return the allowed error of a result that was computed in another order, of a solver after its last step say."""
    return 100 * context.rounding(t)
