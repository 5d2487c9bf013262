"""How gradients depend on what backward receives: grad_output, the inputs that require grad, the outputs in use."""

from __future__ import annotations

import torch

from deltaprop.gradcheck.context import CheckContext, Failed, Skipped, differs, filled, on_error
from deltaprop.gradcheck.target import gradients, random_like


def check_grad_output(context: CheckContext) -> None:
    """The gradient changes with v: backward uses it, and does not assume that it is 1."""
    doubled = context.gradient([2 * t for t in context.v])
    for name, once, twice in zip(context.target.names, context.gradient(), doubled, strict=True):
        if once is not None and twice is not None and bool(once.any()) and not differs(once, twice):
            raise Failed(f"∂C/∂{name} is the same for grad_output v and 2v: it is not used, or assumed to be 1")


def check_linear(context: CheckContext) -> None:
    """Backward is linear in v; a clip shows for large or small v only."""
    u = random_like(context.outputs, context.generator)
    cases = (
        ("2v − 3u", 2.0, -3.0, 1.0, 10.0),
        ("10⁴ v", 1e4, 0.0, 1e4, 10.0),
        ("10⁻⁴ v", 1e-4, 0.0, 1e-4, 10.0),
        ("0", 0.0, 0.0, 1.0, 0.0),
    )
    # All before the first backward, which may modify them.
    combined = [[a * s + b * t for s, t in zip(context.v, u, strict=True)] for _, a, b, _, _ in cases]
    of_v, of_u = context.gradient(), context.gradient(u)
    for (label, a, b, scale, slack), v in zip(cases, combined, strict=True):
        context.compare(
            [None if g is None else g / scale for g in context.gradient(v)],
            [None if g is None or h is None else (a * g + b * h) / scale for g, h in zip(of_v, of_u, strict=True)],
            f"for grad_output {label}{'' if scale == 1 else f', divided by {scale:g}'}",
            "backward is not linear in grad_output: is it clipped, or a constant added?",
            tolerance=lambda t, slack=slack: slack * context.rounding(t),  # type: ignore[misc]  # the loop's slack
        )


def check_subsets(context: CheckContext) -> None:
    """Each input gets the same gradient, whichever others require one."""
    target, expected = context.target, context.gradient()
    n = len(target.values)
    if n < 2:
        raise Skipped("there is one input")
    alone = [tuple(i == k for i in range(n)) for k in range(n)]
    for mask in dict.fromkeys([*alone, *[tuple(not needed for needed in mask) for mask in alone]]):
        needed = ", ".join(name for name, one in zip(target.names, mask, strict=True) if one)
        leaves = target.leaves(requires_grad=mask)
        with on_error(Failed, f"if only {needed} requires grad, it raises"):
            outputs = target.run(leaves)
            if len(outputs) != len(context.v):
                continue
            got = gradients(outputs, leaves, context.v)
        context.compare(
            got,
            [g if one else None for g, one in zip(expected, mask, strict=True)],
            f"if only {needed} requires grad",
            "is needs_input_grad mixed up?",
        )


def check_in_place(context: CheckContext) -> None:
    """Neither inputs nor v are modified, except by a Function that calls mark_dirty."""
    target = context.target
    leaves = target.leaves()
    given = [t.clone() for t in leaves]
    outputs = tuple(t for t in target(given) if t.requires_grad)
    for name, t, before in zip(target.names, given, target.values, strict=True):
        if differs(t, before) and not any(out is t for out in outputs):
            raise Failed(f"forward modifies {name} in place without mark_dirty")
    received = [*[t.clone() for t in context.v], *given]
    before_backward = [t.detach().clone() for t in received]
    gradients(outputs, leaves, received[: len(context.v)])
    names = ["grad_output, which other functions may receive too,"] * len(context.v) + target.names
    for name, t, before in zip(names, received, before_backward, strict=True):
        if differs(t, before):
            raise Failed(f"backward modifies {name} in place")


def check_outputs(context: CheckContext) -> None:
    """Backward from one output alone gives what it gives with v = 0 for the others."""
    target = context.target
    if len(context.outputs) < 2:
        raise Skipped("there is one output")
    for k in range(len(context.outputs)):
        v = [t if j == k else torch.zeros_like(t) for j, t in enumerate(context.v)]
        leaves = target.leaves()
        outputs = target.run(leaves)
        with on_error(Failed, f"backward from output {k} alone (is grad_output None for the others?) raises"):
            alone = gradients(outputs[k : k + 1], leaves, v[k : k + 1])
        context.compare(
            filled(alone, target.values),
            filled(context.gradient(v), target.values),
            f"from output {k} alone, compared with grad_output 0 for the others",
        )


def check_calls(context: CheckContext) -> None:
    """Calls do not affect each other: two forwards before both backwards, and backward twice from one forward."""
    target, expected = context.target, context.gradient()
    leaves = target.leaves()
    outputs = target.run(leaves)
    with on_error(Skipped, "it does not accept other values of these shapes:"):
        target.run([0.5 * t for t in target.leaves()])
    with on_error(Failed, "a second backward with retain_graph=True raises"):
        first, second = (gradients(outputs, leaves, context.v, retain_graph=True) for _ in range(2))
    hint = "is something stored on the class, or overwritten?"
    context.compare(first, expected, "if f is called again before backward", hint)
    context.compare(second, expected, "of a second backward from the same forward", hint)
