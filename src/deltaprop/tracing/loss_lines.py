"""C and ∂C/∂a of a trace in words and numbers: a row for each loss, in ``LOSS_WORDS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from deltaprop.core import LOSSES
from deltaprop.tracing.capture import formula
from deltaprop.tracing.format import bracketed, number, place, row, up
from deltaprop.tracing.record import TraceRecord

MOST_TERMS = 8


@dataclass(frozen=True)
class LossWords:
    """How a loss is written.

    Attributes:
        per_sample: Whether the sum is divided by N; else by M, the number of all entries.
        term: What an output a and its target y add to the sum: in numbers, and the number itself.
        slope_term: ∂/∂a of that, in numbers.
    """

    per_sample: bool
    term: Callable[[float, float], tuple[str, float]]
    slope_term: Callable[[float, float], str]


def difference(a: float, y: float) -> str:
    """Return a − y; as one number where the two are so near that their rounded digits would say nothing."""
    near = abs(a - y) < 0.01 * max(abs(a), abs(y))
    return number(a - y) if near else f"{number(a)} − {bracketed(y)}"


def _gap(a: float, y: float) -> str:
    return f"({difference(a, y)})"


def _sign(a: float, y: float) -> str:
    return "0" if a == y else "1" if a > y else "−1"


def _half_square(a: float, y: float) -> tuple[str, float]:
    return f"0.5·({difference(a, y)})²", 0.5 * (a - y) ** 2


def _huber(a: float, y: float) -> tuple[str, float]:
    return _half_square(a, y) if abs(a - y) <= 1 else (f"|{difference(a, y)}| − 0.5", abs(a - y) - 0.5)


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a > -700 else 0.0


def _bernoulli(a: float, y: float) -> tuple[str, float]:
    s, rest = _sigmoid(a), _sigmoid(-a)  # 1 − s in its own digits
    value = max(a, 0) - a * y + math.log1p(math.exp(-abs(a)))
    if abs(a) > 700:
        return number(value), value
    parts = [f"{number(y)}·ln({number(s) if s < 0.99 else f'1 − {number(rest)}'})"] if y else []
    if y != 1:
        parts.append(f"{f'(1 − {number(y)})' if y else '1'}·ln({f'1 − {number(s)}' if s < 0.99 else number(rest)})")
    return f"−({' + '.join(parts)})", value


def _bernoulli_slope(a: float, y: float) -> str:
    return f"(−{number(_sigmoid(-a))})" if y == 1 and a > 4 else _gap(_sigmoid(a), y)


def _of_share(p: float, y: float) -> tuple[str, float]:
    """−ln p of the label's share p; y is 1 − p in its own digits."""
    value = -math.log(p) if p < 0.99 else -math.log1p(-y)
    inner = number(p) if p < 0.99 else f"1 − {number(y)}"
    return f"−ln({inner})", value


LOSS_WORDS = {
    "quadratic_loss": LossWords(True, _half_square, _gap),
    "mse_loss": LossWords(
        False, lambda a, y: (f"({difference(a, y)})²", (a - y) ** 2), lambda a, y: f"2·{_gap(a, y)}"
    ),
    "l1_loss": LossWords(False, lambda a, y: (f"|{difference(a, y)}|", abs(a - y)), _sign),
    "huber_loss": LossWords(False, _huber, lambda a, y: _gap(a, y) if abs(a - y) <= 1 else _sign(a, y)),
    "cross_entropy": LossWords(True, _of_share, lambda p, y: f"({difference(p, 1)})" if y else number(p)),
    "binary_cross_entropy_with_logits": LossWords(False, _bernoulli, _bernoulli_slope),
    "binary_cross_entropy_per_sample": LossWords(True, _bernoulli, _bernoulli_slope),
}  # fmt: skip


def loss_formulas(trace: TraceRecord) -> tuple[str, str]:
    """Return C and ∂C/∂a as the docstring of the loss's definition has them; "" where options make them others."""
    if trace.options or (trace.loss_name in LOSS_WORDS and not is_plain(trace)):
        return "", ""
    cost, _, derivative = formula(LOSSES[trace.loss_name]).partition(";")
    return cost.strip(), derivative.strip().removesuffix(".").split(", 0 at")[0]


