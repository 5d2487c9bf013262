"""Are the gradient's numbers right: beside central differences or a reference, at kinks, and where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaprop.gradcheck.context import CheckContext, Finding, Found, Skipped, difference, filled, largest, weighed
from deltaprop.gradcheck.differences import place, slopes
from deltaprop.gradcheck.target import Gradients
from deltaprop.gradcheck.tolerance import DifferenceCheck, check_by_differences


def values(context: CheckContext) -> Found:
    """∂C/∂x against central differences, or against the reference's."""
    if not context.connected:
        return Finding("no output has a graph: expected a gradient for each input, got none (is forward detached?)")
    target = context.target
    ours = context.gradient()
    if context.reference is not None:
        return _like_reference(context, ours)
    problems = []
    for i, name in enumerate(target.names):
        mine = ours[i]
        if mine is not None:  # else `missing` asks about it
            found = check_by_differences(
                weighed(context), target.values, i, mine, context.most, context.generator, context.atol, context.rtol
            )
            shape = target.values[i].shape
            for entry, own, low, high in found.kinks:
                context.kinks.append(f"{name}{place(entry, shape)}: {own:.6g} between {low:.6g} and {high:.6g}")
            if found.wrong.any():
                problems.append(_in_words(context, i, name, found))
    return Finding("; ".join(problems)) if problems else None


def _in_words(context: CheckContext, i: int, name: str, found: DifferenceCheck) -> str:
    """Return what is wrong with a gradient."""
    worst = found.worst
    where = place(int(found.entries[worst]), context.target.values[i].shape)
    return (
        f"∂C/∂{name}: at {where} expected {found.expected[worst]:.8g}, got {found.ours[worst]:.8g} "
        f"({int(found.wrong.sum())} of {len(found.ours)} entries wrong){_cause(found.ours, found.expected, context, i)}"
    )


def _cause(ours: Tensor, expected: Tensor, context: CheckContext, i: int) -> str:
    """Return the likely cause of a wrong gradient in plain words, if its numbers give it away."""
    ours = ours.detach()
    norm = float(expected.norm())
    if not norm:
        return ": f does not depend on it"
    if not float(ours.norm()):
        return ": it is 0 throughout (detached, or a part left out?)"
    factor = float((ours @ expected) / norm**2)
    if float((ours - factor * expected).norm()) <= 1e-6 * norm:
        rows, size = context.target.rows or 1, context.target.values[i].numel()
        names = [(-1.0, "the sign"), (2.0, "a factor of 2"), (0.5, "a factor of ½")]
        if rows > 1:
            names += [(float(rows), f"a missing 1/N, N = {rows}"), (1 / rows, f"a 1/N too many, N = {rows}")]
        if size > 1 and size != rows:
            names += [(float(size), f"a missing 1/{size}, the number of entries"), (1 / size, f"a 1/{size} too many")]
        known = " or ".join(text for f, text in names if abs(factor - f) <= 1e-6 * abs(f))
        return f": {factor:.6g} times what it should be{f' ({known})' if known else ''}"
    ones = [torch.ones_like(t) for t in context.v]
    if context.reference is None:
        flat = context.gradient(ones)[i]
        if flat is not None and difference(flat.reshape(-1)[: len(ours)].double(), ours) <= 1e-12 and len(ours) > 1:
            return ": grad_output seems not to be used"
    return ""


def _like_reference(context: CheckContext, ours: Gradients) -> Found:
    assert context.reference is not None
    theirs = context.gradient(target=context.reference)
    problems = []
    for name, mine, right, x in zip(context.target.names, ours, theirs, context.target.values, strict=True):
        expected = filled(right, x)
        if mine is None:
            continue
        excess = (mine - expected).abs().nan_to_num(float("inf")) - context.rtol * expected.abs()
        if bool((excess > context.atol * largest([expected])).any()):
            k = int(excess.argmax())
            problems.append(
                f"∂C/∂{name}: at {place(k, x.shape)} the reference has {expected.reshape(-1)[k]:.8g}, "
                f"got {mine.reshape(-1)[k]:.8g}"
            )
    return Finding("; ".join(problems)) if problems else None


def kink(context: CheckContext) -> Found:
    """Entries where f has no derivative, and the gradient is one of those that could be meant."""
    if context.reference is not None:
        raise Skipped("a reference is given: no differences were taken")
    if "values" in context.skip:
        raise Skipped("values were not asked for")
    if not context.kinks:
        return None
    more = f" and {len(context.kinks) - 3} more" if len(context.kinks) > 3 else ""
    return Finding(
        f"no derivative there, any between left and right is one: {', '.join(context.kinks[:3])}{more}", "warning"
    )


def missing(context: CheckContext) -> Found:
    """An input that C depends on gets a gradient."""
    if not context.connected:
        raise Skipped("no output has a graph")
    target, ours = context.target, context.gradient()
    problems = []
    for i, (name, gradient) in enumerate(zip(target.names, ours, strict=True)):
        if gradient is None:
            found = slopes(weighed(context), target.values, i, context.most, context.generator)
            steepest = largest([found.central])
            if steepest > 30 * found.noise:
                problems.append(f"{name}: got None, though C changes with it (slope up to {steepest:.6g})")
    return Finding("; ".join(problems)) if problems else None
