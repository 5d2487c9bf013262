"""Checks of the gradient itself: its values, what backward returns, and what the gradient depends on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaprop._torch_compat import output_metadata
from deltaprop.gradcheck.context import (
    COARSEST,
    CheckContext,
    Failed,
    Skipped,
    Warned,
    differs,
    filled,
    has_both_signs,
    largest,
    mismatch,
    on_error,
)
from deltaprop.gradcheck.differences import (
    COARSE,
    NOISE_MARGIN,
    EntryComparison,
    Scalar,
    check_by_differences,
    draw_entries,
    find_wrong_entry,
    format_index,
    slopes_at,
)
from deltaprop.gradcheck.target import CheckTarget, Gradients, gradients, python_nodes, random_like


def check_values(context: CheckContext) -> str:
    """∂C/∂x equals central differences, or the gradient of the reference; return a remark, or nothing."""
    target, gradients = context.target, context.gradient()
    if context.reference is not None:
        return _compare_with_reference(context, context.reference, gradients)
    if context.eps > COARSEST:
        raise Warned("f computes in 16 bits, too few for differences: pass a reference=, and dtype=torch.bfloat16")
    problems, unjudged, count, symmetric = [], [], 0, []
    remarks: list[str] = []
    c = target.weighted_sum(context.v)
    for i, comparison in context.by_differences(c, target.values, gradients, context.most):
        name, shape = target.names[i], target.values[i].shape
        count += len(comparison.entries)
        unjudged += [f"{name}{format_index(entry, shape)}" for entry in comparison.unjudged]
        for entry, own, low, high in comparison.kinks:
            context.kinks.append(f"{name}{format_index(entry, shape)}: {own:.6g} between {low:.6g} and {high:.6g}")
        if comparison.wrong.any() and _is_right_if_symmetric(context, i, gradients[i]):
            symmetric.append(i)
            remarks.append(f"∂C/∂{name}: {comparison.describe(shape)}")
        elif comparison.wrong.any():
            problems.append(f"∂C/∂{name}: {comparison.describe(shape)}{_likely_cause(comparison, context, i)}")
        elif len(comparison.entries) < target.values[i].numel() and not comparison.kinks:
            problems += _wrong_among_the_others(context, c, i, gradients[i])
    if problems:
        context.is_wrong = True
        raise Failed("; ".join(problems))
    if any(context.is_narrow) and not all(context.is_narrow):
        _compare_exact_outputs(context)
    if unjudged and len(unjudged) == count:
        raise Warned(f"no entry could be judged: {_UNJUDGED}")
    if symmetric:
        for i in symmetric:  # what all other checks take
            context.target = context.target.as_symmetric(i)
        raise Warned(
            f"{'; '.join(remarks)}: it is the gradient for symmetric matrices, right along symmetric changes alone; "
            "a function of any matrix would take (x + x.mT)/2, and so do the checks below"
        )
    if context.eps > torch.finfo(target.dtype).eps:
        remarks.append("f computes in a narrower dtype: compared with wider steps and tolerances")
    if unjudged:
        which = f"{', '.join(unjudged[:3])}{', …' if len(unjudged) > 3 else ''}"
        remarks.append(f"{len(unjudged)} of {count} entries could not be judged, {which}: {_UNJUDGED}")
    return "; ".join(remarks)


def _compare_exact_outputs(context: CheckContext) -> None:
    """Compare once more, for the outputs that have all digits, where others have fewer."""
    target = context.target
    v = [t * (not narrow) for t, narrow in zip(context.v, context.is_narrow, strict=True)]
    compared = context.by_differences(
        target.weighted_sum(v), target.values, context.gradient(v), context.most, tolerance=context.exact
    )
    for i, comparison in compared:
        if comparison.wrong.any():
            context.is_wrong = True
            raise Failed(f"∂C/∂{target.names[i]}: {comparison.describe(target.values[i].shape)}")


_UNJUDGED = "there f has no finite slope, or rounding hides it"


def _compare_with_reference(context: CheckContext, reference: CheckTarget, gradients: Gradients) -> str:
    """Compare with the gradients of the reference; return a remark if its values are others, or nothing."""
    target, tolerance = context.target, context.tolerance
    with on_error(Failed, "the reference cannot be compared with:"):
        values = dict(reference.numbered_outputs(reference.leaves()))
        references = filled(context.gradient(target=reference), target.values)
    context.compare(
        gradients,
        [None if g is None else r for g, r in zip(gradients, references, strict=True)],  # `missing` checks None
        "compared with the reference",
        tolerance=lambda r: tolerance.atol * largest([r]) + tolerance.rtol * r.abs(),
    )
    pairs = [(values.get(k), t) for k, t in zip(context.output_numbers, context.outputs, strict=True)]
    if any(mismatch(a, t, tolerance.atol * largest([t]) + tolerance.rtol * t.abs()) for a, t in pairs):
        return "the values of the reference are others than those of f"
    return ""


def _is_right_if_symmetric(context: CheckContext, i: int, gradient: Tensor | None) -> bool:
    """Return whether a wrong gradient by a symmetric matrix is that of f((x + xᵀ)/2), once made symmetric itself."""
    x = context.target.values[i]
    if gradient is None or not context.target.is_square[i] or not torch.equal(x, x.mT) or x.dim() > 2:
        return False
    target = context.target.as_symmetric(i)
    only = [(gradient + gradient.mT) / 2 if k == i else None for k in range(len(target.values))]
    ((_, comparison),) = context.by_differences(target.weighted_sum(context.v), target.values, only, context.most)
    return not comparison.wrong.any()


def _wrong_among_the_others(context: CheckContext, c: Scalar, i: int, gradient: Tensor | None) -> list[str]:
    """Return what is wrong in an entry that was not drawn; the entry itself must disagree with its differences."""
    target = context.target
    assert gradient is not None
    entry = find_wrong_entry(c, target.values, i, gradient, context.generator, context.tolerance)
    if entry is None:
        return []
    comparison = check_by_differences(c, target.values, i, gradient, entry, context.tolerance)
    if not comparison.wrong.any():
        return []
    found = "found by the slope along all entries, some of which were compared one by one and are right"
    return [f"∂C/∂{target.names[i]}: {comparison.describe(target.values[i].shape, found)}"]


def _likely_cause(comparison: EntryComparison, context: CheckContext, i: int) -> str:
    """Return the likely cause of a wrong gradient, if its values show it."""
    got, expected, rows = comparison.got, comparison.expected, context.target.rows or 1
    norm, size = float(expected.norm()), context.target.values[i].numel()
    if not norm:
        return ": f is constant beside these inputs"
    if not float(got.norm()):
        return ": all entries are 0 (detached, or a term left out?)"
    factor = float((got @ expected) / norm**2)
    if abs(factor - 1) > 1e-3 and float((got - factor * expected).norm()) <= 1e-6 * norm:
        causes = [(-1.0, "wrong sign"), (2.0, "a factor of 2"), (0.5, "a factor of ½")]
        if rows > 1:
            causes += [(float(rows), f"a missing 1/N, N = {rows}"), (1 / rows, f"a 1/N too many, N = {rows}")]
        if size > 1 and size != rows:
            causes += [(float(size), f"a missing 1/{size}, the number of entries"), (1 / size, f"a 1/{size} too many")]
        likely = " or ".join(text for f, text in causes if abs(factor - f) <= 1e-6 * abs(f))
        return f": {factor:.6g} times what it should be{f' ({likely})' if likely else ''}"
    if context.target.names[i].startswith("view_as_real("):
        conjugate = got * torch.where(comparison.entries % 2 == 1, -1.0, 1.0)
        if torch.allclose(conjugate, expected, 1e-6, 1e-6 * float(expected.abs().max())):
            return ": the complex conjugate of what it should be"
    flat = context.gradient([torch.ones_like(t) for t in context.v])[i]
    if flat is None or len(got) < 2:
        return ""
    if torch.allclose(flat.flatten()[comparison.entries].cpu().double(), got, 0.0, 1e-12):
        return ": grad_output seems not to be used"
    return ""


def check_kink(context: CheckContext) -> None:
    """Where f has no derivative, the gradient lies between the slopes on the two sides."""
    context.needs_differences()
    if context.reference is not None:
        raise Skipped("a reference is given, so no differences were computed")
    if context.kinks:
        more = f" and {len(context.kinks) - 3} more" if len(context.kinks) > 3 else ""
        raise Warned(
            "f is not differentiable there; any value between the left and the right slope is accepted: "
            f"{', '.join(context.kinks[:3])}{more}"
        )


def check_missing(context: CheckContext) -> None:
    """An input that C depends on gets a gradient."""
    context.needs_differences()
    target, problems = context.target, []
    c = target.weighted_sum(context.v)
    for i, gradient in enumerate(context.gradient()):
        if gradient is None:
            entries = draw_entries(target.values[i], context.most, context.generator)
            slopes, noise = slopes_at(c, target.values, i, entries, tolerance=context.tolerance)
            finer, _ = slopes_at(c, target.values, i, entries, 0.1, context.tolerance)
            smooth = (finer[0] - slopes[0]).abs() < 0.5 * slopes[0].abs()  # no jump, as of a count
            steepest = largest([slopes[0] * smooth])
            if steepest > NOISE_MARGIN * noise:
                problems.append(f"∂C/∂{target.names[i]}: got None, but C depends on it (slope up to {steepest:.6g})")
    if problems:
        raise Failed("; ".join(problems))


def check_large(context: CheckContext) -> None:
    """At inputs 1000 times as large, all or one, of either sign, the gradient is finite where f is.

    What has one sign alone, such as an exponent, keeps it.
    """
    target, judged = context.target, False
    n = len(target.values)
    for factor, one in itertools.product((1e3, -1e3), (None, *range(n)) if n > 1 else (None,)):
        values = [
            factor * t if one in (None, i) and (factor > 0 or has_both_signs(t)) else t
            for i, t in enumerate(target.values)
        ]
        leaves = target.leaves(values)
        try:
            outputs = target.run(leaves)
        except Exception:  # f does not accept such values
            continue
        where = f"{factor:g} times {'the inputs' if one is None else target.names[one]}"
        with on_error(Failed, f"backward at {where} raises"):
            got = gradients(outputs, leaves, random_like(outputs, context.generator))
        whole = all(bool(t.isfinite().all()) for t in outputs)
        for name, gradient, mask in zip(target.names, got, context.finite, strict=True):
            if gradient is None:
                continue
            if not whole:  # an element-wise function is finite entry by entry
                for t in outputs:
                    mask = mask & (t.isfinite() if t.shape == mask.shape else False)
            judged |= bool(mask.any())
            wrong = torch.nonzero((mask & ~gradient.isfinite()).flatten()).flatten()
            if len(wrong):
                raise Failed(
                    f"∂C/∂{name} at {where}: at {format_index(int(wrong[0]), gradient.shape)} got "
                    f"{float(gradient.flatten()[wrong[0]])}, but f is finite ({len(wrong)} of {mask.numel()} entries)"
                )
    if not judged:
        raise Skipped("f is not finite at inputs 1000 times as large")


def check_zeros(context: CheckContext) -> None:
    """With a row of zeros, or one entry, the gradient is finite where f and its slopes are: 0/0 is the usual NaN."""
    context.needs_right_values()
    target = context.target
    values = [t.clone(memory_format=torch.contiguous_format) for t in target.values]
    for t, own, square in zip(values, target.is_argument, target.is_square, strict=True):
        if own and t.numel() and not square:  # a square matrix would be singular
            (t[0] if t.dim() > 1 else t.view(-1)[:1]).zero_()
    leaves = target.leaves(values)
    with on_error(Skipped, "f does not accept zeros:"):
        outputs = target.run(leaves)
    if not outputs or not all(bool(t.isfinite().all()) for t in outputs):
        raise Skipped("f of zeros is not finite")
    v = random_like(outputs, context.generator)
    with on_error(Warned, "with a row of zeros backward raises"):
        got = gradients(outputs, leaves, [t.clone() for t in v])
    if all(g is None or bool(g.isfinite().all()) for g in got):
        return
    for i, comparison in context.by_differences(target.weighted_sum(v, values), values, got, most=24):
        comparison.set_aside(comparison.got.isfinite())  # `values` judges these, at better inputs
        if comparison.wrong.any():
            raise Warned(f"∂C/∂{target.names[i]} with a row of zeros: {comparison.describe(values[i].shape)}")


# --- what backward returns ---


def _raw_gradients(context: CheckContext) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield each gradient that the backward of a custom node returns, with shape, dtype and device of its input.

    Autograd sums a gradient that is too large, and casts one of another dtype, before any hook sees it.
    """
    leaves = context.target.leaves()
    outputs = context.target.run(leaves)
    nodes = list(python_nodes(outputs))
    if not nodes:
        raise Skipped("it has no custom Function")
    received: dict[int, tuple[Tensor | None, ...]] = {}

    def keep(at: int, grad_outputs: tuple[Tensor | None, ...]) -> None:
        received[at] = tuple(t if t is None else t.clone() for t in grad_outputs)  # backward may write to them

    for at, node in enumerate(nodes):
        node.register_prehook(partial(keep, at))
    gradients(outputs, leaves, context.v, retain_graph=True)
    for at, node in enumerate(nodes):
        if at not in received or any(t is None for t in received[at]):
            continue  # it was not reached, or an output of it was not used
        with on_error(Skipped, "its backward cannot be called a second time:"), torch.no_grad():
            raw = node.apply(*received[at])
        raw = raw if isinstance(raw, tuple) else (raw,)
        edges = iter([edge for edge in node.next_functions if edge[0] is not None])
        for number, (gradient, needed) in enumerate(zip(raw, node.needs_input_grad, strict=False)):
            like = output_metadata(*next(edges)) if needed else None
            if needed and gradient is not None:
                yield f"{type(node).__name__.removesuffix('Backward')} input {number}", gradient, like


