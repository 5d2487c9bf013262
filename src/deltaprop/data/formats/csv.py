"""CSV files, plain or .gz: text in columns under a header; each cell is returned as the text that it is.

The kind of a column is decided in ``columns.py``, where a cell that does not fit can still be named by its row. Rows
are counted from 1, the first below the header.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from deltaprop.data.table import NUMBER, Batch, check_names
from deltaprop.errors import UserError, counted

HEAD_BYTES = 1 << 16  # bytes of a file, from which its delimiter and its header are read
READ_BYTES = 1 << 22  # bytes read at a time; a row, quoted line breaks included, may have as many
BOM = b"\xef\xbb\xbf"
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CSV_NAMES = (".csv", ".tsv", ".tab", ".txt", ".csv.gz", ".tsv.gz", ".tab.gz", ".txt.gz")
Opener: TypeAlias = Callable[[], BinaryIO | io.RawIOBase]
OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16, not UTF-8: save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8: save it as UTF-8",
    b"\x1f\x8b": "gzip, not CSV: name it .csv.gz",
    b"PAR1": "Parquet, not CSV: name it .parquet",
    b"PK\x03\x04": "a spreadsheet or a zip, not CSV: save it as CSV",
}


@dataclass(frozen=True)
class CsvTable:
    """A CSV file: text in columns, a header above them.

    Attributes:
        path: The file, or a name for a pipe.
        names: The names of the columns.
        files: The file.
        delimiter: Between cells.
        source: Opens the file at its beginning.
        head: The bytes before the first row.
        blanks: Whether blank lines between rows are rows: of one column, whose cell is empty.
    """

    path: Path
    names: list[str]
    files: tuple[Path, ...]
    delimiter: str
    source: Opener
    head: bytes
    blanks: bool = False

    def place(self, row: int) -> str:
        """Return the file and the number of a row."""
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, delimiter: str, source: Opener | None = None, *, least: int = 2) -> CsvTable:
        """Return the table of a file, or of what ``source`` opens; see :func:`open_table`."""
        if delimiter not in ("auto", "tab") and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise UserError(f"`delimiter` must be auto, tab or one character, got {delimiter!r}")
        source = source or (lambda: path.open("rb"))
        with _read_errors(path), source() as raw:
            line, head = _header(path, _unpacked(path, raw).read(HEAD_BYTES))
        # The delimiter that occurs most often outside quotes; csv.Sniffer would also take a letter or a blank.
        most = max(DELIMITERS, key=re.sub(r'"[^"]*"', "", line).count)
        delimiter = {"tab": "\t", "auto": most}.get(delimiter, delimiter)
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
        _check_header(path, names, delimiter, least)
        begins_blank = head.removeprefix(BOM).startswith((b"\r", b"\n"))
        return cls(path, names, (path,), delimiter, source, head, blanks=len(names) == 1 and not begins_blank)

    @classmethod
    def of_stream(cls, name: Path, stream: BinaryIO, delimiter: str) -> CsvTable:
        """Return the table of a pipe, whose rows can be read once; ``name`` is its name in messages."""
        read, head = getattr(stream, "read1", stream.read), b""  # read1 returns what there is, without waiting for more
        while len(head) < HEAD_BYTES and b"\n" not in head and (piece := read(HEAD_BYTES)):
            head += piece
        return cls.open(name, delimiter, lambda: _Pipe(head, read), least=1)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block, every cell as text.

        Blocks of whole rows are cut here and parsed one by one: pyarrow's own reader of a file or a pipe reads ahead in
        a thread, which may hold Python's objects until after the interpreter has ended.

        Raises:
            UserError: If a row has too few or too many cells, the text is not UTF-8, or a quote is never closed.
        """
        import pyarrow
        from pyarrow import csv as arrow_csv

        lines, rows = self.head.count(b"\n"), 0
        for block, problem in self._blocks(on_bytes):
            if problem:
                raise UserError(f"{self.path}: row {rows + 1}: {problem}")
            if b"\x00" in block:
                raise UserError(f"{self.path}: after row {rows}: this is not text: it has zero bytes")
            sink = pyarrow.BufferOutputStream()  # a copy that belongs to pyarrow
            sink.write(block)
            try:
                reader = arrow_csv.open_csv(  # read_csv would take over SIGINT and SIGTERM
                    pyarrow.BufferReader(sink.getvalue()),
                    arrow_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=self.names),
                    arrow_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=b'"' in block, ignore_empty_lines=not self.blanks
                    ),
                    arrow_csv.ConvertOptions(
                        column_types=dict.fromkeys(self.names, pyarrow.string()), strings_can_be_null=False
                    ),
                )
                table = reader.read_all()
            except pyarrow.ArrowInvalid as error:
                if "Empty CSV" in str(error):  # blank lines alone
                    continue
                raise self._explain(error, block, rows, lines) from error
            yield from table.to_batches()
            rows, lines = rows + len(table), lines + block.count(b"\n")

    def _blocks(self, on_bytes: Callable[[int], None]) -> Iterator[tuple[bytes, str]]:
        """Yield blocks of whole rows, or why the row at a block's beginning has no end."""
        # In a row are text, quoted cells, and quotes that do not open a cell, since only its first character can.
        delimiter = re.escape(self.delimiter.encode())
        row = rb'(?:[^"\r\n]++|(?<![^%s\r\n])"[^"]*+(?:""[^"]*+)*+"|(?<=[^%s\r\n])")*+' % (delimiter, delimiter)
        rows = re.compile(rb"(?:%s(?:\r\n|\n|\r(?!\Z)))*+" % row)  # a final \r may be half of a line break
        rest = b""
        with _read_errors(self.path), self.source() as raw:
            stream = _unpacked(self.path, raw)
            stream.read(len(self.head))
            while piece := stream.read(READ_BYTES):
                on_bytes(raw.tell() if raw.seekable() else 0)
                rest += piece
                end = _end(rows, rest)
                if self.blanks:  # blank lines are rows unless the file ends with them: they stay in front of the next
                    filled = len(rest[:end].rstrip(b"\r\n"))
                    end = _end(re.compile(rb"\r\n|\r|\n"), rest, filled) if filled else 0
                if end:
                    yield rest[:end], ""
                    rest = rest[end:]
                elif len(rest.strip(b"\r\n")) > READ_BYTES:
                    yield b"", "it is longer than 4 MiB: is a quote never closed?"
        end = _end(re.compile(row), rest, _end(rows, rest))
        if rest[end:].strip(b"\r\n"):
            yield b"", f'a quote (") is opened and never closed: {rest[end:][:40].decode(errors="replace")!r}…'
        if rest.strip(b"\r\n"):
            yield rest, ""

    def _explain(self, error: Exception, block: bytes, rows: int, lines: int) -> UserError:
        """Return the error for a row of a block, which so many rows and lines come before."""
        text = str(error)
        ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", text, flags=re.DOTALL)
        if ragged:
            row = f"row {rows + int(ragged[1])}: " if ragged[1] else ""
            few = "too few" if int(ragged[3]) < int(ragged[2]) else "too many"
            asks = f"is the delimiter {self.delimiter!r} right? `delimiter`"
            if ragged[4].count('"') % 2:
                asks = 'is a quote (") never closed?'
            return UserError(
                f"{self.path}: {row}{counted(int(ragged[3]), 'cell')}, {few}: the header has {ragged[2]} ({asks}): "
                f"{ragged[4][:60]!r}"
            )
        try:
            block.decode()
        except UnicodeDecodeError as undecodable:
            at = undecodable.start
            line, begin = lines + block.count(b"\n", 0, at) + 1, block.rfind(b"\n", 0, at) + 1
            shown = f"byte 0x{block[at]:02x}, {block[begin : begin + 40].splitlines()[0]!r}…"
            return UserError(f"{self.path}: line {line} is not UTF-8 ({shown}): save it as UTF-8")
        return UserError(f"{self.path}: after row {rows}: {text}")


