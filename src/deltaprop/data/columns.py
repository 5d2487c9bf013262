"""From the cells of a table to numbers: the columns that are read, and errors for cells that do not fit them.

A number is kept in float64; a category becomes the index of its name, in the order in which names appear; a part of a
date, such as its month, is a number. A missing cell is NaN. A cell that does not fit its column is reported with file,
row and column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.cells import (
    ABSENT,
    PLAIN,
    SIGNS,
    Form,
    absent_numbers,
    are_numbers,
    canonical,
    decoded,
    plain,
    plain_numbers,
    shape_of,
    short,
    spelled,
    words_in,
)
from deltaprop.data.dates import is_moment, moments
from deltaprop.data.splits import Rows
from deltaprop.data.table import NUMBER, Batch, ReadOptions, Table, type_family, unlisted
from deltaprop.errors import UserError, setting

Numbers: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["numbers", "categories"]
DatePart: TypeAlias = Literal["", "day", "month", "weekday", "hour"]
Task: TypeAlias = Literal["classification", "regression"]
TaskChoice: TypeAlias = Literal["auto", "classification", "regression"]
Missing: TypeAlias = Literal["auto", "mean", "drop", "refuse"]
RareClasses: TypeAlias = Literal["drop", "keep", "merge"]
ColumnRules: TypeAlias = Literal["infer", "0.1"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (description, bytes done, total bytes)."""