def is_plain(trace: TraceRecord) -> bool:
    """Return whether a loss can be written out in numbers: no options, a target for each output, or a label."""
    if trace.options or trace.loss_name not in LOSS_WORDS:
        return False
    if trace.loss_name == "cross_entropy":
        return trace.target.dim() == 1 and bool((trace.target >= 0).all())
    return trace.target.shape == trace.layers[-1].a.shape


def loss_lines(trace: TraceRecord, rows: Collection[int]) -> Iterator[tuple[str, int | None]]:
    """Yield C in numbers, each line with the sample it tells of."""
    if not is_plain(trace):
        yield f"C = {number(trace.loss)}", None
        return
    found: list[float] = []
    few = trace.sizes[-1] <= 2 * MOST_TERMS
    for n in range(len(trace.input)):
        for text, value in _of_sample(trace, n):
            if value is not None:
                found.append(value)
            if n in rows and few:
                yield text, n
    by = divisor(trace)
    over = f"/{by}" if by > 1 else ""
    if len(found) > MOST_TERMS:
        what = f"the sum of all c{f' over {by}' if over else ''}"
        yield f"C = {number(sum(found))}{over} = {number(trace.loss)}, {what}", None
        return
    whole = f"({' + '.join(map(bracketed, found))}){over} = " if over or len(found) > 1 else ""
    yield f"C = {whole}{number(trace.loss)}", None


def _of_sample(trace: TraceRecord, n: int) -> Iterator[tuple[str, float | None]]:
    """Yield the lines of a sample's terms, each with the number that it adds to the sum, or None."""
    a, y, words = trace.layers[-1].a[n], trace.target[n], LOSS_WORDS[trace.loss_name]
    if trace.loss_name == "cross_entropy":
        p, label = a.softmax(0), int(y)
        yield f"p = softmax(a{up(len(trace.layers))}) = {row(p)}", None
        value = -float(a.log_softmax(0)[label])
        numbers = ""
        if p[label] > 1e-300 and value:
            numbers = f" = {words.term(float(p[label]), _rest(p, label))[0]}"
        yield f"c = −ln(p{place(label)}){numbers} = {number(value)}", value
        return
    for j, (output, target) in enumerate(zip(a.tolist(), y.tolist(), strict=True)):
        if words.term is _bernoulli:
            yield f"s{place(j)} = 1/(1 + exp({number(-output)})) = {number(_sigmoid(output))}", None
        text, value = words.term(output, target)
        yield f"c{place(j)} = {text} = {number(value)}", value


def _rest(p: Tensor, label: int) -> float:
    """Return 1 − p of a label in its own digits: what the other classes have."""
    return float(p.sum() - p[label]) if p[label] < 0.5 else float(p[[k for k in range(len(p)) if k != label]].sum())


def divisor(trace: TraceRecord) -> int:
    """Return what the sum is divided by: N, or the number of all entries M."""
    return len(trace.input) if LOSS_WORDS[trace.loss_name].per_sample else trace.layers[-1].a.numel()


def gradient_lines(trace: TraceRecord, rows: Iterable[int], neurons: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Yield ∂C/∂a in numbers for some output neurons, with neuron and sample."""
    over = f"/{divisor(trace)}" if is_plain(trace) and divisor(trace) > 1 else ""
    for n in rows:
        for j in neurons:
            result = number(trace.grad_a[n, j].item())
            text = f"{_slope(trace, n, j)}{over}" if is_plain(trace) else result
            yield result if text.strip("()") == result else f"{text} = {result}", j, n


def _slope(trace: TraceRecord, n: int, j: int) -> str:
    """Return ∂C/∂a of one output with its numbers, times what the sum is divided by."""
    a, y, words = trace.layers[-1].a[n], trace.target[n], LOSS_WORDS[trace.loss_name]
    if trace.loss_name != "cross_entropy":
        return words.slope_term(float(a[j]), float(y[j]))
    p = a.softmax(0)
    if j == int(y) and p[j] > 0.99:
        return f"(−{number(_rest(p, j))})"
    return words.slope_term(float(p[j]), float(j == int(y)))
