"""Tables as data sets: read with their targets, and encoded by what the training rows show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from deltaprop.data.classes import Targets, TargetValues
from deltaprop.data.columns import Missing, TableOptions, Task, check_columns
from deltaprop.data.dataset import EncodedRows, FittedData, TableFacts
from deltaprop.data.encoding import Encoder, Encoding, fit_encoding, unseen_categories
from deltaprop.data.formats import open_table
from deltaprop.data.formats.parquet import ParquetTable
from deltaprop.data.infer import TablePlan, choose_columns, infer
from deltaprop.data.profile import profile
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import ROWS_AT_ONCE, UNLIMITED, CacheConfig, InMemory, LoadedTable, OnDisk, Storage, load_rows
from deltaprop.data.table import ArrowTable, Batch, Table
from deltaprop.errors import UserError, setting

FEWEST_SUMMED = 10  # rows of a table whose last row may be their sums
HELD_SHARE = 8  # a file of at most one part in this many of the allowed memory is parsed once, and held


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table that was read, before it is split.

    Attributes:
        name: The name of the file or folder.
        targets: What is predicted.
        y: Labels [N], or numbers [N, k].
        rows: The indices of these rows among those that were read.
        table: The table.
        test: A table of test rows; None to take a part of these.
        options: The user's choices.
        cache: Where rows may be stored.
        storage: Where the rows must be stored, as when the run began; None for where they fit.
        loaded: What was read of ``table``, without the targets.
    """

    name: str
    targets: Targets
    y: Array
    rows: Rows
    table: Table
    test: Table | None
    options: TableOptions
    cache: CacheConfig
    storage: Storage | None
    loaded: LoadedTable
    image_shape: None = None

    @property
    def task(self) -> Task:
        """``"classification"`` or ``"regression"``."""
        return self.targets.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, empty for regression."""
        return self.targets.class_names

    @property
    def classes_left_out(self) -> tuple[str, ...]:
        """Classes of a single row, whose rows are not used."""
        return self.targets.left_out

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told of the targets."""
        return self.targets.notes

    def fit(self, train_rows: Rows, dtype: torch.dtype, *, standardise: bool) -> FittedData:
        """Fit the encoding on the training rows, and read the test table by it."""
        loaded, options, path = self.loaded, self.options, self.table.path
        in_store = self.rows[train_rows]
        starts = range(0, len(in_store), ROWS_AT_ONCE)
        encoding, scaling, empty = fit_encoding(
            loaded.plan.inputs, loaded.plan.targets,
            (loaded.store.take(in_store[start : start + ROWS_AT_ONCE]) for start in starts),
            missing=missing_policy(options), where=str(path),
        )  # fmt: skip
        if not standardise:
            scaling = Scaling.identity(len(encoding))
        storage, fits = self.storage, isinstance(loaded.store, InMemory)
        if storage is None:
            inputs_fit = len(self.y) * len(encoding) * torch.finfo(dtype).bits // 8 <= self.cache.memory
            storage = "disk" if not fits else "memory" if inputs_fit else "rows"

        def encoded(of: LoadedTable, y: Array, rows: Rows) -> EncodedRows:
            return EncodedRows(of.store, Encoder(encoding, of.plan.inputs, scaling, dtype, str(path)), y, rows)

        warnings, of_test, test = encoding_warnings(encoding, len(train_rows), empty), None, None
        if self.test is not None:
            cache = replace(self.cache, memory=0) if storage == "disk" else self.cache
            of_test = self._read_test(encoding, cache)
            if storage != "disk" and isinstance(of_test.store, OnDisk):  # `storage` is one for both: read again to disk
                again = read_table(path, options, self.cache, self.test.path, "disk")
                return again.fit(train_rows, dtype, standardise=standardise)
            labels = self.targets.encode(_targets_of(of_test, self.test.path))
            used = _used(labels, self.targets)
            if not len(used):
                raise UserError(f"{self.test.path}: all rows have classes that are left out in training")
            test = encoded(of_test, labels[used], used)
            warnings += unseen_categories(encoding, of_test.plan.inputs, str(self.test.path), len(used))
        both = [loaded] if of_test is None else [loaded, of_test]
        facts = TableFacts(
            encoding=encoding,
            left_out=loaded.plan.left_out,
            dropped=sum(part.dropped for part in both),
            unlabelled=sum(part.unlabelled for part in both),
            gaps=sum(part.gaps for part in both),
            storage=storage,
            notes=loaded.plan.notes,
            warnings=tuple(warnings),
        )
        digest = "+".join(part.digest for part in both)
        return FittedData(scaling, encoded(loaded, self.y, self.rows), test, digest, facts)

    def _read_test(self, encoding: Encoding, cache: CacheConfig) -> LoadedTable:
        """Return the rows of the test table."""
        assert self.test is not None
        absent = tuple(word.lower() for word in self.options.na_values)
        targets = self.targets.columns(encoding.targets, encoding.target_forms, absent)
        plan = TablePlan(encoding.columns(absent), targets)
        key = repr((plan, self.options))
        return load_rows(self.test, lambda: plan, key, self.options.missing, cache)


def missing_policy(options: TableOptions) -> Missing:
    """Return what is done about missing cells; version 0.1 filled them only by their mean."""
    return "refuse" if options.columns == "0.1" and options.missing == "drop" else options.missing