def check_shapes(context: CheckContext) -> None:
    """Each gradient has its input's shape; one that autograd has to sum was not reduced over the batch."""
    for label, gradient, like in _raw_gradients(context):
        if gradient.shape != torch.Size(like.shape):
            raise Warned(
                f"{label}: the gradient has shape {list(gradient.shape)}, the input {list(like.shape)}; autograd sums "
                "it to that shape, but direct calls of backward do not (is a sum over the batch missing?)"
            )


def check_dtypes(context: CheckContext) -> None:
    """Each gradient has its input's dtype and device; autograd would cast it silently."""
    for label, gradient, like in _raw_gradients(context):
        if gradient.dtype != like.dtype or gradient.device != like.device:
            raise Failed(
                f"{label}: the gradient is {gradient.dtype} on {gradient.device}, "
                f"the input {like.dtype} on {like.device}; autograd casts it silently"
            )


# --- grad_output, the inputs that require grad, the outputs in use ---


def check_grad_output(context: CheckContext) -> None:
    """The gradient changes with v: backward uses it, and does not assume that it is 1."""
    doubled = context.gradient([2 * t for t in context.v])
    for name, once, twice in zip(context.target.names, context.gradient(), doubled, strict=True):
        if once is not None and twice is not None and largest([once]) > 0 and not differs(once, twice):
            raise Failed(f"∂C/∂{name} is the same for grad_output v and 2v: it is not used, or assumed to be 1")


