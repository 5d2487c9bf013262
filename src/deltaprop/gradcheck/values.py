"""Are the gradient's numbers right: beside central differences or a reference, at kinks, and where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaprop.gradcheck.context import Finding, Found, Skip, Trial, difference, filled, largest, weighed
from deltaprop.gradcheck.differences import place, slopes
from deltaprop.gradcheck.target import Gradients
from deltaprop.gradcheck.tolerance import DifferenceCheck, check_by_differences


def values(trial: Trial) -> Found:
    """∂C/∂x against central differences, or against the reference's."""
    if not trial.connected:
        return Finding("no output has a graph: expected a gradient for each input, got none (is forward detached?)")
    subject = trial.subject
    ours = trial.gradient()
    if trial.reference is not None:
        return _like_reference(trial, ours)
    problems = []
    for i, name in enumerate(subject.names):
        mine = ours[i]
        if mine is not None:  # else `missing` asks about it
            found = check_by_differences(
                weighed(trial), subject.values, i, mine, trial.most, trial.generator, trial.atol, trial.rtol
            )
            shape = subject.values[i].shape
            for entry, own, low, high in found.kinks:
                trial.kinks.append(f"{name}{place(entry, shape)}: {own:.6g} between {low:.6g} and {high:.6g}")
            if found.wrong.any():
                problems.append(_in_words(trial, i, name, found))
    return Finding("; ".join(problems)) if problems else None


def _in_words(trial: Trial, i: int, name: str, found: DifferenceCheck) -> str:
    """Return what is wrong with a gradient."""
    worst = found.worst
    where = place(int(found.entries[worst]), trial.subject.values[i].shape)
    return (
        f"∂C/∂{name}: at {where} expected {found.expected[worst]:.8g}, got {found.ours[worst]:.8g} "
        f"({int(found.wrong.sum())} of {len(found.ours)} entries wrong){_cause(found.ours, found.expected, trial, i)}"
    )


def _cause(ours: Tensor, expected: Tensor, trial: Trial, i: int) -> str:
    """Return the likely cause of a wrong gradient in plain words, if its numbers give it away."""
    ours = ours.detach()
    norm = float(expected.norm())
    if not norm:
        return ": f does not depend on it"
    if not float(ours.norm()):
        return ": it is 0 throughout (detached, or a part left out?)"
    factor = float((ours @ expected) / norm**2)
    if float((ours - factor * expected).norm()) <= 1e-6 * norm:
        rows, size = trial.subject.rows or 1, trial.subject.values[i].numel()
        names = [(-1.0, "the sign"), (2.0, "a factor of 2"), (0.5, "a factor of ½")]
        if rows > 1:
            names += [(float(rows), f"a missing 1/N, N = {rows}"), (1 / rows, f"a 1/N too many, N = {rows}")]
        if size > 1 and size != rows:
            names += [(float(size), f"a missing 1/{size}, the number of entries"), (1 / size, f"a 1/{size} too many")]
        known = " or ".join(text for f, text in names if abs(factor - f) <= 1e-6 * abs(f))
        return f": {factor:.6g} times what it should be{f' ({known})' if known else ''}"
    ones = [torch.ones_like(t) for t in trial.v]
    if trial.reference is None:
        flat = trial.gradient(ones)[i]
        if flat is not None and difference(flat.reshape(-1)[: len(ours)].double(), ours) <= 1e-12 and len(ours) > 1:
            return ": grad_output seems not to be used"
    return ""


def _like_reference(trial: Trial, ours: Gradients) -> Found:
    assert trial.reference is not None
    theirs = trial.gradient(subject=trial.reference)
    problems = []
    for name, mine, right, x in zip(trial.subject.names, ours, theirs, trial.subject.values, strict=True):
        expected = filled(right, x)
        if mine is None:
            continue
        excess = (mine - expected).abs().nan_to_num(float("inf")) - trial.rtol * expected.abs()
        if bool((excess > trial.atol * largest([expected])).any()):
            k = int(excess.argmax())
            problems.append(
                f"∂C/∂{name}: at {place(k, x.shape)} the reference has {expected.reshape(-1)[k]:.8g}, "
                f"got {mine.reshape(-1)[k]:.8g}"
            )
    return Finding("; ".join(problems)) if problems else None


def kink(trial: Trial) -> Found:
    """Entries where f has no derivative, and the gradient is one of those that could be meant."""
    if trial.reference is not None:
        raise Skip("a reference is given: no differences were taken")
    if "values" in trial.skip:
        raise Skip("values were not asked for")
    if not trial.kinks:
        return None
    more = f" and {len(trial.kinks) - 3} more" if len(trial.kinks) > 3 else ""
    return Finding(
        f"no derivative there, any between left and right is one: {', '.join(trial.kinks[:3])}{more}", "warning"
    )


def missing(trial: Trial) -> Found:
    """An input that C depends on gets a gradient."""
    if not trial.connected:
        raise Skip("no output has a graph")
    subject, ours = trial.subject, trial.gradient()
    problems = []
    for i, (name, gradient) in enumerate(zip(subject.names, ours, strict=True)):
        if gradient is None:
            found = slopes(weighed(trial), subject.values, i, trial.most, trial.generator)
            steepest = largest([found.central])
            if steepest > 30 * found.noise:
                problems.append(f"{name}: got None, though C changes with it (slope up to {steepest:.6g})")
    return Finding("; ".join(problems)) if problems else None
