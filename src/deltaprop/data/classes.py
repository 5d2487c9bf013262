"""Classes: what is taken for some, what they are called, and which cannot be learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltaprop.data.splits import Array, Rows
from deltaprop.errors import UserError

AT_ONCE = 1 << 20  # rows that are looked at together, of many
MOST_CLASSES = 20  # whole numbers of at most so many different values are taken for classes


def are_classes(values: Array) -> bool:
    """Return whether numbers look like classes: whole, and not many different ones.

    Example:
        >>> are_classes(np.array([1.0, 2.0, 1.0])), are_classes(np.array([1.0, 2.5])), are_classes(np.arange(100.0))
        (True, False, False)
    """
    found = values[:0]
    for start in range(0, len(values), AT_ONCE):
        found = np.union1d(found, values[start : start + AT_ONCE])
        if len(found) > MOST_CLASSES or bool((found % 1 != 0).any()):
            return False
    return True


def tally(values: Array) -> tuple[Array, Rows, Rows]:
    """Return the different values in rising order, the first row of each, and how many rows have it.

    What ``numpy.unique`` returns; where different values are few, without the six copies that it makes of all rows.

    Example:
        >>> tally(np.array([3.0, 1.0, 3.0]))
        (array([1., 3.]), array([1, 0]), array([1, 2]))
    """
    blocks = [
        np.unique(values[start : start + AT_ONCE], return_index=True, return_counts=True)
        for start in range(0, max(1, len(values)), AT_ONCE)
    ]
    firsts = np.concatenate([first + number * AT_ONCE for number, (_, first, _) in enumerate(blocks)])
    uniques, index, which = np.unique(np.concatenate([u for u, _, _ in blocks]), return_index=True, return_inverse=True)
    counts = np.zeros(len(uniques), dtype=np.intp)
    np.add.at(counts, which, np.concatenate([count for _, _, count in blocks]))
    return uniques, firsts[index], counts  # blocks are in order: the first that has a value has its first row


def plain(value: float) -> str:
    """Return a number as a class is called by.

    Example:
        >>> plain(3.0), plain(0.5)
        ('3', '0.5')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether classes are called by numbers as :func:`plain` writes them, so that the numbers tell them.

    Example:
        >>> are_numbers(["1", "2"]), are_numbers(["01", "02"])
        (True, False)
    """
    try:
        return [plain(float(name)) for name in names] == [*names]
    except (ValueError, OverflowError):
        return False


def check_counts(where: str, names: Sequence[str], counts: Array, rows: Sequence[int] | None, are_text: bool) -> None:
    """Refuse classes that there is nothing to learn from: a single one, and one that appears once.

    Args:
        where: The file, and the column where it has a name.
        names: Of the classes.
        counts: How often each appears.
        rows: The first row of each, from 1; None where rows are not as in the file.
        are_text: Whether the names are text, so that they cannot be quantities.

    Raises:
        UserError: If there are such.
    """
    if len(names) == 1:
        raise UserError(f"{where} is {names[0]!r} in every row: there is nothing to tell apart")
    once = np.flatnonzero(np.asarray(counts) < 2)
    if len(once):
        row = "" if rows is None else f" (row {rows[once[0]]})"
        others = f" (and {len(once) - 1} more)" if len(once) > 1 else ""
        hint = "" if are_text else "; if these are quantities, `task='regression'`"
        raise UserError(
            f"{where}: class {names[once[0]]!r}{others} appears once{row}: to learn and to test, a class needs two "
            f"rows: leave such rows out{hint}"
        )


def check_classes(train: Array, others: dict[str, Array], class_names: Sequence[str] = ()) -> None:
    """Refuse a class that is only in the rows to evaluate on.

    Args:
        train: The labels to train on.
        others: The labels of the other parts, by name.
        class_names: What the message calls the classes; their numbers by default.

    Raises:
        UserError: If there is one.
    """
    seen = np.flatnonzero(np.bincount(train))
    for name, labels in others.items():
        unseen = np.setdiff1d(np.flatnonzero(np.bincount(labels)), seen)
        if len(unseen):
            called = repr(class_names[unseen[0]]) if class_names else unseen[0]
            raise UserError(
                f"class {called} is in the {name} part and in no row of the training part: "
                f"every class needs rows to train on"
            )
