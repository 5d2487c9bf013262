"""CSV files, plain or .gz: text in columns under a header; each cell is returned as the text that it is.

The kind of a column is decided in ``columns.py``, where a cell that does not fit can still be named by its row. Rows
are counted from 1, the first below the header.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeAlias

from deltaprop.data.formats.dialect import BOM, HEAD_BYTES, SPACES, find_dialect, join_by_spaces, not_utf_8
from deltaprop.data.formats.files import UTF_16, Recoded, read_errors, unpacked
from deltaprop.data.table import Batch, ReadOptions
from deltaprop.errors import UserError, counted, setting

READ_BYTES = 1 << 22  # bytes read at a time; a row, quoted line breaks included, may have as many
_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data")
CSV_NAMES = (*_ENDINGS, *(f"{ending}.gz" for ending in _ENDINGS))
_LINE = re.compile(rb"(?im)^(?!sep=)[^\r\n]*[^\s][^\r\n]*\n")
Opener: TypeAlias = Callable[[], BinaryIO | io.RawIOBase]


@dataclass(frozen=True)
class CsvTable:
    """A CSV file: text in columns, a header above them.

    Attributes:
        path: The file, or a name for a pipe.
        names: The names of the columns.
        files: The file.
        delimiter: Between cells; ``SPACES`` for any number of blanks.
        source: Opens the file at its beginning.
        head: The bytes before the first row.
        encoding: That of its text.
        notes: What is told of lines above the header.
        unnamed: The number of columns at the end that have neither a name nor values, and are not read.
        blanks: Whether blank lines between rows are rows: of one column, whose cell is empty.
    """

    path: Path
    names: list[str]
    files: tuple[Path, ...]
    delimiter: str
    source: Opener
    head: bytes
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()
    unnamed: int = 0
    blanks: bool = False

    def place(self, row: int) -> str:
        """Return the file and the number of a row."""
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, options: ReadOptions, source: Opener | None = None) -> CsvTable:
        """Return the table of a file, or of what ``source`` opens; see :func:`open_table`."""
        is_file = source is None
        source = source or (lambda: path.open("rb"))
        with read_errors(path), source() as raw:
            head = unpacked(path, raw).read(HEAD_BYTES)
            is_whole = is_file and len(head) < HEAD_BYTES
            encoding = options.encoding
            if head.startswith((*UTF_16, BOM)) and not encoding.lower().startswith("utf"):  # the mark tells
                encoding = "utf-16" if head.startswith(UTF_16) else "utf-8"
            encoding = codecs.lookup("utf-8" if encoding == "auto" else encoding).name
            if encoding != "utf-8":
                head = codecs.getincrementaldecoder(encoding)().decode(head, final=is_whole).encode()
        found = find_dialect(path, head, options, is_whole=is_whole)
        begins_blank = head.removeprefix(BOM).startswith((b"\r", b"\n"))
        blanks = len(found.names) == 1 and not begins_blank
        return cls(
            path,
            found.names,
            (path,),
            found.delimiter,
            source,
            found.head,
            encoding,
            found.notes,
            found.unnamed,
            blanks,
        )

    @classmethod
    def of_stream(cls, name: Path, stream: BinaryIO, options: ReadOptions) -> CsvTable:
        """Return the table of a pipe, whose rows can be read once; ``name`` is its name in messages."""
        read, head = getattr(stream, "read1", stream.read), b""  # read1 returns what there is, without waiting for more
        # Two lines at least: from the second one the delimiter and R's row names are seen.
        while len(head) < HEAD_BYTES and len(_LINE.findall(head)) < 2 and (piece := read(HEAD_BYTES)):
            head += piece
        return cls.open(name, replace(options, least=1), lambda: _Pipe(head, read))

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block, every cell as text.

        Blocks of whole rows are cut here and parsed one by one: pyarrow's own reader of a file or a pipe reads ahead in
        a thread, which may hold Python's objects until after the interpreter has ended.

        Raises:
            UserError: If a row has too few or too many cells, the text is not UTF-8, or a quote is never closed.
        """
        import pyarrow
        from pyarrow import compute
        from pyarrow import csv as arrow_csv

        lines, rows = self.head.count(b"\n"), 0
        all_names = [*self.names, *(f"{SPACES}{at}" for at in range(self.unnamed))]
        for block, problem in self._blocks(on_bytes):
            if problem:
                raise UserError(f"{self.path}: row {rows + 1}: {problem}")
            if b"\x00" in block:
                raise UserError(f"{self.path}: after row {rows}: this is not text: it has zero bytes")
            sink = pyarrow.BufferOutputStream()  # a copy that belongs to pyarrow
            sink.write(join_by_spaces(block) if self.delimiter == SPACES else block)
            try:
                reader = arrow_csv.open_csv(  # read_csv would take over SIGINT and SIGTERM
                    pyarrow.BufferReader(sink.getvalue()),
                    arrow_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=all_names),
                    arrow_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=b'"' in block, ignore_empty_lines=not self.blanks
                    ),
                    arrow_csv.ConvertOptions(
                        column_types=dict.fromkeys(all_names, pyarrow.string()), strings_can_be_null=False
                    ),
                )
                table = reader.read_all()
            except pyarrow.ArrowInvalid as error:
                if "Empty CSV" in str(error):  # blank lines alone
                    continue
                raise self._explain(error, block, rows, lines) from error
            for at, name in enumerate(all_names[len(self.names) :], start=len(self.names) + 1):
                lengths = compute.utf8_length(compute.utf8_trim_whitespace(table[name])).to_numpy()
                if lengths.any():
                    row = rows + int((lengths > 0).argmax()) + 1
                    raise UserError(f"{self.path}: row {row}: a value in column {at}, which has no name in the header")
            yield from table.select(self.names).to_batches()
            rows, lines = rows + len(table), lines + block.count(b"\n")

    def _blocks(self, on_bytes: Callable[[int], None]) -> Iterator[tuple[bytes, str]]:
        """Yield blocks of whole rows, or why the row at a block's beginning has no end."""
        # In a row are text, quoted cells, and quotes that do not open a cell, since only its first character can.
        delimiter = rb" \t" if self.delimiter == SPACES else re.escape(self.delimiter.encode())
        row = rb'(?:[^"\r\n]++|(?<![^%s\r\n])"[^"]*+(?:""[^"]*+)*+"|(?<=[^%s\r\n])")*+' % (delimiter, delimiter)
        rows = re.compile(rb"(?:%s(?:\r\n|\n|\r(?!\Z)))*+" % row)  # a final \r may be half of a line break
        rest = b""
        with read_errors(self.path), self.source() as raw:
            stream = unpacked(self.path, raw)
            if self.encoding != "utf-8":
                stream = Recoded(stream, self.encoding)
            above = len(self.head)
            while above and (piece := stream.read(above)):
                above -= len(piece)
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
            if self.delimiter == SPACES:
                asks = "cells are separated by blanks: is one empty, or has one a blank in it? `delimiter`"
            elif self.delimiter == " ":
                asks = f"several blanks are one delimiter by {setting('delimiter', 'space')}"
            if ragged[4].count('"') % 2:
                asks = 'is a quote (") never closed?'
            return UserError(
                f"{self.path}: {row}{counted(int(ragged[3]), 'cell')}, {few}: the header has {ragged[2]} ({asks}): "
                f"{ragged[4][:60].replace(SPACES, ' ')!r}"
            )
        try:
            block.decode()
        except UnicodeDecodeError as undecodable:
            at = undecodable.start
            line, begin = lines + block.count(b"\n", 0, at) + 1, block.rfind(b"\n", 0, at) + 1
            shown = f"byte 0x{block[at]:02x}, {block[begin : begin + 40].splitlines()[0]!r}…"
            return not_utf_8(f"{self.path}: line {line}", shown)
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
