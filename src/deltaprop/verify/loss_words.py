"""C and ∂C/∂a of a trace with their numbers, loss by loss; by the formulas of ``FORMULAS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from torch import Tensor

from deltaprop.verify.trace import Trace
from deltaprop.verify.words import bracketed, number, place, row, up

MOST_TERMS = 8
FORMULAS = {
    "quadratic_loss": "C = ½ Σ (a − y)²/N,  ∂C/∂a = (a − y)/N",
    "mse_loss": "C = Σ (a − y)²/M over all M entries,  ∂C/∂a = 2 (a − y)/M",
    "l1_loss": "C = Σ |a − y|/M over all M entries,  ∂C/∂a = ±1/M, the sign of a − y",
    "huber_loss": "C = Σ h(a − y)/M over all M entries, h(r) = ½ r² up to |r| = 1 and then |r| − ½,  "
    "∂C/∂a = (a − y)/M, a − y clipped to ±1",
    "cross_entropy": "C = −Σ ln p_y/N, p = exp(a)/Σ exp(a),  ∂C/∂a = (p − 1 at y, p elsewhere)/N",
    "binary_cross_entropy_with_logits": "C = −Σ [y ln s + (1 − y) ln(1 − s)]/M, s = 1/(1 + e^−a),  ∂C/∂a = (s − y)/M",
    "binary_cross_entropy_per_sample": "C = −Σ [y ln s + (1 − y) ln(1 − s)]/N, s = 1/(1 + e^−a),  ∂C/∂a = (s − y)/N",
}


def difference(a: float, y: float) -> str:
    """Return a − y; as one number where the two are so near that their rounded digits would say nothing."""
    near = abs(a - y) < 0.01 * max(abs(a), abs(y))
    return number(a - y) if near else f"{number(a)} − {bracketed(y)}"


def _quadratic(a: float, y: float) -> tuple[str, float]:
    return f"0.5·({difference(a, y)})²", 0.5 * (a - y) ** 2


def _square(a: float, y: float) -> tuple[str, float]:
    return f"({difference(a, y)})²", (a - y) ** 2


def _absolute(a: float, y: float) -> tuple[str, float]:
    return f"|{difference(a, y)}|", abs(a - y)


def _huber(a: float, y: float) -> tuple[str, float]:
    return _quadratic(a, y) if abs(a - y) <= 1 else (f"|{difference(a, y)}| − 0.5", abs(a - y) - 0.5)


def _bernoulli(a: float, y: float) -> tuple[str, float]:
    s = _sigmoid(a)
    # ln s and ln(1 − s) without the digits that 1 − s loses
    value = max(a, 0) - a * y + math.log1p(math.exp(-abs(a)))
    if abs(a) > 700:
        return number(value), value
    rest = _sigmoid(-a)  # 1 − s in its own digits
    parts = [f"{number(y)}·ln({number(s) if s < 0.99 else f'1 − {number(rest)}'})"] if y else []
    if y != 1:
        parts.append(f"{f'(1 − {number(y)})' if y else '1'}·ln({f'1 − {number(s)}' if s < 0.99 else number(rest)})")
    return f"−({' + '.join(parts)})", value


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a > -700 else 0.0


ENTRIES: dict[str, Callable[[float, float], tuple[str, float]]] = {
    "quadratic_loss": _quadratic,
    "mse_loss": _square,
    "l1_loss": _absolute,
    "huber_loss": _huber,
    "binary_cross_entropy_with_logits": _bernoulli,
    "binary_cross_entropy_per_sample": _bernoulli,
}
PER_SAMPLE = ("quadratic_loss", "binary_cross_entropy_per_sample", "cross_entropy")  # divided by N, the others by M


def is_plain(trace: Trace) -> bool:
    """Return whether the formulas hold as they stand: no options, a target for each output, or a label."""
    if trace.options:
        return False
    labels = trace.loss_name == "cross_entropy"
    if labels and trace.target.dim() == 1:
        return bool((trace.target >= 0).all())
    return False if labels else trace.target.shape == trace.layers[-1].a.shape


def loss_lines(trace: Trace, rows: Collection[int]) -> Iterator[tuple[str, int | None]]:
    """Yield C in numbers, each line with the sample it tells of."""
    if not is_plain(trace):
        yield f"C = {number(trace.loss)}", None
        return
    a, y = trace.layers[-1].a, trace.target
    top = up(len(trace.layers))
    found: list[float] = []
    for n in range(len(a)):
        if trace.loss_name == "cross_entropy":
            p = a[n].softmax(0)
            label = int(y[n])
            if label < 0:
                continue  # ignored
            found.append(-float(a[n].log_softmax(0)[label]))
            if n in rows and len(p) <= 2 * MOST_TERMS:
                yield f"p = softmax(a{top}) = {row(p)}", n
                p_y, rest = p[label].item(), float(p.sum() - p[label])
                inner = number(p_y) if p_y < 0.99 else f"1 − {number(rest)}"
                numbers = f" = −ln({inner})" if p_y > 1e-300 and found[-1] else ""
                yield f"c = −ln(p{place(label)}){numbers} = {number(found[-1])}", n
            continue
        for j in range(a.shape[1]):
            text, value = ENTRIES[trace.loss_name](a[n, j].item(), y[n, j].item())
            found.append(value)
            if n in rows and a.shape[1] <= 2 * MOST_TERMS:
                if "entropy" in trace.loss_name:
                    a_nj = a[n, j].item()
                    yield f"s{place(j)} = 1/(1 + exp({number(-a_nj)})) = {number(_sigmoid(a_nj))}", n
                yield f"c{place(j)} = {text} = {number(value)}", n
    by = divisor(trace)
    terms = " + ".join(map(bracketed, found)) if len(found) <= MOST_TERMS else number(sum(found))
    over = f"/{by}" if by > 1 else ""
    if len(found) > MOST_TERMS:
        yield f"C = {terms}{over} = {number(trace.loss)}, the sum of all c{f' over {by}' if over else ''}", None
        return
    whole = f"({terms}){over} = " if over or len(found) > 1 else ""
    yield f"C = {whole}{number(trace.loss)}", None


def divisor(trace: Trace) -> int:
    """Return what the sum is divided by: N, or the number of all entries M."""
    if trace.loss_name == "cross_entropy":
        return int((trace.target >= 0).sum())
    return len(trace.input) if trace.loss_name in PER_SAMPLE else trace.layers[-1].a.numel()


def gradient_lines(trace: Trace, rows: Iterable[int], neurons: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Yield ∂C/∂a in numbers for some output neurons, with neuron and sample."""
    plain, by = is_plain(trace), divisor(trace) if is_plain(trace) else 1
    for n in rows:
        for j in neurons:
            result = trace.grad_a[n, j].item()
            text = _slope(trace, n, j, by) if plain else ""
            yield f"{text} = {number(result)}" if text else number(result), j, n


