"""``check_gradients``: every check of a backward pass, of any function."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from deltaprop.errors import UserError, format_error, unknown_name
from deltaprop.gradcheck import first_order, higher_order, layouts, modes, sizes, state
from deltaprop.gradcheck.context import CheckContext, Failed, Skipped
from deltaprop.gradcheck.differences import Tolerance
from deltaprop.gradcheck.report import Check, GradientReport
from deltaprop.gradcheck.target import CheckTarget

CHECKS: dict[str, Callable[[CheckContext], str | None]] = {
    "deterministic": state.check_deterministic,  # first, for all others compare calls
    "values": first_order.check_values,  # then: others rely on what it finds
    "kink": first_order.check_kink,
    "missing": first_order.check_missing,
    "large": first_order.check_large,
    "zeros": first_order.check_zeros,
    "shapes": first_order.check_shapes,
    "dtypes": first_order.check_dtypes,
    "grad_output": first_order.check_grad_output,
    "linear": first_order.check_linear,
    "parts": first_order.check_parts,
    "outputs": first_order.check_outputs,
    "detached": first_order.check_detached,
    "subsets": first_order.check_subsets,
    "calls": state.check_calls,
    "saved": state.check_saved,
    "thread": state.check_thread,
    "generator": state.check_generator,
    "in_place": state.check_in_place,
    "leak": state.check_leak,
    "non_contiguous": layouts.check_non_contiguous,
    "expanded": layouts.check_expanded,
    "same_tensor": layouts.check_same_tensor,
    "zero_size": sizes.check_zero_size,
    "one_sample": sizes.check_one_sample,
    "odd_size": sizes.check_odd_size,
    "size_one": sizes.check_size_one,
    "scalar": sizes.check_scalar,
    "one_dimension": sizes.check_one_dimension,
    "three_dimensions": sizes.check_three_dimensions,
    "graph": higher_order.check_graph,
    "second": higher_order.check_second,
    "third": higher_order.check_third,
    "jvp": higher_order.check_jvp,
    "vmap": higher_order.check_vmap,
    "cancellation": modes.check_cancellation,
    "half": modes.check_half,
    "autocast": modes.check_autocast,
    "compile": modes.check_compile,
}


def check_gradients(
    fn: Any,
    inputs: Any,
    *,
    reference: Callable[..., Any] | None = None,
    dtype: torch.dtype = torch.float64,
    skip: Collection[str] = (),
    atol: float | None = None,
    rtol: float | None = None,
    fast: bool = False,
    deep: bool = False,
    seed: int = 0,
) -> GradientReport:
    """Check every property of a backward pass on these inputs, and describe what is wrong.

    ∂C/∂x of C = ⟨v, f(x)⟩, for a random v, is compared with central differences in float64, entry by entry. Further
    checks are about what differences do not show: ``CHECKS`` lists them all.

    Args:
        fn: A ``torch.autograd.Function`` class, an ``nn.Module`` (its parameters are inputs too), or any callable.
        inputs: Its positional arguments: a tuple of tensors, containers of tensors, and anything else. Of the floating
            tensors those with ``requires_grad`` are differentiated; all of them if none has it. They should lie away
            from the kinks of f, and have more than one sample.
        reference: A plain PyTorch function with the right gradients, to compare with instead of differences.
        dtype: The dtype of floating inputs and parameters. Differences need float64.
        skip: Names of checks to skip: a straight-through estimator is wrong on purpose in its ``"values"``.
        atol: Allowed error of a gradient's entry, relative to the gradient's largest entry; 1e-9 for float64, 1e-3 for
            narrower dtypes.
        rtol: Allowed error, relative to the entry itself; 1e-5, or 1e-2.
        fast: Compare some entries of each input, and skip the compiler.
        deep: Check third derivatives too.
        seed: Seed of v, and of everything else drawn at random. The caller's random state does not change.

    Returns:
        A report: ``.ok``, ``.checks``, ``print(report)``.

    Raises:
        UserError: If f raises on these inputs, or has no input to differentiate.

    Source:
        Griewank and Walther, Evaluating Derivatives (2008), for differences; the further checks are mistakes met in
        practice, many of which ``torch.autograd.gradcheck`` passes.

    Example:
        >>> report = check_gradients(torch.sigmoid, (torch.randn(4, 3),), fast=True)
        >>> report.ok, report["values"].outcome
        (True, 'passed')
    """
    skip = (skip,) if isinstance(skip, str) else skip
    for name in skip:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    exact = dtype == torch.float64
    if not exact and reference is None and "values" not in skip:
        raise UserError(f"differences in {dtype} are too inaccurate: pass a reference=, or skip={{'values'}}")
    atol = (1e-9 if exact else 1e-3) if atol is None else atol
    rtol = (1e-5 if exact else 1e-2) if rtol is None else rtol
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be 0 to 2^63 − 1, got {seed}")
    with (  # whatever the caller has enabled
        warnings.catch_warnings(action="ignore"),  # f is called a thousand times, on inputs it was not written for
        torch.random.fork_rng(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.set_detect_anomaly(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        name = getattr(fn, "__name__", type(fn).__name__)
        other = None
        try:
            if reference is not None:
                name = "the reference"
                other = CheckTarget(reference, inputs, dtype, seed)
                other.run(other.leaves())
                name = getattr(fn, "__name__", type(fn).__name__)
            target = CheckTarget(fn, inputs, dtype, seed)
            context = CheckContext(target, Tolerance(atol, rtol), fast, seed, other, skip, deep)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name} raises on these inputs in {dtype}: {format_error(error)}") from error
        return GradientReport(target.name, tuple(_run_check(name, context) for name in _reported(target.name)))


def _reported(subject: str) -> Iterator[str]:
    """Yield the names of all checks; print on a terminal which one runs, once the report takes more than a second."""
    started, shown = time.monotonic(), False
    for number, name in enumerate(CHECKS, start=1):
        if time.monotonic() - started > 1 and sys.stderr is not None and sys.stderr.isatty():
            line = f"gradients of {subject}: {name}, {number} of {len(CHECKS)}"
            print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
            shown = True
        yield name
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _run_check(name: str, context: CheckContext) -> Check:
    if context.obstacle:
        check, detail = context.obstacle
        if name == check:  # also where it is to be skipped: a report without any check is not ok
            return Check(name, "failed", detail=detail)
        return Check(name, "skipped", detail=f'nothing can be checked: see "{check}"')
    if name in context.skip:
        return Check(name, "skipped", detail="as requested")
    if not any(bool(mask.any()) for mask in context.finite) and name != "values":
        return Check(name, "skipped", detail="no entry of the gradient is finite")
    context.generator.manual_seed(context.seed)  # whatever other checks have drawn
    try:
        remark = CHECKS[name](context) or ""
    except Skipped as reason:
        return Check(name, "skipped", detail=str(reason))
    except Failed as failure:
        if name == "deterministic" and failure.severity == "error":
            context.obstacle = name, str(failure)
        return Check(name, "failed", failure.severity, str(failure))
    except Exception as error:
        return Check(name, "failed", detail=f"it raises {format_error(error)}")
    return Check(name, "passed", detail=remark)
