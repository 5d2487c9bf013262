"""The questions that are asked of a backward pass, one function each.

A check takes the trial (the function, its inputs, what has been drawn) and returns what it found: None where all is
well, or a :class:`Finding`. It raises :class:`Skip` where it does not apply. ``gradients.py`` asks them in order.

Notation: f is the function, x its inputs, v = ∂C/∂f what comes from above (PyTorch's grad_output), and the gradient
∂C/∂x of C = ⟨v, f(x)⟩ is what backward returns.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from deltaprop.verify.differences import place, slopes
from deltaprop.verify.judging import Judgement, judge
from deltaprop.verify.subject import Gradients, Subject, dot, gradients, python_nodes, random_like


class Skip(Exception):  # noqa: N818  # not an error: the question does not arise
    """The check does not apply, for this reason."""


@dataclass(frozen=True)
class Finding:
    """What a check found to be wrong."""

    detail: str
    severity: Literal["error", "warning"] = "error"


Found = Finding | None


@dataclass
class Trial:
    """A subject, and what all checks share.

    Attributes:
        subject: The function and its inputs.
        atol: What gradients may differ by.
        rtol: The same, relative to the largest entry.
        fast: Whether to try fewer entries.
        seed: Of all that is drawn.
        reference: A plain function to compare with, instead of differences.
        skip: Names of checks that are not made.
        kinks: What ``values`` found at kinks.
    """

    subject: Subject
    atol: float
    rtol: float
    fast: bool
    seed: int
    reference: Subject | None = None
    skip: Collection[str] = ()
    kinks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw v, and take the gradient that all others are compared with."""
        self.generator = torch.Generator().manual_seed(self.seed)
        leaves = self.subject.leaves()
        outputs = self.subject.run(leaves)
        self.outputs = [t.detach() for t in outputs]
        self.v = random_like(self.outputs, self.generator)
        self.connected = bool(outputs)
        self.scale = 0.0
        with contextlib.suppress(Exception):  # what backward raises is for `values` to tell
            self.scale = largest(self.gradient())
        other = copy.copy(self.subject)
        other.seed = 1
        again = [t.detach() for t in other.run(other.leaves())]
        self.random = any(difference(a, b) > 0 for a, b in zip(self.outputs, again, strict=True))

    @property
    def most(self) -> int:
        """How many entries of an input are tried."""
        return 12 if self.fast else 400

    def gradient(self, v: Sequence[Tensor] | None = None, subject: Subject | None = None) -> Gradients:
        """Return the gradients for v, by default the one that was drawn."""
        subject = subject or self.subject
        leaves = subject.leaves()
        return gradients(subject.run(leaves), leaves, self.v if v is None else v)

    def close(self, a: Tensor, b: Tensor, slack: float = 1.0) -> bool:
        """Return whether two gradients agree to rounding."""
        return difference(a, b) <= slack * self.rounding(b)

    def rounding(self, t: Tensor) -> float:
        """Return what rounding may do to a gradient, generously: it is a sum of parts that may be larger than it is."""
        return 1e3 * float(torch.finfo(t.dtype).eps) * max(1e-30, largest([t]), 0.1 * self.scale)


def largest(gradients: Sequence[Tensor | None]) -> float:
    """Return the largest entry of some gradients."""
    return max((float(t.detach().abs().max()) for t in gradients if t is not None and t.numel()), default=0.0)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors; infinite where one is not finite and the other differs."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    a, b = a.detach(), b.detach()
    gap = (a.double() - b.double()).abs()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(gap), gap)
    return float(gap.nan_to_num(float("inf")).max())


def filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient, 0 where there is none."""
    return torch.zeros_like(like) if gradient is None else gradient


# --- the numbers ---


def values(trial: Trial) -> Found:
    """∂C/∂x against central differences, or against the reference's."""
    if not trial.connected:
        return Finding("no output has a graph: expected a gradient for each input, got none (is forward detached?)")
    subject = trial.subject
    ours = trial.gradient()
    if trial.reference is not None:
        return _like_reference(trial, ours)
    problems = []
    for i, name in enumerate(subject.names):
        mine = ours[i]
        if mine is not None:  # else `missing` asks about it
            found = judge(weighed(trial), subject.values, i, mine, trial.most, trial.generator, trial.atol, trial.rtol)
            shape = subject.values[i].shape
            for entry, own, low, high in found.kinks:
                trial.kinks.append(f"{name}{place(entry, shape)}: {own:.6g} between {low:.6g} and {high:.6g}")
            if found.wrong.any():
                problems.append(_in_words(trial, i, name, found))
    return Finding("; ".join(problems)) if problems else None


def weighed(trial: Trial) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return C = ⟨v, f(x)⟩ as a function of x."""
    subject, places = trial.subject, places_with_graph(trial)

    def c(tensors: Sequence[Tensor]) -> Tensor:
        outputs = subject(tensors)
        return dot([outputs[k] for k in places], trial.v).double()

    return c


def places_with_graph(trial: Trial) -> list[int]:
    """Return which outputs have a graph."""
    leaves = trial.subject.leaves()
    return [k for k, t in enumerate(trial.subject([t.clone() for t in leaves])) if t.requires_grad]


def _in_words(trial: Trial, i: int, name: str, found: Judgement) -> str:
    """Return what is wrong with a gradient."""
    worst = found.worst
    where = place(int(found.entries[worst]), trial.subject.values[i].shape)
    return (
        f"∂C/∂{name}: at {where} expected {found.expected[worst]:.8g}, got {found.ours[worst]:.8g} "
        f"({int(found.wrong.sum())} of {len(found.ours)} entries wrong){_cause(found.ours, found.expected, trial, i)}"
    )


def _cause(ours: Tensor, expected: Tensor, trial: Trial, i: int) -> str:
    """Return the likely cause of a wrong gradient in plain words, if its numbers give it away."""
    ours = ours.detach()
    norm = float(expected.norm())
    if not norm:
        return ": f does not depend on it"
    if not float(ours.norm()):
        return ": it is 0 throughout (detached, or a part left out?)"
    factor = float((ours @ expected) / norm**2)
    if float((ours - factor * expected).norm()) <= 1e-6 * norm:
        rows, size = trial.subject.rows or 1, trial.subject.values[i].numel()
        names = [(-1.0, "the sign"), (2.0, "a factor of 2"), (0.5, "a factor of ½")]
        if rows > 1:
            names += [(float(rows), f"a missing 1/N, N = {rows}"), (1 / rows, f"a 1/N too many, N = {rows}")]
        if size > 1 and size != rows:
            names += [(float(size), f"a missing 1/{size}, the number of entries"), (1 / size, f"a 1/{size} too many")]
        known = " or ".join(text for f, text in names if abs(factor - f) <= 1e-6 * abs(f))
        return f": {factor:.6g} times what it should be{f' ({known})' if known else ''}"
    ones = [torch.ones_like(t) for t in trial.v]
    if trial.reference is None:
        flat = trial.gradient(ones)[i]
        if flat is not None and difference(flat.reshape(-1)[: len(ours)].double(), ours) <= 1e-12 and len(ours) > 1:
            return ": grad_output seems not to be used"
    return ""


def _like_reference(trial: Trial, ours: Gradients) -> Found:
    assert trial.reference is not None
    theirs = trial.gradient(subject=trial.reference)
    problems = []
    for name, mine, right, x in zip(trial.subject.names, ours, theirs, trial.subject.values, strict=True):
        expected = filled(right, x)
        if mine is None:
            continue
        excess = (mine - expected).abs().nan_to_num(float("inf")) - trial.rtol * expected.abs()
        if bool((excess > trial.atol * largest([expected])).any()):
            k = int(excess.argmax())
            problems.append(
                f"∂C/∂{name}: at {place(k, x.shape)} the reference has {expected.reshape(-1)[k]:.8g}, "
                f"got {mine.reshape(-1)[k]:.8g}"
            )
    return Finding("; ".join(problems)) if problems else None


def kink(trial: Trial) -> Found:
    """Entries where f has no derivative, and the gradient is one of those that could be meant."""
    if trial.reference is not None:
        raise Skip("a reference is given: no differences were taken")
    if "values" in trial.skip:
        raise Skip("values were not asked for")
    if not trial.kinks:
        return None
    more = f" and {len(trial.kinks) - 3} more" if len(trial.kinks) > 3 else ""
    return Finding(
        f"no derivative there, any between left and right is one: {', '.join(trial.kinks[:3])}{more}", "warning"
    )


def missing(trial: Trial) -> Found:
    """An input that C depends on gets a gradient."""
    if not trial.connected:
        raise Skip("no output has a graph")
    subject, ours = trial.subject, trial.gradient()
    problems = []
    for i, (name, gradient) in enumerate(zip(subject.names, ours, strict=True)):
        if gradient is None:
            found = slopes(weighed(trial), subject.values, i, trial.most, trial.generator)
            steepest = largest([found.central])
            if steepest > 30 * found.noise:
                problems.append(f"{name}: got None, though C changes with it (slope up to {steepest:.6g})")
    return Finding("; ".join(problems)) if problems else None


# --- what backward is given ---


def grad_output(trial: Trial) -> Found:
    """The gradient changes with v: it is not ignored, nor taken to be one."""
    ours, doubled = trial.gradient(), trial.gradient([2 * t for t in trial.v])
    for name, once, twice in zip(trial.subject.names, ours, doubled, strict=True):
        if once is not None and twice is not None and bool(once.any()) and difference(once, twice) == 0:
            return Finding(f"∂C/∂{name} is the same for v and 2v: grad_output is not used, or taken to be one")
    return None


def linear(trial: Trial) -> Found:
    """Backward is linear in v: for 2v − 3u it gives 2 times the one and −3 times the other."""
    u = random_like(trial.outputs, trial.generator)
    mixed = [2 * a - 3 * b for a, b in zip(trial.v, u, strict=True)]
    for name, by_v, by_u, by_both in zip(
        trial.subject.names, trial.gradient(), trial.gradient(u), trial.gradient(mixed), strict=True
    ):
        if by_v is None or by_u is None or by_both is None:
            continue
        expected = 2 * by_v - 3 * by_u
        gap = difference(by_both, expected)
        if not gap <= 10 * max(trial.rounding(by_v), trial.rounding(by_u)):
            return Finding(f"∂C/∂{name} of 2v − 3u differs from 2 · (of v) − 3 · (of u) by {gap:.3g}")
    for scale in (1e4, 1e-4):  # a clip is not met by every v
        scaled = trial.gradient([scale * t for t in trial.v])
        for name, one, other in zip(trial.subject.names, trial.gradient(), scaled, strict=True):
            if one is not None and other is not None and not difference(other / scale, one) <= 10 * trial.rounding(one):
                gap = difference(other / scale, one)
                return Finding(f"∂C/∂{name} of {scale:g} v is not {scale:g} times that of v, by {gap:.3g} (a clip?)")
    zero = trial.gradient([torch.zeros_like(t) for t in trial.v])
    for name, gradient in zip(trial.subject.names, zero, strict=True):
        if gradient is not None and not bool((gradient == 0).all()):
            return Finding(f"∂C/∂{name} of v = 0 is not 0, but up to {float(gradient.abs().max()):.6g}")
    return None


def subsets(trial: Trial) -> Found:
    """Whichever inputs ask for a gradient, each gets the same one."""
    subject = trial.subject
    n = len(subject.values)
    if n < 2:
        raise Skip("there is one input")
    full = trial.gradient()
    masks = [tuple(i == k for i in range(n)) for k in range(n)] + [tuple(i != k for i in range(n)) for k in range(n)]
    for mask in dict.fromkeys(masks):
        asked = ", ".join(name for name, asks in zip(subject.names, mask, strict=True) if asks)
        leaves = subject.leaves(asking=mask)
        try:
            outputs = subject.run(leaves)
            if len(outputs) != len(trial.v):
                continue
            got = gradients(outputs, leaves, trial.v)
        except Exception as error:
            return Finding(f"with {asked} alone requiring a gradient it raises {told(error)}")
        for name, asks, one, all_ in zip(subject.names, mask, got, full, strict=True):
            if asks and all_ is not None and (one is None or not trial.close(one, all_)):
                came = "None" if one is None else f"one that differs by {difference(one, all_):.3g}"
                return Finding(
                    f"∂C/∂{name}: with {asked} alone requiring a gradient, got {came} (needs_input_grad mixed up?)"
                )
    return None


def intact(trial: Trial) -> Found:
    """Neither inputs nor v are written to, but by a Function that says so (mark_dirty)."""
    subject = trial.subject
    leaves = subject.leaves()
    given = [t.clone() for t in leaves]
    outputs = tuple(t for t in subject(given) if t.requires_grad)
    for name, t, before in zip(subject.names, given, subject.values, strict=True):
        dirty = any(out is t for out in outputs)
        if not dirty and difference(t.detach(), before) > 0:
            return Finding(f"forward writes to {name} in place, and does not say so by mark_dirty")
    v = [t.clone() for t in trial.v]
    before_v = [t.clone() for t in v]
    after_forward = [t.detach().clone() for t in given]
    gradients(outputs, leaves, v)
    for t, before in zip(v, before_v, strict=True):
        if difference(t, before) > 0:
            return Finding("backward writes to grad_output in place: whoever else it was given to gets another")
    for name, t, before in zip(subject.names, given, after_forward, strict=True):
        if difference(t.detach(), before) > 0:
            return Finding(f"backward writes to {name} in place")
    return None


def outputs(trial: Trial) -> Found:
    """Each output alone may be differentiated: as where the others have v = 0."""
    if len(trial.outputs) < 2:
        raise Skip("there is one output")
    for k in range(len(trial.outputs)):
        v = [t if j == k else torch.zeros_like(t) for j, t in enumerate(trial.v)]
        leaves = trial.subject.leaves()
        made = trial.subject.run(leaves)
        try:
            alone = gradients(made[k : k + 1], leaves, v[k : k + 1])
        except Exception as error:
            return Finding(f"backward from output {k} alone raises {told(error)} (None for one that is not used?)")
        for name, one, both, x in zip(trial.subject.names, alone, trial.gradient(v), trial.subject.values, strict=True):
            if not trial.close(filled(one, x), filled(both, x)):
                gap = difference(filled(one, x), filled(both, x))
                return Finding(f"∂C/∂{name} from output {k} alone is not that with v = 0 for the others, by {gap:.3g}")
    return None


def calls(trial: Trial) -> Found:
    """Calls do not disturb each other: two forwards before both backwards, and backward twice from one forward."""
    subject = trial.subject
    expected = trial.gradient()
    leaves = subject.leaves()
    first = subject.run(leaves)
    try:
        subject.run([0.5 * t for t in subject.leaves()])
    except Exception:
        raise Skip("it does not take other numbers of these shapes") from None
    runs = []
    try:
        for number in range(2):
            runs.append((number, gradients(first, leaves, trial.v, retain_graph=True)))
    except RuntimeError as error:
        return Finding(f"backward a second time, with retain_graph=True, raises {told(error)}")
    for number, run in runs:
        for name, one, right in zip(subject.names, run, expected, strict=True):
            if right is not None and (one is None or not trial.close(one, right)):
                why = "when backward runs a second time" if number else "when f was called again before backward"
                gap = float("inf") if one is None else difference(one, right)
                return Finding(f"∂C/∂{name} is another {why}: off by {gap:.3g} (kept on the class, or written over?)")
    return None


# --- what backward returns ---


def raw_gradients(trial: Trial) -> list[tuple[str, Tensor | None, torch.Size, torch.dtype, torch.device]]:
    """Return what each custom node's backward returns by itself, with what its input is like.

    Autograd sums what has too many entries, and casts what is of another dtype, before anybody sees it.
    """
    leaves = trial.subject.leaves()
    outputs = trial.subject.run(leaves)
    nodes = list(python_nodes(outputs))
    if not nodes:
        raise Skip("it has no custom Function")
    received: dict[int, tuple[Tensor | None, ...]] = {}
    hooks = [node.register_prehook(partial(received.__setitem__, at)) for at, node in enumerate(nodes)]
    try:
        gradients(outputs, leaves, trial.v, retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for at, node in enumerate(nodes):
        if at not in received or any(t is None for t in received[at]):
            continue  # it was not reached, or an output of it was not used
        try:
            with torch.no_grad():
                raw = node.apply(*received[at])
        except Exception:
            raise Skip("its backward cannot be called by hand a second time") from None
        raw = raw if isinstance(raw, tuple) else (raw,)
        edges = iter([edge for edge in node.next_functions if edge[0] is not None])
        for number, (gradient, needed) in enumerate(zip(raw, node.needs_input_grad, strict=False)):
            if needed:
                next_node, output_number = next(edges)
                like = next_node._input_metadata[output_number]
                label = f"{type(node).__name__.removesuffix('Backward')} input {number}"
                found.append((label, gradient, torch.Size(like.shape), like.dtype, like.device))
    return found


def shapes(trial: Trial) -> Found:
    """Each gradient has its input's shape; one that autograd has to sum into it was never reduced over the batch."""
    for label, gradient, shape, _, _ in raw_gradients(trial):
        if gradient is not None and gradient.shape != shape:
            return Finding(
                f"{label}: the gradient is {list(gradient.shape)}, the input {list(shape)}; autograd sums it into "
                "shape, but who calls backward by hand gets it as it is (is a sum over the batch missing?)",
                "warning",
            )
    return None


