"""C and ∂C/∂a of a trace written out in numbers: how each loss is written; its values are those of its definition."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from deltaprop.loss_spec import LossSpec
from deltaprop.tracing.capture import formula, value_and_derivative
from deltaprop.tracing.format import Line, bracketed, computed, number, place, up, vector
from deltaprop.tracing.record import TraceRecord

MOST_TERMS = 8  # entries of a sum that are written out
SMALLEST = 1e-300  # probability whose logarithm is written out

# c of one output and ∂c/∂a: {d} is a − y, {g} is ∂c/∂a as one number.
TEMPLATES = {
    "quadratic_loss": ("0.5·({d})²", "({d})"),
    "mse_loss": ("({d})²", "2·({d})"),
    "l1_loss": ("|{d}|", "{g}"),
    "huber_loss": ("0.5·({d})²", "({d})"),
}
HUBER_LINEAR = ("|{d}| − 0.5", "{g}")  # where |a − y| > 1
OF_PROBABILITIES = ("cross_entropy", "binary_cross_entropy_with_logits", "binary_cross_entropy_per_sample")
WRITTEN_OUT = (*TEMPLATES, *OF_PROBABILITIES)


def loss_formulas(trace: TraceRecord) -> tuple[str, str]:
    """Return the formulas of C and ∂C/∂a in the docstring of the loss; empty where the options change them."""
    if trace.options or (trace.loss_name in WRITTEN_OUT and not is_plain(trace)):
        return "", ""
    return value_and_derivative(formula(LossSpec(trace.loss_name, {}).definition))


def is_plain(trace: TraceRecord) -> bool:
    """Return whether a loss can be written out: no options, and a target for each output or a label per sample."""
    if trace.options or trace.loss_name not in WRITTEN_OUT:
        return False
    if trace.loss_name == "cross_entropy":
        return trace.target.dim() == 1 and bool((trace.target >= 0).all())
    return trace.target.shape == trace.layers[-1].a.shape


def loss_lines(trace: TraceRecord, rows: Collection[int]) -> Iterator[Line]:
    """Yield the computation of C: the terms of some samples, then the sum over all."""
    if not is_plain(trace):
        yield Line(f"C = {number(trace.loss)}")
        return
    terms, _ = LossSpec(trace.loss_name, {"reduction": "none"}).forward(trace.layers[-1].a, trace.target)
    if trace.sizes[-1] <= 2 * MOST_TERMS:
        for n in sorted(rows):
            yield from _sample_lines(trace, n, terms[n])
    over, total = _divided(trace), number(trace.loss)
    if terms.numel() > MOST_TERMS:
        what = f"the sum of all c{f' over {over[1:]}' if over else ''}"
        yield Line(f"C = {number(float(terms.sum()))}{over} = {total}, {what}")
    elif over or terms.numel() > 1:
        yield Line(f"C = ({' + '.join(map(bracketed, terms.flatten().tolist()))}){over} = {total}")
    else:
        yield Line(f"C = {total}")


def _sample_lines(trace: TraceRecord, n: int, terms: Tensor) -> Iterator[Line]:
    """Yield the computation of c for one sample: of its label, or of each output."""
    if trace.loss_name == "cross_entropy":
        label = int(trace.target[n])
        yield Line(f"p = softmax(a{up(len(trace.layers))}) = {vector(trace.layers[-1].a[n].softmax(0))}", row=n)
        text, _ = _in_numbers(trace, n, label)
        yield computed(
            f"c = −ln(p{place(label)})", text if text and terms else number(float(terms)), float(terms), row=n
        )
        return
    for j, (a, c) in enumerate(zip(trace.layers[-1].a[n], terms.tolist(), strict=True)):
        if trace.loss_name in OF_PROBABILITIES:
            yield computed(f"s{place(j)}", f"1/(1 + exp({number(-float(a))}))", float(a.sigmoid()), row=n)
        yield computed(f"c{place(j)}", _in_numbers(trace, n, j)[0] or number(c), c, row=n)


def _divided(trace: TraceRecord) -> str:
    """Return by what a mean loss divides the sum of all c: ``"/4"``; empty for 1."""
    spec, a = LossSpec(trace.loss_name, {}), trace.layers[-1].a
    divisor = int(spec.definition.denominator(a, spec.targets(trace.target, a), *spec.arguments))
    return f"/{divisor}" if divisor > 1 else ""


def gradient_terms(trace: TraceRecord, n: int, j: int) -> str:
    """Return ∂C/∂a of one output written out."""
    return f"{_in_numbers(trace, n, j)[1]}{_divided(trace)}" if is_plain(trace) else number(float(trace.grad_a[n, j]))


def _in_numbers(trace: TraceRecord, n: int, j: int) -> tuple[str, str]:
    """Return c and ∂c/∂a of one output written out; c is empty where its logarithm has no digits."""
    name, a = trace.loss_name, trace.layers[-1].a[n]
    is_label = name == "cross_entropy"
    y = float(j == int(trace.target[n])) if is_label else float(trace.target[n, j])
    if name in TEMPLATES:
        value, derivative = TEMPLATES[name]
        d = float(a[j]) - y
        if name == "huber_loss" and abs(d) > 1:
            value, derivative = HUBER_LINEAR
        words = {"d": _difference(float(a[j]), y), "g": number((d > 0) - (d < 0))}
        return value.format(**words), derivative.format(**words)
    p, rest = float(a.sigmoid()[j]), float((-a[j]).sigmoid())
    if is_label:  # 1 − p with its own digits: what the other classes have
        probabilities = a.softmax(0).tolist()
        p, rest = probabilities[j], sum(probabilities[:j] + probabilities[j + 1 :])
    one = p > 0.99
    text, complement = (f"1 − {number(rest)}", number(rest)) if one else (number(p), f"1 − {number(p)}")
    derivative = f"(−{number(rest)})" if one and y == 1 else f"({_difference(p, y)})"
    if is_label:
        return f"−ln({text})" if p > SMALLEST else "", derivative if y else number(p)
    logarithms = [f"{number(y)}·ln({text})"] if y else []
    if y != 1:
        logarithms.append(f"{f'(1 − {number(y)})' if y else '1'}·ln({complement})")
    return f"−({' + '.join(logarithms)})" if min(p, rest) > SMALLEST else "", derivative


def _difference(a: float, y: float) -> str:
    """Return a − y; as one number where the two are so near that their rounded digits would not show it."""
    near = abs(a - y) < 0.01 * max(abs(a), abs(y))
    return number(a - y) if near else f"{number(a)} − {bracketed(y)}"