class _Pipe(io.RawIOBase):
    """A pipe from its beginning, of which some bytes were read; closing it leaves the pipe open."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self.head, self.read_more = head, read

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at least one except at the end."""
        head, self.head = self.head[:size], self.head[size:]
        return head or self.read_more(size)


def _end(pattern: re.Pattern[bytes], text: bytes, start: int = 0) -> int:
    """Return where a match ends, which may be empty."""
    match = pattern.match(text, start)
    return start if match is None else match.end()


def _unpacked(path: Path, raw: Any) -> Any:
    """Return the stream of a file's text."""
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system or of gzip into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        if "Not a gzipped file" in str(error):
            raise UserError(f"{path}: this is not compressed by gzip: name it without .gz") from error
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _header(path: Path, head: bytes) -> tuple[str, bytes]:
    """Return the header, including line breaks in quotes, and the bytes before the first row.

    Raises:
        UserError: If there is no header, or the file is not text.
    """
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise UserError(f"{path}: this is {what}")
    text = head.removeprefix(BOM).lstrip(b"\r\n")
    if not text.strip():
        raise UserError(f"{path}: the file is empty: a header and rows are needed")
    if b"\x00" in text:
        raise UserError(f"{path}: this is not text: it has zero bytes")
    header = re.match(rb'(?:[^"\r\n]|"[^"]*")*', text)
    assert header is not None  # it may match nothing
    line, after = header[0], text[header.end() :]
    if not after and len(text) >= HEAD_BYTES - 8:
        raise UserError(f"{path}: no end of the header in its first {HEAD_BYTES} bytes: is this a CSV file?")
    if after.startswith(b'"'):
        raise UserError(f'{path}: a quote (") is opened in the header and never closed')
    rows = after.removeprefix(b"\r").removeprefix(b"\n")
    try:
        return line.decode(), head[: len(head) - len(rows)]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the header is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}): save it as UTF-8"
        ) from error


def _check_header(path: Path, names: Sequence[str], delimiter: str, least: int) -> None:
    """Refuse numbers in place of a header, and a name that is missing or occurs twice."""
    if names[0] and not any(
        [*names] == [str(first + at) for at in range(len(names))] for first in (0, 1)
    ):  # 0, 1, … are names
        numbers = [name for name in names if re.match(NUMBER, name)]
        if any(not name.lstrip("+-").isdecimal() for name in numbers) or 2 * len(numbers) > len(names):
            raise UserError(
                f"{path}: no header: the first line has numbers where names should be ({numbers[0]}, …): "
                "put a line with a name for each column above it"
            )
    check_names(path, names)
    if len(names) < least:
        raise UserError(
            f"{path}: one column, {names[0][:60]!r}: inputs and a target need two "
            f"(the delimiter used is {DELIMITERS.get(delimiter, delimiter)}; try another with `delimiter`)"
        )
