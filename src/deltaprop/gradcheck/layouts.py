"""Inputs of other layouts in memory: strides, offsets, expanded tensors, one tensor in two places."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from deltaprop.errors import format_error
from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, filled, on_error
from deltaprop.gradcheck.differences import Scalar
from deltaprop.gradcheck.target import gradients


def check_non_contiguous(context: CheckContext) -> None:
    """Inputs and v in other layouts, each in its own, give the same gradients."""
    target = context.target
    layouts = LAYOUTS + (CHANNELS_LAST if any(t.dim() in (4, 5) for t in [*target.values, *context.v]) else ())
    for (name, layout), own in itertools.product(layouts, ("inputs", "grad_output", "both")):
        values = [
            layout(t) if argument and own != "grad_output" else t.clone()
            for t, argument in zip(target.values, target.is_argument, strict=True)
        ]
        v = [layout(t) if own != "inputs" else t for t in context.v]
        which = "inputs and grad_output" if own == "both" else own
        _compare_with_contiguous(context, values, v, f"for {which} {name}")
    for shift in range(len(layouts) if len(target.values) > 1 else 0):  # neighbours differ
        in_turn = itertools.islice(itertools.cycle(layouts), shift, None)
        values = [
            layout(t) if argument else t.clone()
            for t, argument, (_, layout) in zip(target.values, target.is_argument, in_turn, strict=False)
        ]
        _compare_with_contiguous(context, values, context.v, "for inputs of which each has a layout of its own")
    _compare_with_conjugate(context)


def _compare_with_conjugate(context: CheckContext) -> None:
    """A complex v may be conjugated by a bit alone, which memory does not show."""
    target, conjugated = context.target, copy.copy(context.target)
    outputs = target.raw_outputs(target.leaves())
    is_complex = [outputs[k].is_complex() for k in context.output_numbers]
    if any(is_complex):
        conjugated.conjugates = True
        v = [t * t.new_tensor([1.0, -1.0]) if c else t for t, c in zip(context.v, is_complex, strict=True)]
        when = "for a grad_output of which is_conj() is true, compared with a resolved one"
        context.compare(context.gradient(target=conjugated), context.gradient(v), when)


def _with_gaps(t: Tensor) -> Tensor:
    """Return the same values with reversed axes, and every second entry of a buffer twice as wide."""
    axes = tuple(range(t.dim()))[::-1]
    memory = torch.full((*t.shape[::-1], 2), float("nan"), dtype=t.dtype, device=t.device)
    memory[..., 0] = t.detach().permute(axes)
    return memory[..., 0].permute(axes)


def _columns(t: Tensor) -> Tensor:
    """Return the same values as some columns of a wider tensor: rows are apart, and do not begin at its start."""
    memory = torch.full((*(t.shape or (1,)),), float("nan"), dtype=t.dtype, device=t.device)
    memory = torch.cat([memory[..., :1], memory, memory[..., :1]], -1)
    columns = memory[..., 1:-1] if t.dim() else memory[1]
    return columns.copy_(t.detach())


def _transposed(t: Tensor) -> Tensor:
    """Return the same values in the memory of a transpose: the last two axes are swapped."""
    return t.detach().mT.clone(memory_format=torch.contiguous_format).mT if t.dim() > 1 else t.clone()


Layout = Callable[[Tensor], Tensor]
LAYOUTS: tuple[tuple[str, Layout], ...] = (
    ("with gaps between entries", _with_gaps),
    ("that are columns of a wider tensor", _columns),
    ("that are transposed", _transposed),
)


def _channels_last(t: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.detach().clone(memory_format=formats.get(t.dim(), torch.contiguous_format))


CHANNELS_LAST: tuple[tuple[str, Layout], ...] = (("in channels_last", _channels_last),)


def check_expanded(context: CheckContext) -> None:
    """A v that is expanded to all entries or along one axis, as sums give it, and inputs that are one expanded row."""
    target = context.target
    for v in _expanded(context.v):
        _compare_with_contiguous(
            context, [t.clone() for t in target.values], v, "for an expanded grad_output, as a sum gives it"
        )
    values = [
        t[:1].clone().expand_as(t) if own and t.dim() > 0 and len(t) > 0 and not square else t.clone()
        for t, own, square in zip(target.values, target.is_argument, target.is_square, strict=True)
    ]
    if any(0 in t.stride() and t.numel() > 1 for t in values):  # a square matrix of equal rows would be singular
        one_number = next(_expanded(context.v))
        _compare_with_contiguous(context, values, one_number, "for inputs that are one expanded row")


def _expanded(v: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield v as one number that is expanded to all entries, and then along each axis alone."""
    yield [torch.full((), 1.25, dtype=t.dtype, device=t.device).expand_as(t) for t in v]
    for axis in range(max((t.dim() for t in v), default=0)):
        yield [t.narrow(axis, 0, 1).expand_as(t) if t.dim() > axis and t.shape[axis] else t for t in v]


