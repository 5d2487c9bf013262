"""From the cells of a table to numbers: what each column holds, and where a cell does not fit.

A column has numbers or categories. Its first cells decide which, and every later one has to fit: text among numbers is
reported with file, row and column. A number is kept in float64; a category becomes the index of its name, in the order
in which names appear. What is missing is NaN.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.classes import plain
from deltaprop.data.formats.table import NUMBER, Batch, Table
from deltaprop.data.splits import Rows
from deltaprop.errors import UserError, setting

Numbers: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["numbers", "categories"]
TaskChoice: TypeAlias = Literal["auto", "classification", "regression"]
Missing: TypeAlias = Literal["refuse", "mean", "drop"]

# What stands for a missing value, in small letters, as R, pandas and people write it. In a column that the user calls
# categorical only an empty cell does: NA is Namibia.
DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
MOST_SHOWN = 60  # characters of a cell in a message
ABSENT = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What the user says of a table.

    Attributes:
        target: Columns to predict; the last by default.
        drop: Columns to leave out.
        categorical: Columns of categories, whatever is in them.
        task: Whether the target is classes or numbers.
        missing: What to do about a missing cell: refuse it, put the mean of the training rows in its place, or drop its
            row.
        delimiter: Of a CSV.
    """

    target: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    task: TaskChoice = "auto"
    missing: Missing = "refuse"
    delimiter: str = "auto"


@dataclass
class Column:
    """What is known of a column, and grows while its cells are read.

    Attributes:
        name: In the header.
        kind: ``"numbers"`` or ``"categories"``; None until a cell is there that tells.
        forced: Whether it is known beforehand which.
        verbatim: Whether every text but the empty one is a name; else NA and its kin are missing.
        names: Of its categories, each with its number.
    """

    name: str
    kind: Kind | None = None
    forced: bool = False
    verbatim: bool = False
    names: dict[str, int] = field(default_factory=dict)

    def read(self, cells: Any, where: RowRange) -> Numbers:
        """Return the cells of a block as numbers, NaN where they are missing.

        Args:
            cells: A pyarrow array.
            where: Names the file and the rows, for what does not fit.

        Raises:
            UserError: If a cell does not fit.
        """
        from pyarrow import types

        if types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        kind = cells.type
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            return self._of_numbers(cells, where)
        if types.is_null(kind):
            return np.full(len(cells), np.nan)
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind):
            return self._of_text(cells, where)
        raise UserError(
            f"{where.table.path}: column {self.name!r} is of type {kind}: neither numbers nor text; "
            f"{setting('drop', self.name)}, or write it as one of them"
        )

    def _of_numbers(self, cells: Any, where: RowRange) -> Numbers:
        from pyarrow import compute, types

        if self.kind == "categories":
            if not self.forced:
                raise self._mixed(where, 0, str(cells[0].as_py()), "a number, and the rows before it have text")
            if types.is_floating(cells.type):
                cells = compute.if_else(compute.is_nan(cells), None, cells)
            return self._codes(cells, where)
        values: Numbers = cells.cast("float64", safe=False).to_numpy(zero_copy_only=False)
        return self._finite(values, where)

    def _of_text(self, cells: Any, where: RowRange) -> Numbers:
        from pyarrow import compute, types

        if types.is_boolean(cells.type):  # as pandas writes them into a CSV
            cells = compute.if_else(cells, "True", "False")
        cells = compute.utf8_trim_whitespace(cells.cast("string"))
        if self.verbatim:
            return self._codes(cells, where)
        absent = compute.or_kleene(compute.is_null(cells), compute.is_in(compute.utf8_lower(cells), _absent()))
        if self.kind == "categories" and self.forced:
            return self._codes(compute.if_else(absent, None, cells), where)
        numbers = _as_numbers(compute.if_else(absent, None, cells))
        if numbers is not None and self.kind != "categories":
            if self.kind is None and not compute.all(absent).as_py():
                self.kind = "numbers"
            return self._finite(numbers, where)
        there = ~absent.to_numpy(zero_copy_only=False).astype(bool)
        is_number = _matches(cells, NUMBER) & there
        is_text = there & ~is_number
        if self.kind == "numbers" or (self.kind is None and is_number.any()):
            # Text there is: else they would all have been read as numbers. Of too large a one 1e400 is none either.
            at = int((is_text if is_text.any() else there).argmax())
            raise self._mixed(where, at, cells[at].as_py(), "text, and other rows have numbers")
        if is_number.any():
            at = int(is_number.argmax())
            raise self._mixed(where, at, cells[at].as_py(), "a number, and the rows before it have text")
        if not there.any():
            return np.full(len(cells), np.nan)
        if (_matches(cells, DECIMAL_COMMA) | ~there).all():
            at = int(there.argmax())
            raise self._mixed(where, at, cells[at].as_py(), "text")
        self.kind = "categories"
        return self._codes(compute.if_else(absent, None, cells), where)

    def _finite(self, values: Numbers, where: RowRange) -> Numbers:
        bad = np.isinf(values)
        if bad.any():
            at = int(bad.argmax())
            advice = f", or {setting('drop', self.name)}" if where.advises else ""
            raise UserError(
                f"{where.of(at)}, column {self.name!r}: {values[at]} is no finite number, or too large for one: "
                f"mend the row{advice}"
            )
        if self.kind is None and not np.isnan(values).all():
            self.kind = "numbers"
        return values

    def _codes(self, cells: Any, where: RowRange) -> Numbers:
        """Return the number of each name; a new name gets the next."""
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
        found: Numbers = np.array([*numbers, np.nan], dtype=np.float64)[which]
        return found

    def _mixed(self, where: RowRange, at: int, cell: str, what: str) -> UserError:
        name = self.name
        advice = (
            f", or {setting('categorical', name)} if they are names, or {setting('drop', name)}"
            if where.advises
            else ""
        )
        decimal = " (a decimal comma? numbers are written with a point)" if re.match(DECIMAL_COMMA, cell) else ""
        return UserError(
            f"{where.of(at)}, column {self.name!r}: {_shown(cell)} is {what}{decimal}: mend the row{advice}"
        )


