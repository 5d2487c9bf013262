"""What a table written as text is like: its delimiter and its header, from its first bytes.

A delimiter is a character, or any number of blanks (``SPACES``). What could be read in two ways is refused, with what
was found and what would be right.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    b"\xd0\xcf\x11\xe0": "an old spreadsheet, not CSV: save it as CSV, or name it .xls",
}
MOST_SAMPLES = 200  # rows that are looked at
MOST_TITLES = 20  # lines above a header that are recognised as such
COMMENTS = ("#", "%", "//")

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
    """

    names: list[str]
    delimiter: str
    head: bytes


@dataclass(frozen=True)
class _Sample:
    """The first lines of a file: the header's, or what stands in its place, and some below it."""

    first: str
    below: list[str]

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
    line, end = _first_line(path, head, start)
    below = [*itertools.islice(_RECORD.finditer(head, end), MOST_SAMPLES + 1)]
    if below and below[-1].end() == len(head) and not is_whole:
        below.pop()  # its end may be missing
    sample = _Sample(line, [found[0].decode(errors="replace") for found in below if found[0].strip()][:MOST_SAMPLES])
    delimiter = {"tab": "\t", "space": SPACES, "auto": announced}.get(options.delimiter, options.delimiter)
    delimiter = delimiter or _most_likely(sample)
    cells = [cell.strip() for cell in split_cells(line, delimiter)]
    rows = sample.cells(delimiter)
    _refuse_counts(path, cells, rows)
    if not options.header:
        names = [f"column{at + 1}" for at in range(len(cells))]
        return Dialect(_enough(path, names, delimiter, options.least), delimiter, head[:start])
    _refuse_title(path, sample, delimiter, options.least, 1 + len(_LINE_END.findall(head, 0, start)))
    if _has_row_names(cells, rows, sample.below, delimiter):
        cells = ["", *cells]
    else:
        refuse_row_as_header(path, cells, rows)
    check_names(path, cells)
    return Dialect(_enough(path, cells, delimiter, options.least), delimiter, head[:end])


