"""The same function in other modes: autocast, float32, the compiler."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from deltaprop._torch_compat import many_recompilations
from deltaprop.gradcheck.context import CheckContext, Finding, Found, Skipped, difference, filled, format_error
from deltaprop.gradcheck.target import gradients


def cancellation(context: CheckContext) -> Found:
    """In float32 the gradient is that of float64, but for rounding."""
    if context.target.dtype != torch.float64:
        raise Skipped(f"it is tried in {context.target.dtype}")
    narrow = context.target.cast(torch.float32)
    wide = narrow.cast(torch.float64)  # the same inputs, rounded
    v32 = [t.float() for t in context.v]
    try:
        got = context.gradient(v32, narrow)
    except Exception as error:
        raise Skipped(f"it does not take float32: {format_error(error)}") from None
    expected = context.gradient([t.double() for t in v32], wide)
    for name, one, other in zip(context.target.names, got, expected, strict=True):
        if one is None or other is None:
            continue
        scale = float(other.detach().abs().max()) if other.numel() else 0.0
        gap = difference(one, other)
        if not gap <= 1e-3 * max(scale, 0.01 * context.scale):
            return Finding(
                f"∂C/∂{name} in float32 is off by {gap:.3g}, its largest entry being {scale:.3g}: digits cancel",
                "warning",
            )
    return None


def autocast(context: CheckContext) -> Found:
    """Under bf16 autocast the gradient has its input's dtype, and is that of float32 to bf16's eight bits."""
    device = context.target.values[0].device.type
    if not torch.amp.is_autocast_available(device):
        raise Skipped(f"{device} has no autocast")
    narrow = context.target.cast(torch.float32)
    leaves = narrow.leaves()
    try:
        expected = context.gradient([t.float() for t in context.v], narrow)
        with torch.autocast(device, torch.bfloat16):
            outputs = narrow.run(leaves)
        got = gradients(outputs, leaves, [v.to(t.dtype) for v, t in zip(context.v, outputs, strict=True)])
    except Exception as error:
        return Finding(f"under autocast it raises {format_error(error)}", "warning")
    for name, one, other, x in zip(context.target.names, got, expected, leaves, strict=True):
        if other is None:
            continue
        gap, norm = float((filled(one, x) - other).norm()), float(other.norm())
        if not gap <= 0.25 * norm + 0.05 * context.scale:  # by its norm: bf16 closes or opens a gate here and there
            return Finding(f"∂C/∂{name} under autocast is off by {gap:.3g} in norm, its own being {norm:.3g}")
    return None


MANY = 10**6  # the compiler counts how often it has compiled the same lines, and gives up after eight times


def compiled(context: CheckContext) -> Found:
    """Compiled, f and its gradients are those of eager mode."""
    if context.fast:
        raise Skipped("not with fast")
    if context.random:
        raise Skipped("what it draws at random differs")
    target = context.target
    leaves = target.leaves()

    def f(*tensors: Tensor) -> Sequence[Tensor]:
        return target.all_outputs([t.clone() for t in tensors])  # what writes in place writes to a copy

    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it tells at length where a graph ends
    try:
        with many_recompilations(MANY):
            outputs = torch.compile(f, backend="aot_eager")(*leaves)
            outputs = tuple(t for t in outputs if t.requires_grad and t.is_floating_point())
            got = gradients(outputs, leaves, context.v)
    except Exception as error:
        raise Skipped(f"it does not compile: {format_error(error)}") from None
    finally:
        log.setLevel(level)
    for k, (output, eager) in enumerate(zip(outputs, context.outputs, strict=True)):
        if not context.close(output.detach(), eager):
            return Finding(f"output {k} differs from eager mode's by {difference(output.detach(), eager):.3g}")
    for name, one, other in zip(target.names, got, context.gradient(), strict=True):
        if other is not None and (one is None or not context.close(one, other)):
            gap = float("inf") if one is None else difference(one, other)
            return Finding(f"∂C/∂{name} differs from eager mode's by {gap:.3g}")
    return None
