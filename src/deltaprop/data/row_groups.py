"""The row groups of a folder of Parquet parts: processes share a large table by them.

Row groups are dealt to K streams, and a process has the streams s with s mod W its rank. K depends on the table alone,
so that the rows of each batch do not depend on W. Only the footers of files are read here.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.formats.parquet import column_indices
from deltaprop.data.splitmix import mix
from deltaprop.data.splits import Rows, SplitHow
from deltaprop.data.table import BATCH_ROWS, Batch
from deltaprop.errors import UserError

PARTS = ("train", "val", "test")
STREAMS = 64  # K, if there are as many row groups
PAGE_BYTES = 1 << 16  # compressed, that are read at once
CHANGED = "it has changed since its footer was read"


@dataclass(frozen=True)
class RowGroup:
    """A row group, as a table of its own.

    Attributes:
        path: The Parquet file.
        names: The names of its columns that are used; empty if they are not chosen yet.
        number: Its number in the file.
        rows: The number of its rows.
        size: The bytes of its columns in the file.
        stamp: Size and time of the file when its footer was read.
        first: The index of its first row in the whole table.
        first_in_file: The index of its first row in the file.
        rows_at_once: Rows in a block.
    """

    path: Path
    names: list[str]
    number: int
    rows: int
    size: int
    stamp: tuple[int, int]
    first: int
    first_in_file: int
    rows_at_once: int = BATCH_ROWS

    @property
    def files(self) -> Sequence[Path]:
        """The file."""
        return [self.path]

    def place(self, row: int) -> str:
        """Return the file and the number in it of a row, which is counted from 1 in the row group."""
        return f"{self.path}: row {self.first_in_file + row}"

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block, read page by page: a large row group takes no more memory than a small one.

        ``on_bytes`` is not called.

        Raises:
            UserError: If the file is damaged, or another one than before.
        """
        import pyarrow
        from pyarrow import parquet

        read = 0
        try:
            if _stamp(self.path) != self.stamp:
                raise UserError(f"{self.path}: {CHANGED}")
            footer = _footer(self.path, self.stamp)
            with parquet.ParquetFile(self.path, metadata=footer, memory_map=False, buffer_size=PAGE_BYTES) as file:
                schema = file.schema_arrow
                in_file = schema.names  # made anew by each access
                own = {in_file[at].strip(): in_file[at] for at in column_indices(schema)}
                names = [own[name] for name in self.names]
                blocks = file.iter_batches(self.rows_at_once, [self.number], columns=names, use_threads=False)
                for batch in blocks:
                    read += len(batch)
                    yield batch.select(names).rename_columns(self.names)
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: there is no such file any more") from error
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{self.path}: damaged: {' '.join(str(error).split())[:200]}") from error
        if read != self.rows:
            raise UserError(f"{self.path}: {CHANGED}")


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=16)  # one of a file with many row groups takes long to parse
def _footer(path: Path, stamp: tuple[int, int]) -> Any:
    from pyarrow import parquet

    return parquet.read_metadata(path)


def row_groups(files: Sequence[Path], first: int = 0) -> list[RowGroup]:
    """Return the row groups of Parquet files, in the order of their rows; their columns are not chosen yet.

    Args:
        files: The files.
        first: The index of their first row.

    Raises:
        UserError: If a file is damaged.
    """
    import pyarrow

    found: list[RowGroup] = []
    for path in files:
        try:
            stamp = _stamp(path)
            footer = _footer(path, stamp)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from error
        in_file = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            rows, columns = group.num_rows, map(group.column, range(group.num_columns))
            size = sum(column.total_compressed_size for column in columns)
            if rows:
                found.append(RowGroup(path, [], number, rows, size, stamp, first + in_file, in_file))
            in_file += rows
        first += in_file
    return found


def footers_digest(groups: Sequence[RowGroup]) -> bytes:
    """Return a digest of the names and footers of files, by which processes notice other data.

    A footer has the rows and the sizes of all row groups, and nearly always the extremes of their columns.
    """
    sha = hashlib.sha256()
    for path in dict.fromkeys(group.path for group in groups):
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, os.SEEK_END)
            sha.update(f"{path.name};{size};".encode() + file.read(size))
    return sha.digest()


def deal(groups: Sequence[RowGroup]) -> list[list[int]]:
    """Return the row groups of each of K streams: in the order of the table, each to the shortest stream so far."""
    dealt: list[list[int]] = [[] for _ in range(min(len(groups), STREAMS))]
    rows = [0] * len(dealt)
    for at, group in enumerate(groups):
        shortest = rows.index(min(rows))
        dealt[shortest].append(at)
        rows[shortest] += group.rows
    return dealt


def own_groups(streams: Sequence[Sequence[int]], rank: int, size: int) -> list[int]:
    """Return the row groups of a process, in the order of the table."""
    return sorted(at for stream in streams[rank::size] for at in stream)


@dataclass(frozen=True)
class Division:
    """Which part of the data set each row is in: drawn from its index, so that nobody holds a list of all rows.

    Attributes:
        seed: Of the draw.
        test: The share of the rows to test on.
        val: The share of the others to validate on.
        how: Whether these are drawn too, or are the last.
        rows: The number of rows of the table. Those after them are of a table to test on.
    """

    seed: int
    test: float
    val: float
    how: SplitHow
    rows: int

    def parts(self, rows: Rows) -> NDArray[np.int8]:
        """Return the index in ``PARTS`` of the part of each row, given by its index in the table.

        Row i has a number in [0, 1): the upper 53 bits of mix(i + mix(seed)).
        """
        start = np.array([self.seed], dtype=np.uint64)
        mix(start)
        words = rows.astype(np.uint64) + start
        mix(words)
        draws = (words >> np.uint64(11)) * 2.0**-53
        is_test = (draws < self.test) | (rows >= self.rows)
        is_late = rows >= self.rows - math.ceil(self.val * self.rows)
        is_val = is_late if self.how == "tail" else draws < self.test + (1 - self.test) * self.val
        parts: NDArray[np.int8] = np.where(is_test, 2, np.where(is_val, 1, 0)).astype(np.int8)
        return parts
