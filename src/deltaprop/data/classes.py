"""Targets: whether they are classes or numbers, what classes are called, and which of them cannot be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.columns import ABSENT, Column, Numbers, TaskChoice, plain
from deltaprop.data.dataset import Task
from deltaprop.data.splits import Array
from deltaprop.errors import UserError, listed

VALUES_AT_ONCE = 1 << 20  # rows that are processed together, which bounds the working memory
MOST_CLASSES = 20  # whole numbers of at most this many different values are taken for classes


class TargetValues(NamedTuple):
    """Targets as they were read.

    Attributes:
        columns: Their columns, after all rows were read.
        values: What was read of them, [N, k].
        where: The file.
        numbered: Whether rows are as in the file, so that messages can give their numbers.
    """

    columns: Sequence[Column]
    values: Numbers
    where: str
    numbered: bool = True


@dataclass(frozen=True)
class Targets:
    """What is predicted.

    Attributes:
        task: ``"classification"`` or ``"regression"``.
        class_names: One per class, empty for regression.
    """

    task: Task
    class_names: tuple[str, ...]

    @classmethod
    def infer(cls, read: TargetValues, task: TaskChoice) -> Targets:
        """Return whether targets are classes or numbers, and the names of the classes.

        The task ``"auto"`` takes text and few different whole numbers for classes.

        Raises:
            UserError: If they cannot be what the user chose, or all rows have the same target, or a class has one row.
        """
        columns, values, where, numbered = read
        texts = [column for column in columns if column.kind == "categories"]
        column = columns[0]
        if len(columns) > 1 and texts:
            raise UserError(f"{where}: several targets must be numeric, and {texts[0].name!r} is text: name one alone")
        if len(columns) > 1 and task == "classification":
            several = listed([column.name for column in columns])
            raise UserError(f"{where}: `task='classification'` is for a single target, got {several}")
        if texts and task == "regression":
            raise UserError(f"{where}: `task='regression'`: {_has_text(column)}")
        if len(columns) > 1 or task == "regression" or (task == "auto" and not texts and not are_classes(values[:, 0])):
            constant = (values == values[0]).all(axis=0)
            # A forced column is of an array, which may have some constant columns: they have no names to drop them by.
            if constant.all() or (constant.any() and not column.forced):
                at = int(constant.argmax())
                raise UserError(
                    f"{where}: the target {columns[at].name!r} is {values[0, at]:g} in every row: nothing to learn"
                )
            return cls("regression", ())
        uniques, counts = np.unique(values[:, 0], return_counts=True)
        names = [plain(value) for value in uniques]
        if texts:
            by_number = {number: name for name, number in column.names.items()}
            names = [by_number[int(number)] for number in uniques]
        if len(names) == 1:
            raise UserError(f"{where}: the target {column.name!r} is {names[0]!r} in every row: one class only")
        once = np.flatnonzero(counts < 2)
        if len(once):
            row = f" (row {int((values[:, 0] == uniques[once[0]]).argmax()) + 1})" if numbered else ""
            others = f" (and {len(once) - 1} more)" if len(once) > 1 else ""
            hint = "" if texts else "; if these are quantities, `task='regression'`"
            raise UserError(
                f"{where}: the target {column.name!r}: class {names[once[0]]!r}{others} appears once{row}: a class "
                f"needs two rows, to train and to test on: leave such rows out{hint}"
            )
        return cls("classification", tuple(sorted(names) if texts else names))

    def encode(self, read: TargetValues) -> Numbers | NDArray[np.int64]:
        """Return the index of each row's class, [N], or the numbers as they are, [N, k]; refuse an unknown class."""
        (column, *_), values, where, numbered = read
        if not self.class_names:
            if column.kind == "categories":
                raise UserError(f"{where}: {_has_text(column)}: numbers are needed")
            return values
        indices = {name: at for at, name in enumerate(self.class_names)}
        if indices.keys() in ({"0", "1"}, {"False", "True"}):  # a file may have the one, another the other
            first, second = sorted(self.class_names)
            indices |= dict.fromkeys(("0", "False"), indices[first]) | dict.fromkeys(("1", "True"), indices[second])
        by_number = np.array([indices.get(name, -1) for name in column.names], dtype=np.int64)
        labels = np.empty(len(values), dtype=np.int64)
        for start in range(0, len(values), VALUES_AT_ONCE):
            block = values[start : start + VALUES_AT_ONCE, 0]
            if column.kind == "categories":
                labels[start : start + VALUES_AT_ONCE] = by_number[block.astype(np.intp)]
            else:
                uniques, which = np.unique(block, return_inverse=True)
                of_uniques = np.array([indices.get(plain(value), -1) for value in uniques], dtype=np.int64)
                labels[start : start + VALUES_AT_ONCE] = of_uniques[which]
        if (labels < 0).any():
            at = int((labels < 0).argmax())
            number = values[at, 0]
            name = next((name for name, code in column.names.items() if code == number), plain(number))
            row = f"row {at + 1}" if numbered else "a row"
            known = listed(self.class_names)
            raise UserError(
                f"{where}: {row}, column {column.name!r}: class {name!r} is in no training row (classes: {known})"
            )
        return labels

    def columns(self, names: Sequence[str]) -> list[Column]:
        """Return the columns of these targets, to be read from another table."""
        if self.task == "regression":
            return [Column(name, "numbers", forced=True) for name in names]
        if _are_plain_numbers(self.class_names):
            return [Column(name) for name in names]
        verbatim = any(name.lower() in ABSENT for name in self.class_names)
        return [Column(name, "categories", forced=True, verbatim=verbatim) for name in names]


