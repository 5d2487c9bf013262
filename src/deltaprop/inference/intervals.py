"""Prediction intervals by split conformal prediction, calibrated on the validation rows of a run."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.columns import Numbers
from deltaprop.errors import UserError, counted, setting

LEVEL = 0.9  # of the intervals that `evaluate` measures


def check_level(level: float) -> None:
    """Refuse a level that is not a number between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise UserError(f"{setting('interval', level)}: a level lies between 0 and 1, both excluded, such as 0.9")


def interval_radius(residuals: NDArray[np.float64], level: float) -> Numbers:
    """Return half the width of the intervals, [k]: the ⌈(n + 1) level⌉-th smallest residual of each target.

    The interval ŷ ± radius of a new row contains its y with a probability of at least ``level``, whatever the model
    and the distribution, if the n rows and the new one are exchangeable and the model does not depend on the n rows.
    The probability is marginal: over rows, not for each x. With ties excluded it is at most level + 1/(n + 1).

    Args:
        residuals: |y − ŷ| of n rows that the model was not trained on, [n, k].
        level: The level, in (0, 1).

    Raises:
        UserError: If n is too small for the level, or the level is out of range.

    Source:
        J. Lei, M. G'Sell, A. Rinaldo, R. J. Tibshirani and L. Wasserman, "Distribution-free predictive inference for
        regression", JASA 113, 2018, algorithm 2; V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random
        World, 2005.

    Example:
        >>> interval_radius(np.arange(1.0, 10.0)[:, None], 0.5)  # ⌈(9 + 1) · 0.5⌉ = 5
        array([5.])
    """
    check_level(level)
    exact, n = Fraction(str(level)), len(residuals)  # (n + 1) · level in floats may be just above a whole number
    rank = math.ceil((n + 1) * exact)
    if rank > n:
        least = math.ceil(exact / (1 - exact))
        raise UserError(
            f"an interval of level {level:g} needs at least {counted(least, 'validation row')}, and the run has {n}: "
            f"take a lower level, or train with a larger {setting('val_fraction')}"
        )
    radius: Numbers = np.sort(residuals, axis=0)[rank - 1]
    return radius
