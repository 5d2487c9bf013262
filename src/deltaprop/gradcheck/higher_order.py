"""What else autograd may compute by a backward pass: second derivatives, forward mode, vmap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, differs, filled, format_error, on_error
from deltaprop.gradcheck.differences import slopes_at
from deltaprop.gradcheck.target import Gradients, dot, nodes_of, random_like


def check_graph(context: CheckContext) -> None:
    """With create_graph=True gradients are the same, and have a graph if they change with x or v."""
    plain, graphed = context.gradient(), _gradients_with_graph(context)[1]
    context.compare(graphed, plain, "with create_graph=True")
    doubled = context.gradient([2 * t for t in context.v])
    for name, one, other, twice in zip(context.target.names, plain, graphed, doubled, strict=True):
        if one is None or other is None or twice is None or other.requires_grad:
            continue
        if differs(one, twice):
            raise Failed(
                f"∂C/∂{name} changes with grad_output, but has no graph with create_graph=True: second derivatives "
                "would silently be 0 (detached, or computed from values that are not saved tensors?)"
            )


def check_second(context: CheckContext) -> None:
    """The derivative of ⟨w, ∂C/∂x⟩ by x and by v, for a random w, equals differences of the gradient."""
    target = context.target
    leaves, graphed, v = _gradients_with_graph(context)
    connected = {k: g for k, g in enumerate(graphed) if g is not None and g.requires_grad}
    if not connected:
        raise Skipped("the gradient does not depend on the inputs")
    if any(node.name().endswith("::Error") for node in nodes_of([*connected.values()])):  # also deep in a module
        raise Skipped("it is marked once_differentiable")
    w = random_like(list(connected.values()), context.generator)
    try:
        second = torch.autograd.grad(dot(list(connected.values()), w), [*leaves, *v], allow_unused=True)
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise Skipped(f"PyTorch has no second derivative of an operation in it: {format_error(error)}") from None
        raise Failed(f"the second backward raises {format_error(error)}") from None
    values, n = [*target.values, *[t.detach() for t in v]], len(leaves)

    def weighted_gradient(tensors: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            inputs = target.leaves(tensors[:n])
            gradients = filled(target.gradients(tensors[n:], inputs), inputs)
        return dot([gradients[k] for k in connected], w).double()

    names = [*target.names, *["grad_output"] * len(v)]
    most = 8 if context.fast else 60
    for i, comparison in context.by_differences(weighted_gradient, values, list(filled(second, values)), most):
        if comparison.wrong.any():
            raise Failed(
                f"the derivative of the gradient by {names[i]}: {comparison.describe(values[i].shape)}: "
                "is a tensor saved that is neither an input nor an output?"
            )


def _gradients_with_graph(context: CheckContext) -> tuple[list[Tensor], Gradients, list[Tensor]]:
    """Return leaves, their gradients with a graph, and the v that they are of; skip the check if backward refuses."""
    leaves = context.target.leaves()
    v = [t.clone().requires_grad_() for t in context.v]
    with on_error(Skipped, "backward does not support create_graph=True:"):
        return leaves, context.target.gradients(v, leaves, create_graph=True), v


def check_jvp(context: CheckContext) -> None:
    """Forward mode: ⟨v, f'(x) ẋ⟩ by the function's own jvp equals a central difference along a random ẋ."""
    context.needs_differences()
    target = context.target
    x_dot = random_like(target.values, context.generator)
    c = target.weighted_sum(context.v)
    try:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t.clone(), d) for t, d in zip(target.values, x_dot, strict=True)]
            tangent = forward_ad.unpack_dual(c(duals)).tangent
            got = 0.0 if tangent is None else float(tangent)
    except (RuntimeError, NotImplementedError) as error:
        if "jvp" in str(error) or "forward" in str(error).lower():
            raise Skipped("it has no forward mode") from None
        raise Failed(f"forward mode raises {format_error(error)}") from None

    def along(step: Sequence[Tensor]) -> Tensor:
        return c([x + step[0] * d for x, d in zip(target.values, x_dot, strict=True)])

    slopes, noise = slopes_at(along, [torch.zeros((), dtype=target.dtype)], 0, torch.tensor([0]), eps=context.eps)
    expected, left, right = slopes.flatten().tolist()
    # The size of the terms of the sum that both are.
    gradients = filled(context.gradient(), target.values)
    size = sum(float((g * d).abs().sum()) for g, d in zip(gradients, x_dot, strict=True))
    if abs(got - expected) <= 10 * (context.atol + context.rtol) * size + 30 * noise:
        return
    if min(left, right) - 1e-6 <= got <= max(left, right) + 1e-6:
        raise Skipped("the inputs lie at a kink")
    raise Failed(f"the derivative along a random direction: expected {expected:.8g}, got {got:.8g} by its jvp")


def check_vmap(context: CheckContext) -> None:
    """Backward mapped over several v, as for Jacobians, gives the gradient of each."""
    us = [random_like(context.outputs, context.generator) for _ in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*us, strict=True)]
    with on_error(Warned, "vmap over grad_output raises"):
        mapped = context.target.gradients(stacked, is_grads_batched=True)
    for number, u in enumerate(us):
        gradients = [None if g is None else g[number] for g in mapped]
        context.compare(gradients, context.gradient(u), f"under vmap over three grad_outputs, number {number}")
