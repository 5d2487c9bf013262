"""The built-in data sets: scikit-learn's digits, and points that are generated from a seed.

A new set is one function from a seed to `RawData`, listed in `BUILTIN`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deltaprop.data.raw_data import RawData

# scikit-learn is imported inside the functions: it takes longer to import than the rest of the package together.


def digits(seed: int = 0) -> RawData:
    """Return 1797 handwritten digits of 8×8 pixels with values from 0 to 16; the seed has no effect.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (test part), UCI Machine Learning
        Repository, 1998; bundled with scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return RawData(
        name="digits", task="classification", x=bunch.images.astype(np.uint8), y=bunch.target.astype(np.uint8),
        class_names=tuple("0123456789"), pictures=True, full_scale=16.0,
    )  # fmt: skip


def moons(seed: int = 0, n_samples: int = 1000) -> RawData:
    """Return two interleaving half circles, with Gaussian noise of deviation 0.1.

    Source:
        ``make_moons`` of scikit-learn.
    """
    from sklearn.datasets import make_moons

    x, y = make_moons(n_samples, noise=0.1, random_state=seed)
    return RawData(name="moons", task="classification", x=x, y=y, class_names=("upper", "lower"))


def circles(seed: int = 0, n_samples: int = 1000) -> RawData:
    """Return a circle of radius 1 around one of radius 0.5, with Gaussian noise of deviation 0.05.

    Source:
        ``make_circles`` of scikit-learn.
    """
    from sklearn.datasets import make_circles

    x, y = make_circles(n_samples, noise=0.05, factor=0.5, random_state=seed)
    return RawData(name="circles", task="classification", x=x, y=y, class_names=("outer", "inner"))


def spirals(seed: int = 0, n_samples: int = 1000) -> RawData:
    """Return three interleaved spiral arms: r = t, φ = 2π(arm/3 + t), t uniform in [0.05, 1], noise of deviation 0.02.

    Each arm winds round the centre once; the middle, where arms would overlap, is empty.

    Source:
        K. Lang and M. Witbrock, "Learning to tell two spirals apart", Connectionist Models Summer School, 1988; with
        three arms in Stanford CS231n's notes, "Putting it together: Minimal Neural Network Case Study".
    """
    rng = np.random.default_rng(seed)
    arm = rng.permutation(np.arange(n_samples) % 3)
    t = rng.uniform(0.05, 1.0, n_samples)
    angle = 2 * np.pi * (arm / 3 + t)
    points = t[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = points + rng.normal(0.0, 0.02, points.shape)
    return RawData(name="spirals", task="classification", x=x, y=arm, class_names=("arm 0", "arm 1", "arm 2"))


def xor(seed: int = 0, n_samples: int = 1000) -> RawData:
    """Return clouds of deviation 0.25 around (±1, ±1), the class being whether the signs of the centre differ.

    Source:
        M. Minsky and S. Papert, "Perceptrons", 1969: no single layer separates these classes.
    """
    rng = np.random.default_rng(seed)
    quadrant = rng.permutation(np.arange(n_samples) % 4)
    right, top = quadrant % 2, quadrant // 2
    centre = 2.0 * np.stack([right, top], axis=1) - 1.0
    x = centre + rng.normal(0.0, 0.25, centre.shape)
    return RawData(name="xor", task="classification", x=x, y=right ^ top, class_names=("same sign", "opposite sign"))


def sine(seed: int = 0, n_samples: int = 1000) -> RawData:
    """Return y = sin x for x uniform in [−2π, 2π], with Gaussian noise of deviation 0.05 on y."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2 * np.pi, 2 * np.pi, (n_samples, 1))
    return RawData(name="sine", task="regression", x=x, y=np.sin(x) + rng.normal(0.0, 0.05, x.shape))


BUILTIN: dict[str, Callable[[int], RawData]] = {
    function.__name__: function for function in (digits, moons, circles, spirals, xor, sine)
}

# The η that `lr="auto"` stands for, measured over seeds 0 to 9 (tests/training/test_builtin.py): at 0.05 most units of
# the second layer die on the sine; at 0.02 the others learn no better, and digits worse.
BUILTIN_LR: dict[str, float] = {
    "digits": 0.05, "moons": 0.05, "circles": 0.05, "spirals": 0.05, "xor": 0.05, "sine": 0.02,
}  # fmt: skip
