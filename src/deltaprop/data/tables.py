"""Reading tables: CSV (plain or .gz), Parquet, and folders of Parquet parts, a block of rows at a time.

A CSV file is read as text, cell by cell as it stands: what a column holds is judged in ``columns.py``, where a cell
that does not fit can still be named by its row. Rows are counted from 1, the first below the header.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

from deltaprop.errors import UserError

# pyarrow is imported inside the functions: who trains on a built-in set does without it.
Batch: TypeAlias = Any  # a pyarrow.RecordBatch

BLOCK_BYTES = 1 << 22  # of CSV at a time: a row, quoted line breaks and all, must be shorter
HEAD_BYTES = 1 << 16  # that the delimiter and the header are told by
ROWS_AT_ONCE = 1 << 16  # of Parquet
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CSV_NAMES = (".csv", ".tsv", ".tab", ".txt", ".csv.gz", ".tsv.gz", ".tab.gz", ".txt.gz")
PARQUET_NAMES = (".parquet", ".pq")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def is_table(source: str | Path) -> bool:
    """Return whether a name is that of a table, or of a folder of Parquet parts."""
    path = Path(source)
    if os.path.isdir(path):  # for a name that no file can have it is False
        return bool(_parts(path))
    return path.name.lower().endswith((*CSV_NAMES, *PARQUET_NAMES))


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
        """Give its rows, block by block; ``on_bytes`` is told how many bytes of the files were read so far."""


def open_table(path: Path, delimiter: str = "auto", *, least: int = 2) -> Table:
    """Return a table, once its header is judged; no row is read.

    Args:
        path: A CSV file, a Parquet file, or a folder of Parquet parts.
        delimiter: Between the cells of a CSV: ``"auto"``, ``"tab"`` or one character.
        least: How many columns it must have: two to train on, an input and a target.

    Raises:
        UserError: If it is not there, cannot be read, or its header is none.
    """
    parts = _parts(path) if path.is_dir() else [path]
    if not parts:
        raise UserError(f"{path}: there is no .parquet file in this folder")
    if parts[0].name.lower().endswith(PARQUET_NAMES):
        return ParquetTable.open(path, parts, least)
    return CsvTable.open(path, delimiter, least=least)


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
        told = " ".join(str(error).split())[:120]
        raise UserError(
            f"the data must be a file, an array or a table with columns, got {type(data).__name__}: {told}"
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


# --- CSV ---


@dataclass(frozen=True)
class CsvTable:
    """A CSV file: text in columns, a header above them.

    Attributes:
        path: The file, or ``-`` for stdin.
        names: Of the columns.
        delimiter: Between cells.
        source: Opens it, from its beginning.
    """

    path: Path
    names: list[str]
    delimiter: str
    source: Callable[[], BinaryIO]

    @property
    def files(self) -> list[Path]:
        """The one file."""
        return [self.path]

    def place(self, row: int) -> str:
        """Return the file and the number of a row."""
        return f"{self.path}: row {row}"

    @classmethod
    def open(
        cls, path: Path, delimiter: str, source: Callable[[], BinaryIO] | None = None, *, least: int = 2
    ) -> CsvTable:
        """Return the table of a file, or of what ``source`` opens; see :func:`open_table`."""
        if delimiter not in ("auto", "tab") and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise UserError(f"--delimiter must be auto, tab or one character, got {delimiter!r}")
        source = source or (lambda: _opened(path))
        with source() as raw:
            head = _head(path, raw)
        line = _first_line(path, head)
        delimiter = {"tab": "\t", "auto": _sniffed(line)}.get(delimiter, delimiter)
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
        _check_header(path, names, delimiter, least)
        return cls(path, names, delimiter, source)

    @classmethod
    def of_stream(cls, name: Path, stream: BinaryIO, delimiter: str) -> CsvTable:
        """Return the table of a stream that cannot be read twice: what the header is told by is given again.

        Args:
            name: What messages call it.
            stream: Its rows can be gone through once.
            delimiter: As for :func:`open_table`.
        """
        head = b""
        while len(head) < HEAD_BYTES and b"\n" not in head and (piece := _some(stream, HEAD_BYTES)):
            head += piece
        return cls.open(name, delimiter, lambda: cast(BinaryIO, _Replayed(head, stream)), least=1)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Give the rows, block by block, every cell as text.

        Raises:
            UserError: If a row has too few or too many cells, the text is no UTF-8, or a quote is never closed.
        """
        import pyarrow
        from pyarrow import csv as arrow_csv

        with self.source() as raw:
            counted = _Counted(raw, on_bytes)
            stream = pyarrow.PythonFile(counted, mode="r")
            quotes = _Quotes(pyarrow.CompressedInputStream(stream, "gzip") if _is_gz(self.path) else counted)
            seen, last = 0, ""
            try:
                reader = arrow_csv.open_csv(
                    pyarrow.PythonFile(quotes, mode="r"),
                    read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                    parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                    convert_options=arrow_csv.ConvertOptions(
                        column_types=dict.fromkeys(self.names, pyarrow.string()), strings_can_be_null=False
                    ),
                )
                for batch in reader:
                    seen += len(batch)
                    batch = _as_text(batch, self.names)
                    last = batch.column(batch.num_columns - 1)[-1].as_py() or "" if len(batch) else last
                    if quotes.has_zeros:
                        raise UserError(f"{self.path}: by row {seen}: this is no text: it has zero bytes")
                    yield batch
            except (pyarrow.ArrowInvalid, OSError) as error:
                if "Empty CSV" in str(error):  # a header without the end of its line
                    return
                raise self._told(error, seen) from error
            finally:
                if isinstance(raw, _Replayed):
                    raw.stop()
                    with contextlib.suppress(pyarrow.ArrowException, OSError, UnboundLocalError):
                        for _ in reader:  # until its thread has seen the end
                            pass
            if quotes.ends_within(last):
                raise UserError(f'{self.path}: row {seen}: a quote (") is opened and never closed: {last[:40]!r}…')

    def _told(self, error: Exception, seen: int) -> UserError:
        """Return what was wrong with a row, in one line."""
        where, text = f"{self.path}", str(error)
        ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", text, flags=re.DOTALL)
        if ragged:
            row = f"row {int(ragged[1]) - 1}: " if ragged[1] else ""
            few = "too few" if int(ragged[3]) < int(ragged[2]) else "too many"
            asks = f"is the delimiter {self.delimiter!r} right? --delimiter"
            if ragged[4].count('"') % 2:
                asks = 'is a quote (") never closed?'
            return UserError(
                f"{where}: {row}{_count(int(ragged[3]), 'cell')}, {few}: the header has {ragged[2]} ({asks}): "
                f"{ragged[4][:60]!r}"
            )
        if "UTF8" in text:
            line = _undecodable(self.source, self.path)
            return UserError(f"{where}: {line}: save it as UTF-8")
        if "straddling" in text:
            return UserError(f"{where}: after row {seen}: a row longer than 4 MiB: is a quote never closed?")
        return UserError(f"{where}: after row {seen}: {text}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _is_gz(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _head(path: Path, raw: BinaryIO) -> bytes:
    """Return the first bytes of a file, uncompressed."""
    import gzip
    import zlib

    try:
        return gzip.GzipFile(fileobj=raw).read(HEAD_BYTES) if _is_gz(path) else raw.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _first_line(path: Path, head: bytes) -> str:
    """Return the header, line breaks within quotes and all.

    Raises:
        UserError: If there is none, or the file is no text.
    """
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: this is UTF-16, not UTF-8: save it as UTF-8")
    if head[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: this is no CSV but gzip: name it .csv.gz")
    if head[:4] in (b"PAR1", b"PK\x03\x04"):
        what = "Parquet: name it .parquet" if head[:4] == b"PAR1" else "a spreadsheet or a zip: save it as CSV"
        raise UserError(f"{path}: this is no CSV but {what}")
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if not head.strip():
        raise UserError(f"{path}: the file is empty: a header and rows are needed")
    if b"\x00" in head:
        raise UserError(f"{path}: this is no text: it has zero bytes")
    header = re.match(rb'(?:[^"\r\n]|"[^"]*")*', head)
    assert header is not None  # it matches nothing, if need be
    line = header[0]
    if header.end() == len(head) >= HEAD_BYTES - 8:
        raise UserError(f"{path}: no end of the header in its first {HEAD_BYTES} bytes: is this a CSV file?")
    if head[header.end() : header.end() + 1] == b'"':
        raise UserError(f'{path}: a quote (") is opened in the header and never closed')
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the header is no UTF-8 (byte 0x{line[error.start]:02x} at {error.start}): save it as UTF-8"
        ) from error


def _sniffed(line: str) -> str:
    """Return the delimiter that occurs most often outside quotes; a comma where there is none."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(DELIMITERS, key=bare.count)


def _check_header(path: Path, names: Sequence[str], delimiter: str, least: int) -> None:
    """Refuse a header that is none, or that names a column twice or not at all."""
    if not _is_counted(names):
        numbers = [name for name in names if re.match(NUMBER, name)]
        if any(not name.lstrip("+-").isdecimal() for name in numbers) or 2 * len(numbers) > len(names):
            raise UserError(
                f"{path}: no header: the first line has numbers where names should be ({numbers[0]}, …): "
                "put a line with a name for each column above it"
            )
    for at, name in enumerate(names):
        if not name:
            raise UserError(
                f"{path}: column {at + 1} has no name in the header (an index, as pandas writes one?): "
                "name it, or write the file without it"
            )
        if name in names[:at]:
            raise UserError(
                f"{path}: columns {names.index(name) + 1} and {at + 1} are both called {name!r}: rename one"
            )
    if len(names) < least:
        others = ", ".join(DELIMITERS.values())
        raise UserError(
            f"{path}: one column, {names[0][:60]!r}: inputs and a target need two "
            f"(the delimiter is taken for {DELIMITERS.get(delimiter, delimiter)}; {others} are found by themselves, "
            "others by --delimiter)"
        )


def _is_counted(names: Sequence[str]) -> bool:
    """Return whether columns are called 0, 1, 2, … or 1, 2, 3, …, which is a header all the same."""
    return any([*names] == [str(first + at) for at in range(len(names))] for first in (0, 1))


def _as_text(batch: Batch, names: Sequence[str]) -> Batch:
    """Return a batch under the names without a BOM or blanks around them."""
    return batch.rename_columns(list(names))


def _undecodable(source: Callable[[], BinaryIO], path: Path) -> str:
    """Return where the first byte lies that is no UTF-8."""
    import gzip

    with source() as raw:
        lines = gzip.GzipFile(fileobj=raw) if _is_gz(path) else raw
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is no UTF-8 (byte 0x{line[error.start]:02x}, {line[:40]!r}…)"
    return "it is no UTF-8"


class _Counted(io.RawIOBase):
    """A file that tells how many bytes of it were read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self.file, self.on_bytes, self.count = file, on_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self.file.read(len(view))
        view[: len(data)] = data
        self.count += len(data)
        self.on_bytes(self.count)
        return len(data)


def _some(stream: BinaryIO, size: int, stopped: Callable[[], bool] = lambda: False) -> bytes:
    """Return what there is to read, up to so many bytes, as soon as there is some; nothing at the end or if stopped."""
    try:
        handle = stream.fileno()
    except (OSError, ValueError):  # it is in memory
        return stream.read(size)
    while not stopped():
        if os.name == "nt" or select.select([handle], [], [], 0.1)[0]:
            return os.read(handle, size)
    return b""


class _Replayed(io.RawIOBase):
    """What was read of a stream, and then the rest of it; closing it leaves that open.

    A pipe gives its rows in pieces, and pyarrow wants a whole row at a time: pieces are put together until there is
    one. pyarrow reads in a thread of its own, which must not be left waiting when the process ends: it can be stopped.
    """

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream
        self.reading, self.stopped = threading.Lock(), False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self.reading:
            size = HEAD_BYTES if size < 0 else size
            found, self.head = self.head[:size], self.head[size:]
            while len(found) < size and not _has_row(found):
                piece = _some(self.stream, size - len(found), lambda: self.stopped)
                if not piece:
                    break
                found += piece
            return found

    def stop(self) -> None:
        """End the reading, and wait until nobody reads any more."""
        self.stopped = True
        with self.reading:
            pass


def _has_row(text: bytes) -> bool:
    """Return whether a line ends outside quotes."""
    return any(b"\n" in part for part in text.split(b'"')[::2])


class _Quotes(io.RawIOBase):
    """A stream that keeps its end, by which a quote is seen that is never closed, and looks out for what is no text."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.end, self.has_zeros = stream, b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self.stream.read(len(view))
        view[: len(data)] = data
        self.end = (self.end + data)[-HEAD_BYTES:]
        self.has_zeros |= b"\x00" in data
        return len(data)

    def ends_within(self, cell: str) -> bool:
        """Return whether the stream has ended within quotes, its last cell being this."""
        quoted = b'"' + cell.replace('"', '""').encode()
        if len(quoted) > len(self.end):
            return not self.end.rstrip(b"\r\n").endswith(b'"')
        return self.end.endswith(quoted) and not self.end.rstrip(b"\r\n").endswith(quoted + b'"')


# --- Parquet ---


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file, or a folder of parts that are read in the order of their names.

    Attributes:
        path: The file or the folder.
        names: Of the columns.
        files: The parts.
    """

    path: Path
    names: list[str]
    files: list[Path]

    def place(self, row: int) -> str:
        """Return the file and the number of a row in it, from one over all files."""
        from pyarrow import parquet

        for part in self.files:
            rows = parquet.read_metadata(part).num_rows
            if row <= rows:
                return f"{part}: row {row}"
            row -= rows
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, parts: list[Path], least: int = 2) -> ParquetTable:
        """Return the table, once the parts are seen to have the same columns."""
        names: list[str] = []
        kinds: list[str] = []
        for part in parts:
            schema = _schema(part)
            its = [(field.name.strip(), _family(field.type)) for field in schema]
            for at, (name, _) in enumerate(its):
                if not name or name in [other for other, _ in its[:at]]:
                    raise UserError(f"{part}: two columns are called {name!r}: rename one")
            if not names:
                names, kinds = [name for name, _ in its], [kind for _, kind in its]
            elif [name for name, _ in its] != names:
                odd = next(iter({*names} ^ {name for name, _ in its}), None)
                what = f"column {odd!r} is in one of them alone" if odd else "they have them in another order"
                raise UserError(f"{part}: its columns are not those of {parts[0].name}: {what}")
            for name, kind, other in zip(names, kinds, [kind for _, kind in its], strict=True):
                if kind != other and "null" not in (kind, other):
                    raise UserError(f"{part}: column {name!r} is {other}, in {parts[0].name} {kind}")
        if len(names) < least:
            raise UserError(f"{path}: {_count(len(names), 'column')}: inputs and a target need two")
        return cls(path, names, parts)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Give the rows, block by block, in the files' own types.

        Raises:
            UserError: If a file is damaged.
        """
        import pyarrow
        from pyarrow import parquet

        before = 0
        for part in self.files:
            size = part.stat().st_size
            try:
                file = parquet.ParquetFile(part, memory_map=False)
                done, total = 0, max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                    done += len(batch)
                    on_bytes(before + size * done // total)
                    yield batch.rename_columns(self.names)
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{part}: damaged: {' '.join(str(error).split())[:200]}") from error
            before += size


def _parts(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, by name; what begins with . or _ is not data."""
    found = (path for path in folder.iterdir() if path.name.lower().endswith(PARQUET_NAMES))
    return sorted(path for path in found if path.name[0] not in "._")


def _schema(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        what = getattr(error, "strerror", None) or f"no sound Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: {what}") from error


def _family(kind: Any) -> str:
    """Return what a Parquet type is to a net: ``"numbers"``, ``"text"``, or its own name."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind):
        return "text"
    return str(kind)
