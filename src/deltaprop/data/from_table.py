"""Tables as data sets: read with their targets, and encoded by what the training rows show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from deltaprop.data.classes import Targets, TargetValues
from deltaprop.data.columns import Reader, TableOptions, check_columns, select_columns
from deltaprop.data.dataset import EncodedRows, FittedData, TableFacts, Task
from deltaprop.data.encoding import Encoder, Encoding, fit_encoding, unseen_categories
from deltaprop.data.formats import open_table
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import ROWS_AT_ONCE, UNLIMITED, CacheConfig, InMemory, LoadedTable, OnDisk, Storage, load_rows
from deltaprop.data.table import Table
from deltaprop.errors import UserError, setting


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table that was read, before it is split.

    Attributes:
        name: The name of the file or folder.
        task: ``"classification"`` or ``"regression"``.
        class_names: One name per class, empty for regression.
        y: Labels [N], or numbers [N, k].
        table: The table.
        test: A table of test rows; None to take a part of these.
        options: The user's choices.
        cache: Where rows may be stored.
        storage: Where the rows must be stored, as when the run began; None for where they fit.
        loaded: What was read of ``table``, without the targets.
    """

    name: str
    task: Task
    class_names: tuple[str, ...]
    y: Array
    table: Table
    test: Table | None
    options: TableOptions
    cache: CacheConfig
    storage: Storage | None
    loaded: LoadedTable
    image_shape: None = None

    def fit(self, train_rows: Rows, dtype: torch.dtype, *, standardise: bool) -> FittedData:
        """Fit the encoding on the training rows, and read the test table by it."""
        loaded, options, path = self.loaded, self.options, self.table.path
        starts = range(0, len(train_rows), ROWS_AT_ONCE)
        encoding, scaling = fit_encoding(
            loaded.inputs, [column.name for column in loaded.target_columns],
            (loaded.store.take(train_rows[start : start + ROWS_AT_ONCE]) for start in starts),
            fills=options.missing == "mean", where=str(path),
        )  # fmt: skip
        if not standardise:
            scaling = Scaling.identity(len(encoding))
        storage, fits = self.storage, isinstance(loaded.store, InMemory)
        if storage is None:
            inputs_fit = len(self.y) * len(encoding) * torch.finfo(dtype).bits // 8 <= self.cache.memory
            storage = "disk" if not fits else "memory" if inputs_fit else "rows"

        def encoded(of: LoadedTable, y: Array) -> EncodedRows:
            return EncodedRows(of.store, Encoder(encoding, of.inputs, scaling, dtype, str(path)), y)

        warnings, of_test, test = _warnings(encoding, len(train_rows)), None, None
        if self.test is not None:
            cache = replace(self.cache, memory=0) if storage == "disk" else self.cache
            targets = Targets(self.task, self.class_names)
            columns = encoding.columns(), targets.columns(encoding.targets)
            of_test = load_rows(Reader(self.test, *columns, options.missing), options, cache)
            y_test = _targets_of(of_test, self.test.path)
            if storage != "disk" and isinstance(of_test.store, OnDisk):  # `storage` is one for both: read again to disk
                again = read_table(path, options, self.cache, self.test.path, "disk")
                return again.fit(train_rows, dtype, standardise=standardise)
            test = encoded(of_test, targets.encode(y_test))
            warnings += unseen_categories(encoding, of_test.inputs, str(self.test.path))
        both = [loaded] if of_test is None else [loaded, of_test]
        facts = TableFacts(
            encoding=encoding,
            left_out=tuple(name for name in self.table.names if name in options.drop),
            dropped=sum(part.dropped for part in both),
            gaps=sum(part.gaps for part in both),
            storage=storage,
            warnings=tuple(warnings),
        )
        return FittedData(scaling, encoded(loaded, self.y), test, "+".join(part.digest for part in both), facts)


def read_table(
    path: Path, options: TableOptions, cache: CacheConfig, test: Path | None, storage: Storage | None = None
) -> RawTable:
    """Read a table to train on; the arguments are those of `RawTable`."""
    if storage is not None:
        cache = replace(cache, memory=0 if storage == "disk" else UNLIMITED)
    table = open_table(path, options.reading)
    test_table = None if test is None else open_table(test, options.reading)
    inputs, targets = select_columns(table, options, [] if test_table is None else test_table.names)
    if test_table is not None:
        used = [column.name for column in (*inputs, *targets)]
        check_columns(test_table, used, f"{path} has")
        for name in test_table.names:
            if name not in used and name not in options.drop:
                raise UserError(
                    f"{test_table.path}: unlike {path}: it has a column {name!r} more; {setting('drop', name)} "
                    "leaves it out"
                )

    def infer(loaded: LoadedTable) -> Targets:
        return Targets.infer(_targets_of(loaded, path), options.task)

    loaded = load_rows(Reader(table, inputs, targets, options.missing), options, cache, infer)
    inferred = infer(loaded)
    y = inferred.encode(_targets_of(loaded, path))
    loaded = replace(loaded, targets=np.empty((0, len(targets))))  # y holds them now, and they may be many
    task, names = inferred.task, inferred.class_names
    return RawTable(path.name, task, names, y, table, test_table, options, cache, storage, loaded)


def _targets_of(loaded: LoadedTable, path: Path) -> TargetValues:
    """Return the targets of a table, which must have rows."""
    if not len(loaded.targets):
        what = "every row has a missing cell" if loaded.dropped else "there is a header, and no row below it"
        raise UserError(f"{path}: {what}")
    return TargetValues(loaded.target_columns, loaded.targets, str(path), not loaded.dropped)


def _warnings(encoding: Encoding, rows: int) -> list[str]:
    """Return warnings of more inputs than the training rows can support."""
    lines = [
        f"column {column.name!r} has {len(column.categories)} different names in {rows} training rows: more "
        "one-hot inputs than the rows can support; leave out an identifier by `drop`"
        for column in encoding.inputs
        if len(column.categories) > rows / 2
    ]
    if len(encoding) > rows and not lines:
        lines.append(f"{len(encoding)} inputs from {rows} training rows: more than the rows can support")
    return lines