@dataclass(frozen=True)
class RowRange:
    """A block of rows of a file.

    Attributes:
        table: The table.
        first: The number of its first row, counted from 1.
        advises: Whether the flags of ``deltaprop train`` are at hand.
    """

    table: Table
    first: int
    advises: bool = True

    def of(self, at: int) -> str:
        """Return the file and the number of a row of the block."""
        return self.table.place(self.first + at)


def _absent() -> Any:
    import pyarrow

    return pyarrow.array(ABSENT)


def _as_numbers(cells: Any) -> Numbers | None:
    """Return text as numbers; None where some of it is none."""
    import pyarrow

    try:
        return np.asarray(cells.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pyarrow.ArrowInvalid:
        return None


def _matches(cells: Any, pattern: str) -> NDArray[np.bool_]:
    """Return which cells match a pattern; those that are not there do not."""
    from pyarrow import compute

    found: NDArray[np.bool_] = (
        compute.match_substring_regex(cells, pattern).fill_null(False).to_numpy(zero_copy_only=False)
    )
    return found


def _shown(cell: Any) -> str:
    """Return a cell as it is quoted, its end left out where it is long."""
    text = repr(cell)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


@dataclass
class Reader:
    """Reads the columns of a table that matter as numbers, block by block.

    Args:
        table: To read.
        inputs: Columns of inputs.
        targets: Columns of targets; none where there are none to read.
        missing: What to do about a missing cell.
        advises: Whether the flags of ``deltaprop train`` are at hand.

    Attributes:
        rows: Read so far, those that were dropped included.
        dropped: Rows that were dropped.
        gaps: Missing cells that stay, to be filled.
    """

    table: Table
    inputs: Sequence[Column]
    targets: Sequence[Column]
    missing: Missing
    advises: bool = True
    rows: int = 0
    dropped: int = 0
    gaps: int = 0

    def blocks(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Numbers]:
        """Give blocks [rows, inputs and targets] of the rows that stay.

        Raises:
            UserError: If a cell does not fit, or is missing where that is refused.
        """
        return (block for block, _, _ in self.beside(on_bytes))

    def beside(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[tuple[Numbers, Rows, Batch]]:
        """Give the blocks, each with the numbers of its rows in the table, from 1, and with what was read of it.

        Rows that are dropped are in that last one alone.
        """
        columns = [*self.inputs, *self.targets]
        for batch in self.table.batches(on_bytes):
            if not len(batch):
                continue
            where = RowRange(self.table, self.rows + 1, self.advises)
            block = np.empty((len(batch), len(columns)))
            for at, column in enumerate(columns):
                block[:, at] = column.read(batch.column(column.name), where)
            numbers = np.arange(self.rows, self.rows + len(batch)) + 1
            self.rows += len(batch)
            stays = self._without_gaps(block, batch, where)
            yield block[stays], numbers[stays], batch

    def _without_gaps(self, block: Numbers, batch: Batch, where: RowRange) -> slice | Rows:
        """Return which rows stay."""
        gaps = np.isnan(block)
        if not gaps.any():
            return slice(None)
        if self.missing == "drop":
            whole = ~gaps.any(axis=1)
            self.dropped += int((~whole).sum())
            return np.flatnonzero(whole)
        of_targets = gaps[:, len(self.inputs) :]
        refused = of_targets if self.missing == "mean" else gaps
        if refused.any():
            columns = [*self.targets] if self.missing == "mean" else [*self.inputs, *self.targets]
            at, column = (int(index) for index in np.argwhere(refused)[0])
            raise self._missing(columns[column], batch, at, where)
        self.gaps += int(gaps.sum())
        return slice(None)

    def _missing(self, column: Column, batch: Batch, at: int, where: RowRange) -> UserError:
        cell = batch.column(column.name)[at].as_py()
        found = "the cell is empty" if cell is None or cell == "" else f"{_shown(cell)} stands for a missing value"
        if not self.advises:
            learnt = "" if self.missing == "mean" else ", and the model was not trained to fill such cells"
            return UserError(f"{where.of(at)}, column {column.name!r}: {found}{learnt}: mend the row, or leave it out")
        name = column.name
        called = (
            f", or, if it is a name, {setting('categorical', name)}"
            if cell and column.kind != "numbers" and not column.verbatim
            else ""
        )
        if column in self.targets:
            return UserError(
                f"{where.of(at)}, column {column.name!r}: {found}, and it is the target: "
                f"mend the row, or leave out such rows by `missing='drop'`{called}"
            )
        return UserError(
            f"{where.of(at)}, column {column.name!r}: {found}: fill such cells by `missing='mean'`, "
            f"leave out their rows by `missing='drop'`, or the column by {setting('drop', name)}{called}"
        )


def chosen(table: Table, choices: TableOptions, others: Collection[str] = ()) -> tuple[list[Column], list[Column]]:
    """Return the columns of inputs and of targets, in the order of the table.

    Args:
        table: That is trained on.
        choices: What the user says of it.
        others: Columns of the table to test on, which may be dropped too.

    Raises:
        UserError: If a column that is named is not there, or nothing is left to learn from.
    """
    names = table.names
    for flag, given in (("target", choices.target), ("drop", choices.drop), ("categorical", choices.categorical)):
        for name in given:
            if name not in names and not (flag == "drop" and name in others):
                raise UserError(f"{table.path}: {setting(flag, name)}: {unlisted(name, names)}")
    targets = list(choices.target) or [next((n for n in reversed(names) if n not in choices.drop), names[-1])]
    for name in targets:
        if name in choices.drop:
            raise UserError(f"{setting('drop', name)}: it is the target, which cannot be left out")
    inputs = [name for name in names if name not in targets and name not in choices.drop]
    for name in choices.categorical:
        if name in choices.drop:
            raise UserError(f"{setting('categorical', name)}: it is left out by `drop`; say one of them")
    if not inputs:
        raise UserError(f"{table.path}: no column is left as an input beside the target {targets[0]!r}")

    def column(name: str) -> Column:
        is_verbatim = name in choices.categorical
        return Column(name, "categories", forced=True, verbatim=True) if is_verbatim else Column(name)

    return [column(name) for name in inputs], [column(name) for name in dict.fromkeys(targets)]


def unlisted(name: str, names: Collection[str], of: str = "") -> str:
    """Return, in words, that there is no such column, with the nearest that there is; ``of`` says who has one."""
    near = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    hint = f": did you mean {near[0]!r}?" if near else ""
    shown = ", ".join([*names][:12]) + (", …" if len(names) > 12 else "")
    which = f", which {of}" if of else ""
    return f"there is no column {name!r}{which}{hint} (columns: {shown})"
