"""Inputs of other layouts and sizes: strides, expanded tensors, no sample, one sample, other numbers of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, format_error, on_error
from deltaprop.gradcheck.target import CheckTarget, gradients, random_like


def check_non_contiguous(context: CheckContext) -> None:
    """Inputs and v that are not contiguous give the same gradients."""
    target = context.target
    values = [_strided(t) if own else t for t, own in zip(target.values, target.is_argument, strict=True)]
    _compare_with_contiguous(context, values, [_strided(t) for t in context.v])


def _strided(t: Tensor) -> Tensor:
    """Return the same values with other strides: reversed axes, and every second entry of a buffer twice as wide."""
    axes = tuple(range(t.dim()))[::-1]
    memory = torch.full((*t.shape[::-1], 2), float("nan"), dtype=t.dtype, device=t.device)
    memory[..., 0] = t.detach().permute(axes)
    return memory[..., 0].permute(axes)


def check_expanded(context: CheckContext) -> None:
    """A v that is one number expanded to all entries, as ``.sum()`` gives it, and inputs that are one expanded row."""
    target = context.target
    values = [
        t[:1].expand_as(t) if own and t.dim() > 0 and len(t) > 0 else t
        for t, own in zip(target.values, target.is_argument, strict=True)
    ]
    v = [torch.full((), 1.25, dtype=t.dtype, device=t.device).expand_as(t) for t in context.v]
    _compare_with_contiguous(context, values, v)


def _compare_with_contiguous(context: CheckContext, values: Sequence[Tensor], v: Sequence[Tensor]) -> None:
    target = context.target
    if context.random:
        raise Skipped("what it draws at random may depend on the layout")
    # A matrix whose rows are all equal has no inverse, say.
    with on_error(Skipped, "it does not accept these values in contiguous tensors either:"):
        contiguous = target.leaves([t.contiguous() for t in values])
        expected = target.gradients([t.contiguous() for t in v], contiguous)
    if any(g is not None and not g.isfinite().all() for g in expected):  # a matrix of equal rows is singular
        raise Skipped("the gradient is not finite at these values in contiguous tensors either")
    leaves = [t.detach().requires_grad_() for t in values]
    try:
        # As they are: a copy would be contiguous again.
        outputs = tuple(t for t in target(leaves) if t.requires_grad)
        got = gradients(outputs, leaves, v)
    except RuntimeError as error:
        if any(word in str(error) for word in ("in-place", "inplace", "written-to tensor")):
            raise Skipped("it modifies its input in place, which must not be a leaf or expanded then") from None
        raise Failed(f"it raises {format_error(error)} (a .view that should be .reshape?)") from None
    context.compare(got, expected, "for inputs of this layout, compared with contiguous ones")


def check_zero_size(context: CheckContext) -> None:
    """No samples."""
    _check_resized(context, lambda t: t[:0], _check_no_samples)


def check_one_sample(context: CheckContext) -> None:
    """One row."""
    if (context.target.rows or 1) == 1:
        raise Skipped("the inputs are one sample already")
    _check_resized(context, lambda t: t[:1], _compare_with_differences)


def check_one_dimension(context: CheckContext) -> None:
    """One sample without the axis of samples."""
    _check_resized(context, lambda t: t[0], _compare_with_differences, dims=range(2, 99))


def check_three_dimensions(context: CheckContext) -> None:
    """Samples along two axes."""
    _check_resized(context, lambda t: torch.stack([t, t.flip(0)]), _compare_with_differences, dims=range(2, 3))


def _check_resized(
    context: CheckContext,
    change: Callable[[Tensor], Tensor],
    check: Callable[[CheckContext, CheckTarget, Sequence[Tensor]], None],
    dims: range = range(99),
) -> None:
    """Run a check on inputs of which those are changed that hold samples as rows, or are likely to.

    At least one of them must have a number of dimensions in ``dims``. Where several inputs have as many rows, as a
    square weight has, it may be the first alone: then a mistake with all of them changed counts only if it is there
    with that one changed, too.
    """
    target = context.target
    if not any(target.batched):
        raise Skipped("no input holds samples as rows")
    if not target.rows:
        raise Skipped("the inputs hold no samples")
    if not any(t.dim() in dims for t, rows in zip(target.values, target.batched, strict=True) if rows):
        raise Skipped("the inputs do not have two dimensions")
    first = target.batched.index(True)
    masks = [target.batched, [i == first for i in range(len(target.batched))]]
    outcomes: list[Skipped | Failed] = []
    for mask in masks if sum(target.batched) > 1 else masks[:1]:
        values = [change(t) if rows else t for t, rows in zip(target.values, mask, strict=True)]
        try:
            return check(context, target.with_constants(change), values)
        except (Skipped, Failed) as outcome:
            outcomes.append(outcome)
    raise next((outcome for outcome in reversed(outcomes) if isinstance(outcome, Failed)), outcomes[0])


def _forward(target: CheckTarget, values: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return leaves and outputs, or skip the check if forward refuses these inputs."""
    leaves = target.leaves(values)
    with on_error(Skipped, "forward does not accept such inputs:"):
        outputs = target.run(leaves)
    if not outputs:
        raise Skipped("no output requires grad")
    return leaves, outputs


def _check_no_samples(_: CheckContext, target: CheckTarget, values: Sequence[Tensor]) -> None:
    """Gradients have the right shapes, and are finite."""
    leaves, outputs = _forward(target, values)
    if any(not t.isfinite().all() for t in outputs):
        raise Skipped("f of no samples is not finite (a mean over an empty batch?)")
    with on_error(Failed, "backward of no samples raises"):
        got = gradients(outputs, leaves, [torch.ones_like(t) for t in outputs])
    for name, gradient, x in zip(target.names, got, values, strict=True):
        if gradient is not None and gradient.shape != x.shape:
            raise Failed(f"∂C/∂{name} of no samples: expected shape {list(x.shape)}, got {list(gradient.shape)}")
        if gradient is not None and not gradient.isfinite().all():
            raise Failed(f"∂C/∂{name} of no samples is not finite, but f is")


def _compare_with_differences(context: CheckContext, target: CheckTarget, values: Sequence[Tensor]) -> None:
    context.needs_differences()
    if context.reference is not None:
        raise Skipped("a reference is given: differences may not be accurate enough")
    leaves, outputs = _forward(target, values)
    v = random_like(outputs, context.generator)
    with on_error(Failed, "forward accepts such inputs, but backward raises"):
        got = gradients(outputs, leaves, v)
    for i, comparison in context.by_differences(target.weighted_sum(v, values), values, got, most=24):
        if comparison.wrong.any():
            raise Failed(f"∂C/∂{target.names[i]}: {comparison.describe(values[i].shape)}")
