"""Are the values right: against central differences or a reference, at kinks, and where there is no gradient."""

from __future__ import annotations

import torch

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, filled, largest, mismatch
from deltaprop.gradcheck.differences import EntryComparison, draw_entries, format_index, slopes_at


def check_values(context: CheckContext) -> None:
    """∂C/∂x equals central differences, or the gradient of the reference."""
    if not context.connected:
        raise Failed("no output requires grad: expected a gradient for each input, got None (is forward detached?)")
    target, gradients = context.target, context.gradient()
    if context.reference is not None:
        references = filled(context.gradient(target=context.reference), target.values)
        context.compare(
            gradients,
            [None if g is None else r for g, r in zip(gradients, references, strict=True)],  # `missing` checks None
            "compared with the reference",
            tolerance=lambda r: context.atol * largest([r]) + context.rtol * r.abs(),
        )
        return
    problems = []
    c = target.weighted_sum(context.v)
    for i, found in context.by_differences(c, target.values, gradients, context.most):
        name, shape = target.names[i], target.values[i].shape
        for entry, own, low, high in found.kinks:
            context.kinks.append(f"{name}{format_index(entry, shape)}: {own:.6g} between {low:.6g} and {high:.6g}")
        if found.wrong.any():
            problems.append(f"∂C/∂{name}: {found.describe(shape)}{_likely_cause(found, context, i)}")
    if problems:
        raise Failed("; ".join(problems))


def _likely_cause(found: EntryComparison, context: CheckContext, i: int) -> str:
    """Return the likely cause of a wrong gradient, if its values show it."""
    got, expected, rows = found.got, found.expected, context.target.rows or 1
    norm, size = float(expected.norm()), context.target.values[i].numel()
    if not norm:
        return ": f does not depend on it"
    if not float(got.norm()):
        return ": all entries are 0 (detached, or a term left out?)"
    factor = float((got @ expected) / norm**2)
    if float((got - factor * expected).norm()) <= 1e-6 * norm:
        causes = [(-1.0, "wrong sign"), (2.0, "a factor of 2"), (0.5, "a factor of ½")]
        if rows > 1:
            causes += [(float(rows), f"a missing 1/N, N = {rows}"), (1 / rows, f"a 1/N too many, N = {rows}")]
        if size > 1 and size != rows:
            causes += [(float(size), f"a missing 1/{size}, the number of entries"), (1 / size, f"a 1/{size} too many")]
        likely = " or ".join(text for f, text in causes if abs(factor - f) <= 1e-6 * abs(f))
        return f": {factor:.6g} times what it should be{f' ({likely})' if likely else ''}"
    flat = context.gradient([torch.ones_like(t) for t in context.v])[i]
    if flat is not None and len(got) > 1 and not mismatch(flat.flatten()[: len(got)], got, 1e-12):
        return ": grad_output seems not to be used"
    return ""


def check_kink(context: CheckContext) -> None:
    """Where f has no derivative, the gradient lies between the slopes on the two sides."""
    if context.reference is not None:
        raise Skipped("a reference is given, so no differences were computed")
    if "values" in context.skip:
        raise Skipped('the check "values" is skipped')
    if context.kinks:
        more = f" and {len(context.kinks) - 3} more" if len(context.kinks) > 3 else ""
        raise Warned(
            "f is not differentiable there; any value between the left and the right slope is accepted: "
            f"{', '.join(context.kinks[:3])}{more}"
        )


def check_missing(context: CheckContext) -> None:
    """An input that C depends on gets a gradient."""
    target, problems = context.target, []
    c = target.weighted_sum(context.v)
    for i, gradient in enumerate(context.gradient()):
        if gradient is None:
            entries = draw_entries(target.values[i], context.most, context.generator)
            slopes = slopes_at(c, target.values, i, entries)
            steepest = largest([slopes.central])
            if steepest > 30 * slopes.noise:
                problems.append(f"∂C/∂{target.names[i]}: got None, but C depends on it (slope up to {steepest:.6g})")
    if problems:
        raise Failed("; ".join(problems))