def array_targets(path: Path | str, name: str, y: Array, task: TaskChoice) -> TargetValues:
    """Return an array of targets, [N] or [N, k], as what would be read of the columns of a table.

    Several columns are called name1, name2, …. Unless the task is regression, booleans are classes called True and
    False, and integers that float64 would round are classes called by their digits.
    """
    is_label = y.dtype.kind == "b" or (y.dtype.kind in "iu" and _are_large_classes(y, task))
    if y.dtype.kind in "US" or (is_label and y.ndim == 1 and task != "regression"):
        values, which = np.unique(y, return_inverse=True)
        texts = [
            value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value) for value in values
        ]
        column = Column(name, "categories")
        codes = np.array([column.names.setdefault(text, len(column.names)) for text in texts], dtype=np.float64)
        return TargetValues([column], codes[which][:, None], str(path))
    y = y.astype(np.float64).reshape(len(y), -1)
    names = [name] if y.shape[1] == 1 else [f"{name}{at + 1}" for at in range(y.shape[1])]
    return TargetValues([Column(name, "numbers", forced=True) for name in names], y, str(path))


def _are_large_classes(y: Array, task: TaskChoice) -> bool:
    """Return whether integers are classes beyond ±2^53, where two may be the same in float64."""
    if not y.size or -(2**53) <= int(y.min()) <= int(y.max()) <= 2**53:
        return False
    return task == "classification" or len(np.unique(y)) <= MOST_CLASSES


def are_classes(values: Array) -> bool:
    """Return whether numbers look like classes: whole, and not many different ones.

    Example:
        >>> are_classes(np.array([1.0, 2.0, 1.0])), are_classes(np.array([1.0, 2.5])), are_classes(np.arange(100.0))
        (True, False, False)
    """
    uniques = values[:0]
    for start in range(0, len(values), VALUES_AT_ONCE):
        uniques = np.union1d(uniques, values[start : start + VALUES_AT_ONCE])
        if len(uniques) > MOST_CLASSES or bool((uniques % 1 != 0).any()):
            return False
    return True


def check_classes(train: Array, others: dict[str, Array], class_names: Sequence[str] = ()) -> None:
    """Refuse a class that only ``others`` have, the labels of parts to evaluate on, by name.

    Messages have the names of classes, by default their labels.
    """
    seen = np.flatnonzero(np.bincount(train))
    for part, labels in others.items():
        unseen = np.setdiff1d(np.flatnonzero(np.bincount(labels)), seen)
        if len(unseen):
            name = repr(class_names[unseen[0]]) if class_names else unseen[0]
            raise UserError(
                f"class {name} is in the {part} part and in no row of the training part: "
                f"every class needs rows to train on"
            )


def _are_plain_numbers(names: Sequence[str]) -> bool:
    """Return whether all names are as :func:`plain` writes numbers (not 01), so that the numbers identify them."""
    try:
        return [plain(float(name)) for name in names] == [*names]
    except (ValueError, OverflowError):
        return False


def _has_text(column: Column) -> str:
    return f"the target {column.name!r} has text such as {next(iter(column.names), '')!r}"
