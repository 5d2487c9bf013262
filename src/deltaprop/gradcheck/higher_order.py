"""What else autograd may compute by a backward pass: second derivatives, forward mode, vmap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deltaprop._torch_compat import defines_jvp, defines_vmap
from deltaprop.errors import format_error
from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, differs, filled, mismatch, on_error
from deltaprop.gradcheck.differences import NOISE_MARGIN, slopes_at
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
                "would silently be 0; correct it, or mark backward @once_differentiable"
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
        if "not implemented" in str(error) or "does not currently support" in str(error):
            raise Skipped(f"PyTorch lacks a derivative in it: {format_error(error)}") from None
        raise Failed(f"computing {what} raises {format_error(error)}{_remedy(context)}") from None

    def scalar(tensors: Sequence[Tensor]) -> Tensor:
        try:
            with torch.enable_grad():
                return weighted(_derivatives(context, tensors, lower, create_graph=False)[1]).double()
        except Exception:  # a moved point, beyond the edge of what f accepts
            return torch.tensor(math.nan, device="cpu")

    names = [*target.names, *["grad_output"] * len(context.v)]
    terms = zip(filled(derivatives, values[: len(derivatives)]), last, strict=True)
    size = sum(float((d.detach() * w).abs().sum()) for d, w in terms)
    for i, comparison in context.by_differences(scalar, values, list(filled(got, values)), most, size):
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
    text = "; correct it, or mark backward @once_differentiable"
    saved = [t for node in nodes for t in getattr(node, "saved_tensors", ()) if t is not None]
    loose = [t for t in saved if t.is_floating_point() and not t.requires_grad]
    of_inputs = context.target.is_function and not context.target.has_constants  # all of them require a gradient
    if loose and of_inputs and len(context.target.run_all(context.target.leaves())) == len(context.outputs):
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
    if not all(defines_jvp(node) for node in python_nodes(target.run(target.leaves()))):
        raise Skipped("it has no forward mode")
    try:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t.clone(), d) for t, d in zip(target.values, x_dot, strict=True)]
            outputs = dict(target.numbered_outputs(duals))
            tangents = [forward_ad.unpack_dual(outputs[k]).tangent for k in context.output_numbers]
            # Not ⟨v, f⟩ of the duals: the forward mode of a sum imports the compiler, which takes seconds.
            got = sum(float((t * v).sum()) for t, v in zip(tangents, context.v, strict=True) if t is not None)
    except (RuntimeError, NotImplementedError) as error:
        if "forward AD" in str(error) or "forward-mode" in str(error):  # PyTorch lacks that of an operation in it
            raise Skipped(f"it has no forward mode: {format_error(error)}") from None
        raise Failed(f"forward mode raises {format_error(error)}") from None

    def along(step: Sequence[Tensor]) -> Tensor:
        return c([x + step[0].to(x.device) * d for x, d in zip(target.values, x_dot, strict=True)])

    zero, first = torch.zeros((), dtype=target.dtype, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu")
    slopes, noise = slopes_at(along, [zero], 0, first, tolerance=context.tolerance)
    expected, left, right = slopes.flatten().tolist()
    if not math.isfinite(expected):
        raise Skipped("f is not finite beside these inputs")
    # The size of the terms of the sum that both are.
    gradients = filled(context.gradient(), target.values)
    size = sum(float((g * d).abs().sum()) for g, d in zip(gradients, x_dot, strict=True))
    slack = 10 * (context.tolerance.atol + context.tolerance.rtol) * size + NOISE_MARGIN * noise
    if abs(got - expected) <= slack:
        return
    if abs(right - left) > 100 * slack and min(left, right) <= got <= max(left, right):
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
    if any(defines_vmap(node) for node in python_nodes(context.target.run(context.target.leaves()))):
        _check_vmap_of_inputs(context)


def _check_vmap_of_inputs(context: CheckContext) -> None:
    """F mapped over a new first axis, and over a new last one, returns what it returns of each."""
    target, numbers = context.target, context.output_numbers
    factors = (1.0, 0.9, 1.1)

    def f(*tensors: Tensor) -> list[Tensor]:
        outputs = dict(target.numbered_outputs(tensors))
        return [outputs[k] for k in numbers]

    apart = [[t.detach() for t in f(*[factor * t for t in target.values])] for factor in factors]
    for axis, where in ((0, "first"), (-1, "last")):
        stacked = [torch.stack([factor * t for factor in factors], axis) for t in target.values]
        with on_error(Failed, "vmap over the inputs raises"):
            mapped = torch.vmap(f, in_dims=axis)(*stacked)
        for number, of_one in enumerate(apart):
            for k, got, expected in zip(numbers, mapped, of_one, strict=True):
                problem = mismatch(got[number], expected, context.rounding(expected))
                if problem:
                    raise Failed(f"output {k} under vmap over a new {where} axis of the inputs: {problem}")
