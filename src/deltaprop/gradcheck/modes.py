"""The same function in other modes: float32, autocast, the compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaprop._torch_compat import many_recompilations, quiet_compiler
from deltaprop.errors import format_error
from deltaprop.gradcheck.context import (
    CheckContext,
    Failed,
    Skipped,
    Warned,
    largest,
    mismatch,
    on_error,
    random_pairs,
)
from deltaprop.gradcheck.differences import format_index
from deltaprop.gradcheck.target import Gradients, gradients

MAX_RECOMPILATIONS = 10**6  # the compiler counts how often it has compiled the same lines, and gives up at eight


def check_cancellation(context: CheckContext) -> None:
    """In float32 the gradient is that of float64, except for rounding."""
    if context.target.dtype != torch.float64:
        raise Skipped(f"the function is checked in {context.target.dtype}")
    _needs_the_same_numbers(context)

    def of_both(inputs: Sequence[Tensor]) -> tuple[Gradients, Gradients]:
        """Return the gradients in float32, and in float64 of the same rounded inputs."""
        narrow = context.target.cast(torch.float32)
        wide, v32 = narrow.cast(torch.float64), [t.float() for t in context.v]
        rounded = [t.float() for t in inputs]
        got = narrow.gradients([t.clone() for t in v32], narrow.leaves(rounded))
        return got, wide.gradients([t.double() for t in v32], wide.leaves([t.double() for t in rounded]))

    def tolerance(t: Tensor) -> float:
        return 1e-3 * max(largest([t]), 0.01 * context.scale)

    with on_error(Skipped, "it does not accept float32:"):
        got, expected = of_both(context.target.values)
    try:
        context.compare(got, expected, "in float32, compared with float64", tolerance=tolerance)
    except Failed as problem:
        pairs = list(random_pairs(context.target.values, context.generator))
        near = [of_both([t * (1 + 0.01 * k * d) for t, d in pairs]) for k in (1, 2, 3)]
        if _is_systematic([(got, expected), *near], tolerance):
            hint = "beside these inputs it is off by as much, so it is not rounding: a branch for float32?"
            raise Failed(f"{problem}: {hint}") from None
        raise Warned(f"{problem}: cancellation, the difference of nearly equal numbers?") from None


def _needs_the_same_numbers(context: CheckContext) -> None:
    """Skip a check that compares dtypes where there is nothing to compare."""
    context.needs_slope()
    if context.random:
        raise Skipped("what it draws at random may depend on the dtype")


def _is_systematic(runs: Sequence[tuple[Gradients, Gradients]], tolerance: Callable[[Tensor], float]) -> bool:
    """Return whether an entry is off by nearly the same factor at all points: rounding errors differ.

    A factor of 0 may be either: all digits of a difference are gone, or a term is left out.
    """
    for pairs in zip(*[zip(*run, strict=True) for run in runs], strict=True):
        if any(one is None or right is None for one, right in pairs):
            continue
        off = torch.stack([(one.double() - right).abs() > tolerance(right) for one, right in pairs]).all(0)
        factors = torch.stack([one.double() / right for one, right in pairs])[:, off]
        spread = factors.std(0)
        if bool(((spread < 0.05 * (factors.mean(0) - 1).abs()) & (factors != 0).all(0)).any()):
            return True
    return False


def check_half(context: CheckContext) -> str:
    """In bfloat16 and float16 the gradient is that of a wider dtype at the same inputs, to their few digits.

    Return why one of them could not be checked, or nothing.
    """
    _needs_the_same_numbers(context)
    names = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    reasons = "; ".join(reason for dtype, name in names.items() if (reason := _check_in(context, dtype, name)))
    if all(name in reasons for name in names.values()):
        raise Skipped(reasons)
    return f"not {reasons}" if reasons else ""


def _check_in(context: CheckContext, dtype: torch.dtype, name: str) -> str:
    """Compare the gradient in a dtype of 16 bits; return why that cannot be done, or nothing."""
    narrow, eps = context.target.cast(dtype), torch.finfo(dtype).eps
    wide, leaves = narrow.cast(context.target.dtype), narrow.leaves()
    try:
        outputs = narrow.run(leaves)
        if not outputs or not all(bool(t.isfinite().all()) for t in outputs):
            return f"{name}: f is not finite"
        v = [t.to(like.dtype) for t, like in zip(context.v, outputs, strict=True)]
        expected = wide.gradients([t.to(wide.dtype, copy=True) for t in v])
        # By how much it changes with the last digits: that of an interpolation jumps between two points.
        nearly = [t * (1 + 2 * eps * d.sign()) for t, d in random_pairs(wide.values, context.generator)]
        there = wide.gradients([t.to(wide.dtype, copy=True) for t in v], wide.leaves(nearly))
    except Exception as error:
        return f"{name}: {format_error(error)}"
    masks = zip(expected, context.finite, strict=True)
    if any(t is not None and not t[mask].isfinite().all() for t, mask in masks):
        return f"{name}: the gradient of the rounded inputs is not finite"
    if largest(expected) > 0.1 * torch.finfo(dtype).max:
        return f"{name}: the gradient is too large for it"
    try:
        got = gradients(outputs, leaves, v)
    except Exception as error:
        if "not implemented for" in str(error):  # PyTorch itself lacks an operation
            return f"{name}: {format_error(error)}"
        raise Failed(f"in {name} forward works, but backward raises {format_error(error)}") from None
    changes = [None if a is None or b is None else a - b for a, b in zip(expected, there, strict=True)]
    _compare_norms(context, got, expected, f"in {name}", 20 * eps, changes)
    return ""


def check_autocast(context: CheckContext) -> None:
    """Under bf16 autocast the gradient is that of float32 to bf16's eight bits."""
    device = context.target.values[0].device.type
    if not torch.amp.is_autocast_available(device):
        raise Skipped(f"{device} has no autocast")
    _needs_the_same_numbers(context)
    narrow = context.target.cast(torch.float32)
    leaves = narrow.leaves()
    expected = context.gradient([t.float() for t in context.v], narrow)
    with on_error(Skipped, "it does not run under autocast:"), torch.autocast(device, torch.bfloat16):
        outputs = narrow.run(leaves)
    with on_error(Warned, "under autocast backward raises"):
        got = gradients(outputs, leaves, [v.to(t.dtype) for v, t in zip(context.v, outputs, strict=True)])
    _compare_norms(context, got, expected, "under autocast", 0.25)  # float32 has not been rounded before