def check_same_tensor(context: CheckContext) -> None:
    """One tensor in the place of two inputs gets the sum of their gradients."""
    target = context.target
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(target.values)), 2)
        if target.is_argument[i] and target.is_argument[j] and target.values[i].shape == target.values[j].shape
    ]
    if not pairs:
        raise Skipped("no two inputs have the same shape")
    for i, j in pairs:
        values = [target.values[i] if k == j else t for k, t in enumerate(target.values)]
        with on_error(Skipped, "it does not accept equal inputs:"):
            apart = filled(target.gradients(context.v, target.leaves(values)), values)
        if not (apart[i].isfinite().all() and apart[j].isfinite().all()):
            raise Skipped("the gradient for equal inputs is not finite")
        leaf = values[i].clone().requires_grad_()
        both = leaf.clone()  # not a leaf, which must not be modified in place
        try:
            outputs = target([both if k in (i, j) else t.clone() for k, t in enumerate(values)])
            (got,) = gradients([t for t in outputs if t.requires_grad], [leaf], context.v)
        except RuntimeError as error:
            _skip_if_in_place(error)
            raise Failed(
                f"{target.names[i]} and {target.names[j]} as one tensor: it raises {format_error(error)}"
            ) from None
        own = [got if k == i else None for k in range(len(values))]
        when = f"if {target.names[j]} is the same tensor"
        both_apart = [apart[i] + apart[j] if k == i else None for k in range(len(values))]
        context.compare(own, both_apart, f"{when}, compared with the sum of both for equal tensors")
        if context.has_right_values:
            of_one = partial(_at_two_places, target.weighted_sum(context.v, values), i, j)
            context.must_agree(of_one, values, own, 12, when)


def _at_two_places(c: Scalar, i: int, j: int, tensors: Sequence[Tensor]) -> Tensor:
    return c([tensors[i] if k == j else t for k, t in enumerate(tensors)])


def _compare_with_contiguous(context: CheckContext, values: Sequence[Tensor], v: Sequence[Tensor], when: str) -> None:
    target = context.target
    if context.random:
        raise Skipped("what it draws at random may depend on the layout")
    with on_error(Skipped, "it does not accept these values in contiguous tensors either:"):
        contiguous = target.leaves([t.contiguous() for t in values])
        expected = target.gradients([t.clone(memory_format=torch.contiguous_format) for t in v], contiguous)
    leaves = [t.detach().requires_grad_() for t in values]  # as they are: a copy would be contiguous again
    try:
        outputs = tuple(t for t in target(leaves) if t.requires_grad)
    except RuntimeError as error:
        _skip_if_in_place(error)
        raise Failed(f"{when} forward raises {format_error(error)}{_view_hint(error)}") from None
    try:
        got = gradients(outputs, leaves, v)
    except RuntimeError as error:
        raise Failed(f"{when} backward raises {format_error(error)}{_view_hint(error)}") from None
    context.compare(got, expected, f"{when}, compared with contiguous ones")


def _view_hint(error: RuntimeError) -> str:
    return " (a .view that should be .reshape?)" if "view size is not compatible" in str(error) else ""


def _skip_if_in_place(error: RuntimeError) -> None:
    """Skip the check if a function refuses a leaf or an expanded tensor because it modifies it."""
    if any(word in str(error) for word in ("in-place", "inplace", "written-to tensor")):
        raise Skipped("it modifies its input in place, which must not be a leaf or expanded then") from None
