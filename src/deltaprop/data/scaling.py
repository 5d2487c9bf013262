"""Scaling of inputs and targets, column by column.

Shapes: x [N, n], mean and scale [n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaprop.data.splits import Array
from deltaprop.errors import UserError

_COLUMNS_AT_ONCE = 64  # bounds the float64 copy of a wide set of bytes to 64 of its columns
SQUARABLE = 1e-150, 1e150  # deviations whose squares, and sums of these, float64 holds
LEAST_STEPS = 100  # of float64 in a deviation: with fewer, its values have less than three digits


class Moments:
    """Mean and variance of columns that come block by block, NaN left out, in one pass (Chan, Golub, LeVeque 1983).

    scikit-learn's ``StandardScaler`` gives the same, but NaN for a column that has no value in some block.

    Args:
        width: The number of columns.

    Attributes:
        count: The number of values in each.
        mean: Σx/N, 0 without a value.
        variance: Σ(x − mean)²/N, 0 without a value.
    """

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.variance = np.zeros(width), np.zeros(width), np.zeros(width)

    def add(self, block: Array) -> None:
        """Add rows, [N, width]; a sum that overflows is infinite or NaN."""
        new = (~np.isnan(block)).sum(axis=0).astype(float)
        with np.errstate(all="ignore"):
            total = np.nansum(block, axis=0)
            from_mean = block - total / new
            squares = np.nansum(from_mean**2, axis=0) - np.nansum(from_mean, axis=0) ** 2 / new
        self._merge(new, total, squares)

    def merge(self, other: Moments) -> None:
        """Add the rows that another one has seen."""
        with np.errstate(all="ignore"):
            self._merge(other.count, other.count * other.mean, other.count * other.variance)

    def _merge(self, new: Array, total: Array, squares: Array) -> None:
        """Add so many values, with their sum and their squared deviations from their own mean."""
        has, old = new > 0, self.count
        with np.errstate(all="ignore"):
            apart = np.where(old > 0, old / new / (old + new) * (self.mean * new - total) ** 2, 0.0)
            variance = (self.variance * old + squares + apart) / (old + new)
            mean = (self.mean * old + total) / (old + new)
        self.mean, self.variance = np.where(has, mean, self.mean), np.where(has, variance, self.variance)
        self.count = old + new

    def to_json(self) -> dict[str, list[float]]:
        """Return the three, which JSON holds to the last bit."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, found: dict[str, list[float]]) -> Moments:
        """Return what :meth:`to_json` gave."""
        moments = cls(0)
        vars(moments).update({name: np.array(values) for name, values in found.items()})
        return moments