def split_cells(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line; it is not empty.

    Example:
        >>> split_cells('a;"b;c"', ";"), split_cells(' 1  "b  c" ', SPACES)
        (['a', 'b;c'], ['1', 'b  c'])
    """
    if delimiter != SPACES:
        return next(csv.reader([line], delimiter=delimiter), [""])
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
        raise UserError(
            f"{path}: the header is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}): save it as UTF-8"
        ) from error


def _most_likely(sample: _Sample) -> str:
    """Return the delimiter that occurs most often outside quotes; blanks if none does, and every line has as many."""
    bare = re.sub(r'"[^"]*"', "", sample.first)  # csv.Sniffer would also take a letter
    most = max(DELIMITERS, key=bare.count)
    if most in bare:
        return most
    names, rows = split_cells(sample.first, SPACES), sample.cells(SPACES)
    if len(names) < 2 or not rows:
        return most
    as_many = all(len(row) == len(names) for row in rows)
    return SPACES if as_many or _has_row_names(names, rows, sample.below, SPACES) else most


def _has_row_names(names: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str], delimiter: str) -> bool:
    """Return whether the first column holds R's names of the rows, which the header of ``write.table`` leaves out.

    They are all different: quoted, or 1, 2, 3, …, or text. Between commas they are quoted: else a decimal comma could
    be what makes a row longer than the header.
    """
    if not rows or any(len(row) != len(names) + 1 for row in rows) or not any(row[-1] for row in rows):
        return False
    first = [row[0].strip() for row in rows]
    if len({*first}) < len(first) or not all(first):
        return False
    if all(line.lstrip().startswith('"') for line in lines):
        return True
    counts = first == [str(at + 1) for at in range(len(first))]
    return delimiter != "," and (counts or not any(re.match(NUMBER, cell) for cell in first))


def _refuse_counts(path: Path, cells: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Refuse scikit-learn's first line: the number of rows, that of inputs, and the names of the classes."""
    width = len(rows[0]) if rows else 0
    counts = cells[:2]
    if len(counts) < 2 or not all(cell.isdecimal() for cell in counts) or int(counts[1]) != width - 1 or width < 3:
        return
    if len(cells) == width and all(re.match(NUMBER, cell) for cell in cells):  # it may be a row
        return
    raise UserError(
        f"{path}: the first line ({', '.join(cells[:3])}, …) is not a header: it counts {counts[0]} rows and "
        f"{counts[1]} inputs, as in scikit-learn's own files: remove this line, and read the rest by "
        f"{setting('header', False)}"
    )


def _refuse_title(path: Path, sample: _Sample, delimiter: str, least: int, number: int) -> None:
    """Refuse a title or a comment above the header; ``number`` is the number of its line."""
    first = split_cells(sample.first, delimiter)
    tries = [delimiter]
    if len(first) == 1 and least > 1:  # it has no delimiter: the lines below it may have another
        tries += [other for other in (*DELIMITERS, SPACES) if other != delimiter]
    for tried in tries:
        above, rows = split_cells(sample.first, tried), sample.cells(tried)
        at = _first_of_table(above, rows)
        if at is None:
            continue
        text = sample.first.strip()
        is_comment = text.startswith(COMMENTS)
        if len([cell for cell in above if cell]) > 1 and not is_comment and not _is_header(rows[at], rows[at + 1 :]):
            continue
        names = ", ".join(cell.strip() for cell in rows[at][:3]) + (", …" if len(rows[at]) > 3 else "")
        raise UserError(
            f"{path}: line {number}, {text.rstrip(',;|')[:60]!r}, is a {'comment' if is_comment else 'title'}, not the "
            f"header, which seems to be {names[:80]!r}: remove what is above it"
        )


def _first_of_table(above: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    """Return the first row of a table of several columns below a line that does not belong to it; None if it does."""
    if len(above) >= 3 and above[0] and not any(above[1:]):  # 'Title,,': as wide as the table
        names = [all(row) and _is_header(row, rows[at + 1 :]) for at, row in enumerate(rows[:MOST_TITLES])]
        return names.index(True) if True in names else None
    widths = [len(row) for row in rows]
    if len(widths) < 2 or widths[-1] < 2 or len(above) in widths[-2:]:
        return None
    at = next((at for at in range(len(widths)) if len({*widths[at:]}) == 1), len(widths))
    return at if at <= min(MOST_TITLES, len(widths) - 2) else None


def _is_header(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether cells are names: all are different text, and some column below has numbers."""
    if len({*names}) < len(names) or any(not name or re.match(NUMBER, name) for name in names):
        return False
    return any(all(len(row) > at and re.match(NUMBER, row[at]) for row in rows) for at in range(len(names)))


def refuse_row_as_header(path: Path | str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Refuse a row in place of the header: most of it numbers, or cells that its columns have again below it."""
    is_counted = any([*names] == [str(first + at) for at in range(len(names))] for first in (0, 1))  # 0, 1, … are names
    if is_counted or not names[0]:  # R and pandas write row names below an empty name
        return
    is_number = [bool(re.match(NUMBER, name)) for name in names]
    numbers = [name for name, number in zip(names, is_number, strict=True) if number]
    shown, looks = numbers, "has numbers where names should be"
    is_row = any(not name.lstrip("+-").isdecimal() for name in numbers) or 2 * len(numbers) > len(names)
    if not is_row:
        alike = [row for row in ([cell.strip() for cell in row] for row in rows) if len(row) == len(names)]
        alike = [row for row in alike if row != [*names]]  # a header that is repeated is none of the rows
        again = [bool(name) and any(row[at] == name for row in alike) for at, name in enumerate(names)]
        as_text = [name for name, seen, number in zip(names, again, is_number, strict=True) if seen and not number]
        of_numbers = any(
            number and all(re.match(NUMBER, row[at]) for row in alike) for at, number in enumerate(is_number)
        )
        is_row = bool(as_text) and (of_numbers or 2 * sum(again) > len(names))
        shown, looks = as_text, "looks like a row, with what its columns have again below it"
    if is_row:
        raise UserError(
            f"{path}: no header: the first line {looks} ({shown[0]}, …): read it as a row by "
            f"{setting('header', False)}, or put a line with a name for each column above it"
        )


def _enough(path: Path, names: list[str], delimiter: str, least: int) -> list[str]:
    """Return the names, of which there must be so many."""
    if len(names) < least:
        used = {**DELIMITERS, SPACES: "space"}.get(delimiter, delimiter)
        raise UserError(
            f"{path}: one column, {names[0][:60]!r}: inputs and a target need two "
            f"(the delimiter used is {used}; try another with `delimiter`)"
        )
    return names
