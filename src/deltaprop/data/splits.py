"""Splits of rows into those to keep and those to hold out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.errors import UserError, counted, setting, unknown_name

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
) -> tuple[Rows, Rows]:
    """Return the rows to keep and the rows to hold out, each in rising order.

    round(fraction · n) rows are held out, at least one. With classes each gives its share and keeps a row at least: a
    class of a single row is kept, and one of few rows may have none held out. The rising order leaves the rows in the
    order of the file, so a tail taken from what a random split kept is still the end of the file.

    Args:
        n: The number of rows.
        stratify: Class labels, shape ``[n]``: a random split then gives each class its share on both sides; a tail
            split keeps the rows of a class that only the tail has. None for a plain split.
        fraction: The share to hold out, in [0, 1); 0 holds out nothing.
        seed: Seed of the random split, in [0, 2³²).
        how: ``"random"`` or ``"tail"``, the last rows.
        name: The name of ``fraction`` in messages.

    Raises:
        UserError: If one side would be empty.

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
    n_held = max(1, round(fraction * n))
    if n_held >= n:
        raise UserError(
            f"{name}={fraction} of {counted(n, 'row')} holds out {n_held}: both sides need a row, "
            "choose another fraction"
        )
    if how == "tail":
        held = np.arange(n) >= n - n_held
        if stratify is not None:  # a class with rows in the tail alone keeps them
            only = np.setdiff1d(stratify[held], stratify[~held])
            held &= ~np.isin(stratify, only)
        return np.flatnonzero(~held), np.flatnonzero(held)
    held, rng = np.zeros(n, dtype=np.bool_), np.random.RandomState(seed)
    if stratify is None:
        held[rng.permutation(n)[:n_held]] = True
        return np.flatnonzero(~held), np.flatnonzero(held)
    counts = np.bincount(stratify)
    counts[counts == 1] = 0  # the others are split as if its row were not there
    classes, n_split = np.flatnonzero(counts), int(counts.sum())
    counts = counts[classes]
    n_held = min(n_held, n_split - len(classes))
    if n_held <= 0:
        return np.arange(n), np.arange(0)
    kept = np.maximum(_shares(counts, n_split - n_held, rng), 1)
    while kept.sum() > n_split - n_held:  # what a class keeps beyond its share is another's
        kept[kept.argmax()] -= 1
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