def _slope(trace: Trace, n: int, j: int, by: int) -> str:
    """Return ∂C/∂a of one output by its formula, with numbers; empty where the result says it all."""
    a, y = trace.layers[-1].a[n], trace.target[n]
    over = f"/{by}" if by > 1 else ""
    if trace.loss_name == "cross_entropy":
        return _slope_of_labels(a, int(y), j, over)
    gap = f"({difference(a[j].item(), y[j].item())})"
    if trace.loss_name == "quadratic_loss":
        return f"{gap}{over}"
    if trace.loss_name == "mse_loss":
        return f"2·{gap}{over}"
    if trace.loss_name.startswith("binary"):
        s, rest = _sigmoid(a[j].item()), _sigmoid(-a[j].item())
        near = s > 0.99 and y[j] == 1
        return f"(−{number(rest)}){over}" if near else f"({difference(s, y[j].item())}){over}"
    size = float(a[j] - y[j])
    if trace.loss_name == "huber_loss" and abs(size) <= 1:
        return f"{gap}{over}"
    return f"{'−' if size < 0 else ''}1{over}" if size and over else ""


def _slope_of_labels(a: Tensor, label: int, j: int, over: str) -> str:
    if label < 0:
        return ""
    shares = a.softmax(0)
    p = number(shares[j].item())
    if j == label:
        rest = float(shares.sum() - shares[j])
        return f"({p} − 1){over}" if shares[j] < 0.99 else f"(−{number(rest)}){over}"
    return f"{p}{over}" if over else ""
