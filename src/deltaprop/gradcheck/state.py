"""Checks of what a function keeps: between calls and threads, on ctx, in the tensors it is given, at random."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import threading
import weakref

import torch
from torch import Tensor

from deltaprop.errors import format_error
from deltaprop.gradcheck.context import (
    CheckContext,
    Failed,
    Skipped,
    Warned,
    differs,
    has_both_signs,
    on_error,
)
from deltaprop.gradcheck.target import CheckTarget, Gradients, gradients, python_nodes


def check_calls(context: CheckContext) -> None:
    """Calls do not affect each other: at another point, two forwards before both backwards, and backward twice.

    The other point has other signs and another order, so that what is kept from the first one shows.
    """
    target, expected = context.target, context.gradient()
    leaves = target.leaves()
    outputs = target.run(leaves)
    values = _another_point(target)
    with on_error(Skipped, "it does not accept other values of these shapes:"):
        target.run(target.leaves(values))
    with on_error(Failed, "a second backward with retain_graph=True raises"):
        first, second = (gradients(outputs, leaves, context.v, retain_graph=True) for _ in range(2))
    raw = torch.autograd.grad(outputs, leaves, context.v, retain_graph=True, allow_unused=True)
    held: Gradients = [None if t is None or t.is_sparse else t for t in raw]
    before = [None if t is None else t.clone() for t in held]
    target.gradients([2 * t for t in context.v])
    context.compare(held, before, "after another backward", "does backward return memory that it uses again?")
    hint = "is something stored on the class, or overwritten?"
    context.compare(first, expected, "if f is called again before backward", hint)
    context.compare(second, expected, "of a second backward from the same forward", hint)
    if context.has_right_values:
        c, at_other = target.weighted_sum(context.v, values), target.gradients(context.v, target.leaves(values))
        context.must_agree(c, values, at_other, 12, "at a second point of the same shapes", "is it kept by shape?")


def _another_point(target: CheckTarget) -> list[Tensor]:
    """Return other values of the same shapes that f accepts, and where it is finite: of other signs, if it can be.

    What has one sign alone, such as an exponent, keeps it. A symmetric matrix stays one, and a positive definite one if
    its sign does not change: rows and columns are flipped.
    """
    flipped = [
        t.flip([0, 1] if square else [0]) if t.dim() else t
        for t, square in zip(target.values, target.is_square, strict=True)
    ]
    for factor in (-1.0, 0.9):
        values = [factor * t if has_both_signs(t) else 0.9 * t for t in flipped]
        with contextlib.suppress(Exception):
            if all(bool(t.isfinite().all()) for t in target.run(target.leaves(values))):
                return values
    return [0.5 * t for t in target.values]


def check_saved(context: CheckContext) -> None:
    """An input or output that is written to between forward and backward changes no gradient silently.

    ``save_for_backward`` makes autograd refuse such a backward; a tensor kept on ctx goes unnoticed.
    """
    target = context.target
    # Of a module's parameters those that a custom Function gets: a checkpoint reads them again in backward, rightly.
    copies = [t.clone() for t in target.leaves()]
    nodes = python_nodes(tuple(t for t in target(copies) if t.requires_grad))
    direct = {edge for node in nodes for edge, _ in node.next_functions}
    inputs = zip(target.names, target.is_argument, copies, strict=True)
    tensors = [("input", k, name) for k, (name, own, t) in enumerate(inputs) if own or t.grad_fn in direct]
    tensors += [("output", k, f"output {number}") for k, number in enumerate(context.output_numbers)]
    for kind, k, name in tensors:
        leaves = target.leaves()
        copies = [t.clone() for t in leaves]
        outputs = tuple(t for t in target(copies) if t.requires_grad)
        try:
            with torch.no_grad():
                (copies if kind == "input" else outputs)[k].mul_(-2).add_(1)
            got = gradients(outputs, leaves, context.v)
        except RuntimeError:  # autograd refuses to write to the tensor, or backward because of it
            continue
        hint = f"is the {kind} stored on ctx instead of by save_for_backward?"
        context.compare(got, context.gradient(), f"if {name} is modified between forward and backward", hint)


def check_thread(context: CheckContext) -> None:
    """Backward in another thread, as CUDA runs it, gives the same gradients."""
    leaves = context.target.leaves()
    outputs = context.target.run(leaves)
    found: list[Gradients | Exception] = []

    def backward() -> None:
        try:
            found.append(gradients(outputs, leaves, context.v))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    (got,) = found
    hint = "is something kept in a thread-local?"
    if isinstance(got, Exception):
        raise Failed(f"backward in another thread raises {format_error(got)}: {hint}")
    context.compare(got, context.gradient(), "of backward in another thread", hint)


def check_generator(context: CheckContext) -> None:
    """Backward leaves the random generator as it was, and restores its state, not a seed, to draw the same again."""
    leaves = context.target.leaves()
    outputs = context.target.run(leaves)
    torch.rand(1)  # somewhere else than a seed
    before = torch.get_rng_state()
    gradients(outputs, leaves, context.v)
    if not torch.equal(before, torch.get_rng_state()):
        raise Failed("backward leaves another state of the random generator: does it set a seed, or draw numbers?")
    if context.random and context.has_right_values:
        later = copy.copy(context.target)
        later.advance = 1
        when = "if other random numbers were drawn before"
        hint = "does backward set a seed instead of the generator's state?"
        context.must_agree(later.weighted_sum(context.v), later.values, later.gradients(context.v), 12, when, hint)


def check_in_place(context: CheckContext) -> None:
    """Neither inputs nor v are modified, except by a Function that calls mark_dirty."""
    target = context.target
    leaves = target.leaves()
    copies = [t.clone() for t in leaves]
    outputs = tuple(t for t in target(copies) if t.requires_grad)
    for name, t, before in zip(target.names, copies, target.values, strict=True):
        if differs(t, before) and not any(out is t for out in outputs):
            raise Failed(f"forward modifies {name} in place without mark_dirty")
    received = [*[t.clone() for t in context.v], *copies]
    before_backward = [t.detach().clone() for t in received]
    gradients(outputs, leaves, received[: len(context.v)])
    names = ["grad_output, which other functions may receive too,"] * len(context.v) + target.names
    for name, t, before in zip(names, received, before_backward, strict=True):
        if differs(t, before):
            raise Failed(f"backward modifies {name} in place")


def check_deterministic(context: CheckContext) -> None:
    """The same inputs give the same gradients."""
    runs = []
    for number in range(2 if context.fast else 4):
        leaves = context.target.leaves()
        outputs = context.target.run(leaves)
        torch.manual_seed(number)  # forward draws the same each time, backward does not
        runs.append(gradients(outputs, leaves, context.v))
    limits = ((Failed, "", context.rounding), (Warned, "by rounding only", lambda _: 0.0))
    for (outcome, hint, tolerance), (expected, got) in itertools.product(limits, itertools.permutations(runs, 2)):
        context.compare(got, expected, "differs from call to call", hint, tolerance, outcome)


def check_leak(context: CheckContext) -> None:
    """When the outputs go out of scope their memory is freed, without the garbage collector."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        outputs = context.target.run(context.target.leaves())
        alive = [weakref.ref(node) for node in python_nodes(outputs)]
        if not alive:
            raise Skipped("it has no custom Function")
        del outputs
        if any(node() is not None for node in alive):
            raise Failed(
                "the graph outlives its outputs until the garbage collector runs: is an output stored on ctx instead "
                "of by save_for_backward?"
            )
    finally:
        if enabled:
            gc.enable()
