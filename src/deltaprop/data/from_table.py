"""From a table to a `Dataset`: read, split, and encoded by what its training rows show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.data.classes import AT_ONCE, are_classes, are_numbers, check_classes, check_counts, plain, tally
from deltaprop.data.columns import ABSENT, Column, Missing, Numbers, Reader, TableOptions, chosen, unlisted
from deltaprop.data.dataset import Dataset, Part, Split, StreamedSplit, TableFacts, Task
from deltaprop.data.encoding import Encoding, fitted, unseen_categories
from deltaprop.data.formats import open_table
from deltaprop.data.formats.table import Table
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows, SplitHow, split_indices
from deltaprop.data.store import ROWS_AT_ONCE, UNLIMITED, CacheConfig, InMemory, LoadedTable, OnDisk, Storage, read
from deltaprop.data.streaming import Encoder
from deltaprop.errors import UserError, setting

FEW_ROWS = 1  # training rows for each one-hot input of a column, below which the user is warned


@dataclass(frozen=True)
class Targets:
    """What a table's targets are.

    Attributes:
        task: Classes or numbers.
        class_names: One per class, empty for numbers.
    """

    task: Task
    class_names: tuple[str, ...]

    def labels(self, column: Column, values: Numbers, where: str, first: int | None = 1) -> NDArray[np.int64]:
        """Return the class of each row, [N].

        Args:
            column: Of the target, as it was read.
            values: What was read of it, [N].
            where: The file.
            first: The number of the first row in it; None where rows are not as they are there.

        Raises:
            UserError: If a row has a class that is not among these.
        """
        places = {name: at for at, name in enumerate(self.class_names)}
        numbers = np.array([places.get(name, -1) for name in column.names], dtype=np.int64)
        found = np.empty(len(values), dtype=np.int64)
        for start in range(0, len(values), AT_ONCE):
            block = values[start : start + AT_ONCE]
            if column.kind == "categories":
                found[start : start + AT_ONCE] = numbers[block.astype(np.intp)]
            else:
                unique, which = np.unique(block, return_inverse=True)
                of = np.array([places.get(plain(value), -1) for value in unique], dtype=np.int64)
                found[start : start + AT_ONCE] = of[which]
        if (found < 0).any():
            at = int((found < 0).argmax())
            name = next(n for n, number in column.names.items() if number == values[at]) if column.names else None
            shown = plain(values[at]) if name is None else name
            row = "a row" if first is None else f"row {at + first}"
            known = ", ".join(self.class_names[:12]) + (", …" if len(self.class_names) > 12 else "")
            raise UserError(
                f"{where}: {row}, column {column.name!r}: class {shown!r} is in no training row (classes: {known})"
            )
        return found


def load_table(
    path: Path,
    choices: TableOptions,
    room: CacheConfig,
    *,
    test: Path | None,
    seed: int,
    test_fraction: float,
    val_fraction: float,
    val_split: SplitHow,
    standardise: bool,
    dtype: torch.dtype,
    storage: Storage | None = None,
) -> Dataset:
    """Return the data set of a table.

    Args:
        path: The table.
        choices: What the user says of it.
        room: Where its rows may be kept.
        test: A table of rows to test on; None to take a part of these.
        seed: Of the splits.
        test_fraction: The share of all rows to test on, without ``test``.
        val_fraction: The share of the remaining rows to validate on.
        val_split: Which of them.
        standardise: Whether numbers are standardised; targets are in any case.
        dtype: Of inputs and of targets that are numbers.
        storage: How the rows are to be kept, where that is known from before; None for as they fit.

    Raises:
        UserError: If a table, a column or a choice is at fault.
    """
    if storage is not None:
        room = replace(room, memory=0 if storage == "disk" else UNLIMITED)
    table = open_table(path, choices.delimiter)
    test_table = None if test is None else open_table(test, choices.delimiter)
    inputs, targets = chosen(table, choices, [] if test_table is None else test_table.names)
    if test_table is not None:
        _check_alike(test_table, [c.name for c in (*inputs, *targets)], {*choices.drop}, path)
    check = partial(check_targets, choices=choices, path=path)
    found = read(Reader(table, inputs, targets, choices.missing), choices, room, check)
    kinds = check(found)
    y, names = _targets(kinds, found, path), kinds.class_names
    found = replace(found, targets=np.empty((0, len(targets))))  # they have become y, and may be many
    labels = y if names else None
    train_rows, val_rows, held = _split(
        len(y), labels, names, test_fraction if test_table is None else 0.0, val_fraction, val_split, seed
    )
    if labels is not None:
        check_classes(labels[train_rows], {"validation": labels[val_rows], "test": labels[held]}, names)

    encoding, scaling = fitted(
        found.inputs, [c.name for c in targets], _blocks(found, train_rows), fills=choices.missing == "mean",
        where=str(path),
    )  # fmt: skip
    if not standardise:
        scaling = Scaling.identity(len(encoding))
    target_scaling = Scaling.identity(1)
    if labels is None:
        target_scaling = Scaling.standard(torch.from_numpy(y[train_rows]))
    if storage is None:
        bytes_ = len(y) * len(encoding) * torch.finfo(dtype).bits // 8
        fits = isinstance(found.store, InMemory)
        storage = "disk" if not fits else "rows" if bytes_ > room.memory else "memory"
    streamed = storage != "memory"

    def part(of: LoadedTable, y: Numbers | NDArray[np.int64], rows: Rows) -> Part:
        targets = torch.from_numpy(y[rows])
        if labels is None:
            targets = target_scaling.apply(targets).to(dtype)
        encode = Encoder(encoding, encoding.recode(of.inputs), scaling, dtype, str(path))
        streams = StreamedSplit(store=of.store, rows=rows, encode=encode, width=len(encoding), y=targets, dtype=dtype)
        return streams if streamed else Split(x=streams.inputs(slice(None)), y=targets)

    test_part, warnings = part(found, y, held), _warnings(encoding, len(train_rows))
    digest, of_test = found.digest, None
    if test_table is not None:
        of_its_own = replace(room, memory=0) if storage == "disk" else room
        of_test = read_like(encoding, kinds, test_table, choices.missing, choices, of_its_own)
        if of_its_own is room and isinstance(of_test.store, OnDisk):  # one word tells how both are kept
            return load_table(
                path, choices, room, test=test, seed=seed, test_fraction=test_fraction, val_fraction=val_fraction,
                val_split=val_split, standardise=standardise, dtype=dtype, storage="disk",
            )  # fmt: skip
        y_test = _targets(kinds, of_test, test_table.path)
        test_part = part(of_test, y_test, np.arange(len(y_test)))
        digest = f"{digest}+{of_test.digest}"
        warnings += unseen_categories(encoding, of_test.inputs, f"{test}")
    return Dataset(
        name=path.name,
        task=kinds.task,
        train=part(found, y, train_rows),
        val=part(found, y, val_rows),
        test=test_part,
        class_names=names,
        image_shape=None,
        input_scaling=scaling,
        target_scaling=target_scaling,
        digest=digest,
        table=TableFacts(
            encoding=encoding,
            left_out=tuple(name for name in table.names if name in choices.drop),
            dropped=found.dropped + (0 if of_test is None else of_test.dropped),
            gaps=found.gaps + (0 if of_test is None else of_test.gaps),
            storage=storage,
            warnings=tuple(warnings),
        ),
    )


def _split(
    n: int,
    labels: Array | None,
    names: Sequence[str],
    test_fraction: float,
    val_fraction: float,
    val_split: SplitHow,
    seed: int,
) -> tuple[Rows, Rows, Rows]:
    """Return the rows to train, to validate and to test on, each in rising order."""
    rest, held = split_indices(n, labels, test_fraction, seed, "random", name="test_fraction", class_names=names)
    kept, watched = split_indices(
        len(rest), None if labels is None else labels[rest], val_fraction, seed, val_split,
        name="val_fraction", class_names=names, spare_lonely=True,
    )  # fmt: skip
    return rest[kept], rest[watched], held


def _targets(kinds: Targets, found: LoadedTable, path: Path) -> Numbers | NDArray[np.int64]:
    """Return labels [N], or numbers [N, k]."""
    if not kinds.class_names:
        return found.targets
    return kinds.labels(found.target_columns[0], found.targets[:, 0], str(path), None if found.dropped else 1)


def check_targets(found: LoadedTable, choices: TableOptions, path: Path) -> Targets:
    """Return whether the targets are classes or numbers, and the names of the classes; of what the store holds nothing.

    Raises:
        UserError: If they cannot be what is asked for, or there is nothing to tell apart.
    """
    if not len(found.targets):
        what = "every row has something missing" if found.dropped else "there is a header, and no row below it"
        raise UserError(f"{path}: {what}")
    texts = [column for column in found.target_columns if column.kind == "categories"]
    flag = "`task='classification'`" if choices.task == "classification" else "classes"
    if len(found.target_columns) > 1:
        if texts or choices.task == "classification":
            which = texts[0].name if texts else found.target_columns[0].name
            raise UserError(f"{path}: several targets must be numbers, and {which!r} is of {flag}: give one `target`")
        return _of_numbers(found, path)
    (column,), values = found.target_columns, found.targets[:, 0]
    if texts and choices.task == "regression":
        name = next(iter(column.names), "")
        raise UserError(f"{path}: `task='regression'`: the target {column.name!r} has text such as {name!r}")
    if not texts and (choices.task == "regression" or (choices.task == "auto" and not are_classes(values))):
        return _of_numbers(found, path)
    uniques, first, counts = tally(values)
    called = [plain(value) for value in uniques]
    if texts:
        by_number = dict(zip(column.names.values(), column.names, strict=True))
        called = [by_number[int(number)] for number in uniques]
    rows = None if found.dropped else (first + 1).tolist()
    check_counts(f"{path}: the target {column.name!r}", called, counts, rows, bool(texts))
    return Targets("classification", tuple(sorted(called) if texts else called))


def _of_numbers(found: LoadedTable, path: Path) -> Targets:
    for at, column in enumerate(found.target_columns):
        values = found.targets[:, at]
        if (values == values[0]).all():
            raise UserError(
                f"{path}: the target {column.name!r} is {values[0]:g} in every row: there is nothing to learn"
            )
    return Targets("regression", ())


def read_like(
    encoding: Encoding, kinds: Targets | None, table: Table, missing: Missing, choices: TableOptions, room: CacheConfig
) -> LoadedTable:
    """Return the rows of another table by the columns of an encoding.

    Args:
        encoding: Fitted on the training rows.
        kinds: Of the targets; None where they are not to be read.
        table: Whose columns may come in another order, among others.
        missing: What to do about a missing cell.
        choices: Part of the cache's key.
        room: Where its rows may be kept.
    """
    inputs, targets = columns_of(encoding, kinds)
    found = read(Reader(table, inputs, targets, missing), choices, room)
    if not len(found.store):
        what = "every row has something missing" if found.dropped else "there is a header, and no row below it"
        raise UserError(f"{table.path}: {what}")
    return found


def columns_of(encoding: Encoding, kinds: Targets | None) -> tuple[list[Column], list[Column]]:
    """Return the columns of an encoding, to be read from another table; no targets where their kind is not given."""
    inputs = [
        Column(c.name, c.kind, forced=True, verbatim=any(name.lower() in ABSENT for name in c.categories))
        for c in encoding.inputs
    ]
    if kinds is None:
        return inputs, []
    if kinds.task == "regression":
        return inputs, [Column(name, "numbers", forced=True) for name in encoding.targets]
    if are_numbers(kinds.class_names):
        return inputs, [Column(name) for name in encoding.targets]
    verbatim = any(name.lower() in ABSENT for name in kinds.class_names)
    return inputs, [Column(name, "categories", forced=True, verbatim=verbatim) for name in encoding.targets]


def check_columns(table: Table, names: Sequence[str], of: str) -> None:
    """Refuse a table that lacks columns.

    Raises:
        UserError: If it does; ``of`` says whose they are.
    """
    for name in names:
        if name not in table.names:
            raise UserError(f"{table.path}: {unlisted(name, table.names, of)}")


def _check_alike(table: Table, names: Sequence[str], dropped: set[str], path: Path) -> None:
    """Refuse a test table with other columns than the one that is trained on."""
    check_columns(table, names, f"{path} has")
    for name in table.names:
        if name not in names and name not in dropped:
            raise UserError(
                f"{table.path}: unlike {path}: it has a column {name!r} more; {setting('drop', name)} leaves it out"
            )


def _blocks(found: LoadedTable, rows: Rows) -> Iterator[Numbers]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield found.store.take(rows[start : start + ROWS_AT_ONCE])


def _warnings(encoding: Encoding, rows: int) -> list[str]:
    """Return what the user should know of the columns."""
    found = []
    for column in encoding.inputs:
        if len(column.categories) * FEW_ROWS > rows / 2:
            found.append(
                f"column {column.name!r} has {len(column.categories)} different names in {rows} training rows: more "
                "one-hot inputs than the rows can support; an identifier is left out by `drop`"
            )
    if len(encoding) > rows and not found:
        found.append(f"{len(encoding)} inputs from {rows} training rows: more than the rows can support")
    return found
