"""``check_gradients``: every question about a backward pass, asked of any function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import torch

from deltaprop.errors import UserError, unknown_name
from deltaprop.gradcheck import higher_order, layouts, modes
from deltaprop.gradcheck import inputs as of_inputs
from deltaprop.gradcheck import outputs as of_outputs
from deltaprop.gradcheck import values as of_values
from deltaprop.gradcheck.context import CheckContext, Found, Skipped, format_error
from deltaprop.gradcheck.report import Check, GradientReport
from deltaprop.gradcheck.target import CheckTarget

CHECKS: dict[str, Callable[[CheckContext], Found]] = {
    "values": of_values.values,
    "kink": of_values.kink,
    "missing": of_values.missing,
    "shapes": of_outputs.shapes,
    "dtypes": of_outputs.dtypes,
    "grad_output": of_inputs.grad_output,
    "linear": of_inputs.linear,
    "outputs": of_inputs.outputs,
    "subsets": of_inputs.subsets,
    "calls": of_inputs.calls,
    "in_place": of_inputs.intact,
    "deterministic": of_outputs.deterministic,
    "leak": of_outputs.leak,
    "non_contiguous": layouts.non_contiguous,
    "expanded": layouts.expanded,
    "zero_size": layouts.zero_size,
    "one_sample": layouts.one_sample,
    "one_dimension": layouts.one_dimension,
    "three_dimensions": layouts.three_dimensions,
    "graph": higher_order.graph,
    "second": higher_order.second,
    "jvp": higher_order.jvp,
    "vmap": higher_order.vmap,
    "cancellation": modes.cancellation,
    "autocast": modes.autocast,
    "compile": modes.compiled,
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
    seed: int = 0,
) -> GradientReport:
    """Check every promise of a backward pass, on these inputs, and say in words what is wrong.

    ∂C/∂x of C = ⟨v, f(x)⟩, for a random v, is compared with central differences in float64, entry by entry. Then come
    the promises that differences do not see: ``CHECKS`` lists them all.

    Args:
        fn: A ``torch.autograd.Function`` class, an ``nn.Module`` (its parameters are inputs too), or any callable.
        inputs: Its positional arguments: a tuple of tensors, containers of tensors, and anything else. Of the floating
            tensors those with ``requires_grad`` are differentiated; all of them where none has it. They should lie off
            the kinks of f, and have more than one sample.
        reference: A plain PyTorch function with the right gradients, to compare with instead of differences.
        dtype: That floating inputs and parameters are tried in. Differences need float64.
        skip: Names of checks not to make: a straight-through estimator is wrong on purpose in its ``"values"``.
        atol: What an entry of a gradient may be off by, relative to the gradient's largest entry; 1e-9 for float64,
            1e-3 for narrower dtypes.
        rtol: The same, relative to the entry itself; 1e-5, or 1e-2.
        fast: Try some entries of each input, and leave the compiler out.
        seed: Of v, and of all else that is drawn. The caller's random state is left alone.

    Returns:
        A report: ``.ok``, ``.checks``, ``print(report)``.

    Raises:
        UserError: If f raises on these inputs, or nothing about it can be differentiated.

    Source:
        Griewank and Walther, Evaluating Derivatives (2008), for differences; the further checks are errors met in
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
    if dtype != torch.float64 and reference is None and "values" not in skip:
        raise UserError(f"differences in {dtype} show nothing: pass a reference=, or skip={{'values'}}")
    exact = dtype == torch.float64
    atol = (1e-9 if exact else 1e-3) if atol is None else atol
    rtol = (1e-5 if exact else 1e-2) if rtol is None else rtol
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):  # whatever the caller has switched on
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # f is called a thousand times, and on inputs that it was not written for
        name = getattr(fn, "__name__", type(fn).__name__)
        try:
            target = CheckTarget(fn, inputs, dtype)
            other = None if reference is None else CheckTarget(reference, inputs, dtype)
            context = CheckContext(target, atol, rtol, fast, seed, other, skip)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name} raises on these inputs in {dtype}: {format_error(error)}") from error
        return GradientReport(target.name, tuple(_ask(name, context, skip) for name in CHECKS))


def _ask(name: str, context: CheckContext, skip: Collection[str]) -> Check:
    """Ask one question."""
    if name in skip:
        return Check(name, "skipped", detail="as asked")
    if not context.connected and name not in ("values",):
        return Check(name, "skipped", detail="no output has a graph")
    try:
        found = CHECKS[name](context)
    except Skipped as reason:
        return Check(name, "skipped", detail=str(reason))
    except Exception as error:
        return Check(name, "failed", detail=f"it raises {format_error(error)}")
    if found is None:
        return Check(name, "passed")
    return Check(name, "failed", found.severity, found.detail)
