"""What else autograd may compute by a backward pass: second derivatives, forward mode, vmap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, differs, filled, format_error, on_error
from deltaprop.gradcheck.differences import slopes_at
from deltaprop.gradcheck.target import Gradients, dot, nodes_of, python_nodes, random_like


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
                "would silently be 0; mend it, or mark backward @once_differentiable"
            )


def check_second(context: CheckContext) -> None:
    """The derivative of ⟨w, ∂C/∂x⟩ by x and by v, for a random w, equals differences of the gradient."""
    context.needs_precision()
    context.needs_finite()
    _gradients_with_graph(context)
    w = random_like(context.target.values, context.generator)
    _check_derivative(context, "the derivative of the gradient", [w], 8 if context.fast else 60)


def check_third(context: CheckContext) -> None:
    """The derivative of ⟨w, second derivatives⟩ by x and by v, for another random w, equals their differences."""
    if not context.deep:
        raise Skipped("not without deep=True")
    context.needs_precision()
    context.needs_finite()
    _gradients_with_graph(context)
    w = random_like(context.target.values, context.generator)
    w_second = random_like([*context.target.values, *context.v], context.generator)
    _check_derivative(context, "the third derivative", [w, w_second], 8 if context.fast else 24)


Weights = Sequence[Sequence[Tensor]]


def _check_derivative(context: CheckContext, what: str, weights: Weights, most: int) -> None:
    """Compare the derivative of ⟨last weights, derivatives of one order less⟩ with differences."""
    target, (*lower, last) = context.target, weights
    values = [*target.values, *context.v]
    leaves, derivatives = _derivatives(context, values, lower, create_graph=True)
    connected = [k for k, d in enumerate(derivatives) if d is not None and d.requires_grad]
    if not connected:
        raise Skipped("the gradient does not depend on the inputs")
    if any(node.name().endswith("::Error") for node in nodes_of([d for d in derivatives if d is not None])):
        raise Skipped("it is marked once_differentiable")  # maybe deep in a module

    def weighted(derivatives: Gradients) -> Tensor:
        return dot(
            [filled(derivatives, values[: len(derivatives)])[k] for k in connected], [last[k] for k in connected]
        )

    try:
        got = torch.autograd.grad(weighted(derivatives), leaves, allow_unused=True)
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise Skipped(f"PyTorch lacks a derivative of an operation in it: {format_error(error)}") from None
        raise Failed(f"computing {what} raises {format_error(error)}{_remedy(context)}") from None

    def scalar(tensors: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            return weighted(_derivatives(context, tensors, lower, create_graph=False)[1]).double()

    names = [*target.names, *["grad_output"] * len(context.v)]
    for i, comparison in context.by_differences(scalar, values, list(filled(got, values)), most):
        if comparison.wrong.any():
            detail = comparison.describe(values[i].shape)
            raise Failed(f"{what} by {names[i]}: {detail}{_remedy(context)}")


def _derivatives(
    context: CheckContext, tensors: Sequence[Tensor], weights: Weights, create_graph: bool
) -> tuple[list[Tensor], Gradients]:
    """Return x and v as leaves, and ∂C/∂x or, with weights, the derivative of that order by x and v."""
    target, n = context.target, len(context.target.values)
    leaves = target.leaves(tensors)
    derivatives = target.gradients(leaves[n:], leaves[:n], create_graph=create_graph or bool(weights))
    for number, w in enumerate(weights):
        terms = [(d, one) for d, one in zip(derivatives, w, strict=True) if d is not None and d.requires_grad]
        if not terms:
            raise Skipped("the gradient does not depend on the inputs")
        total = dot([d for d, _ in terms], [one for _, one in terms])
        more = create_graph or number + 1 < len(weights)
        derivatives = list(torch.autograd.grad(total, leaves, allow_unused=True, create_graph=more))
    return leaves, derivatives


def _remedy(context: CheckContext) -> str:
    """Return the cause, where it is known, and what else can be done."""
    nodes = list(python_nodes(context.target.run(context.target.leaves())))
    if not nodes:
        return ""
    text = "; mend it, or mark backward @once_differentiable"
    saved = [t for node in nodes for t in getattr(node, "saved_tensors", ()) if t is not None]
    loose = [t for t in saved if t.is_floating_point() and not t.requires_grad]
    if loose and not context.target.has_constants:
        text = f": a saved tensor of shape {list(loose[0].shape)} is neither an input nor an output{text}"
    return text


def _gradients_with_graph(context: CheckContext) -> tuple[list[Tensor], Gradients, list[Tensor]]:
    """Return leaves, their gradients with a graph, and the v that they are of; skip the check if backward refuses."""
    leaves = context.target.leaves()
    v = [t.clone().requires_grad_() for t in context.v]
    with on_error(Skipped, "backward does not support create_graph=True:"):
        return leaves, context.target.gradients(v, leaves, create_graph=True), v


def check_jvp(context: CheckContext) -> None:
    """Forward mode: ⟨v, f'(x) ẋ⟩ by the function's own jvp equals a central difference along a random ẋ."""
    context.needs_differences()
    context.needs_finite()
    target = context.target
    x_dot = random_like(target.values, context.generator)
    c = target.weighted_sum(context.v)
    try:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t.clone(), d) for t, d in zip(target.values, x_dot, strict=True)]
            outputs = dict(target.numbered_outputs(duals))
            tangents = [forward_ad.unpack_dual(outputs[k]).tangent for k in context.output_numbers]
            # Not ⟨v, f⟩ of the duals: the forward mode of a sum imports the compiler, which takes seconds.
            got = sum(float((t * v).sum()) for t, v in zip(tangents, context.v, strict=True) if t is not None)
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
    with on_error(Skipped if context.random else Warned, "vmap over grad_output raises"):
        mapped = context.target.gradients(stacked, is_grads_batched=True)
    for number, u in enumerate(us):
        gradients = [None if g is None else g[number] for g in mapped]
        context.compare(gradients, context.gradient(u), f"under vmap over three grad_outputs, number {number}")