LONGEST_QUOTE = 60  # characters of a cell in a message


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The user's choices for a table.

    Attributes:
        target: Columns to predict; the last by default.
        drop: Columns to leave out.
        keep_column: Columns to use although they look like row numbers or identifiers.
        categorical: Columns to read as categories, even if they hold numbers.
        na_values: Further words that mean a missing value.
        decimal: The decimal sign; auto where the cells show it.
        task: Whether the target is classes or numbers.
        missing: What to do about a missing cell: fill it and tell the network so, replace it by the mean of the
            training rows, drop its row, or refuse it.
        rare_classes: What to do about a class of a single row: drop its row, keep it in the training part, or merge
            all such classes into one.
        columns: How columns are read: as `infer` decides, or as version 0.1 did.
        delimiter: The delimiter of a CSV.
        encoding: The encoding of a CSV.
        header: Whether the first line has the names of the columns.
        sheet: The sheet of a workbook; None for the first.
    """

    target: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep_column: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    na_values: tuple[str, ...] = ()
    decimal: Literal["auto", "point", "comma"] = "auto"
    task: TaskChoice = "auto"
    missing: Missing = "auto"
    rare_classes: RareClasses = "drop"
    columns: ColumnRules = "infer"
    delimiter: str = "auto"
    encoding: str = "auto"
    header: bool = True
    sheet: str | None = None

    @property
    def reading(self) -> ReadOptions:
        """How the table is read."""
        return ReadOptions(delimiter=self.delimiter, encoding=self.encoding, header=self.header, sheet=self.sheet)


@dataclass(frozen=True)
class RowRange:
    """A block of rows of a file.

    Attributes:
        table: The table.
        first: The number of its first row, counted from 1.
        training: Whether the table is trained on, so that messages can advise settings of the training.
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
    """A column as it is read; the names of categories grow while cells are read.

    Attributes:
        name: The name of the input: that in the header, with the part for a part of a date.
        kind: ``"numbers"`` or ``"categories"``.
        source: The name in the header.
        part: Which part of a date it is; nothing for other columns.
        form: How its numbers or dates are written.
        absent: Words in lower case that mean a missing value, besides the usual ones.
        present: Usual words for a missing value, in lower case, that are names here: NA may be Namibia.
        frequent: The categories that have an input of their own, if the others share one; None if each has its own.
        one_spelling: Whether names are made canonical, so that 1.0 and 1 are the same.
        numeric: Whether its categories are numbers, which have one name however they are written, such as +1 and 1.
        is_array: Whether it is a column of an array, which the user cannot name.
        names: The categories, each with its index.
    """

    name: str
    kind: Kind = "numbers"
    source: str = ""
    part: DatePart = ""
    form: Form = PLAIN
    absent: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    frequent: tuple[str, ...] | None = None
    one_spelling: bool = True
    numeric: bool = False
    is_array: bool = False
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the name for the header's where that is not given."""
        self.source = self.source or self.name

    def parse(self, cells: Any, rows: RowRange) -> Numbers:
        """Return the cells of a block, a pyarrow array, as numbers, NaN where missing; refuse one that does not fit."""
        from pyarrow import types

        cells = decoded(cells)
        if types.is_null(cells.type):
            return np.full(len(cells), np.nan)
        family = type_family(cells.type)
        if family not in ("numbers", "text", "dates"):
            raise UserError(
                f"{rows.table.path}: column {self.source!r} is of type {family}: neither numbers, text nor dates: "
                f"{setting('drop', self.source)}, or write it as one of them"
            )
        if family == "text":
            cells = self.text(cells)
        if self.part:
            return self._date_part(cells, rows)
        if self.kind == "categories":
            return self._indices(cells, family)
        if family == "dates":
            raise rows.error(0, self.source, "it has dates, and numbers are needed", "")
        if family == "text":
            return self._parse_numbers(cells, rows)
        if self.form.mark and self.form.mark in "%‰":  # Excel's cell 30 % is 0.3
            problem = f"it has numbers without the sign {self.form.mark}, which training had in the cells"
            raise rows.error(0, self.source, problem, "")
        values: Numbers = cells.cast("float64", safe=False).to_numpy(zero_copy_only=False)
        return self._present(values, rows)

    def text(self, cells: Any) -> Any:
        """Return text without blanks around it, null where it means a missing value."""
        import pyarrow
        from pyarrow import compute, types

        if types.is_boolean(cells.type):  # as pandas writes them into a CSV
            cells = compute.if_else(cells, "True", "False")
        cells = compute.utf8_trim_whitespace(cells.cast("string"))
        words = (*(word for word in ABSENT if word not in self.present), *self.absent)
        if self.kind == "numbers" or self.numeric:
            words = (*words, *SIGNS)
        return compute.if_else(pyarrow.array(words_in(cells, words)), None, cells)

    def _parse_numbers(self, cells: Any, rows: RowRange) -> Numbers:
        """Return numbers that are written as text."""
        import pyarrow

        try:
            plain_cells = cells if self.form == PLAIN else plain_numbers(cells, self.form)
            try:
                values = plain_cells.cast(pyarrow.float64())
            except pyarrow.ArrowInvalid:
                values = plain_numbers(cells, self.form).cast(pyarrow.float64())
            return self._present(np.array(values.to_numpy(zero_copy_only=False), dtype=np.float64), rows)
        except pyarrow.ArrowInvalid:
            fits = are_numbers(cells, self.form) | np.asarray(cells.is_null())
            at = int((~fits).argmax()) if not fits.all() else 0
            cell = cells[at].as_py()
            problem = f"{quoted_cell(cell)} is text, and the column has numbers"
            if cell is not None and shape_of(cell):
                problem = f"{quoted_cell(cell)} is not written as the numbers of this column in training"
            written = self.form.describe()
            raise rows.error(at, self.source, problem + (f" ({written})" if written else ""), "") from None

    def _date_part(self, cells: Any, rows: RowRange) -> Numbers:
        """Return the day since 1970, with its fraction, the month, the weekday (Monday is 0) or the hour."""
        from pyarrow import compute, types

        if types.is_integer(cells.type) or types.is_floating(cells.type):
            raise rows.error(0, self.source, "it has numbers, and dates are needed", "")
        try:
            when = moments(cells, self.form.date)
        except ValueError:
            wrong = (at for at in range(len(cells)) if not is_moment(cells[at : at + 1], self.form.date))
            at = next(wrong, 0)
            own = f", or {self.form.date}" if self.form.date else ""
            problem = f"{quoted_cell(cells[at].as_py())} is not a date as 2020-12-31 or 2020-12-31 23:59{own}"
            raise rows.error(at, self.source, problem, "") from None
        if self.part == "day":
            microseconds = when.cast("int64").cast("float64", safe=False)  # of 9999-12-31 float64 rounds one
            days: Numbers = microseconds.to_numpy(zero_copy_only=False) / 86_400e6
            return days
        functions = {"month": compute.month, "weekday": compute.day_of_week, "hour": compute.hour}
        return np.asarray(functions[self.part](when).cast("float64").to_numpy(zero_copy_only=False))

    def _present(self, values: Numbers, rows: RowRange) -> Numbers:
        """Return the numbers of a block, NaN for those that mean a missing value; refuse infinity."""
        if absent := absent_numbers(self.absent):
            values = np.where(np.isin(values, absent), np.nan, values)
        bad = np.isinf(values)
        if bad.any():
            at = int(bad.argmax())
            problem = f"{values[at]} is not a finite number, or too large for one"
            raise rows.error(at, self.source, problem, f", or {setting('drop', self.source)}")
        return values

    def _indices(self, cells: Any, family: str) -> Numbers:
        """Return the index of each category; a new name gets the next."""
        import pyarrow
        from pyarrow import compute, types

        if types.is_floating(cells.type):
            cells = compute.if_else(compute.is_nan(cells), None, cells)
        if family == "text" and (self.form != PLAIN or self.numeric):
            cells = plain_numbers(cells, self.form)
        encoded = short(cells).dictionary_encode()
        values = encoded.dictionary
        names: list[str | None]
        if types.is_floating(values.type):  # 3.0 is called 3, as in a CSV that has it so
            names = [plain(value) for value in values.to_pylist()]
        elif family == "dates":  # as pandas writes them into a CSV
            if types.is_timestamp(values.type):
                values = values.cast(pyarrow.timestamp("us", values.type.tz), safe=False)
            names = [spelled(value) for value in values.to_pylist()]
        else:
            names = [name or None for name in values.cast(pyarrow.string()).to_pylist()]  # an empty cell is missing
            if self.numeric:
                names = [plain(float(name)) if name and re.match(NUMBER, name) else name for name in names]
            if self.one_spelling:
                names = [name and canonical(name) for name in names]
        absent = {canonical(word).lower() for word in self.absent}
        names = [None if name is None or name.lower() in absent else name for name in names]
        numbers = [np.nan if name is None else self.names.setdefault(name, len(self.names)) for name in names]
        which = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        indices: Numbers = np.array([*numbers, np.nan], dtype=np.float64)[which]
        return indices


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
        rows: Rows read so far.
        dropped: The number of rows that were dropped for a missing input.
        unlabelled: The number of rows that were dropped for a missing target.
        gaps: The number of missing cells in the rows that were kept.
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
    unlabelled: int = 0
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
        order = {name: at for at, name in enumerate(self.table.names)}
        places = [order[column.source] for column in columns]
        # A date counts once, by its first part.
        counted = [at for at, column in enumerate(self.inputs) if column.part in ("", "day")]
        for batch in self.table.batches(on_bytes):
            if not len(batch):
                continue
            rows = RowRange(self.table, self.rows + 1, self.training)
            block = np.empty((len(batch), len(columns)))
            for at, (column, place) in enumerate(zip(columns, places, strict=True)):
                block[:, at] = column.parse(batch.column(place), rows)
            numbers = np.arange(self.rows, self.rows + len(batch)) + 1
            self.rows += len(batch)
            gaps = np.isnan(block)
            if gaps.any():
                kept = self._kept_rows(gaps, batch, rows)
                self.gaps += int(gaps[kept][:, counted].sum())
                block, numbers = block[kept], numbers[kept]
            yield block, numbers, batch

    def _kept_rows(self, gaps: NDArray[np.bool_], batch: Batch, rows: RowRange) -> NDArray[np.bool_]:
        """Return which rows of a block are kept; refuse a missing input where that is asked."""
        width = len(self.inputs)
        labelled: NDArray[np.bool_] = np.logical_not(gaps[:, width:].any(axis=1))
        self.unlabelled += int((~labelled).sum())
        incomplete = gaps[:, :width].any(axis=1) & labelled
        if not incomplete.any() or self.missing in ("auto", "mean"):
            return labelled
        if self.missing == "drop":
            self.dropped += int(incomplete.sum())
            return labelled & ~incomplete
        at = int(incomplete.argmax())
        raise self._missing_cell(self.inputs[int(gaps[at, :width].argmax())], batch, at, rows)

    def _missing_cell(self, column: Column, batch: Batch, at: int, rows: RowRange) -> UserError:
        """Return the error for a missing cell."""
        cell, name = batch.column(self.table.names.index(column.source))[at].as_py(), column.source
        problem = "the cell is empty" if cell is None or cell == "" else f"{quoted_cell(cell)} means a missing value"
        if not self.training:
            problem += ", and the model was not trained to fill such cells"
        advice = ", fill such cells by `missing='auto'`, leave out their rows by `missing='drop'`, or the column by "
        advice += setting("drop", name)
        if cell and column.kind != "numbers":
            advice += f", or, if it is a name, {setting('categorical', name)}"
        return rows.error(at, name, problem, advice)


def check_columns(table: Table, columns: Sequence[Column], needed_by: str) -> None:
    """Raise UserError if a table lacks a column; ``needed_by`` names who needs it, with the verb."""
    for column in columns:
        if column.source not in table.names:
            raise UserError(f"{table.path}: {unlisted(column.source, table.names, needed_by)}")


def quoted_cell(cell: Any) -> str:
    """Return a cell in quotes, shortened if it is long."""
    text = repr(cell)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"
