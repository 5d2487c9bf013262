"""Derivatives of derivatives, forward mode and maps: what else autograd may ask of a backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deltaprop.gradcheck.context import (
    Finding,
    Found,
    Skip,
    Trial,
    difference,
    filled,
    places_with_graph,
    told,
    weighed,
)
from deltaprop.gradcheck.differences import place, step_size, value
from deltaprop.gradcheck.target import Gradients, dot, gradients, random_like
from deltaprop.gradcheck.tolerance import check_by_differences


def graph(trial: Trial) -> Found:
    """A gradient that changes with x has a graph of its own, where one is asked for, and is the same with it."""
    plain, graphed = trial.gradient(), _graphed(trial)[1]
    for i, (name, one, other) in enumerate(zip(trial.subject.names, plain, graphed, strict=True)):
        if one is None:
            continue
        if other is None or not trial.close(other.detach(), one):
            gap = "None" if other is None else f"one that differs by {difference(other.detach(), one):.3g}"
            return Finding(f"∂C/∂{name} with create_graph=True is {gap}")
        if not other.requires_grad and _changes(trial, i):
            return Finding(
                f"∂C/∂{name} changes with grad_output, but has no graph with create_graph=True: a second derivative "
                "would be silently 0 (detached, or computed from numbers that are not saved tensors?)"
            )
    return None


def second(trial: Trial) -> Found:
    """∂²C by differences of the gradient: the derivative of ⟨w, ∂C/∂x⟩ for a random w, by x and by v."""
    leaves, graphed, v = _graphed(trial)
    has = [k for k, g in enumerate(graphed) if g is not None and g.requires_grad]
    if not has:
        raise Skip("the gradient does not depend on the inputs")
    if any(_refuses(graphed[k]) for k in has):
        raise Skip("it says that it can be differentiated once (once_differentiable)")
    w = random_like([filled(graphed[k], leaves[k]) for k in has], trial.generator)
    try:
        total = dot([graphed[k] for k in has], w)  # type: ignore[misc]  # has names those that are there
        ours = torch.autograd.grad(total, [*leaves, *v], allow_unused=True)
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise Skip(f"PyTorch has no second derivative of what it calls: {told(error)}") from None
        return Finding(f"the second backward raises {told(error)}")
    values = [*trial.subject.values, *[t.detach() for t in v]]
    n = len(leaves)

    def of_gradient(tensors: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            inside = trial.subject.leaves(tensors[:n])
            found = gradients(trial.subject.run(inside), inside, list(tensors[n:]))
        return dot([filled(found[k], inside[k]) for k in has], w).double()

    names = [*trial.subject.names, *["grad_output"] * len(v)]
    for i, (name, gradient) in enumerate(zip(names, ours, strict=True)):
        mine = filled(gradient, values[i])
        most = 8 if trial.fast else 60
        found = check_by_differences(of_gradient, values, i, mine, most, trial.generator, trial.atol, trial.rtol)
        if found.wrong.any():
            k = found.worst
            where = place(int(found.entries[k]), values[i].shape)
            return Finding(
                f"the derivative of the gradient by {name}: at {where} expected {found.expected[k]:.8g}, "
                f"got {found.ours[k]:.8g} (something saved that is neither an input nor an output?)"
            )
    return None


def _graphed(trial: Trial) -> tuple[list[Tensor], Gradients, list[Tensor]]:
    """Return leaves, their gradients with a graph, and the v that they are of.

    Raises:
        Skip: If backward refuses a graph.
    """
    leaves = trial.subject.leaves()
    v = [t.clone().requires_grad_() for t in trial.v]
    try:
        return leaves, gradients(trial.subject.run(leaves), leaves, v, create_graph=True), v
    except RuntimeError as error:
        raise Skip(f"backward does not take create_graph: {told(error)}") from None


def _refuses(gradient: Tensor | None) -> bool:
    """Return whether a gradient stands before an error that once_differentiable has put there."""
    return gradient is not None and gradient.grad_fn is not None and gradient.grad_fn.name().endswith("::Error")


def _changes(trial: Trial, i: int) -> bool:
    """Return whether the gradient of an input changes when the inputs or v do; for v it does, being linear in it."""
    ours = trial.gradient()[i]
    other = trial.gradient([2 * t for t in trial.v])[i]
    return ours is not None and other is not None and difference(ours, other) > 0


def jvp(trial: Trial) -> Found:
    """Forward mode: ⟨v, f'(x) ẋ⟩ by the function's own jvp, against a central difference along ẋ."""
    subject = trial.subject
    x_dot = random_like(subject.values, trial.generator)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.clone(), d) for t, d in zip(subject.values, x_dot, strict=True)]
        try:
            outputs = subject(duals)
            tangents = [forward_ad.unpack_dual(t).tangent for t in outputs]
        except (RuntimeError, NotImplementedError) as error:
            if "jvp" in str(error) or "forward" in str(error).lower():
                raise Skip("it has no forward mode") from None
            return Finding(f"forward mode raises {told(error)}")
    places = places_with_graph(trial)
    ours = sum(
        float((tangents[k] * v).sum()) if tangents[k] is not None else 0.0 for k, v in zip(places, trial.v, strict=True)
    )
    h = step_size(1.0, subject.dtype)
    c = weighed(trial)
    up, down = (value(c, [t + sign * h * d for t, d in zip(subject.values, x_dot, strict=True)]) for sign in (1, -1))
    expected = (up - down) / (2 * h)
    noise = float(torch.finfo(subject.dtype).eps) * max(abs(up), abs(down)) / h
    # Of the sum that both are, as large as its largest terms.
    size = sum(float((filled(g, d) * d).abs().sum()) for g, d in zip(trial.gradient(), x_dot, strict=True))
    if not abs(ours - expected) <= 10 * (trial.atol + trial.rtol) * size + 30 * noise:
        here = value(c, subject.values)
        left, right = (here - down) / h, (up - here) / h
        if min(left, right) - 1e-6 <= ours <= max(left, right) + 1e-6:
            raise Skip("a kink lies at the inputs")
        return Finding(f"the derivative along a random direction is {ours:.8g} by its jvp, expected {expected:.8g}")
    return None


def vmap(trial: Trial) -> Found:
    """Gradients of many v at once are those of each: backward mapped over v, as for jacobians."""
    us = [random_like(trial.outputs, trial.generator) for _ in range(3)]
    many = [torch.stack(parts) for parts in zip(*us, strict=True)]
    leaves = trial.subject.leaves()
    outputs = trial.subject.run(leaves)
    try:
        mapped = torch.autograd.grad(list(outputs), leaves, many, allow_unused=True, is_grads_batched=True)
    except Exception as error:
        return Finding(f"it cannot be mapped over: {told(error)}", "warning")
    for number, u in enumerate(us):
        for name, all_, one in zip(trial.subject.names, mapped, trial.gradient(u), strict=True):
            if one is not None and (all_ is None or not trial.close(all_[number], one)):
                gap = float("inf") if all_ is None else difference(all_[number], one)
                return Finding(f"∂C/∂{name}: mapped over three v, that of v {number} differs by {gap:.3g}")
    return None
