"""Compare a gradient with central differences, entry by entry.

    ∂g/∂x_i ≈ (g(x + h e_i) − g(x − h e_i)) / 2h

The error is about h² from the curvature and ε |g| / h from rounding; h = ε^⅓ max(1, |x_i|) makes both about ε^⅔.

If an entry disagrees, h may be too large: there is a kink near x, or g bends within h. So it is compared again with
h/10 and h/100. At a kink of g the slopes on the two sides differ however small h is, and any number between them is
accepted; where g itself jumps they grow as 1/h, and there is no derivative.

At the edge of its domain g is finite on one side alone, as x log x is at 0: there the slope on this side counts, if it
converges as h shrinks. Where it does not, as for √x at 0, or neither side is finite, the entry cannot be judged.

Of an input with very many entries some are drawn. A single wrong one among the others shows in the slope along a random
direction over all of them, ⟨∂g/∂x, d⟩ ≈ (g(x + h d) − g(x − h d)) / 2h, and is found by halving: that half is taken on
whose own slope differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

COARSE = 1e-10  # relative precision: float64 is finer, float32 coarser
NOISE_MARGIN = 30  # times the estimated rounding error of a slope is what it may be off by
Scalar = Callable[[Sequence[Tensor]], Tensor]
"""A function of tensors whose value is one number."""


@dataclass(frozen=True)
class Tolerance:
    """What an entry of a gradient may be off by, and how exactly g can be evaluated.

    Attributes:
        atol: Allowed error, relative to the largest entry.
        rtol: Allowed error, relative to the entry itself.
        eps: The relative precision of g, if it is less than that of its inputs' dtype.
        size: The size of the terms that g is a sum of, if they are larger than g.
    """

    atol: float
    rtol: float
    eps: float = 0.0
    size: float = 0.0


@dataclass(frozen=True)
class EntryComparison:
    """Entries of a gradient beside the expected ones.

    Attributes:
        entries: The entries that were compared, as indices into the flattened input.
        got: Their values in the gradient.
        expected: The values they should have.
        wrong: A mask of the wrong ones.
        kinks: (entry, got, left slope, right slope) where there is no derivative.
        unjudged: The entries that differences cannot judge: beside them g is not finite, or jumps.
        noise: What rounding may have added to the expected values.
    """

    entries: Tensor
    got: Tensor
    expected: Tensor
    wrong: Tensor
    kinks: list[tuple[int, float, float, float]] = field(default_factory=list)
    unjudged: list[int] = field(default_factory=list)
    noise: float = 0.0

    def set_aside(self, entries: Tensor) -> None:
        """Count some entries, a mask, as such that cannot be judged."""
        self.wrong[entries] = False
        self.unjudged[:] = sorted({*self.unjudged, *self.entries[entries].tolist()})

    def describe(self, shape: Sequence[int], found: str = "") -> str:
        """Return the wrong entry with the largest error, in words, and how many are wrong, or how it was found."""
        # torch.testing.assert_close names this place too, but not the two numbers.
        errors = (self.got - self.expected).abs()
        k = int(torch.where(self.wrong, errors.nan_to_num(float("inf")), -1.0).argmax())
        difference = f"difference {errors[k]:.3g}; " if errors[k].isfinite() else ""
        return (
            f"at {format_index(int(self.entries[k]), shape)} expected {self.expected[k]:.8g}, got {self.got[k]:.8g} "
            f"({difference}{found or f'{int(self.wrong.sum())} of {len(self.got)} entries wrong'})"
        )


def check_by_differences(
    g: Scalar,
    values: Sequence[Tensor],
    at: int,
    gradient: Tensor,
    entries: Tensor,
    tolerance: Tolerance,
) -> EntryComparison:
    """Compare the gradient of g by one of its inputs with central differences.

    Args:
        g: The function; it is called with copies of the inputs, without a graph.
        values: All inputs.
        at: The index of the input in question.
        gradient: ∂g/∂x, of x's shape.
        entries: The entries to compare, as :func:`draw_entries` gives them.
        tolerance: What an entry may be off by.
    """
    eps, rtol = tolerance.eps, tolerance.rtol
    got = gradient.detach().reshape(-1)[entries].cpu().double()
    slopes, noise = slopes_at(g, values, at, entries, tolerance=tolerance)
    expected, wrong = slopes[0].clone(), torch.zeros(len(got), dtype=torch.bool, device="cpu")
    comparison = EntryComparison(entries, got, expected, wrong, noise=noise)
    kinks, unjudged = comparison.kinks, comparison.unjudged
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    atol = tolerance.atol * largest
    _judge_edges(comparison, g, values, at, slopes, tolerance)
    open_ = torch.nonzero(~_agree(got, slopes[0], atol + NOISE_MARGIN * noise, rtol) & slopes[0].isfinite()).flatten()
    before, gap = slopes[:, open_], (got[open_] - slopes[0, open_]).abs()
    if eps > COARSE and len(open_):  # with smaller steps rounding would hide the error: between the slopes is a kink
        mine, (low, high) = got[open_], torch.aminmax(before[1:], dim=0)
        between = (mine >= low) & (mine <= high) & (high - low > 0.1 * largest)
        for k in torch.nonzero(between).flatten().tolist():
            kinks.append((int(entries[open_[k]]), float(mine[k]), float(low[k]), float(high[k])))
        open_ = open_[~between]
    for shrink in (0.1, 0.01) if eps <= COARSE else ():
        if not len(open_):
            break
        slopes, noise = slopes_at(g, values, at, entries[open_], shrink, tolerance)
        mine, central, (low, high) = got[open_], slopes[0], torch.aminmax(slopes[1:], dim=0)
        slack = atol + NOISE_MARGIN * noise
        # A smaller step must have helped: rounding grows with it, and would excuse any error in the end.
        right = _agree(mine, central, slack, rtol) & ((mine - central).abs() <= 0.5 * gap)
        between = (mine >= low - slack) & (mine <= high + slack)
        # At a kink the gap between the sides stays, where a curved g would close it tenfold; it is no rounding error.
        kink = (high - low > 0.5 * (before[2] - before[1]).abs()) & (high - low > 100 * slack) & between & ~right
        # At a jump the slope grows tenfold, far beyond all others.
        jump = (central.abs() > 5 * before[0].abs()) & (central.abs() > 1e3 * largest * shrink) & ~right & ~kink
        for k in torch.nonzero(kink).flatten().tolist():
            kinks.append((int(entries[open_[k]]), float(mine[k]), float(low[k]), float(high[k])))
        unjudged.extend(entries[open_[jump]].tolist())
        expected[open_] = central
        undecided = ~(right | kink | jump)
        before, open_, gap = slopes[:, undecided], open_[undecided], gap[undecided]
    wrong[open_] = True
    return comparison


def _judge_edges(
    comparison: EntryComparison, g: Scalar, values: Sequence[Tensor], at: int, slopes: Tensor, tolerance: Tolerance
) -> None:
    """Judge the entries beside which g is not finite, by the one side where it is."""
    expected = comparison.expected
    edges = torch.nonzero(~expected.isfinite()).flatten()
    if not len(edges):
        return
    of_edges = comparison.entries[edges]
    finer = [slopes_at(g, values, at, of_edges, shrink, tolerance) for shrink in (0.1, 0.01)]
    finite = expected[expected.isfinite()].abs()
    slack = tolerance.atol * (float(finite.max()) if len(finite) else 0.0) + NOISE_MARGIN * finer[-1][1]
    by_step = torch.stack([slopes[:, edges], *(finer_slopes for finer_slopes, _ in finer)])
    for k, sides in zip(edges.tolist(), by_step.unbind(2), strict=True):
        limit, error = _limit(sides)
        if limit is None:
            comparison.unjudged.append(int(comparison.entries[k]))
            continue
        expected[k] = limit
        gap = abs(float(comparison.got[k]) - limit)
        comparison.wrong[k] = not gap <= slack + tolerance.rtol * abs(limit) + error


def _limit(slopes: Tensor) -> tuple[float | None, float]:
    """Return the slope on the one side where g is finite, and its error; None if it does not converge.

    The slopes are [3, 3]: central, left and right ones, by h, h/10 and h/100.
    """
    for first, second, third in slopes[:, 1:].T.tolist():
        if all(map(math.isfinite, (first, second, third))):
            converges = abs(third - second) <= 0.5 * abs(second - first) or third == second
            return (third, abs(third - second)) if converges else (None, 0.0)
    return None, 0.0


def find_wrong_entry(
    g: Scalar, values: Sequence[Tensor], at: int, gradient: Tensor, generator: torch.Generator, tolerance: Tolerance
) -> Tensor | None:
    """Return the index, [1], of an entry that is probably wrong, if the slope along a random direction shows one.

    The arguments are those of :func:`check_by_differences`; the generator draws the direction.
    """
    x = values[at]
    d = (torch.rand(x.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5).to(x)  # none is small
    d *= gradient.isfinite()  # the others are looked at one by one

    def gap(entries: Tensor) -> float:
        """Return by how much the slopes differ along d of these entries, beyond what differences cannot tell."""
        along = torch.zeros_like(d, memory_format=torch.contiguous_format)
        along.view(-1)[entries] = d.reshape(-1)[entries]

        def moved(step: Sequence[Tensor]) -> Tensor:
            return g([*values[:at], x + step[0] * along, *values[at + 1 :]])

        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        first = torch.zeros(1, dtype=torch.int64, device="cpu")
        (central, left, right), noise = slopes_at(moved, [zero], 0, first, 0.1, tolerance)
        got = float(torch.where(along == 0, 0.0, gradient.detach() * along).sum())
        unknown = float((right - left).abs()) + NOISE_MARGIN * noise  # the curvature and kinks within h, and rounding
        return max(0.0, abs(got - float(central)) - unknown)  # 0 if there is no slope: NaN is not greater

    entries = torch.arange(x.numel(), device="cpu")
    if not gap(entries):
        return None
    while len(entries) > 1:
        halves = entries.chunk(2)
        entries = max(halves, key=gap)
    return entries


def _agree(gradient: Tensor, central: Tensor, atol: float, rtol: float) -> Tensor:
    """Return which entries equal the central difference; not those where it is not finite."""
    return (gradient - central).abs() <= atol + rtol * central.abs()


def draw_entries(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return the indices of all entries of a flattened tensor, or of a random choice of so many."""
    count = x.numel()
    if count <= most:
        return torch.arange(count, device="cpu")
    return torch.randperm(count, generator=generator, device="cpu")[:most].sort()[0]