def _compare_norms(
    context: CheckContext, got: Gradients, expected: Gradients, when: str, rtol: float, changes: Gradients | None = None
) -> None:
    """Compare gradients by their norms, as with few digits a gate opens or closes here and there.

    Allowed is ``rtol``, and what a gradient changes by if the last digits of the inputs do.
    """
    changes = changes or [None] * len(got)
    rows = zip(context.target.names, got, expected, context.finite, changes, strict=True)
    for name, one, right, mask, change in rows:
        if right is None:
            continue
        error = (torch.zeros_like(right) if one is None else one.to(right)) - right
        gap, norm = float(error[mask].norm()), float(right[mask].norm())
        slack = 0.0 if change is None else 4 * float(change[mask].norm())
        if not gap <= rtol * (norm + 0.2 * context.scale) + slack:
            worst = int(torch.where(mask, error, 0.0).abs().nan_to_num(math.inf).argmax())
            found = 0.0 if one is None else float(one.flatten()[worst])
            raise Failed(
                f"∂C/∂{name} {when}: at {format_index(worst, right.shape)} "
                f"expected {float(right.flatten()[worst]):.4g}, got {found:.4g} "
                f"(the norm of the error is {gap:.3g}, of the gradient {norm:.3g})"
            )


def check_compile(context: CheckContext) -> None:
    """Compiled, f and its gradients are those of eager mode."""
    if context.fast:
        raise Skipped("not with fast=True")
    if context.random:
        raise Skipped("what it draws at random differs")
    target = context.target
    leaves = target.leaves()

    def f(*tensors: Tensor) -> Sequence[Any]:
        return target.all_outputs([t.clone() for t in tensors])  # an in-place operation modifies a copy

    with many_recompilations(MAX_RECOMPILATIONS), quiet_compiler():
        with on_error(Skipped, "it does not compile:"):
            everything = torch.compile(f, backend="aot_eager")(*leaves)
        outputs = [everything[k] for k in context.output_numbers]
        lost = [k for k, t in zip(context.output_numbers, outputs, strict=True) if not t.requires_grad]
        if lost:
            raise Failed(f"output {lost[0]} of the compiled function has no gradient")
        with on_error(Failed, "compiled, backward raises"):
            got = gradients(outputs, leaves, context.v)
    for k, output, eager in zip(context.output_numbers, outputs, context.outputs, strict=True):
        problem = mismatch(output, eager, _reordered(context, eager))
        if problem is not None:
            raise Failed(f"output {k} of the compiled function, compared with eager mode: {problem}")
    tolerance = partial(_reordered, context)
    context.compare(got, context.gradient(), "of the compiled function, compared with eager mode", tolerance=tolerance)


def _reordered(context: CheckContext, t: Tensor) -> float:
    """Return the allowed error of a result that was computed in another order, of a solver after its last step say."""
    return context.rounding(t, 100)
