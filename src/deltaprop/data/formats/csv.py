"""CSV files, plain or .gz: text in columns under a header, read cell by cell as it stands.

What a column holds is decided in ``columns.py``, where a cell that does not fit can still be named by its row. Rows are
counted from 1, the first below the header.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from deltaprop.data.formats.table import NUMBER, Batch, counted
from deltaprop.data.streams import HEAD_BYTES, CheckedStream, CountedFile, ReplayedStream, some, wait_until
from deltaprop.errors import UserError

BLOCK_BYTES = 1 << 22  # at a time: a row, quoted line breaks and all, must be shorter
BOM = b"\xef\xbb\xbf"
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CSV_NAMES = (".csv", ".tsv", ".tab", ".txt", ".csv.gz", ".tsv.gz", ".tab.gz", ".txt.gz")


@dataclass(frozen=True)
class CsvTable:
    """A CSV file: text in columns, a header above them.

    Attributes:
        path: The file, or ``-`` for stdin.
        header: The names of the columns as they stand there, blanks around them and all.
        delimiter: Between cells.
        source: Opens it, from its beginning.
        blanks: Whether blank lines are rows: of one column, where an empty cell is one.
    """

    path: Path
    header: list[str]
    delimiter: str
    source: Callable[[], BinaryIO]
    blanks: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [name.strip() for name in self.header]

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
            raise UserError(f"`delimiter` must be auto, tab or one character, got {delimiter!r}")
        source = source or (lambda: _opened(path))
        with source() as raw:
            head = _head(path, raw)
        line = _first_line(path, head)
        delimiter = {"tab": "\t", "auto": _sniffed(line)}.get(delimiter, delimiter)
        header = next(csv.reader([line], delimiter=delimiter))
        begins_blank = head.removeprefix(BOM).startswith((b"\r", b"\n"))  # pyarrow would take that for the header
        found = cls(path, header, delimiter, source, blanks=len(header) == 1 and not begins_blank)
        _check_header(path, found.names, delimiter, least)
        return found

    @classmethod
    def of_stream(cls, name: Path, stream: BinaryIO, delimiter: str) -> CsvTable:
        """Return the table of a stream that cannot be read twice: what the header is told by is given again.

        Args:
            name: What messages call it.
            stream: Its rows can be gone through once.
            delimiter: As for :func:`open_table`.
        """
        head = b""
        while len(head) < HEAD_BYTES and b"\n" not in head and (piece := some(stream, HEAD_BYTES)):
            head += piece
        return cls.open(name, delimiter, lambda: cast(BinaryIO, ReplayedStream(head, stream)), least=1)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Give the rows, block by block, every cell as text.

        Raises:
            UserError: If a row has too few or too many cells, the text is no UTF-8, or a quote is never closed.
        """
        import pyarrow
        from pyarrow import csv as arrow_csv

        with self.source() as raw:
            seen_bytes = CountedFile(raw, on_bytes)
            stream = pyarrow.PythonFile(seen_bytes, mode="r")
            quotes = CheckedStream(pyarrow.CompressedInputStream(stream, "gzip") if _is_gz(self.path) else seen_bytes)
            seen, last, names = 0, "", self.names
            gaps = 0  # blank lines of the one column that have come last: cells, unless the file ends with them
            reader, alone = None, quotes.holders()
            try:
                reader = arrow_csv.open_csv(
                    pyarrow.PythonFile(quotes, mode="r"),
                    read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                    parse_options=arrow_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=True, ignore_empty_lines=not self.blanks
                    ),
                    convert_options=arrow_csv.ConvertOptions(
                        column_types=dict.fromkeys(self.header, pyarrow.string()), strings_can_be_null=False
                    ),
                )
                for batch in reader:
                    if self.blanks:
                        batch, gaps = _without_end(batch, gaps)
                    seen += len(batch)
                    batch = batch.rename_columns(names)
                    last = batch.column(batch.num_columns - 1)[-1].as_py() or "" if len(batch) else last
                    if quotes.has_zeros:
                        raise UserError(f"{self.path}: by row {seen}: this is no text: it has zero bytes")
                    yield batch
            except (pyarrow.ArrowInvalid, OSError) as error:
                if "Empty CSV" in str(error):  # a header without the end of its line
                    return
                raise self._explain(error, seen) from error
            finally:
                if isinstance(raw, ReplayedStream):
                    raw.stop()
                    with contextlib.suppress(pyarrow.ArrowException, OSError):
                        for _ in reader or ():  # until its thread has seen the end
                            pass
                reader = None
                wait_until(lambda: quotes.has_all_back() and quotes.holders() <= alone)
            if quotes.ends_within(last):
                raise UserError(f'{self.path}: row {seen}: a quote (") is opened and never closed: {last[:40]!r}…')

    def _explain(self, error: Exception, seen: int) -> UserError:
        """Return what was wrong with a row, in one line."""
        where, text = f"{self.path}", str(error)
        ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", text, flags=re.DOTALL)
        if ragged:
            row = f"row {int(ragged[1]) - 1}: " if ragged[1] else ""
            few = "too few" if int(ragged[3]) < int(ragged[2]) else "too many"
            asks = f"is the delimiter {self.delimiter!r} right? `delimiter`"
            if ragged[4].count('"') % 2:
                asks = 'is a quote (") never closed?'
            return UserError(
                f"{where}: {row}{counted(int(ragged[3]), 'cell')}, {few}: the header has {ragged[2]} ({asks}): "
                f"{ragged[4][:60]!r}"
            )
        if "UTF8" in text:
            line = _undecodable(self.source, self.path)
            return UserError(f"{where}: {line}: save it as UTF-8")
        if "straddling" in text:
            return UserError(f"{where}: after row {seen}: a row longer than 4 MiB: is a quote never closed?")
        return UserError(f"{where}: after row {seen}: {text}")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
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
    except gzip.BadGzipFile as error:
        if raw.seek(0) == 0 and raw.read(2) != b"\x1f\x8b":
            raise UserError(f"{path}: this is not compressed by gzip: name it without .gz") from error
        raise UserError(f"{path}: cannot be read: {error}") from error
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
    head = head.removeprefix(BOM).lstrip(b"\r\n")
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
            "others by `delimiter`)"
        )


def _is_counted(names: Sequence[str]) -> bool:
    """Return whether columns are called 0, 1, 2, … or 1, 2, 3, …, which is a header all the same."""
    return any([*names] == [str(first + at) for at in range(len(names))] for first in (0, 1))


def _without_end(batch: Batch, before: int) -> tuple[Batch, int]:
    """Return a batch of one column less the empty cells at its end, and how many those are.

    Args:
        batch: The column.
        before: Empty cells that stand before it: its first ones now, unless there is nothing but such.
    """
    import pyarrow
    from pyarrow import compute

    cells = pyarrow.concat_arrays([pyarrow.array([""] * before, pyarrow.string()), batch.column(0)])
    filled = compute.indices_nonzero(compute.not_equal(cells, ""))
    end = filled[-1].as_py() + 1 if len(filled) else 0
    return pyarrow.RecordBatch.from_arrays([cells[:end]], batch.schema.names), len(cells) - end


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
