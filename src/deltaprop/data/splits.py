"""Which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.errors import UserError, unknown_name

SplitHow: TypeAlias = Literal["random", "tail"]
Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.intp]


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
            a plain random split. A tail split does not look at it.
        fraction: The share to hold out, in [0, 1); 0 holds out nothing.
        seed: Seeds the random split, in [0, 2³²).
        how: ``"random"`` or ``"tail"``, the last rows.
        name: What the messages call ``fraction``.
        class_names: What they call the classes; their numbers by default.
        spare_lonely: Keep the row of a class that has one alone, where it would otherwise be refused.

    Raises:
        UserError: If one side would be empty, or a class has too few rows to be split by share.

    Source:
        The random split is scikit-learn's ``train_test_split``, row for row; written out here because that one takes
        100 bytes of memory for each row.

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
    held = np.zeros(n, dtype=np.bool_)
    if stratify is None:
        held[np.random.RandomState(seed).permutation(n)[:n_held]] = True
        return np.flatnonzero(~held), np.flatnonzero(held)
    counts = np.bincount(stratify)
    if spare_lonely and (counts == 1).any():  # numbered as if their rows were not there
        counts[counts == 1] = 0
    if not counts.any():
        raise UserError(f"{name}={fraction} of {n} rows: each class has 1 row, and none can be held out: take 0 for it")
    _check_shares(counts, n_held, f"{name}={fraction}", class_names)
    classes = np.flatnonzero(counts)
    rng = np.random.RandomState(seed)
    kept = _shares(counts[classes], int(counts.sum()) - n_held, rng)
    shares = _shares(counts[classes] - kept, n_held, rng)
    for label, first, share in zip(classes, kept, shares, strict=True):  # a class at a time: rows may be many
        own = np.flatnonzero(stratify == label)
        held[own[rng.permutation(len(own))[first : first + share]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(counts: Array, draws: int, rng: np.random.RandomState) -> Rows:
    """Return how many of so many draws each class gets: its share, the remainders to the largest, ties by lot."""
    exact = counts / counts.sum() * draws
    found = np.floor(exact)
    left = int(draws - found.sum())
    remainder = exact - found
    for value in np.unique(remainder)[::-1]:
        if left <= 0:
            break
        which = np.flatnonzero(remainder == value)
        which = rng.choice(which, size=min(len(which), left), replace=False)
        found[which] += 1
        left -= len(which)
    shares: Rows = found.astype(np.int64)
    return shares


def _check_shares(counts: Array, n_held: int, asked: str, class_names: Sequence[str]) -> None:
    """Refuse what cannot be split by class shares: a class of one row, or fewer rows on a side than classes."""
    classes, n = np.flatnonzero(counts), int(counts.sum())
    if counts[classes].min() < 2:
        label = classes[counts[classes].argmin()]
        lonely = repr(class_names[label]) if class_names else label
        raise UserError(
            f"class {lonely} has 1 row, a random split needs at least 2 of each class to give both sides their share"
        )
    for side, n_rows in (("held out", n_held), ("kept", n - n_held)):
        if n_rows < len(classes):
            raise UserError(
                f"{asked} of {n} rows leaves {n_rows} {side}, fewer than the {len(classes)} classes: "
                f"choose another fraction"
            )
