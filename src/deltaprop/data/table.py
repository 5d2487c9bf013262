"""Tables: named columns, and rows that are read block by block."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from deltaprop.errors import UserError, listed

# pyarrow is imported inside the functions: training on a built-in set does not need it.
Batch: TypeAlias = Any  # a pyarrow.RecordBatch

BATCH_ROWS = 1 << 16
DELIMITER_WORDS = ("auto", "tab", "space")  # beside any one character
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a table is read; a format ignores what it has no use for.

    Attributes:
        delimiter: Between the cells of a text: ``"auto"``, ``"tab"``, ``"space"`` or one character.
        encoding: How a CSV is encoded: ``"auto"``, UTF-8 or UTF-16 with a byte order mark, or a name of Python's.
        header: Whether the first line of a text or a sheet has the names of the columns; without them they are called
            column1, column2, ….
        sheet: The sheet of a workbook; None for the first.
        least: The fewest columns that the table must have: to train on one, an input and a target.
    """

    delimiter: str = "auto"
    encoding: str = "auto"
    header: bool = True
    sheet: str | None = None
    least: int = 2


DEFAULT_READING = ReadOptions()


class Table(Protocol):
    """A table that can be read from its beginning any number of times."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def names(self) -> list[str]:
        """The unique names of its columns, in order."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that it consists of."""

    def place(self, row: int) -> str:
        """Return the file and the number in it of a row, which is counted from 1 over all files."""

    def batches(self, on_bytes: Callable[[int], None] = ...) -> Iterator[Batch]:
        """Yield its rows block by block; ``on_bytes`` is called with the bytes of the files read so far."""


@dataclass(frozen=True)
class ArrowTable:
    """A pyarrow.Table in memory; its path is its name in messages."""

    table: Any
    path: Path = Path("the table")
    files: Sequence[Path] = ()

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        return [*self.table.column_names]

    def place(self, row: int) -> str:
        """Return the number of a row."""
        return f"{self.path}: row {row}"

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield its rows, block by block."""
        yield from self.table.to_batches(max_chunksize=BATCH_ROWS)


def as_table(data: Any) -> ArrowTable:
    """Return a dict of Arrow arrays, or an object that supports Arrow (pyarrow, polars), as a table."""
    import pyarrow

    try:
        table = pyarrow.table(data)
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        message = " ".join(str(error).split())[:120]
        raise UserError(
            f"the data must be a file, an array or a table with columns, got {type(data).__name__}: {message}"
        ) from error
    check_names("the table", [name for name in table.column_names if name])  # one without a name is not used
    return ArrowTable(table)


def check_names(where: Path | str, names: Sequence[str]) -> None:
    """Refuse two columns of the same name, and one without a name, unless it is the first: the index of pandas or R."""
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        if not name and at:
            raise UserError(
                f"{where}: column {at + 1} has no name, which only the first column, an index, may lack: write a name "
                "for it into the header"
            )
        if seen.setdefault(name, at) != at:
            raise UserError(f"{where}: columns {seen[name] + 1} and {at + 1} are both called {name!r}: rename one")


def type_family(arrow_type: Any) -> str:
    """Return ``"numbers"``, ``"text"`` or ``"dates"`` for a type that a column may have, else its own name."""
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    is_any = {
        "numbers": (types.is_integer, types.is_floating, types.is_decimal),
        "text": (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean),
        "dates": (types.is_timestamp, types.is_date, types.is_time),
    }
    return next((name for name, tests in is_any.items() if any(test(arrow_type) for test in tests)), str(arrow_type))


def unlisted(name: str, names: Collection[str], needed_by: str = "", *, noun: str = "column") -> str:
    """Return the message that a column or an array does not exist, with the nearest name and the existing ones."""
    near = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    hint = f": did you mean {near[0]!r}?" if near else ""
    which = f", which {needed_by}" if needed_by else ""
    return f"there is no {noun} {name!r}{which}{hint} ({noun}s: {listed(names)})"
