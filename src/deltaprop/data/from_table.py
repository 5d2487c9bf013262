"""Tables as data sets: read with their targets, and encoded by what the training rows show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from deltaprop.data.classes import Targets
from deltaprop.data.columns import Reader, TableOptions, check_columns, select_columns
from deltaprop.data.dataset import EncodedRows, FittedData, TableFacts
from deltaprop.data.encoder import Encoder
from deltaprop.data.encoding import Encoding, fit_encoding, unseen_categories
from deltaprop.data.formats import open_table
from deltaprop.data.formats.table import Table
from deltaprop.data.raw import Task
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import ROWS_AT_ONCE, UNLIMITED, CacheConfig, InMemory, LoadedTable, OnDisk, Storage, load_rows
from deltaprop.errors import UserError, setting


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table that was read, before it is split.

    Attributes:
        table: The table.
        test: A table of test rows; None to take a part of these.
        options: The user's choices.
        cache: Where rows may be stored.
        storage: Where the rows must be stored, as when the run began; None for where they fit.
        loaded: What was read of ``table``, without the targets.
        targets: Whether the targets are classes or numbers.
        y: Labels [N], or numbers [N, k].
    """

    table: Table
    test: Table | None
    options: TableOptions
    cache: CacheConfig
    storage: Storage | None
    loaded: LoadedTable
    targets: Targets
    y: Array
    image_shape: None = None

    @property
    def name(self) -> str:
        """The name of the file or folder."""
        return self.table.path.name

    @property
    def task(self) -> Task:
        """``"classification"`` or ``"regression"``."""
        return self.targets.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, empty for regression."""
        return self.targets.class_names

    def fit(self, train_rows: Rows, dtype: torch.dtype, *, standardise: bool) -> FittedData:
        """Fit the encoding on the training rows, and read the test table by it.

        Args:
            train_rows: The indices of the training rows.
            dtype: The dtype of the inputs.
            standardise: Whether numbers are standardised.

        Raises:
            UserError: If a column of the training rows, or the test table, is damaged or does not fit.
        """
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
            targets = self.targets.columns(encoding.targets)
            of_test = load_rows(Reader(self.test, encoding.columns(), targets, options.missing), options, cache)
            _check_rows(self.test.path, of_test)
            if storage != "disk" and isinstance(of_test.store, OnDisk):  # `storage` is one for both: read again to disk
                again = read_table(path, options, self.cache, self.test.path, "disk")
                return again.fit(train_rows, dtype, standardise=standardise)
            test = encoded(of_test, _encode_targets(self.targets, of_test, self.test.path))
            warnings += unseen_categories(encoding, of_test.inputs, str(self.test.path))
        return FittedData(
            scaling=scaling,
            rows=encoded(loaded, self.y),
            test=test,
            digest=loaded.digest if of_test is None else f"{loaded.digest}+{of_test.digest}",
            table=TableFacts(
                encoding=encoding,
                left_out=tuple(name for name in self.table.names if name in options.drop),
                dropped=loaded.dropped + (0 if of_test is None else of_test.dropped),
                gaps=loaded.gaps + (0 if of_test is None else of_test.gaps),
                storage=storage,
                warnings=tuple(warnings),
            ),
        )


def read_table(
    path: Path, options: TableOptions, cache: CacheConfig, test: Path | None, storage: Storage | None = None
) -> RawTable:
    """Read a table to train on.

    Args:
        path: The table.
        options: The user's choices.
        cache: Where rows may be stored.
        test: A table of test rows; None to take a part of these.
        storage: Where the rows must be stored, as when the run began; None for where they fit.

    Raises:
        UserError: If a table is damaged, or an option or the target does not fit it.
    """
    if storage is not None:
        cache = replace(cache, memory=0 if storage == "disk" else UNLIMITED)
    table = open_table(path, options.delimiter)
    test_table = None if test is None else open_table(test, options.delimiter)
    inputs, targets = select_columns(table, options, [] if test_table is None else test_table.names)
    if test_table is not None:
        names = [column.name for column in (*inputs, *targets)]
        check_columns(test_table, names, f"{path} has")
        for name in test_table.names:
            if name not in names and name not in options.drop:
                raise UserError(
                    f"{test_table.path}: unlike {path}: it has a column {name!r} more; {setting('drop', name)} "
                    "leaves it out"
                )

    def infer(loaded: LoadedTable) -> Targets:
        _check_rows(path, loaded)
        numbered = not loaded.dropped
        return Targets.infer(loaded.target_columns, loaded.targets, str(path), options.task, numbered=numbered)

    loaded = load_rows(Reader(table, inputs, targets, options.missing), options, cache, infer)
    inferred = infer(loaded)
    y = _encode_targets(inferred, loaded, path)
    loaded = replace(loaded, targets=np.empty((0, len(targets))))  # y holds them now, and they may be many
    return RawTable(table, test_table, options, cache, storage, loaded, inferred, y)


def _encode_targets(targets: Targets, loaded: LoadedTable, path: Path) -> Array:
    return targets.encode(loaded.target_columns, loaded.targets, str(path), numbered=not loaded.dropped)


def _check_rows(path: Path, loaded: LoadedTable) -> None:
    if not len(loaded.targets):
        what = "every row has a missing cell" if loaded.dropped else "there is a header, and no row below it"
        raise UserError(f"{path}: {what}")


def _warnings(encoding: Encoding, rows: int) -> list[str]:
    """Return warnings of more inputs than the training rows can support."""
    lines = [
        f"column {column.name!r} has {len(column.categories)} different names in {rows} training rows: more "
        "one-hot inputs than the rows can support; an identifier is left out by `drop`"
        for column in encoding.inputs
        if len(column.categories) > rows / 2
    ]
    if len(encoding) > rows and not lines:
        lines.append(f"{len(encoding)} inputs from {rows} training rows: more than the rows can support")
    return lines
