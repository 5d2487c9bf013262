"""What a table written as text is like: its delimiter and its header, from its first bytes.

A delimiter is a character, or any number of blanks (``SPACES``). What could be read in two ways is refused, with what
was found and what would be right.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltaprop.data.formats.header import (
    header_below,
    note_of_title,
    numbered_names,
    refuse_counts,
    refuse_row_as_header,
)
from deltaprop.data.table import DELIMITER_WORDS, NUMBER, ReadOptions, check_names
from deltaprop.errors import UserError, setting

HEAD_BYTES = 1 << 16  # bytes of a file, from which its dialect is found
BOM = b"\xef\xbb\xbf"
SPACES = "\x1f"  # stands for any number of blanks: no file has this character
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16, not UTF-8: save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8: save it as UTF-8",
    b"\x1f\x8b": "gzip, not CSV: name it .csv.gz",
    b"PAR1": "Parquet, not CSV: name it .parquet",
    b"ARROW1": "Arrow, not CSV: name it .arrow",
    b"PK\x03\x04": "a spreadsheet or a zip, not CSV: save it as CSV, or name it .xlsx",
    b'{"': "JSON, not CSV: name it .jsonl",
    b"[{": "JSON, not CSV: name it .json",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet, not CSV: save it as CSV, or name it .xls",
}
MOST_SAMPLES = 200  # rows that are looked at

# Excel's first line, which says what delimits the cells below it.
_SEP = re.compile(rb'"?sep=(\\t|[^\r\n"])"?(?:\r\n|\n|\r)', re.IGNORECASE)
# A quote opens a cell only at its beginning, here after any character that may be a delimiter.
_QUOTED = r'(?<![^,;|\t \r\n])"[^"]*(?:""[^"]*)*"'
_RECORD = re.compile(rf"(?:{_QUOTED}|[^\r\n])+".encode())
_BLANK_SEPARATED = re.compile(r'"((?:[^"]|"")*)"(?![^ \t])|([^ \t]+)')
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Dialect:
    """How a table is written as text.

    Attributes:
        names: The names of the columns.
        delimiter: The character between cells, or ``SPACES``.
        head: The bytes before the first row.
        notes: What is told of lines above the header.
        unnamed: The number of columns without a name and without a value at the end.
    """

    names: list[str]
    delimiter: str
    head: bytes
    notes: tuple[str, ...] = ()
    unnamed: int = 0


@dataclass(frozen=True)
class _Sample:
    """The first lines of a file: the header's, or what stands in its place, and some below it."""

    first: str
    below: list[str]
    starts: list[int]

    def cells(self, delimiter: str) -> list[list[str]]:
        """Return the cells of each line below the first."""
        return [split_cells(line, delimiter) for line in self.below]


def find_dialect(path: Path, head: bytes, options: ReadOptions, *, is_whole: bool) -> Dialect:
    """Return the dialect of a file from its first bytes.

    Args:
        path: Its name in messages.
        head: Its first bytes, `HEAD_BYTES` or fewer.
        options: The user's choices.
        is_whole: Whether these are all of its bytes.

    Raises:
        UserError: If there is no header, it is damaged, or the file is not text.
    """
    if options.delimiter not in DELIMITER_WORDS and (len(options.delimiter) != 1 or options.delimiter in '"\r\n'):
        raise UserError(f"`delimiter` must be auto, tab, space or one character, got {options.delimiter!r}")
    start, announced = _preamble(path, head)
    return _dialect_from(path, head, options, start, announced, is_whole=is_whole)