def check_linear(context: CheckContext) -> None:
    """Backward is linear in v; a clip shows for large or small v only."""
    u = random_like(context.outputs, context.generator)
    cases = (
        ("2v − 3u", 2.0, -3.0, 1.0, 1e4),  # slack: a solver may take more steps for another v
        ("10⁴ v", 1e4, 0.0, 1e4, 1e4),
        ("10⁻⁴ v", 1e-4, 0.0, 1e-4, 1e4),
        ("10⁻¹² v", 1e-12, 0.0, 1e-12, 1e4),
        ("0", 0.0, 0.0, 1.0, 0.0),
    )
    # All before the first backward, which may modify them.
    combined = [[a * s + b * t for s, t in zip(context.v, u, strict=True)] for _, a, b, _, _ in cases]
    of_v, of_u = context.gradient(), context.gradient(u)
    for (label, a, b, scale, slack), v in zip(cases, combined, strict=True):
        if scale < 1e-4 and context.eps > COARSEST:
            continue  # float16 cannot hold it
        context.compare(
            [None if g is None else g / scale for g in context.gradient(v)],
            [None if g is None or h is None else (a * g + b * h) / scale for g, h in zip(of_v, of_u, strict=True)],
            f"for grad_output {label}{'' if scale == 1 else f', divided by {scale:g}'}",
            "backward is not linear in grad_output: is it clipped, or a constant added?",
            tolerance=lambda t, slack=slack: slack and context.rounding(t, slack),  # type: ignore[misc]  # the loop's
        )


