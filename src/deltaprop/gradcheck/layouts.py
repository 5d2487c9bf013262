"""Inputs of other layouts and sizes: strides, expanded tensors, none, one sample, other numbers of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deltaprop.gradcheck.context import CheckContext, Finding, Found, Skipped, difference, format_error
from deltaprop.gradcheck.differences import place
from deltaprop.gradcheck.target import CheckTarget, dot, gradients, random_like
from deltaprop.gradcheck.tolerance import check_by_differences


def strided(t: Tensor) -> Tensor:
    """Return the same numbers with other strides: axes in reverse, and every second entry of a memory twice as wide."""
    axes = tuple(range(t.dim()))[::-1]
    memory = torch.full((*t.shape[::-1], 2), float("nan"), dtype=t.dtype, device=t.device)
    memory[..., 0] = t.detach().permute(axes)
    return memory[..., 0].permute(axes)


def non_contiguous(context: CheckContext) -> Found:
    """Inputs and v whose entries do not lie side by side give the same gradients."""
    target = context.target
    values = [strided(t) if own else t for t, own in zip(target.values, target.is_argument, strict=True)]
    return _same_as_contiguous(context, values, [strided(t) for t in context.v])


def expanded(context: CheckContext) -> Found:
    """A v that is one number spread over all entries, as ``.sum()`` gives it, and inputs that are one row spread."""
    target = context.target
    spread = [own and t.dim() > 0 and len(t) > 0 for t, own in zip(target.values, target.is_argument, strict=True)]
    values = [t[:1].expand_as(t) if s else t for t, s in zip(target.values, spread, strict=True)]
    v = [torch.full((), 1.25, dtype=t.dtype, device=t.device).expand_as(t) for t in context.v]
    return _same_as_contiguous(context, values, v)


def _same_as_contiguous(context: CheckContext, values: Sequence[Tensor], v: Sequence[Tensor]) -> Found:
    target = context.target
    if context.random:
        raise Skipped("what it draws at random depends on the layout, too")
    plain = target.leaves([t.contiguous() for t in values])
    try:
        expected = gradients(target.run(plain), plain, [t.contiguous() for t in v])
    except Exception as error:  # a matrix whose rows are all the same has no inverse, say
        raise Skipped(f"it does not take these numbers side by side either: {format_error(error)}") from None
    leaves = [t.detach().requires_grad_() for t in values]
    try:
        # As they are: a copy would lie side by side again.
        outputs = tuple(t for t in target(leaves) if t.requires_grad)
        got = gradients(outputs, leaves, v)
    except RuntimeError as error:
        if any(word in str(error) for word in ("in-place", "inplace", "written-to tensor")):
            raise Skipped("it writes to its input, which must be neither a leaf nor expanded") from None
        return Finding(f"it raises {format_error(error)} (a .view where .reshape would do?)")
    for name, one, other in zip(target.names, got, expected, strict=True):
        if other is not None and (one is None or not context.close(one, other)):
            gap = float("inf") if one is None else difference(one, other)
            return Finding(f"∂C/∂{name} differs from that of the same numbers side by side by {gap:.3g}")
    return None


def zero_size(context: CheckContext) -> Found:
    """No samples at all: gradients of the right shapes, and 0 for what no sample reached."""
    return _tried(context, lambda t: t[:0], _of_no_samples)


def _of_no_samples(context: CheckContext, target: CheckTarget, values: Sequence[Tensor]) -> Found:
    leaves, outputs = _forward(target, values)
    if any(not t.isfinite().all() for t in outputs):
        raise Skipped("f of no samples is not finite (a mean over none?)")
    try:
        got = gradients(outputs, leaves, [torch.ones_like(t) for t in outputs])
    except Exception as error:
        return Finding(f"backward of no samples raises {format_error(error)}")
    for name, gradient, x in zip(target.names, got, values, strict=True):
        if gradient is not None and gradient.shape != x.shape:
            return Finding(f"∂C/∂{name} of no samples is {list(gradient.shape)}, expected {list(x.shape)}")
        if gradient is not None and not gradient.isfinite().all():
            return Finding(f"∂C/∂{name} of no samples is not finite, though f is")
    return None


def one_sample(context: CheckContext) -> Found:
    """One row."""
    if (context.target.rows or 1) == 1:
        raise Skipped("the inputs given are one sample")
    return _tried(context, lambda t: t[:1], _by_differences)


def one_dimension(context: CheckContext) -> Found:
    """One sample without the axis of samples."""
    if not any(t.dim() >= 2 for t, b in zip(context.target.values, context.target.batched, strict=True) if b):
        raise Skipped("the inputs given have one dimension")
    return _tried(context, lambda t: t[0], _by_differences)


def three_dimensions(context: CheckContext) -> Found:
    """Samples along two axes."""
    if not any(t.dim() == 2 for t, b in zip(context.target.values, context.target.batched, strict=True) if b):
        raise Skipped("the inputs given are not of two dimensions")
    return _tried(context, lambda t: torch.stack([t, t.flip(0)]), _by_differences)


def _tried(
    context: CheckContext,
    change: Callable[[Tensor], Tensor],
    ask: Callable[[CheckContext, CheckTarget, Sequence[Tensor]], Found],
) -> Found:
    """Ask about inputs of which those are changed that hold samples as rows, or are likely to.

    Where several inputs have as many rows, as a square weight has, it may be the first alone: then what is wrong with
    all of them changed is wrong only if it is so with that one changed, too.

    Raises:
        Skip: If none holds samples, or forward takes neither.
    """
    target = context.target
    if not any(target.batched):
        raise Skipped("no input holds samples as rows")
    if not target.rows:
        raise Skipped("the inputs given hold no samples")
    first = target.batched.index(True)
    masks = [target.batched, [i == first for i in range(len(target.batched))]]
    found: Found = None
    reasons = []
    for mask in masks if sum(target.batched) > 1 else masks[:1]:
        values = [change(t) if rows else t for t, rows in zip(target.values, mask, strict=True)]
        try:
            found = ask(context, target.with_constants(change), values)
        except Skipped as reason:
            reasons.append(reason)
            continue
        if found is None:
            return None
    if found is None:
        raise reasons[0]
    return found


def _forward(target: CheckTarget, values: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return leaves and outputs.

    Raises:
        Skip: If forward does not take them.
    """
    leaves = target.leaves(values)
    try:
        outputs = target.run(leaves)
    except Exception as error:
        raise Skipped(f"forward does not take it: {format_error(error)}") from None
    if not outputs:
        raise Skipped("no output has a graph")
    return leaves, outputs


def _by_differences(context: CheckContext, target: CheckTarget, values: Sequence[Tensor]) -> Found:
    """Compare with central differences on other inputs."""
    if context.reference is not None:
        raise Skipped("a reference is given: differences may be too coarse")
    leaves, outputs = _forward(target, values)
    v = random_like(outputs, context.generator)
    try:
        got = gradients(outputs, leaves, v)
    except Exception as error:
        return Finding(f"forward takes it, but backward raises {format_error(error)}")
    places = [k for k, t in enumerate(target([t.clone() for t in leaves])) if t.requires_grad]

    def c(tensors: Sequence[Tensor]) -> Tensor:
        all_outputs = target(tensors)
        return dot([all_outputs[k] for k in places], v).double()

    for i, (name, gradient) in enumerate(zip(target.names, got, strict=True)):
        if gradient is None:
            continue
        found = check_by_differences(c, list(values), i, gradient, 24, context.generator, context.atol, context.rtol)
        if found.wrong.any():
            k = found.worst
            where = place(int(found.entries[k]), values[i].shape)
            return Finding(f"∂C/∂{name}: at {where} expected {found.expected[k]:.8g}, got {found.ours[k]:.8g}")
    return None
