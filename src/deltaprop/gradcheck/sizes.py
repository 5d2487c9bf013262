"""Inputs of other sizes: no sample, one sample, odd sizes, axes of size one, other numbers of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, on_error
from deltaprop.gradcheck.target import CheckTarget, gradients, random_like


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
    square = any(s and rows for s, rows in zip(context.target.is_square, context.target.batched, strict=True))
    change = (lambda t: torch.stack([t, t])) if square else (lambda t: torch.stack([t, t.flip(0)]))
    _check_resized(context, change, _compare_with_differences, dims=range(2, 3), cuts=False)


def check_odd_size(context: CheckContext) -> None:
    """One row fewer, and one column fewer: a kernel may count on a multiple of something."""
    target = context.target
    if (target.rows or 1) < 3:
        raise Skipped("the inputs have fewer than three rows")
    _check_resized(context, lambda t: t[:-1], _compare_with_differences)
    if (target.values[target.batched.index(True)].shape[-1] or 1) > 2:
        _check_last_axis(context, lambda t: t[..., :-1])


def check_size_one(context: CheckContext) -> None:
    """A last axis of size one, which a ``squeeze`` would take for something else."""
    _check_last_axis(context, lambda t: t[..., :1])


def check_scalar(context: CheckContext) -> None:
    """One entry alone, as a tensor without axes and as one with a single entry."""
    target = context.target
    if any(t.dim() == 0 for t in target.values):
        raise Skipped("an input is a single number already")
    if target.integers:
        raise Skipped("an input of integers may be an index")
    outcomes = []
    for shape in ((), (1,)):
        values = [
            t.reshape(-1)[:1].reshape(shape) if own and t.numel() else t
            for t, own in zip(target.values, target.is_argument, strict=True)
        ]
        try:
            _compare_with_differences(context, target, values)
        except Skipped as outcome:
            outcomes.append(outcome)
    if len(outcomes) == 2:
        raise outcomes[0]


def _check_last_axis(context: CheckContext, change: Callable[[Tensor], Tensor]) -> None:
    """Compare with differences for inputs whose last axis is changed, in all that have the first one's last size."""
    target = context.target
    first = next((t for t in target.values if t.dim() > 1), None)
    if first is None or first.shape[-1] < 2:
        raise Skipped("the inputs do not have two axes with more than one entry")
    if target.integers:
        raise Skipped("an input of integers may index the last axis")
    same = [
        own and t.dim() > 0 and t.shape[-1] == first.shape[-1]
        for t, own in zip(target.values, target.is_argument, strict=True)
    ]
    if any(one and t.dim() > 1 and t.shape[-1] == t.shape[-2] for t, one in zip(target.values, same, strict=True)):
        raise Skipped("an input is a square matrix, which is not cut")
    values = [change(t) if one else t for t, one in zip(target.values, same, strict=True)]
    _compare_with_differences(context, target, values)


def _check_resized(
    context: CheckContext,
    change: Callable[[Tensor], Tensor],
    check: Callable[[CheckContext, CheckTarget, Sequence[Tensor]], None],
    dims: range = range(99),
    cuts: bool = True,
) -> None:
    """Run a check on inputs of which those are changed that hold samples as rows, or are likely to.

    At least one of them must have a number of dimensions in ``dims``. Where several inputs have as many rows, as a
    square weight has, it may be the first alone: then a mistake with all of them changed counts only if it is there
    with that one changed, too.

    A square matrix may be one matrix, which its rows are no samples of; it is never cut.
    """
    target = context.target
    if not any(target.batched):
        raise Skipped("no input holds samples as rows")
    if not target.rows:
        raise Skipped("the inputs hold no samples")
    if not any(t.dim() in dims for t, rows in zip(target.values, target.batched, strict=True) if rows):
        raise Skipped("the inputs do not have two dimensions")
    if cuts and any(square and rows for square, rows in zip(target.is_square, target.batched, strict=True)):
        raise Skipped("an input is a square matrix, which is not cut")
    if cuts and any(not t.dim() or t.shape[0] != target.rows for t in target.integers):
        raise Skipped("an input of integers may index the rows")
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
    context.needs_right_values()
    if context.reference is not None:
        raise Skipped("a reference is given: differences may not be accurate enough")
    leaves, outputs = _forward(target, values)
    if not all(bool(t.isfinite().all()) for t in outputs):
        raise Skipped("f of such inputs is not finite")
    v = random_like(outputs, context.generator)
    with on_error(Failed, "forward accepts such inputs, but backward raises"):
        got = gradients(outputs, leaves, [t.clone() for t in v])
    for i, comparison in context.by_differences(target.weighted_sum(v, values), values, got, most=24):
        if comparison.wrong.any():
            raise Failed(f"∂C/∂{target.names[i]}: {comparison.describe(values[i].shape)}")
