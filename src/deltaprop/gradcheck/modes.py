"""The same function in other modes: autocast, float32, the compiler."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from deltaprop.gradcheck.context import Finding, Found, Skip, Trial, difference, filled, told
from deltaprop.gradcheck.target import gradients


def cancellation(trial: Trial) -> Found:
    """In float32 the gradient is that of float64, but for rounding."""
    if trial.subject.dtype != torch.float64:
        raise Skip(f"it is tried in {trial.subject.dtype}")
    narrow = trial.subject.cast(torch.float32)
    wide = narrow.cast(torch.float64)  # the same inputs, rounded
    v32 = [t.float() for t in trial.v]
    try:
        got = trial.gradient(v32, narrow)
    except Exception as error:
        raise Skip(f"it does not take float32: {told(error)}") from None
    expected = trial.gradient([t.double() for t in v32], wide)
    for name, one, other in zip(trial.subject.names, got, expected, strict=True):
        if one is None or other is None:
            continue
        scale = float(other.detach().abs().max()) if other.numel() else 0.0
        gap = difference(one, other)
        if not gap <= 1e-3 * max(scale, 0.01 * trial.scale):
            return Finding(
                f"∂C/∂{name} in float32 is off by {gap:.3g}, its largest entry being {scale:.3g}: digits cancel",
                "warning",
            )
    return None


def autocast(trial: Trial) -> Found:
    """Under bf16 autocast the gradient has its input's dtype, and is that of float32 to bf16's eight bits."""
    device = trial.subject.values[0].device.type
    if not torch.amp.is_autocast_available(device):
        raise Skip(f"{device} has no autocast")
    narrow = trial.subject.cast(torch.float32)
    leaves = narrow.leaves()
    try:
        expected = trial.gradient([t.float() for t in trial.v], narrow)
        with torch.autocast(device, torch.bfloat16):
            outputs = narrow.run(leaves)
        got = gradients(outputs, leaves, [v.to(t.dtype) for v, t in zip(trial.v, outputs, strict=True)])
    except Exception as error:
        return Finding(f"under autocast it raises {told(error)}", "warning")
    for name, one, other, x in zip(trial.subject.names, got, expected, leaves, strict=True):
        if other is None:
            continue
        gap, norm = float((filled(one, x) - other).norm()), float(other.norm())
        if not gap <= 0.25 * norm + 0.05 * trial.scale:  # by its norm: bf16 closes or opens a gate here and there
            return Finding(f"∂C/∂{name} under autocast is off by {gap:.3g} in norm, its own being {norm:.3g}")
    return None


MANY = 10**6  # the compiler counts how often it has compiled the same lines, and gives up after eight times


def compiled(trial: Trial) -> Found:
    """Compiled, f and its gradients are those of eager mode."""
    if trial.fast:
        raise Skip("not with fast")
    if trial.random:
        raise Skip("what it draws at random differs")
    subject = trial.subject
    leaves = subject.leaves()

    def f(*tensors: Tensor) -> Sequence[Tensor]:
        return subject.all_outputs([t.clone() for t in tensors])  # what writes in place writes to a copy

    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it tells at length where a graph ends
    try:
        with torch._dynamo.config.patch(recompile_limit=MANY, accumulated_recompile_limit=MANY):
            outputs = torch.compile(f, backend="aot_eager")(*leaves)
            outputs = tuple(t for t in outputs if t.requires_grad and t.is_floating_point())
            got = gradients(outputs, leaves, trial.v)
    except Exception as error:
        raise Skip(f"it does not compile: {told(error)}") from None
    finally:
        log.setLevel(level)
    for k, (output, eager) in enumerate(zip(outputs, trial.outputs, strict=True)):
        if not trial.close(output.detach(), eager):
            return Finding(f"output {k} differs from eager mode's by {difference(output.detach(), eager):.3g}")
    for name, one, other in zip(subject.names, got, trial.gradient(), strict=True):
        if other is not None and (one is None or not trial.close(one, other)):
            gap = float("inf") if one is None else difference(one, other)
            return Finding(f"∂C/∂{name} differs from eager mode's by {gap:.3g}")
    return None