@dataclass(frozen=True, eq=False)
class Scaling:
    """x ↦ (x − mean) / scale per column, and back.

    Args:
        mean: Float64, shape ``[n]``, in the units of x.
        scale: Float64, shape ``[n]``, in the units of x, never 0.

    Example:
        >>> scaling = Scaling.standard(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> scaling.apply(torch.tensor([[2.0, 6.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, n: int) -> Scaling:
        """Return the scaling that changes nothing, for n columns."""
        return cls(torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))

    @classmethod
    def pixels(cls, n: int, full_scale: float) -> Scaling:
        """Return x ↦ x / full_scale for n pixels, which takes 0 … full_scale to 0 … 1."""
        return cls(torch.zeros(n, dtype=torch.float64), torch.full((n,), full_scale, dtype=torch.float64))

    @classmethod
    def standard(cls, x: Tensor, weights: Tensor | None = None) -> Scaling:
        """Return the scaling that gives each column of x mean 0 and standard deviation 1.

        Fit it on the training part only: statistics of the test part must not influence training.
        The standard deviation is the population's, √(Σ(x − mean)²/N). A constant column gets
        scale 1: it becomes 0 for these rows, and a later row that differs keeps its distance.

        Args:
            x: The training part, shape ``[N, n]`` with N ≥ 1, any real dtype; mean and deviation are float64.
            weights: How often each row counts, float64, shape ``[N]``, above 0: mean = Σ w x / Σ w; None for once each.

        Raises:
            UserError: If there is no row, or a column's mean or deviation is not finite.
        """
        if x.ndim != 2 or len(x) == 0:
            raise UserError(f"x must be [N, n] with at least one row to fit a scaling on, got {list(x.shape)}")
        columns = x.split(_COLUMNS_AT_ONCE, dim=1)
        fits = [_std_mean(block.double(), weights) for block in columns]
        scale, mean = (torch.cat(parts) for parts in zip(*fits, strict=True))
        bad = torch.nonzero(~(scale.isfinite() & mean.isfinite()))
        if len(bad):
            column = int(bad[0])
            raise UserError(
                f"column {column} cannot be standardised: its mean is {float(mean[column])} and its standard "
                f"deviation {float(scale[column])}, both must be finite"
            )
        # Exactly 0 for a constant column: std_mean updates a running mean, which such a column never moves.
        return cls(mean, scale.masked_fill(scale == 0, 1.0))

    @property
    def is_uniform(self) -> bool:
        """Whether all columns have the same mean and scale."""
        return bool((self.mean == self.mean[:1]).all() and (self.scale == self.scale[:1]).all())

    def apply(self, x: Tensor) -> Tensor:
        """Return (x − mean) / scale, shape ``[N, n]``: in float64, or rounded to x's dtype if that is a float."""
        scaled = (x - self.mean) / self.scale
        return scaled.to(x.dtype) if x.is_floating_point() else scaled

    def invert(self, x: Tensor) -> Tensor:
        """Return x · scale + mean, the inverse of `apply`, shape ``[N, n]``, with the same dtypes."""
        raw = x * self.scale + self.mean
        return raw.to(x.dtype) if x.is_floating_point() else raw

    def in_own_units(self, x: Tensor) -> Tensor:
        """Return x · scale + mean in float64, ``[N, n]``; on the CPU where x is on mps, which has no float64."""
        x = (x.cpu() if x.device.type == "mps" else x).double()
        return self.invert(x)

    def to(self, device: torch.device | str) -> Scaling:
        """Return the same scaling with its tensors on ``device``; in float32 on mps, which has no float64."""
        dtype = torch.float32 if torch.device(device).type == "mps" else self.mean.dtype
        return Scaling(self.mean.to(device, dtype), self.scale.to(device, dtype))


def check_targets_fit(y: Array, names: Sequence[str]) -> None:
    """Refuse targets whose errors float64 cannot tell.

    Args:
        y: The training part, [N, k], float64.
        names: What messages call each column.

    Raises:
        UserError: If the square of a column's deviation is too small or too large, or its mean leaves no digits to it.
    """
    for name, values in zip(names, y.T, strict=True):
        unit = float(np.abs(values).max()) or 1.0  # the squares of values / unit are at most 1
        check_target_spread(name, float(np.mean(values / unit)), float(np.std(values / unit)), unit)


def check_target_spread(name: str, mean: float, deviation: float, unit: float = 1.0) -> None:
    """Refuse a target of this mean and standard deviation, both in a unit, as :func:`check_targets_fit` does."""
    middle, spread = mean * unit, deviation * unit
    if spread == 0:
        return
    if not SQUARABLE[0] <= spread <= SQUARABLE[1]:
        digits = math.log10(deviation) + math.log10(unit) if math.isfinite(deviation) else 300
        exponent = max(-300, min(300, -math.floor(digits)))
        raise UserError(
            f"{name} has a standard deviation of {spread:.4g}, and float64 cannot hold the square of that: "
            f"write it in another unit, its numbers multiplied by 1e{exponent}"
        )
    if spread < LEAST_STEPS * float(np.spacing(abs(middle))):
        raise UserError(
            f"{name} is {middle:.4g} ± {spread:.4g}: so close together float64 keeps less than three digits of "
            f"them: subtract {middle:.4g} from the numbers first"
        )


def _std_mean(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return √(Σ w (x − mean)² / Σ w) and mean = Σ w x / Σ w of each column, exact where a column is constant."""
    if weights is None:
        return torch.std_mean(x, dim=0, correction=0)
    shares = (weights / weights.sum()).unsqueeze(1)
    rest = x - x[:1]  # 0 for a constant column, whose mean then has no rounding
    mean = (shares * rest).sum(dim=0)
    return (shares * (rest - mean).square()).sum(dim=0).sqrt(), x[0] + mean
