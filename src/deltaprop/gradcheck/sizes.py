"""Inputs of other sizes: no sample, one sample, odd sizes, axes of size one, other numbers of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, Warned, on_error
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
    _check_resized(context, lambda t: t[0], _compare_or_warn, dims=range(2, 99))


def check_three_dimensions(context: CheckContext) -> None:
    """Samples along two axes."""
    square = any(s and rows for s, rows in zip(context.target.is_square, context.target.batched, strict=True))
    change = (lambda t: torch.stack([t, t])) if square else (lambda t: torch.stack([t, t.flip(0)]))
    _check_resized(context, change, _compare_or_warn, dims=range(2, 3), cuts=False)


def _compare_or_warn(context: CheckContext, target: CheckTarget, values: Sequence[Tensor]) -> None:
    # The function may not be meant for such inputs: `@` accepts nearly all. Wrong numbers are an error, raising is not.
    _compare_with_differences(context, target, values, backward_raises=Warned)


def check_odd_size(context: CheckContext) -> None:
    """One row fewer, and one column fewer: a kernel may count on a multiple of something."""
    _any_of(partial(_cut_a_row, context), partial(_check_last_axis, context, lambda t: t[..., :-1]))


def _cut_a_row(context: CheckContext) -> None:
    if (context.target.rows or 1) < 3:
        raise Skipped("the inputs have fewer than three rows")
    _check_resized(context, lambda t: t[:-1], _compare_with_differences)


def _any_of(*checks: Callable[[], None]) -> None:
    """Run checks, and skip only if all of them are skipped."""
    reasons = []
    for check in checks:
        try:
            check()
        except Skipped as reason:
            reasons.append(reason)
    if len(reasons) == len(checks):
        raise reasons[0]


def check_size_one(context: CheckContext) -> None:
    """A last axis of size one, which a ``squeeze`` would take for something else."""
    _check_last_axis(context, lambda t: t[..., :1])


def check_scalar(context: CheckContext) -> None:
    """One entry alone, as a tensor without axes and as one with a single entry."""
    target = context.target
    plain = target.plain_values()
    if any(t.dim() == 0 or not t.numel() for t in plain):
        raise Skipped("an input is a single number already")
    if target.integers:
        raise Skipped("an input of integers may be an index")
    if any(target.is_square):
        raise Skipped("an input is a square matrix, which is not cut")

    def of_shape(shape: tuple[int, ...]) -> None:
        values = target.changed(lambda t: t.reshape(-1)[:1].reshape(shape), target.is_argument)
        _compare_with_differences(context, target, values, backward_raises=Warned)

    _any_of(partial(of_shape, ()), partial(of_shape, (1,)))


def _check_last_axis(context: CheckContext, change: Callable[[Tensor], Tensor]) -> None:
    """Compare with differences for inputs whose last axis is changed, in all that have the first one's last size."""
    target = context.target
    plain = target.plain_values()
    first = next((t for t in plain if t.dim() > 1), None)
    if first is None or first.shape[-1] < 2:
        raise Skipped("the inputs do not have two axes with more than one entry")
    if target.integers:
        raise Skipped("an input of integers may index the last axis")
    same = [
        own and t.dim() > 0 and t.shape[-1] == first.shape[-1] for t, own in zip(plain, target.is_argument, strict=True)
    ]
    if any(one and t.dim() > 1 and t.shape[-1] == t.shape[-2] for t, one in zip(plain, same, strict=True)):
        raise Skipped("an input is a square matrix, which is not cut")
    _compare_with_differences(context, target, target.changed(change, same))


def _check_resized(
    context: CheckContext,
    change: Callable[[Tensor], Tensor],
    check: Callable[[CheckContext, CheckTarget, Sequence[Tensor]], None],
    dims: range = range(99),
    cuts: bool = True,
) -> None:
    """Run a check on inputs of which those are changed that hold samples as rows, or are likely to.

    At least one of them must have a number of dimensions in ``dims``. Where several inputs have as many rows and
    forward refuses all of them changed, the first one alone is.

    A square matrix may be one matrix rather than samples as rows; ``cuts`` says that the change would cut it.
    """
    target = context.target
    if not any(target.batched):
        raise Skipped("no input holds samples as rows")
    if not target.rows:
        raise Skipped("the inputs hold no samples")
    if not any(t.dim() in dims for t, rows in zip(target.plain_values(), target.batched, strict=True) if rows):
        raise Skipped("the inputs do not have two dimensions")
    if cuts and any(square and rows for square, rows in zip(target.is_square, target.batched, strict=True)):
        raise Skipped("an input is a square matrix, which is not cut")
    if any(not t.dim() or t.shape[0] != target.rows for t in target.integers):
        raise Skipped("an input of integers may index the rows")
    first = target.batched.index(True)
    masks = [target.batched, [i == first for i in range(len(target.batched))]]
    for mask in masks if sum(target.batched) > 1 else masks[:1]:
        try:
            return check(context, target.with_constants(change), target.changed(change, mask))
        except Skipped as outcome:
            reason = outcome
    raise reason


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


def _compare_with_differences(
    context: CheckContext, target: CheckTarget, values: Sequence[Tensor], backward_raises: type[Failed] = Failed
) -> None:
    context.needs_right_values()
    leaves, outputs = _forward(target, values)
    if not all(bool(t.isfinite().all()) for t in outputs):
        raise Skipped("f of such inputs is not finite")
    v = random_like(outputs, context.generator)
    with on_error(backward_raises, "forward accepts such inputs, but backward raises"):
        got = gradients(outputs, leaves, [t.clone() for t in v])
    context.must_agree(target.weighted_sum(v, values), values, got, 24)