def check_parts(context: CheckContext) -> None:
    """The gradients for the parts of v add up: rows of zeros, one entry alone, one entry 10⁴ times the rest.

    A v without a zero does not show what is dropped or clipped by its size, nor 0 · ∞ in a row that is not used.
    """
    whole, v, digits = context.gradient(), context.v, max(context.eps, context.gradient_eps)
    for label, scale, parts in _parts_of(context, 1 if context.fast else 3):
        rests = [t - part for t, part in zip(v, parts, strict=True)]
        of_parts, of_rests = context.gradient(parts), context.gradient(rests)
        large = 30 * digits * largest(of_parts) / scale  # what rounding leaves of the difference
        context.compare(
            [None if a is None or b is None else (a + b) / scale for a, b in zip(of_parts, of_rests, strict=True)],
            [None if g is None else g / scale for g in whole],
            f"summed over two parts of grad_output, of which one has {label}",
            "is something dropped or clipped by its size, or 0 · ∞?",
            tolerance=lambda t, large=large: large + context.rounding(t, 1e3 if digits <= COARSE else 1),  # type: ignore[misc]  # the loop's
        )


def _parts_of(context: CheckContext, entries: int) -> Iterator[tuple[str, float, list[Tensor]]]:
    """Yield parts of v, each with what it has and how large it is: rows, entries, single ones, a large one."""
    v, digits = context.v, max(context.eps, context.gradient_eps)
    if any(t.dim() > 1 for t in v):
        rows = [torch.arange(len(t) if t.dim() else 1, device=t.device) % 2 == 0 for t in v]
        shapes = [(-1, *[1] * (t.dim() - 1)) if t.dim() else () for t in v]
        masks = [mask.reshape(shape) for mask, shape in zip(rows, shapes, strict=True)]
        yield "rows of zeros", 1.0, [t * mask for t, mask in zip(v, masks, strict=True)]
    every_other = [(torch.arange(t.numel(), device=t.device) % 2 == 0).reshape(t.shape) for t in v]
    yield "zeros", 1.0, [t * mask for t, mask in zip(v, every_other, strict=True)]
    for number in range(entries):
        alone = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in v]
        for t, one in zip(v, alone, strict=True):
            if t.numel():
                at = int(torch.randint(t.numel(), (1,), generator=context.generator, device="cpu"))
                one.view(-1)[at] = t.reshape(-1)[at]
        yield "one entry alone", 1.0, alone
        # The rest beside a large entry: as large as the digits allow.
        ratios = () if number else ((1e4, "10⁴"), (1e7, "10⁷")) if digits <= COARSE else ((5e3, "5 · 10³"),)
        for ratio, text in ratios:
            if ratio * 100 * digits < 0.1:
                yield f"one entry {text} times the rest", ratio, [ratio * one for one in alone]