def _dialect_from(
    path: Path, head: bytes, options: ReadOptions, start: int, announced: str, *, is_whole: bool
) -> Dialect:
    """Return the dialect of a file whose first line begins at ``start``."""
    line, end = _first_line(path, head, start)
    below = [*itertools.islice(_RECORD.finditer(head, end), MOST_SAMPLES + 1)]
    if below and below[-1].end() == len(head) and not is_whole:
        below.pop()  # its end may be missing
    below = [found for found in below if found[0].strip()][:MOST_SAMPLES]
    lines, starts = [found[0].decode(errors="replace") for found in below], [found.start() for found in below]
    sample = _Sample(line, lines, starts)
    delimiter = {"tab": "\t", "space": SPACES, "auto": announced}.get(options.delimiter, options.delimiter)
    delimiter = delimiter or _most_likely(sample)
    cells = [cell.strip() for cell in split_cells(line, delimiter)]
    rows = sample.cells(delimiter)
    refuse_counts(path, cells, rows)
    if not options.header:
        names = numbered_names(len(cells))
        return Dialect(_enough(path, names, delimiter, options.least), delimiter, head[:start])
    if _has_row_names(cells, rows, sample.below, delimiter):
        names = ["", *cells]
        check_names(path, names)
        return Dialect(names, delimiter, head[:end])
    tries = [delimiter]
    if len(cells) == 1 and options.least > 1:  # it has no delimiter: the lines below it may have another
        tries += [other for other in (*DELIMITERS, SPACES) if other != delimiter]
    for tried in tries:
        at = header_below(line, split_cells(line, tried), sample.cells(tried))
        if at is not None:
            begin = sample.starts[at]
            found = _dialect_from(path, head, options, begin, announced, is_whole=is_whole)
            return replace(found, notes=(note_of_title(len(_LINE_END.findall(head, start, begin)), line),))
    if not (_is_quoted(line, delimiter) and not any(_is_quoted(row, delimiter) for row in sample.below)):
        refuse_row_as_header(path, cells, rows)
    unnamed = _unnamed(cells, rows)
    names = cells[: len(cells) - unnamed]
    check_names(path, names)
    return Dialect(_enough(path, names, delimiter, options.least), delimiter, head[:end], unnamed=unnamed)


