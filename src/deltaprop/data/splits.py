"""Splits of rows into those to keep and those to hold out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.errors import UserError, setting, unknown_name

SplitHow: TypeAlias = Literal["random", "tail"]
Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True)
class Fold:
    """One of several equal parts of the rows, which is held out; k-fold cross-validation holds out each in turn.

    Attributes:
        number: Which part is held out, from 1.
        of: The number of parts, K.
    """

    number: int
    of: int

    def split(self, n: int, stratify: Array | None, seed: int) -> tuple[Rows, Rows]:
        """Return the rows to keep and the rows to hold out, each in rising order.

        The K parts are disjoint, and depend on the seed and K alone; their sizes differ by at most one row, as do the
        shares of each class. The only row of a class is never held out: there would be none left to train on.

        Args:
            n: The number of rows.
            stratify: Class labels, shape ``[n]``; None for parts drawn without regard to classes.
            seed: Seed of the parts, in [0, 2³²).

        Raises:
            UserError: If there are fewer rows than parts.

        Example:
            >>> kept, held_out = Fold(1, of=3).split(6, np.array([0, 0, 0, 1, 1, 1]), 0)
            >>> len(kept), len(held_out)
            (4, 2)
        """
        if self.of > n:
            raise UserError(
                f"{setting('folds', self.of)}: there are {n} rows, and each fold needs one: take at most {n}"
            )
        rng, order = np.random.RandomState(seed), []
        for label in [None] if stratify is None else np.unique(stratify):
            own = np.arange(n) if label is None else np.flatnonzero(stratify == label)
            if stratify is None or len(own) > 1:
                order.append(rng.permutation(own))
        dealt = np.concatenate(order) if order else np.arange(0)
        held = np.zeros(n, dtype=np.bool_)
        held[dealt[self.number - 1 :: self.of]] = True  # dealt one by one to the parts, class after class
        if not held.any():
            what = f"{len(dealt)} rows are of a class with two rows or more, and each fold needs one"
            raise UserError(f"{setting('folds', self.of)}: {what}: take at most {len(dealt)}")
        return np.flatnonzero(~held), np.flatnonzero(held)


def split_indices(
    n: int,
    stratify: Array | None,
    fraction: float,
    seed: int,
    how: SplitHow,
    *,
    name: str = "fraction",
    class_names: Sequence[str] = (),
    spare_lonely: bool = False,
) -> tuple[Rows, Rows]:
    """Return the rows to keep and the rows to hold out, each in rising order.

    round(fraction · n) rows are held out. The rising order leaves the rows in the order of the file, so a tail taken
    from what a random split kept is still the end of the file.

    Args:
        n: The number of rows.
        stratify: Class labels, shape ``[n]``: a random split then gives each class its share on both sides. None for
            a plain random split. A tail split ignores it.
        fraction: The share to hold out, in [0, 1); 0 holds out nothing.
        seed: Seed of the random split, in [0, 2³²).
        how: ``"random"`` or ``"tail"``, the last rows.
        name: The name of ``fraction`` in messages.
        class_names: The names of classes in messages; their numbers by default.
        spare_lonely: Keep the only row of a class, where it would otherwise be refused.

    Raises:
        UserError: If one side would be empty, or a class has too few rows to be split by share.

    Source:
        The random split is scikit-learn's ``train_test_split``, row for row. Written out here because with classes that
        takes 79 bytes of memory per row and 8 times as long (measured with 10 million rows and 5 classes: 4.8 s, here
        11 bytes and 0.6 s), and a table may have more rows than fit in memory.

    Example:
        >>> split_indices(5, None, 0.4, 0, "tail")
        (array([0, 1, 2]), array([3, 4]))
    """
    if how not in ("random", "tail"):
        raise unknown_name("split", how, ("random", "tail"))
    if fraction == 0:
        return np.arange(n), np.arange(0)
    n_held = round(fraction * n)
    if not 0 < n_held < n:
        raise UserError(
            f"{name}={fraction} of {n} rows holds out {n_held}: both sides need a row, choose another fraction"
        )
    if how == "tail":
        return np.arange(n - n_held), np.arange(n - n_held, n)
    held, rng = np.zeros(n, dtype=np.bool_), np.random.RandomState(seed)
    if stratify is None:
        held[rng.permutation(n)[:n_held]] = True
        return np.flatnonzero(~held), np.flatnonzero(held)
    counts = np.bincount(stratify)
    if spare_lonely:  # the others are split as if its row were not there
        counts[counts == 1] = 0
    classes, n_split = np.flatnonzero(counts), int(counts.sum())
    counts = counts[classes]
    if not n_split:
        raise UserError(f"{name}={fraction} of {n} rows: each class has 1 row, and none can be held out: take 0 for it")
    if counts.min() < 2:
        label = classes[counts.argmin()]
        lonely = repr(class_names[label]) if class_names else label
        raise UserError(
            f"class {lonely} has 1 row, a random split needs at least 2 of each class to give both sides their share"
        )
    for side, n_rows in (("held out", n_held), ("kept", n_split - n_held)):
        if n_rows < len(classes):
            raise UserError(
                f"{name}={fraction} of {n_split} rows leaves {n_rows} {side}, fewer than the {len(classes)} classes: "
                f"choose another fraction"
            )
    kept = _shares(counts, n_split - n_held, rng)
    shares = _shares(counts - kept, n_held, rng)
    for label, first, share in zip(classes, kept, shares, strict=True):  # one class at a time, to bound the memory
        own = np.flatnonzero(stratify == label)
        held[own[rng.permutation(len(own))[first : first + share]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(counts: Array, draws: int, rng: np.random.RandomState) -> Rows:
    """Return the number of draws of each class: its share rounded down, then one for the largest remainders by lot."""
    exact = counts / counts.sum() * draws
    shares: Rows = np.floor(exact).astype(np.int64)
    remainder = exact - shares
    for value in np.unique(remainder)[::-1]:
        left = draws - int(shares.sum())
        if left <= 0:
            break
        which = np.flatnonzero(remainder == value)
        shares[rng.choice(which, size=min(len(which), left), replace=False)] += 1
    return shares
