"""Targets: whether they are classes or numbers, what classes are called, and which of them cannot be learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.cells import ABSENT, MOST_EXACT, PLAIN, Form, canonical, plain
from deltaprop.data.columns import Column, Kind, Numbers, RareClasses, Task, TaskChoice
from deltaprop.data.splits import Array
from deltaprop.data.table import NUMBER
from deltaprop.errors import UserError, counted, listed

VALUES_AT_ONCE = 1 << 20  # rows that are processed together, which bounds the working memory
MOST_CLASSES = 20  # whole numbers of at most this many different values are taken for classes
SURE_CLASSES = 5  # more different whole numbers are classes only if they have as many rows on average, none one alone
OTHER = "(other)"  # the class of merged classes


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

    def look_like_classes(self) -> bool:
        """Return whether the numbers of the only column look like classes."""
        return are_classes(self.values[:, 0])

    def counts(self) -> tuple[Array, Array]:
        """Return the values of the first column, in rising order, and how often each occurs."""
        return np.unique(self.values[:, 0], return_counts=True)

    def constant(self) -> tuple[Array, Array]:
        """Return of each column whether it has the same number in every row, and the number in the first."""
        return (self.values == self.values[0]).all(axis=0), self.values[0]


class TargetCounts(NamedTuple):
    """What `TargetValues` tells of targets, of rows that are not at hand.

    Attributes:
        columns: As there.
        where: As there.
        values: The values of the only column, in rising order, and how often each occurs; None if they are too many.
        least: The smallest number of each column.
        most: The largest.
    """

    columns: Sequence[Column]
    where: str
    values: tuple[Array, Array] | None
    least: Array
    most: Array

    def look_like_classes(self) -> bool:
        """Return whether the numbers of the only column look like classes."""
        return self.values is not None and look_like_classes(*self.values)

    def counts(self) -> tuple[Array, Array]:
        """Return the values of the only column, in rising order, and how often each occurs."""
        if self.values is None:
            name = self.columns[0].name
            what = f"the target {name!r} has more different values than are counted of rows that do not fit in memory"
            raise UserError(f"{self.where}: {what}: take a larger `memory`, or `task='regression'`")
        return self.values

    def constant(self) -> tuple[Array, Array]:
        """Return of each column whether it has the same number in every row, and that number."""
        return self.least == self.most, self.least


@dataclass(frozen=True)
class Targets:
    """What is predicted.

    Attributes:
        task: ``"classification"`` or ``"regression"``.
        class_names: One per class, empty for regression.
        left_out: Classes of a single row, whose rows are left out.
        notes: What the user is told of the classes.
        merges: Whether the class ``OTHER`` stands for all classes that are not named.
    """

    task: Task
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    merges: bool = False

    @classmethod
    def infer(cls, read: TargetValues | TargetCounts, task: TaskChoice, rare: RareClasses = "drop") -> Targets:
        """Return whether targets are classes or numbers, and the names of the classes.

        The task ``"auto"`` takes text and few different whole numbers for classes. ``rare`` tells what is done about a
        class of a single row.

        Raises:
            UserError: If they cannot be what the user chose, or all rows have the same target.
        """
        columns, where = read.columns, read.where
        texts = [column for column in columns if column.kind == "categories"]
        column = columns[0]
        if len(columns) > 1 and texts:
            raise UserError(f"{where}: several targets must be numeric, and {texts[0].name!r} is text: name one alone")
        if len(columns) > 1 and task == "classification":
            several = listed([column.name for column in columns])
            raise UserError(f"{where}: `task='classification'` is for a single target, got {several}")
        if texts and task == "regression":
            raise UserError(f"{where}: `task='regression'`: {_has_text(column)}")
        if len(columns) > 1 or task == "regression" or (task == "auto" and not texts and not read.look_like_classes()):
            return cls._numbers(read)
        uniques, counts = read.counts()
        names = [plain(value) for value in uniques]
        if texts:
            by_number = {number: name for name, number in column.names.items()}
            names = [by_number[int(number)] for number in uniques]
        if len(names) == 1:
            raise UserError(f"{where}: the target {column.name!r} is {names[0]!r} in every row: one class only")
        of_rows = dict(zip(names, counts.tolist(), strict=True))
        single = [name for name in names if of_rows[name] == 1 and rare != "keep"]
        kept = [name for name in names if name not in single]
        if rare == "merge" and len(single) > 1 and OTHER not in kept:
            kept.append(OTHER)
        if len(kept) < 2 or (rare == "drop" and 2 * len(single) > counts.sum()):
            if task == "auto" and not texts:
                return cls._numbers(read)
            what = f"{len(single)} of its {len(names)} classes have one row"
            needs = "two classes of two rows are needed" if len(kept) < 2 else "most rows would be left out"
            keep = ", or `rare_classes='keep'` trains on them" if kept else ""  # else none would be left to test on
            raise UserError(
                f"{where}: the target {column.name!r}: {what}: {needs}: name another column by `target`{keep}"
            )
        of_rare = _of_rare(single, rare, column.name)
        if task == "auto" and not texts and len(kept) > 2:
            note = f"target {column.name!r}: each whole number is a class; `task='regression'` predicts numbers"
            of_rare = of_rare[0], (*of_rare[1], note)
        return cls("classification", tuple(sorted(kept) if texts else kept), *of_rare, merges=rare == "merge")

    @classmethod
    def _numbers(cls, read: TargetValues | TargetCounts) -> Targets:
        """Return targets that are numbers, after refusing constant ones."""
        columns, where = read.columns, read.where
        constant, first = read.constant()
        # The columns of an array may be constant in part: they have no names to leave them out by.
        if constant.all() or (constant.any() and not columns[0].is_array):
            at = int(constant.argmax())
            raise UserError(f"{where}: the target {columns[at].name!r} is {first[at]:g} in every row: nothing to learn")
        return cls("regression", ())

    def encode(self, read: TargetValues) -> Numbers | NDArray[np.int64]:
        """Return the index of each row's class, [N], or the numbers as they are, [N, k]; refuse an unknown class.

        The index of a class that is left out is -1.
        """
        (column, *_), values, where, numbered = read
        if not self.class_names:
            if column.kind == "categories":
                raise UserError(f"{where}: {_has_text(column)}: numbers are needed")
            return values
        indices = self._indices()
        by_number = np.array([indices.get(name, UNKNOWN_CLASS) for name in column.names], dtype=np.int64)
        labels = np.empty(len(values), dtype=np.int64)
        for start in range(0, len(values), VALUES_AT_ONCE):
            block = values[start : start + VALUES_AT_ONCE, 0]
            if column.kind == "categories":
                labels[start : start + VALUES_AT_ONCE] = by_number[block.astype(np.intp)]
            else:
                uniques, which = np.unique(block, return_inverse=True)
                of_uniques = [indices.get(plain(value), UNKNOWN_CLASS) for value in uniques]
                labels[start : start + VALUES_AT_ONCE] = np.array(of_uniques, dtype=np.int64)[which]
        if (labels == UNKNOWN_CLASS).any():
            at = int((labels == UNKNOWN_CLASS).argmax())
            number = values[at, 0]
            name = next((name for name, code in column.names.items() if code == number), plain(number))
            row = f"row {at + 1}" if numbered else "a row"
            known = listed(self.class_names)
            raise UserError(
                f"{where}: {row}, column {column.name!r}: class {name!r} is in no training row (classes: {known})"
            )
        return labels

    def _indices(self) -> _Labels:
        """Return the index of each name of a class, by any of its spellings."""
        names = {name: at for at, name in enumerate(self.class_names)}
        if names.keys() in ({"0", "1"}, {"False", "True"}):  # a file may have the one, another the other
            first, second = sorted(self.class_names)
            names |= dict.fromkeys(("0", "False"), names[first]) | dict.fromkeys(("1", "True"), names[second])
        names |= dict.fromkeys(self.left_out, -1)
        spelt = {canonical(name): at for name, at in names.items()}
        return _Labels({**spelt, **names}, names.get(OTHER) if self.merges else None)

    def columns(self, names: Sequence[str], forms: Sequence[Form] = (), absent: tuple[str, ...] = ()) -> list[Column]:
        """Return the columns of these targets, to be read from another table.

        Args:
            names: The names of the columns.
            forms: How their numbers are written; plain by default.
            absent: Further words that mean a missing value.
        """
        kind: Kind = "categories" if self.class_names else "numbers"
        lower = {name.lower() for name in self.class_names}
        present = tuple(word for word in ABSENT if word in lower)
        one_spelling = all(canonical(name) == name for name in self.class_names)
        numeric = bool(self.class_names) and all(map(_is_number, {*self.class_names, *self.left_out} - {OTHER}))
        forms = forms or [PLAIN] * len(names)
        return [
            Column(name, kind, form=form, absent=absent, present=present, one_spelling=one_spelling, numeric=numeric)
            for name, form in zip(names, forms, strict=True)
        ]


UNKNOWN_CLASS = -2


def _is_number(name: str) -> bool:
    """Return whether the name of a class is that of a number, as `plain` writes it."""
    return bool(re.match(NUMBER, name)) and abs(float(name)) < MOST_EXACT and plain(float(name)) == name


class _Labels(dict[str, int]):
    """The index of each class; that of the merged classes for another name, if there are some."""

    def __init__(self, indices: dict[str, int], other: int | None) -> None:
        super().__init__(indices)
        self.other = other

    def get(self, name: str, default: Any = None) -> Any:
        """Return the index of a name in any of its spellings."""
        fallback = default if self.other is None else self.other
        return super().get(name, super().get(canonical(name), fallback))


def _of_rare(single: Sequence[str], rare: RareClasses, target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes that are left out, and what the user is told of classes of a single row."""
    if not single:
        return (), ()
    names = f"{counted(len(single), 'class')} of a single row ({listed(map(repr, single), 4)})"
    if rare == "merge" and len(single) > 1:
        return (), (f"target {target!r}: {names} merged into {OTHER}",)
    return tuple(single), (f"target {target!r}: {names} left out",)


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
    return TargetValues([Column(name, is_array=True) for name in names], y, str(path))