def split_cells(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line; it is not empty.

    Example:
        >>> split_cells('a;"b;c"', ";"), split_cells(' 1  "b  c" ', SPACES)
        (['a', 'b;c'], ['1', 'b  c'])
    """
    if delimiter != SPACES:
        try:
            return next(csv.reader([line], delimiter=delimiter), [""])
        except csv.Error:  # a line break in a cell that has no quotes with this delimiter
            return [line]
    found = _BLANK_SEPARATED.finditer(line)
    return [cell[2] if cell[1] is None else cell[1].replace('""', '"') for cell in found] or [""]


def join_by_spaces(block: bytes) -> bytes:
    """Return lines of cells between blanks with ``SPACES`` in place of the blanks; quoted cells stay as they are."""
    if b'"' not in block:
        block = re.sub(rb"(?<![^\r\n])[ \t]+|[ \t]+(?![^\r\n])", b"", block)
        return re.sub(rb"[ \t]+", SPACES.encode(), block)

    def replaced(match: re.Match[bytes]) -> bytes:
        if match[1] is not None:
            return match[1]
        at_edge = match.start() == 0 or match.end() == len(block)
        at_edge = at_edge or block[match.start() - 1] in b"\r\n" or block[match.end()] in b"\r\n"
        return b"" if at_edge else SPACES.encode()

    return re.sub(rb'(?<![^ \t\r\n])("[^"]*(?:""[^"]*)*")|[ \t]+', replaced, block)


def _preamble(path: Path, head: bytes) -> tuple[int, str]:
    """Return where the first line begins, and the delimiter that a line ``sep=;`` above it announces, or ``""``."""
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise UserError(f"{path}: this is {what}")

    def after_breaks(at: int) -> int:
        return len(head) - len(head[at:].lstrip(b"\r\n"))

    start, announced = after_breaks(len(BOM) if head.startswith(BOM) else 0), ""
    if found := _SEP.match(head, start):
        announced = {"\\t": "\t"}.get(text := found[1].decode(errors="replace"), text)
        start = after_breaks(found.end())
    if not head[start:].strip():
        raise UserError(f"{path}: the file is empty: a header and rows are needed")
    if b"\x00" in head[start:]:
        raise UserError(f"{path}: this is not text: it has zero bytes")
    return start, announced


def _first_line(path: Path, head: bytes, start: int) -> tuple[str, int]:
    """Return the first line, including line breaks in quotes, and where the next begins."""
    header = re.compile(rb'(?:[^"\r\n]|"[^"]*")*').match(head, start)
    assert header is not None  # it may match nothing
    line, end = header[0], header.end()
    if end == len(head) and len(head) >= HEAD_BYTES - 8:
        raise UserError(f"{path}: no end of the header in its first {HEAD_BYTES} bytes: is this a CSV file?")
    if head[end : end + 1] == b'"':
        raise UserError(f'{path}: a quote (") is opened in the header and never closed')
    after = _LINE_END.match(head, end)
    try:
        return line.decode(), after.end() if after else end
    except UnicodeDecodeError as error:
        raise not_utf_8(f"{path}: the header", f"byte 0x{line[error.start]:02x} at {error.start}") from error


def not_utf_8(where: str, what: str) -> UserError:
    """Return the error for bytes that are not UTF-8, with what is written most often instead."""
    hint = f"save it as UTF-8, or, if Windows wrote it, take {setting('encoding', 'cp1252')}"
    return UserError(f"{where} is not UTF-8 ({what}): {hint}", {"encoding": ("cp1252",)})


def _most_likely(sample: _Sample) -> str:
    """Return the delimiter that occurs most often outside quotes; blanks if none does, and every line has as many.

    Blanks win, too, if tabs between the names are blanks in the lines below.
    """
    bare = re.sub(r'"[^"]*"', "", sample.first)  # csv.Sniffer would also take a letter
    most = max(DELIMITERS, key=bare.count)
    names, rows = split_cells(sample.first, SPACES), sample.cells(SPACES)
    are_blanks = len(names) > 1 and bool(rows) and all(len(row) == len(names) for row in rows)
    if most in bare and not (most == "\t" and are_blanks and {len(row) for row in sample.cells(most)} != {len(names)}):
        return most
    if are_blanks:
        return SPACES
    with_row_names = (*DELIMITERS, SPACES) if _is_quoted(sample.first, SPACES) else (SPACES,) * (len(names) > 1)
    for tried in with_row_names:
        if _has_row_names(split_cells(sample.first, tried), sample.cells(tried), sample.below, tried):
            return tried
    return most


def _has_row_names(names: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str], delimiter: str) -> bool:
    """Return whether the first column holds R's names of the rows, which the header of ``write.table`` leaves out.

    They are all different: quoted, or 1, 2, 3, …, or text. Between commas they are quoted, or text beside a number with
    a decimal point: else a decimal comma could be what makes a row longer than the header.
    """
    if not rows or any(len(row) != len(names) + 1 for row in rows) or not any(row[-1] for row in rows):
        return False
    first = [row[0].strip() for row in rows]
    if len({*first}) < len(first) or not all(first):
        return False
    if all(line.lstrip().startswith('"') for line in lines):
        return True
    counts = first == [str(at + 1) for at in range(len(first))]
    are_texts = not any(re.match(NUMBER, cell) for cell in first)
    if delimiter == ",":
        return are_texts and any("." in cell and re.match(NUMBER, cell.strip()) for row in rows for cell in row)
    return counts or are_texts


def _unnamed(names: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the number of columns at the end without a name and a value, as of lines that end in a delimiter."""

    def is_empty(at: int) -> bool:
        return not names[at] and not any(len(row) == len(names) and row[at].strip() for row in rows)

    return next((count for count in range(len(names) - 1) if not (rows and is_empty(-1 - count))), 0)


def _is_quoted(line: str, delimiter: str) -> bool:
    """Return whether each cell of a line is in quotes."""
    return '"' in line and not re.sub(r'"[^"]*"', "", line).strip(f"{delimiter} \t")


def _enough(path: Path, names: list[str], delimiter: str, least: int) -> list[str]:
    """Return the names, of which there must be so many."""
    if len(names) < least:
        used = {**DELIMITERS, SPACES: "space"}.get(delimiter, delimiter)
        raise UserError(
            f"{path}: one column, {names[0][:60]!r}: inputs and a target need two "
            f"(the delimiter used is {used}; try another with `delimiter`)"
        )
    return names
