"""Derivatives of derivatives, forward mode and maps: what else autograd may ask of a backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deltaprop.gradcheck.context import (
    CheckContext,
    Finding,
    Found,
    Skipped,
    difference,
    filled,
    format_error,
    places_with_graph,
    weighed,
)
from deltaprop.gradcheck.differences import place, step_size, value
from deltaprop.gradcheck.target import Gradients, dot, gradients, random_like
from deltaprop.gradcheck.tolerance import check_by_differences


def graph(context: CheckContext) -> Found:
    """A gradient that changes with x has a graph of its own, where one is asked for, and is the same with it."""
    plain, graphed = context.gradient(), _graphed(context)[1]
    for i, (name, one, other) in enumerate(zip(context.target.names, plain, graphed, strict=True)):
        if one is None:
            continue
        if other is None or not context.close(other.detach(), one):
            gap = "None" if other is None else f"one that differs by {difference(other.detach(), one):.3g}"
            return Finding(f"∂C/∂{name} with create_graph=True is {gap}")
        if not other.requires_grad and _changes(context, i):
            return Finding(
                f"∂C/∂{name} changes with grad_output, but has no graph with create_graph=True: a second derivative "
                "would be silently 0 (detached, or computed from numbers that are not saved tensors?)"
            )
    return None


def second(context: CheckContext) -> Found:
    """∂²C by differences of the gradient: the derivative of ⟨w, ∂C/∂x⟩ for a random w, by x and by v."""
    leaves, graphed, v = _graphed(context)
    has = [k for k, g in enumerate(graphed) if g is not None and g.requires_grad]
    if not has:
        raise Skipped("the gradient does not depend on the inputs")
    if any(_refuses(graphed[k]) for k in has):
        raise Skipped("it says that it can be differentiated once (once_differentiable)")
    w = random_like([filled(graphed[k], leaves[k]) for k in has], context.generator)
    try:
        total = dot([graphed[k] for k in has], w)  # type: ignore[misc]  # has names those that are there
        ours = torch.autograd.grad(total, [*leaves, *v], allow_unused=True)
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise Skipped(f"PyTorch has no second derivative of what it calls: {format_error(error)}") from None
        return Finding(f"the second backward raises {format_error(error)}")
    values = [*context.target.values, *[t.detach() for t in v]]
    n = len(leaves)

    def of_gradient(tensors: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            inside = context.target.leaves(tensors[:n])
            found = gradients(context.target.run(inside), inside, list(tensors[n:]))
        return dot([filled(found[k], inside[k]) for k in has], w).double()

    names = [*context.target.names, *["grad_output"] * len(v)]
    for i, (name, gradient) in enumerate(zip(names, ours, strict=True)):
        mine = filled(gradient, values[i])
        most = 8 if context.fast else 60
        found = check_by_differences(of_gradient, values, i, mine, most, context.generator, context.atol, context.rtol)
        if found.wrong.any():
            k = found.worst
            where = place(int(found.entries[k]), values[i].shape)
            return Finding(
                f"the derivative of the gradient by {name}: at {where} expected {found.expected[k]:.8g}, "
                f"got {found.ours[k]:.8g} (something saved that is neither an input nor an output?)"
            )
    return None


def _graphed(context: CheckContext) -> tuple[list[Tensor], Gradients, list[Tensor]]:
    """Return leaves, their gradients with a graph, and the v that they are of.

    Raises:
        Skip: If backward refuses a graph.
    """
    leaves = context.target.leaves()
    v = [t.clone().requires_grad_() for t in context.v]
    try:
        return leaves, gradients(context.target.run(leaves), leaves, v, create_graph=True), v
    except RuntimeError as error:
        raise Skipped(f"backward does not take create_graph: {format_error(error)}") from None


def _refuses(gradient: Tensor | None) -> bool:
    """Return whether a gradient stands before an error that once_differentiable has put there."""
    return gradient is not None and gradient.grad_fn is not None and gradient.grad_fn.name().endswith("::Error")


def _changes(context: CheckContext, i: int) -> bool:
    """Return whether the gradient of an input changes when the inputs or v do; for v it does, being linear in it."""
    ours = context.gradient()[i]
    other = context.gradient([2 * t for t in context.v])[i]
    return ours is not None and other is not None and difference(ours, other) > 0


def jvp(context: CheckContext) -> Found:
    """Forward mode: ⟨v, f'(x) ẋ⟩ by the function's own jvp, against a central difference along ẋ."""
    target = context.target
    x_dot = random_like(target.values, context.generator)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.clone(), d) for t, d in zip(target.values, x_dot, strict=True)]
        try:
            outputs = target(duals)
            tangents = [forward_ad.unpack_dual(t).tangent for t in outputs]
        except (RuntimeError, NotImplementedError) as error:
            if "jvp" in str(error) or "forward" in str(error).lower():
                raise Skipped("it has no forward mode") from None
            return Finding(f"forward mode raises {format_error(error)}")
    places = places_with_graph(context)
    ours = sum(
        float((tangents[k] * v).sum()) if tangents[k] is not None else 0.0
        for k, v in zip(places, context.v, strict=True)
    )
    h = step_size(1.0, target.dtype)
    c = weighed(context)
    up, down = (value(c, [t + sign * h * d for t, d in zip(target.values, x_dot, strict=True)]) for sign in (1, -1))
    expected = (up - down) / (2 * h)
    noise = float(torch.finfo(target.dtype).eps) * max(abs(up), abs(down)) / h
    # Of the sum that both are, as large as its largest terms.
    size = sum(float((filled(g, d) * d).abs().sum()) for g, d in zip(context.gradient(), x_dot, strict=True))
    if not abs(ours - expected) <= 10 * (context.atol + context.rtol) * size + 30 * noise:
        here = value(c, target.values)
        left, right = (here - down) / h, (up - here) / h
        if min(left, right) - 1e-6 <= ours <= max(left, right) + 1e-6:
            raise Skipped("a kink lies at the inputs")
        return Finding(f"the derivative along a random direction is {ours:.8g} by its jvp, expected {expected:.8g}")
    return None


def vmap(context: CheckContext) -> Found:
    """Gradients of many v at once are those of each: backward mapped over v, as for jacobians."""
    us = [random_like(context.outputs, context.generator) for _ in range(3)]
    many = [torch.stack(parts) for parts in zip(*us, strict=True)]
    leaves = context.target.leaves()
    outputs = context.target.run(leaves)
    try:
        mapped = torch.autograd.grad(list(outputs), leaves, many, allow_unused=True, is_grads_batched=True)
    except Exception as error:
        return Finding(f"it cannot be mapped over: {format_error(error)}", "warning")
    for number, u in enumerate(us):
        for name, all_, one in zip(context.target.names, mapped, context.gradient(u), strict=True):
            if one is not None and (all_ is None or not context.close(all_[number], one)):
                gap = float("inf") if all_ is None else difference(all_[number], one)
                return Finding(f"∂C/∂{name}: mapped over three v, that of v {number} differs by {gap:.3g}")
    return None