def _are_large_classes(y: Array, task: TaskChoice) -> bool:
    """Return whether integers are classes beyond ±2^53, where two may be the same in float64."""
    if not y.size or -(2**53) <= int(y.min()) <= int(y.max()) <= 2**53:
        return False
    return task == "classification" or len(np.unique(y)) <= MOST_CLASSES


def are_classes(values: Array) -> bool:
    """Return whether numbers look like classes: whole, and not many different ones, with some rows each.

    Among more than a few values, one of a single row makes all of them numbers: counts have such large ones.

    Example:
        >>> are_classes(np.array([1.0, 2.0, 1.0])), are_classes(np.array([1.0, 2.5])), are_classes(np.arange(100.0))
        (True, False, False)
    """
    uniques = values[:0]
    for start in range(0, len(values), VALUES_AT_ONCE):
        uniques = np.union1d(uniques, values[start : start + VALUES_AT_ONCE])
        if len(uniques) > MOST_CLASSES or bool((uniques % 1 != 0).any()):
            return False
    return look_like_classes(uniques, np.array([np.count_nonzero(values == each) for each in uniques]))


def look_like_classes(uniques: Array, counts: Array) -> bool:
    """Return what :func:`are_classes` does, of the different values and how often each occurs."""
    if len(uniques) > MOST_CLASSES or bool((uniques % 1 != 0).any()):
        return False
    return len(uniques) <= SURE_CLASSES or bool(counts.sum() >= SURE_CLASSES * len(uniques) and (counts > 1).all())


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


def _has_text(column: Column) -> str:
    return f"the target {column.name!r} has text such as {next(iter(column.names), '')!r}"