def check_subsets(context: CheckContext) -> None:
    """Each input gets the same gradient, whichever others require one."""
    target, whole = context.target, context.gradient()
    n = len(target.values)
    if n < 2:
        raise Skipped("there is one input")
    alone = [tuple(i == k for i in range(n)) for k in range(n)]
    for mask in dict.fromkeys([*alone, *[tuple(not needed for needed in mask) for mask in alone]]):
        needed = ", ".join(name for name, one in zip(target.names, mask, strict=True) if one)
        leaves = target.leaves(requires_grad=mask)
        with on_error(Failed, f"if only {needed} requires grad, it raises"):
            outputs = {k: t for k, t in target.numbered_outputs(leaves) if t.requires_grad}
            present = [k in outputs for k in context.output_numbers]
            chosen = [t for t, there in zip(context.v, present, strict=True) if there]
            got = gradients([outputs[k] for k in context.output_numbers if k in outputs], leaves, chosen)
        v = [t * there for t, there in zip(context.v, present, strict=True)]  # other outputs do not depend on these
        expected = whole if all(present) else context.gradient(v)
        context.compare(
            got,
            [g if one else None for g, one in zip(expected, mask, strict=True)],
            f"if only {needed} requires grad",
        )


def check_detached(context: CheckContext) -> None:
    """An output without a gradient, beside others that have one, does not change with the inputs."""
    target = context.target
    direction = random_like(target.values, context.generator)

    def outputs_at(step: float) -> list[tuple[int, Tensor]]:
        leaves = target.leaves([t + step * d for t, d in zip(target.values, direction, strict=True)])
        return [(k, t.detach()) for k, t in target.numbered_outputs(leaves) if not t.requires_grad]

    if not outputs_at(0.0):
        raise Skipped("every output has a gradient")
    h = 1e-3 if context.eps > COARSE else 1e-5
    for (k, here), (_, near), (_, nearer) in zip(outputs_at(0.0), outputs_at(h), outputs_at(h / 4), strict=True):
        change, smaller = largest([near - here]), largest([nearer - here])
        if smaller > 0 and 2 < change / smaller < 8:  # in proportion to the step: no index, sign or mask
            raise Warned(
                f"output {k} changes with the inputs, by {change / h:.3g} times a small step, but has no gradient: "
                "is it marked by mark_non_differentiable, or detached?"
            )


def check_outputs(context: CheckContext) -> None:
    """Backward from one output alone gives what it gives with v = 0 for the others."""
    target = context.target
    if len(context.outputs) < 2:
        raise Skipped("there is one output")
    for k, number in enumerate(context.output_numbers):
        v = [t if j == k else torch.zeros_like(t) for j, t in enumerate(context.v)]
        leaves = target.leaves()
        outputs = target.run(leaves)
        with on_error(Failed, f"backward from output {number} alone (is grad_output None for the others?) raises"):
            alone = gradients(outputs[k : k + 1], leaves, [v[k].clone()])
        context.compare(
            filled(alone, target.values),
            filled(context.gradient(v), target.values),
            f"from output {number} alone, compared with grad_output 0 for the others",
        )
