"""Does a gradient follow from what backward is given: v, which inputs ask, which outputs are used, how often."""

from __future__ import annotations

import torch

from deltaprop.gradcheck.context import CheckContext, Finding, Found, Skipped, difference, filled, format_error
from deltaprop.gradcheck.target import gradients, random_like


def grad_output(context: CheckContext) -> Found:
    """The gradient changes with v: it is not ignored, nor taken to be one."""
    ours, doubled = context.gradient(), context.gradient([2 * t for t in context.v])
    for name, once, twice in zip(context.target.names, ours, doubled, strict=True):
        if once is not None and twice is not None and bool(once.any()) and difference(once, twice) == 0:
            return Finding(f"∂C/∂{name} is the same for v and 2v: grad_output is not used, or taken to be one")
    return None


def linear(context: CheckContext) -> Found:
    """Backward is linear in v: for 2v − 3u it gives 2 times the one and −3 times the other."""
    u = random_like(context.outputs, context.generator)
    mixed = [2 * a - 3 * b for a, b in zip(context.v, u, strict=True)]
    for name, by_v, by_u, by_both in zip(
        context.target.names, context.gradient(), context.gradient(u), context.gradient(mixed), strict=True
    ):
        if by_v is None or by_u is None or by_both is None:
            continue
        expected = 2 * by_v - 3 * by_u
        gap = difference(by_both, expected)
        if not gap <= 10 * max(context.rounding(by_v), context.rounding(by_u)):
            return Finding(f"∂C/∂{name} of 2v − 3u differs from 2 · (of v) − 3 · (of u) by {gap:.3g}")
    for scale in (1e4, 1e-4):  # a clip is not met by every v
        scaled = context.gradient([scale * t for t in context.v])
        for name, one, other in zip(context.target.names, context.gradient(), scaled, strict=True):
            if (
                one is not None
                and other is not None
                and not difference(other / scale, one) <= 10 * context.rounding(one)
            ):
                gap = difference(other / scale, one)
                return Finding(f"∂C/∂{name} of {scale:g} v is not {scale:g} times that of v, by {gap:.3g} (a clip?)")
    zero = context.gradient([torch.zeros_like(t) for t in context.v])
    for name, gradient in zip(context.target.names, zero, strict=True):
        if gradient is not None and not bool((gradient == 0).all()):
            return Finding(f"∂C/∂{name} of v = 0 is not 0, but up to {float(gradient.abs().max()):.6g}")
    return None


def subsets(context: CheckContext) -> Found:
    """Whichever inputs ask for a gradient, each gets the same one."""
    target = context.target
    n = len(target.values)
    if n < 2:
        raise Skipped("there is one input")
    full = context.gradient()
    masks = [tuple(i == k for i in range(n)) for k in range(n)] + [tuple(i != k for i in range(n)) for k in range(n)]
    for mask in dict.fromkeys(masks):
        asked = ", ".join(name for name, asks in zip(target.names, mask, strict=True) if asks)
        leaves = target.leaves(asking=mask)
        try:
            outputs = target.run(leaves)
            if len(outputs) != len(context.v):
                continue
            got = gradients(outputs, leaves, context.v)
        except Exception as error:
            return Finding(f"with {asked} alone requiring a gradient it raises {format_error(error)}")
        for name, asks, one, all_ in zip(target.names, mask, got, full, strict=True):
            if asks and all_ is not None and (one is None or not context.close(one, all_)):
                came = "None" if one is None else f"one that differs by {difference(one, all_):.3g}"
                return Finding(
                    f"∂C/∂{name}: with {asked} alone requiring a gradient, got {came} (needs_input_grad mixed up?)"
                )
    return None


def intact(context: CheckContext) -> Found:
    """Neither inputs nor v are written to, but by a Function that says so (mark_dirty)."""
    target = context.target
    leaves = target.leaves()
    given = [t.clone() for t in leaves]
    outputs = tuple(t for t in target(given) if t.requires_grad)
    for name, t, before in zip(target.names, given, target.values, strict=True):
        dirty = any(out is t for out in outputs)
        if not dirty and difference(t.detach(), before) > 0:
            return Finding(f"forward writes to {name} in place, and does not say so by mark_dirty")
    v = [t.clone() for t in context.v]
    before_v = [t.clone() for t in v]
    after_forward = [t.detach().clone() for t in given]
    gradients(outputs, leaves, v)
    for t, before in zip(v, before_v, strict=True):
        if difference(t, before) > 0:
            return Finding("backward writes to grad_output in place: whoever else it was given to gets another")
    for name, t, before in zip(target.names, given, after_forward, strict=True):
        if difference(t.detach(), before) > 0:
            return Finding(f"backward writes to {name} in place")
    return None


def outputs(context: CheckContext) -> Found:
    """Each output alone may be differentiated: as where the others have v = 0."""
    if len(context.outputs) < 2:
        raise Skipped("there is one output")
    for k in range(len(context.outputs)):
        v = [t if j == k else torch.zeros_like(t) for j, t in enumerate(context.v)]
        leaves = context.target.leaves()
        made = context.target.run(leaves)
        try:
            alone = gradients(made[k : k + 1], leaves, v[k : k + 1])
        except Exception as error:
            return Finding(
                f"backward from output {k} alone raises {format_error(error)} (None for one that is not used?)"
            )
        for name, one, both, x in zip(
            context.target.names, alone, context.gradient(v), context.target.values, strict=True
        ):
            if not context.close(filled(one, x), filled(both, x)):
                gap = difference(filled(one, x), filled(both, x))
                return Finding(f"∂C/∂{name} from output {k} alone is not that with v = 0 for the others, by {gap:.3g}")
    return None


def calls(context: CheckContext) -> Found:
    """Calls do not disturb each other: two forwards before both backwards, and backward twice from one forward."""
    target = context.target
    expected = context.gradient()
    leaves = target.leaves()
    first = target.run(leaves)
    try:
        target.run([0.5 * t for t in target.leaves()])
    except Exception:
        raise Skipped("it does not take other numbers of these shapes") from None
    runs = []
    try:
        for number in range(2):
            runs.append((number, gradients(first, leaves, context.v, retain_graph=True)))
    except RuntimeError as error:
        return Finding(f"backward a second time, with retain_graph=True, raises {format_error(error)}")
    for number, run in runs:
        for name, one, right in zip(target.names, run, expected, strict=True):
            if right is not None and (one is None or not context.close(one, right)):
                why = "when backward runs a second time" if number else "when f was called again before backward"
                gap = float("inf") if one is None else difference(one, right)
                return Finding(f"∂C/∂{name} is another {why}: off by {gap:.3g} (kept on the class, or written over?)")
    return None
