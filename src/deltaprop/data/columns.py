"""From the cells of a table to numbers: the kind of each column, and errors for cells that do not fit it.

A column has numbers or categories. Its first cells decide which, and every later one has to fit: text among numbers is
reported with file, row and column. A number is kept in float64; a category becomes the index of its name, in the order
in which names appear. A missing cell is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.splits import Rows
from deltaprop.data.table import NUMBER, Batch, ReadOptions, Table, type_family, unlisted
from deltaprop.errors import UserError, setting

Numbers: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["numbers", "categories"]
TaskChoice: TypeAlias = Literal["auto", "classification", "regression"]
Missing: TypeAlias = Literal["refuse", "mean", "drop"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (description, bytes done, total bytes)."""

DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
LONGEST_QUOTE = 60  # characters of a cell in a message
# Missing values, in lower case, as R, pandas and people write them. In a column that the user calls categorical only an
# empty cell is missing: NA is Namibia.
ABSENT = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?")


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The user's choices for a table.

    Attributes:
        target: Columns to predict; the last by default.
        drop: Columns to leave out.
        categorical: Columns to read as categories, even if they hold numbers.
        task: Whether the target is classes or numbers.
        missing: What to do about a missing cell: refuse it, replace it by the mean of the training rows, or drop its
            row.
        delimiter: The delimiter of a CSV.
        header: Whether the first line has the names of the columns.
        sheet: The sheet of a workbook; None for the first.
    """

    target: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    task: TaskChoice = "auto"
    missing: Missing = "refuse"
    delimiter: str = "auto"
    header: bool = True
    sheet: str | None = None

    @property
    def reading(self) -> ReadOptions:
        """How the table is read."""
        return ReadOptions(delimiter=self.delimiter, header=self.header, sheet=self.sheet)


@dataclass(frozen=True)
class RowRange:
    """A block of rows of a file.

    Attributes:
        table: The table.
        first: The number of its first row, counted from 1.
        training: Whether the table is trained on, so that messages can advise `drop`, `categorical` and `missing`.
    """

    table: Table
    first: int
    training: bool = True

    def error(self, at: int, column: str, problem: str, advice: str) -> UserError:
        """Return the error for a cell of row ``at`` of the block; the advice is for training."""
        remedy = f": correct the row{advice if self.training else ''}"
        return UserError(f"{self.table.place(self.first + at)}, column {column!r}: {problem}{remedy}")


@dataclass
class Column:
    """What is known of a column; it grows while cells are read.

    Attributes:
        name: In the header.
        kind: ``"numbers"`` or ``"categories"``; None until a cell shows which.
        forced: Whether the kind is fixed in advance.
        verbatim: Whether every text but the empty one is a category; otherwise NA and the like are missing.
        names: The categories, each with its index.
    """

    name: str
    kind: Kind | None = None
    forced: bool = False
    verbatim: bool = False
    names: dict[str, int] = field(default_factory=dict)

    def parse(self, cells: Any, rows: RowRange) -> Numbers:
        """Return the cells of a block, a pyarrow array, as numbers, NaN where missing; refuse one that does not fit."""
        from pyarrow import types

        if types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        family = type_family(cells.type)
        if family == "numbers":
            return self._parse_numbers(cells, rows)
        if family == "text":
            return self._parse_text(cells, rows)
        if types.is_null(cells.type):
            return np.full(len(cells), np.nan)
        raise UserError(
            f"{rows.table.path}: column {self.name!r} is of type {family}: neither numbers nor text; "
            f"{setting('drop', self.name)}, or write it as one of them"
        )

    def _parse_numbers(self, cells: Any, rows: RowRange) -> Numbers:
        from pyarrow import compute, types

        if self.kind == "categories":
            if not self.forced:
                raise self._mixed(rows, 0, str(cells[0].as_py()), "a number, and the rows before it have text")
            if types.is_floating(cells.type):
                cells = compute.if_else(compute.is_nan(cells), None, cells)
            return self._indices(cells)
        values: Numbers = cells.cast("float64", safe=False).to_numpy(zero_copy_only=False)
        return self._finite(values, rows)

    def _parse_text(self, cells: Any, rows: RowRange) -> Numbers:
        import pyarrow
        from pyarrow import compute, types

        if types.is_boolean(cells.type):  # as pandas writes them into a CSV
            cells = compute.if_else(cells, "True", "False")
        cells = compute.utf8_trim_whitespace(cells.cast("string"))
        if self.verbatim:
            return self._indices(cells)
        is_missing = compute.is_in(compute.utf8_lower(cells), pyarrow.array(ABSENT))
        is_missing = compute.or_kleene(compute.is_null(cells), is_missing)
        present_cells = compute.if_else(is_missing, None, cells)
        if self.kind == "categories" and self.forced:
            return self._indices(present_cells)
        if self.kind != "categories":
            try:
                values = present_cells.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
                return self._finite(np.asarray(values, dtype=np.float64), rows)
            except pyarrow.ArrowInvalid:
                pass  # some cells are text
        present = ~is_missing.to_numpy(zero_copy_only=False).astype(bool)
        is_number = _matches(cells, NUMBER) & present
        is_text = present & ~is_number
        if self.kind == "numbers" or (self.kind is None and is_number.any()):
            # A cell is text, or a number too large to be cast, such as 1e400.
            wrong, what = is_text if is_text.any() else present, "text, and other rows have numbers"
        elif is_number.any():
            wrong, what = is_number, "a number, and the rows before it have text"
        elif present.any() and (_matches(cells, DECIMAL_COMMA) | ~present).all():
            wrong, what = present, "text"
        else:
            self.kind = "categories" if present.any() else self.kind
            return self._indices(present_cells)
        at = int(wrong.argmax())
        raise self._mixed(rows, at, cells[at].as_py(), what)

    def _finite(self, values: Numbers, rows: RowRange) -> Numbers:
        """Return the numbers of a block, which make this a column of numbers, after refusing infinity."""
        bad = np.isinf(values)
        if bad.any():
            at = int(bad.argmax())
            problem = f"{values[at]} is not a finite number, or too large for one"
            raise rows.error(at, self.name, problem, f", or {setting('drop', self.name)}")
        if self.kind is None and not np.isnan(values).all():
            self.kind = "numbers"
        return values

    def _indices(self, cells: Any) -> Numbers:
        """Return the index of each category; a new name gets the next."""
        import pyarrow

        encoded = cells.dictionary_encode()
        values = encoded.dictionary
        names: list[str | None]
        if pyarrow.types.is_floating(values.type):  # 3.0 is called 3, as in a CSV that has it so
            names = [plain(value) for value in values.to_pylist()]
        else:
            names = [name or None for name in values.cast(pyarrow.string()).to_pylist()]  # an empty cell is missing
        numbers = [np.nan if name is None else self.names.setdefault(name, len(self.names)) for name in names]
        which = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        indices: Numbers = np.array([*numbers, np.nan], dtype=np.float64)[which]
        return indices

    def _mixed(self, rows: RowRange, at: int, cell: str, what: str) -> UserError:
        """Return the error for text among numbers, or a number among text."""
        decimal = " (a decimal comma? numbers are written with a point)" if re.match(DECIMAL_COMMA, cell) else ""
        advice = f", or {setting('categorical', self.name)} if they are names, or {setting('drop', self.name)}"
        return rows.error(at, self.name, f"{_quoted(cell)} is {what}{decimal}", advice)


@dataclass
class Reader:
    """Reads the columns of a table that are used as numbers, block by block.

    Args:
        table: The table.
        inputs: Columns of inputs.
        targets: Columns of targets; empty if targets are not read.
        missing: What to do about a missing cell.
        training: As in `RowRange`.

    Attributes:
        rows: Rows read so far, including dropped ones.
        dropped: Rows that were dropped.
        gaps: Missing cells that stay, to be filled.
        bytes_read: Bytes of the files read so far.
        bytes_total: Bytes of the files.
    """

    table: Table
    inputs: Sequence[Column]
    targets: Sequence[Column]
    missing: Missing
    training: bool = True
    rows: int = 0
    dropped: int = 0
    gaps: int = 0
    bytes_read: int = 0
    bytes_total: int = 0

    def blocks(self, progress: Progress = silent) -> Iterator[tuple[Numbers, Rows, Batch]]:
        """Yield blocks [rows, inputs and targets], the number of each row in the table from 1, and the batch.

        Dropped rows are only in the batch.

        Raises:
            UserError: If a cell does not fit, or is missing where that is refused.
        """
        self.bytes_total = sum(path.stat().st_size for path in self.table.files if path.is_file())

        def on_bytes(count: int) -> None:
            self.bytes_read = count
            progress(f"reading {self.table.path.name}", count, self.bytes_total)

        columns = [*self.inputs, *self.targets]
        for batch in self.table.batches(on_bytes):
            if not len(batch):
                continue
            rows = RowRange(self.table, self.rows + 1, self.training)
            block = np.empty((len(batch), len(columns)))
            for at, column in enumerate(columns):
                block[:, at] = column.parse(batch.column(column.name), rows)
            numbers = np.arange(self.rows, self.rows + len(batch)) + 1
            self.rows += len(batch)
            gaps = np.isnan(block)
            if gaps.any() and self.missing == "drop":
                complete = ~gaps.any(axis=1)
                self.dropped += int((~complete).sum())
                block, numbers = block[complete], numbers[complete]
            elif gaps.any():
                refused = gaps.copy()
                if self.missing == "mean":  # only inputs can be filled
                    refused[:, : len(self.inputs)] = False
                if refused.any():
                    at, index = (int(place) for place in np.argwhere(refused)[0])
                    raise self._missing_cell(columns[index], batch, at, rows)
                self.gaps += int(gaps.sum())
            yield block, numbers, batch

    def _missing_cell(self, column: Column, batch: Batch, at: int, rows: RowRange) -> UserError:
        """Return the error for a missing cell."""
        cell, name = batch.column(column.name)[at].as_py(), column.name
        problem = "the cell is empty" if cell is None or cell == "" else f"{_quoted(cell)} means a missing value"
        if not self.training and self.missing != "mean":
            problem += ", and the model was not trained to fill such cells"
        advice = ", fill such cells by `missing='mean'`, leave out their rows by `missing='drop'`, or the column by "
        advice += setting("drop", name)
        if column in self.targets:
            problem += ", and it is the target" if self.training else ""
            advice = ", or leave out such rows by `missing='drop'`"
        if cell and column.kind != "numbers" and not column.verbatim:
            advice += f", or, if it is a name, {setting('categorical', name)}"
        return rows.error(at, name, problem, advice)


def select_columns(
    table: Table, options: TableOptions, others: Collection[str] = ()
) -> tuple[list[Column], list[Column]]:
    """Return the columns of inputs and of targets, in the order of the table to train on.

    ``others`` are columns of the table to test on, which may be dropped too.

    Raises:
        UserError: If a chosen column does not exist, or no input is left.
    """
    names = table.names
    for flag in ("target", "drop", "categorical"):
        for name in getattr(options, flag):
            if name not in names and not (flag == "drop" and name in others):
                raise UserError(f"{table.path}: {setting(flag, name)}: {unlisted(name, names)}")
    targets = list(options.target) or [next((n for n in reversed(names) if n not in options.drop), names[-1])]
    for name in options.drop:
        if name in targets:
            raise UserError(f"{setting('drop', name)}: it is the target, which cannot be left out")
        if name in options.categorical:
            raise UserError(f"{setting('categorical', name)}: it is left out by `drop`; choose one of them")
    inputs = [name for name in names if name not in targets and name not in options.drop]
    if not inputs:
        raise UserError(f"{table.path}: no column is left as an input beside the target {targets[0]!r}")

    def column(name: str) -> Column:
        is_verbatim = name in options.categorical
        return Column(name, "categories" if is_verbatim else None, forced=is_verbatim, verbatim=is_verbatim)

    return [column(name) for name in inputs], [column(name) for name in dict.fromkeys(targets)]


def check_columns(table: Table, names: Sequence[str], needed_by: str) -> None:
    """Raise UserError if a table lacks a column; ``needed_by`` names who needs it, with the verb."""
    for name in names:
        if name not in table.names:
            raise UserError(f"{table.path}: {unlisted(name, table.names, needed_by)}")


def plain(value: float) -> str:
    """Return the name of a number as a class or category.

    Example:
        >>> plain(3.0), plain(0.5)
        ('3', '0.5')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _matches(cells: Any, pattern: str) -> NDArray[np.bool_]:
    """Return which cells match a pattern; missing ones do not."""
    from pyarrow import compute

    matches = compute.match_substring_regex(cells, pattern).fill_null(False)
    return np.asarray(matches.to_numpy(zero_copy_only=False), dtype=bool)


def _quoted(cell: Any) -> str:
    """Return a cell in quotes, shortened if it is long."""
    text = repr(cell)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"
