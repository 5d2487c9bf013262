"""Compare a gradient with central differences, entry by entry, with smaller steps where they disagree.

An entry is right if it equals the central difference up to a tolerance. Where it does not, h may be too large: a kink
lies near x, or the curve bends within h. So it is compared again with h/10 and h/100. At a kink of g the slopes on both
sides differ however small h is, and any number between them is accepted; where g itself jumps they grow as 1/h, and
there is no derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaprop.gradcheck.differences import Scalar, Slopes, slopes, slopes_at


@dataclass
class DifferenceCheck:
    """What became of the entries of one gradient.

    Attributes:
        entries: Those that were tried, as indices into the flattened input.
        ours: Of the gradient.
        expected: By the last differences that were asked for.
        wrong: Which are wrong.
        kinks: (entry, ours, left, right) where there is no derivative.
    """

    entries: Tensor
    ours: Tensor
    expected: Tensor
    wrong: Tensor
    kinks: list[tuple[int, float, float, float]] = field(default_factory=list)

    @property
    def worst(self) -> int:
        """Which of the tried entries is the farthest off."""
        gap = torch.where(self.wrong, (self.ours - self.expected).abs().nan_to_num(float("inf")), -1.0)
        return int(gap.argmax())


def check_by_differences(
    g: Scalar,
    values: Sequence[Tensor],
    at: int,
    gradient: Tensor,
    most: int,
    generator: torch.Generator,
    atol: float,
    rtol: float,
) -> DifferenceCheck:
    """Judge the gradient of g by one of its inputs.

    Args:
        g: A function of tensors whose value is one number.
        values: Of all inputs.
        at: Which input.
        gradient: ∂g/∂x, of x's shape.
        most: How many entries to try.
        generator: Draws which, where there are more.
        atol: What an entry may be off by, relative to the largest entry.
        rtol: The same, relative to itself.
    """
    found = slopes(g, values, at, most, generator)
    ours = gradient.detach().reshape(-1)[found.entries].double()
    result = DifferenceCheck(found.entries, ours, found.central.clone(), torch.zeros(len(ours), dtype=torch.bool))
    finite = found.central[found.central.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    open_ = torch.nonzero(~_close(ours, found, atol * largest, rtol)).flatten()
    before = found
    for shrink in (0.1, 0.01):
        if not len(open_):
            return result
        closer = slopes_at(g, values, at, found.entries[open_], shrink)
        mine = ours[open_]
        right = _close(mine, closer, atol * largest, rtol)
        apart, were = (closer.right - closer.left).abs(), (before.right - before.left).abs()
        low, high = torch.minimum(closer.left, closer.right), torch.maximum(closer.left, closer.right)
        slack = atol * largest + 30 * closer.noise
        between = (mine >= low - slack) & (mine <= high + slack)
        were, central = (were, before.central) if len(were) == len(open_) else (were[open_], before.central[open_])
        kink = (apart > 0.5 * were) & (apart > 100 * slack) & between
        jump = (closer.central.abs() > 5 * central.abs()) & (closer.central.abs() > 1e3 * largest * shrink)
        unknown = ~closer.central.isfinite()
        for k in torch.nonzero((kink | jump) & ~right).flatten().tolist():
            result.kinks.append((int(found.entries[open_[k]]), float(mine[k]), float(low[k]), float(high[k])))
        result.expected[open_] = closer.central
        keep = ~(right | kink | jump | unknown)
        before = Slopes(closer.entries[keep], closer.central[keep], closer.left[keep], closer.right[keep], closer.noise)
        open_ = open_[keep]
    result.wrong[open_] = True
    return result


def _close(ours: Tensor, found: Slopes, absolute: float, rtol: float) -> Tensor:
    """Return which entries are what differences say; an entry that they have no number for is not."""
    return (ours - found.central).abs() <= absolute + rtol * found.central.abs() + 30 * found.noise