def dtypes(trial: Trial) -> Found:
    """Each gradient has its input's dtype and lies on its device; autograd would cast it in silence."""
    for label, gradient, _, dtype, device in raw_gradients(trial):
        if gradient is not None and (gradient.dtype != dtype or gradient.device != device):
            return Finding(
                f"{label}: the gradient is {gradient.dtype} on {gradient.device}, the input {dtype} on {device}"
            )
    return None


def deterministic(trial: Trial) -> Found:
    """The same inputs give the same gradients."""
    runs = []
    for number in range(2 if trial.fast else 4):
        leaves = trial.subject.leaves()
        outputs = trial.subject.run(leaves)
        torch.manual_seed(number)  # forward draws the same each time, backward does not
        runs.append(gradients(outputs, leaves, trial.v))
    for name, first, *others in zip(trial.subject.names, *runs, strict=True):
        for other in others:
            if (first is None) != (other is None):
                return Finding(f"∂C/∂{name} is there at one call and not at the next")
            if first is not None and difference(first, other) > 0:
                gap = difference(first, other)
                by_rounding = trial.close(first, other)
                text = f"∂C/∂{name} differs from call to call by {gap:.3g}"
                return Finding(
                    f"{text}, as rounding does" if by_rounding else text, "warning" if by_rounding else "error"
                )
    return None


def leak(trial: Trial) -> Found:
    """When the outputs go out of scope their memory is free, without the garbage collector."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        outputs = trial.subject.run(trial.subject.leaves())
        alive = [weakref.ref(node) for node in python_nodes(outputs)]
        if not alive:
            raise Skip("it has no custom Function")
        del outputs
        if any(ref() is not None for ref in alive):
            return Finding(
                "the graph outlives its outputs until the garbage collector runs: is an output kept on ctx instead of "
                "by save_for_backward?"
            )
    finally:
        gc.collect()
        if enabled:
            gc.enable()
    return None


def told(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
