"""Calibration by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from deltaprop.inference.calibration import BINS, calibrate


def test_calibration_by_hand():
    """Confidences 0.4 and 0.39 in one bin (6/15 = 0.4 belongs to the lower one), 0.41 in the next, 1 in the last.

    0.4 is right, 0.39 wrong: accuracy ½, confidence 0.395; 0.41 is wrong; 1 is right. ECE: (2 · 0.105 + 0.41 + 0) / 4.
    """
    probabilities = np.array([[0.4, 0.3, 0.3], [0.39, 0.31, 0.3], [0.3, 0.41, 0.29], [0.0, 0.0, 1.0]])
    found = calibrate(probabilities, np.array([0, 1, 0, 2]))
    assert np.flatnonzero(found.rows).tolist() == [5, 6, 14]
    assert found.rows[found.rows > 0].tolist() == [2, 1, 1]
    assert found.confidence[[5, 6, 14]] == pytest.approx([0.395, 0.41, 1.0])
    assert found.accuracy[[5, 6, 14]].tolist() == [0.5, 0.0, 1.0]
    assert np.isnan(found.accuracy[0])
    assert found.ece == pytest.approx(0.155)


def test_the_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1.0, 0.5, 0.5], 500)
    y = rng.integers(0, 3, 500)
    found = calibrate(probabilities, y)
    right = probabilities.argmax(axis=1) == y
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=BINS)
    filled = found.rows > 0
    assert found.accuracy[filled] == pytest.approx(accuracy)
    assert found.confidence[filled] == pytest.approx(confidence)
    assert found.rows.sum() == 500


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one():
    """Labels drawn from the probabilities p; told are p, and p³ normalised. Of 20000 rows the first is near 0."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1.0, 1.0, 1.0], 20000)
    y = (rng.random(20000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    assert calibrate(p, y).ece < 0.015
    assert calibrate(p**3 / (p**3).sum(axis=1, keepdims=True), y).ece > 0.15
