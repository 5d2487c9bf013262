"""Calibration: whether a class that is predicted with a probability of 80 % is right in 80 % of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltaprop.data.columns import Numbers
from deltaprop.data.splits import Array

BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence and accuracy of predictions in bins of equal width.

    Attributes:
        confidence: The mean probability of the predicted class in each bin, [BINS]; NaN in an empty bin.
        accuracy: The share of right predictions in each bin, [BINS]; NaN in an empty bin.
        rows: The number of rows in each bin, [BINS].
    """

    confidence: Numbers
    accuracy: Numbers
    rows: Array

    @property
    def ece(self) -> float:
        """The expected calibration error, Σ_b n_b/N |accuracy_b − confidence_b|."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.rows * gaps).sum() / self.rows.sum())


def calibrate(probabilities: Numbers, y: Array) -> Calibration:
    """Return the calibration of the most probable class of each row.

    The confidence p is the largest probability of a row; bin b has the rows with (b − 1)/15 < p ≤ b/15, as in Guo et
    al. and in scikit-learn's ``calibration_curve``. With two classes too the confidence is that of the class which is
    predicted, at least ½, not that of the second class.

    Args:
        probabilities: [N, C].
        y: Labels, [N].

    Source:
        C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
        equations 2 to 5, with 15 bins.

    Example:
        >>> round(calibrate(np.array([[0.2, 0.8], [0.3, 0.7]]), np.array([1, 0])).ece, 3)  # (0.2 + 0.7) / 2
        0.45
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    which = np.searchsorted(inner, confidence)
    rows = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0/0 is NaN
        means, shares = (np.bincount(which, values, minlength=BINS) / rows for values in (confidence, right))
    return Calibration(means, shares, rows)
