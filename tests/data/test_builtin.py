"""The built-in data sets have the properties that their docstrings state, and depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from deltaprop.data import BUILTIN
from deltaprop.data.builtin import circles, digits, moons, sine, spirals, xor

GENERATED = [moons, circles, spirals, xor, sine]
names = pytest.mark.parametrize("name", BUILTIN)
generated = pytest.mark.parametrize("draw", GENERATED, ids=lambda draw: draw.__name__)


@names
def test_each_name_gives_a_consistent_data_set(name):
    """Finite, with as many labels or targets as samples, labels counted from 0 and one name per class."""
    raw = BUILTIN[name](0)
    assert raw.name == name
    assert len(raw.x) == len(raw.y)
    assert np.isfinite(raw.x).all()
    assert raw.x_test is None
    if raw.task == "classification":
        assert list(np.unique(raw.y)) == list(range(len(raw.class_names)))
    else:
        assert raw.y.ndim == 2
        assert raw.class_names == ()


@names
def test_the_same_seed_gives_the_same_bytes(name):
    """The digest covers every byte."""
    assert BUILTIN[name](5).digest() == BUILTIN[name](5).digest()


@generated
def test_another_seed_gives_other_bytes(draw):
    """Every generated data set, that is all but digits."""
    assert draw(0).digest() != draw(1).digest()


@generated
def test_the_size_is_1000_by_default_and_can_be_set(draw):
    """Two input columns for classification, one for regression."""
    columns = 1 if draw is sine else 2
    assert draw(0).x.shape == (1000, columns)
    assert draw(0, n_samples=37).x.shape == (37, columns)


@pytest.mark.parametrize("draw", [moons, circles, spirals, xor], ids=lambda draw: draw.__name__)
def test_classes_are_balanced_and_shuffled(draw):
    """Class sizes differ by at most one row, and the first and last 100 rows hold every class."""
    y = draw(0).y
    counts = np.bincount(y)
    assert counts.max() - counts.min() <= 1
    for end in (y[:100], y[-100:]):
        assert set(end) == set(range(len(counts)))


def test_digits_are_the_published_ones():
    """1797 pictures of 8×8 with values 0 to 16, as scikit-learn's documentation states; the first is a 0."""
    raw = digits()
    assert raw.x.shape == (1797, 8, 8)
    assert (raw.x.min(), raw.x.max()) == (0, 16)
    assert raw.full_scale == 16.0
    assert raw.image_shape == (8, 8)
    assert raw.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert raw.y[0] == 0
    # Row 0 of the first picture in scikit-learn's documentation of load_digits.
    assert list(raw.x[0, 0]) == [0, 0, 5, 13, 9, 1, 0, 0]


def test_circles_have_radius_1_and_a_half():
    """Class 0 outside: the mean radius is within 0.02, five times the noise 0.05 over √500 and its bias 0.05²/2r."""
    raw = circles()
    radius = np.hypot(*raw.x.T)
    assert abs(radius[raw.y == 0].mean() - 1.0) < 0.02
    assert abs(radius[raw.y == 1].mean() - 0.5) < 0.02


def test_upper_moon_lies_higher():
    """Half circles around y = 0 and y = 0.5: mean heights 2/π = 0.64 and 0.5 − 2/π = −0.14, to five times 0.33/√500."""
    raw = moons()
    assert abs(raw.x[raw.y == 0, 1].mean() - 2 / np.pi) < 0.075
    assert abs(raw.x[raw.y == 1, 1].mean() - (0.5 - 2 / np.pi)) < 0.075


def test_spirals_follow_their_equation():
    """Undoing φ = 2π(arm/3 + r) leaves the angle of the noise, 0.02/r on the unit circle: median below 0.1 radians."""
    raw = spirals()
    radius, angle = np.hypot(*raw.x.T), np.arctan2(raw.x[:, 1], raw.x[:, 0])
    off = np.angle(np.exp(1j * (angle - 2 * np.pi * (raw.y / 3 + radius))))
    assert np.median(np.abs(off)) < 0.1
    assert radius.max() < 1.1  # r ≤ 1 and five deviations of the noise


def test_xor_is_the_exclusive_or_of_the_signs():
    """A centre is four deviations from either axis: at most 1 sample in 1000 crosses one (6e-5 expected)."""
    raw = xor()
    wrong = ((raw.x[:, 0] > 0) ^ (raw.x[:, 1] > 0)) != raw.y.astype(bool)
    assert wrong.mean() <= 0.001


def test_sine_is_sin_x_with_little_noise():
    """Over [−2π, 2π]; the residual's deviation is 0.05 to within a tenth (its own error is 0.05/√2000 = 0.001)."""
    raw = sine()
    assert raw.task == "regression"
    assert raw.x.min() >= -2 * np.pi
    assert raw.x.max() <= 2 * np.pi
    assert raw.x.max() - raw.x.min() > 12.4  # 4π = 12.57, less the gaps at the ends
    residual = raw.y - np.sin(raw.x)
    assert abs(residual.mean()) < 0.008  # five times 0.05/√1000
    assert 0.045 < residual.std() < 0.055