def slopes_at(
    g: Scalar,
    values: Sequence[Tensor],
    at: int,
    entries: Tensor,
    shrink: float = 1.0,
    tolerance: Tolerance = Tolerance(0.0, 0.0),  # frozen
) -> tuple[Tensor, float]:
    """Return difference quotients of g along some entries of an input, and the error that rounding may cause in them.

    They are [3, n]: central, left and right ones, by steps of ``shrink`` times h; ε is that of the dtype or, if that is
    more, of the tolerance.
    """
    x = values[at]
    eps = max(tolerance.eps, float(torch.finfo(x.dtype).eps))

    def evaluate(entry: int, number: float) -> tuple[float, float]:
        """Return g with one entry replaced, and the number that the entry then has, after rounding."""
        moved = x.clone(memory_format=torch.contiguous_format)
        moved.view(-1)[entry] = number
        return _value(g, [*values[:at], moved, *values[at + 1 :]]), float(moved.view(-1)[entry])

    here = _value(g, values)
    slopes = torch.zeros(3, len(entries), dtype=torch.float64, device="cpu")
    largest, smallest = max(abs(here), tolerance.size), float("inf")
    for k, entry in enumerate(entries.tolist()):
        start = float(x.reshape(-1)[entry])
        h = eps ** (1 / 3) * max(1.0, abs(start)) * shrink
        (above, up), (below, down) = evaluate(entry, start + h), evaluate(entry, start - h)
        slopes[0, k] = (above - below) / (up - start + (start - down))
        slopes[1, k], slopes[2, k] = (here - below) / (start - down), (above - here) / (up - start)
        finite = [abs(value) for value in (above, below) if math.isfinite(value)]
        largest, smallest = max(largest, *finite, 0.0), min(smallest, h)
    return slopes, eps * largest / smallest


def _value(g: Scalar, values: Sequence[Tensor]) -> float:
    with torch.no_grad():
        return float(g([t.detach().clone() for t in values]))


def format_index(entry: int, shape: Sequence[int]) -> str:
    """Return the index of an entry of a flattened tensor, such as ``[2, 0]``."""
    return str([int(i) for i in torch.unravel_index(torch.tensor(entry, device="cpu"), tuple(shape))])