def read_table(
    path: Path, options: TableOptions, cache: CacheConfig, test: Path | None, storage: Storage | None = None
) -> RawTable:
    """Read a table to train on; the arguments are those of `RawTable`."""
    if storage is not None:
        cache = replace(cache, memory=0 if storage == "disk" else UNLIMITED)
    table = open_table(path, options.reading)
    test_table = None if test is None else open_table(test, options.reading)
    others = [] if test_table is None else test_table.names
    inputs, targets, _ = choose_columns(table, options, others)
    held = _held(table, cache)

    def plan() -> TablePlan:
        total = sum(file.stat().st_size for file in table.files if file.is_file())
        found = profile(held, [*inputs, *targets], options.na_values, lambda done: cache.progress(
            f"inspecting {path.name}", done, total))  # fmt: skip
        of_columns = infer(table, options, found, others)
        above = getattr(table, "notes", ())  # of text and of sheets: a title above the header
        return replace(of_columns, notes=(*above, *of_columns.notes))

    def inferred(loaded: LoadedTable) -> Targets:
        return Targets.infer(_targets_of(loaded, path), options.task, options.rare_classes)

    loaded = load_rows(held, plan, repr(options), options.missing, cache, inferred)
    if test_table is not None:
        check_test_columns(table, test_table, loaded.plan, options)
    found = inferred(loaded)
    y = found.encode(_targets_of(loaded, path))
    loaded = replace(loaded, targets=np.empty((0, len(targets))))  # y holds them now, and they may be many
    rows = _used(y, found)
    if options.columns == "infer" and _ends_with_sums(loaded, y):
        note = "the last row has the sums of the others: remove it from the file if it is no row of its own"
        loaded = replace(loaded, plan=replace(loaded.plan, notes=(*loaded.plan.notes, note)))
    return RawTable(path.name, found, y[rows], rows, table, test_table, options, cache, storage, loaded)


def _used(y: Array, targets: Targets) -> Rows:
    """Return the rows whose class is not left out."""
    return np.flatnonzero(y >= 0) if targets.class_names else np.arange(len(y))


def _ends_with_sums(loaded: LoadedTable, y: Array) -> bool:
    """Return whether the last row of a table in memory seems to be their total: the sums, in two columns or more."""
    if not isinstance(loaded.store, InMemory) or len(y) < FEWEST_SUMMED:
        return False
    numbers = [at for at, column in enumerate(loaded.plan.inputs) if column.kind == "numbers" and not column.part]
    targets = y if y.ndim == 2 else np.empty((len(y), 0))  # not the labels of classes
    values = np.hstack([loaded.store.rows[:, numbers], targets])
    values = values[:, ~np.isnan(values[-1])]
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.nansum(values[:-1], axis=0)
    return len(sums) > 1 and bool((np.isclose(values[-1], sums, rtol=1e-6, atol=0) & (sums != 0)).all())


def check_test_columns(table: Table, test: Table, plan: TablePlan, options: TableOptions) -> None:
    """Refuse a test table without a column that is used, or with one that the table does not have."""
    check_columns(test, [*plan.inputs, *plan.targets], f"{table.path} has")
    for name in test.names:
        if name and name not in table.names and name not in options.drop:
            raise UserError(
                f"{test.path}: unlike {table.path}: it has a column {name!r} more; {setting('drop', name)} "
                "leaves it out"
            )


@dataclass(frozen=True)
class _HeldTable(ArrowTable):
    """A table whose rows are held in memory after they were parsed once."""

    origin: Table | None = None

    def place(self, row: int) -> str:
        """Return the file and the number in it of a row."""
        assert self.origin is not None
        return self.origin.place(row)

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        assert self.origin is not None
        return self.origin.names

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield its rows in the blocks that they were read in."""
        yield from self.table


def _held(table: Table, cache: CacheConfig) -> Table:
    """Return a table that is read twice; a small one is parsed once. Parquet is quick to read."""
    size = sum(path.stat().st_size for path in table.files if path.is_file())
    if isinstance(table, ParquetTable | ArrowTable) or size * HELD_SHARE > cache.memory:
        return table
    batches = [*table.batches(lambda done: cache.progress(f"reading {table.path.name}", done, size))]
    return _HeldTable(batches, table.path, table.files, table)


def _targets_of(loaded: LoadedTable, path: Path) -> TargetValues:
    """Return the targets of a table, which must have rows."""
    if not len(loaded.targets):
        what = "there is a header, and no row below it"
        if loaded.unlabelled or loaded.dropped:
            what = "every row has a missing cell" if loaded.dropped else "the target is missing in every row"
        raise UserError(f"{path}: {what}")
    return TargetValues(loaded.plan.targets, loaded.targets, str(path), not loaded.dropped and not loaded.unlabelled)


def encoding_warnings(encoding: Encoding, rows: int, empty: Sequence[str]) -> list[str]:
    """Return warnings of columns without a value, and of more inputs than the training rows can support."""
    lines = [f"column {name!r} has no value in any training row, and no effect" for name in empty]
    if len(encoding) > rows:
        lines.append(f"{len(encoding)} inputs from {rows} training rows: more than the rows can support")
    return lines
