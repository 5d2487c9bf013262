"""What a table is to those who read it: columns with names, and rows that come block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from deltaprop.errors import UserError

# pyarrow is imported inside the functions: who trains on a built-in set does without it.
Batch: TypeAlias = Any  # a pyarrow.RecordBatch

ROWS_AT_ONCE = 1 << 16
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Table(Protocol):
    """A table that is read from its beginning as often as is wanted."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def names(self) -> list[str]:
        """The names of its columns, in order, none twice."""

    @property
    def files(self) -> list[Path]:
        """The files that it is made of."""

    def place(self, row: int) -> str:
        """Return where a row is, counted from 1 over all files: the file, and the number in it."""

    def batches(self, on_bytes: Callable[[int], None] = ...) -> Iterator[Batch]:
        """Give its rows, block by block; ``on_bytes`` is message how many bytes of the files were read so far."""


def as_table(data: Any) -> Table:
    """Return a table that is in memory: a dict of columns, or what speaks Arrow, as pyarrow, polars and pandas do.

    Raises:
        UserError: If it is none.
    """
    import pyarrow

    try:
        table = pyarrow.table(data)
        twice = [name for at, name in enumerate(table.column_names) if name in table.column_names[:at]]
        if twice:
            raise UserError(f"the table: two columns are called {twice[0]!r}: rename one")
        return ArrowTable(table)
    except UserError:
        raise
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        message = " ".join(str(error).split())[:120]
        raise UserError(
            f"the data must be a file, an array or a table with columns, got {type(data).__name__}: {message}"
        ) from error


@dataclass(frozen=True)
class ArrowTable:
    """A table in memory.

    Attributes:
        table: A pyarrow.Table.
    """

    table: Any

    @property
    def path(self) -> Path:
        """What messages call it."""
        return Path("the table")

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        names: list[str] = self.table.column_names
        return names

    @property
    def files(self) -> list[Path]:
        """None."""
        return []

    def place(self, row: int) -> str:
        """Return the number of a row."""
        return f"{self.path}: row {row}"

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Give its rows, block by block."""
        yield from self.table.to_batches(max_chunksize=ROWS_AT_ONCE)


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as ``"1 cell"`` or ``"2 cells"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
