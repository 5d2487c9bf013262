"""What stands in the first line of a table: names, or a title, a comment, counts or a row in their place.

Cells are text here, whatever the format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from deltaprop.data.cells import ABSENT
from deltaprop.data.table import NUMBER
from deltaprop.errors import UserError, setting

MOST_TITLES = 20  # lines above a header that are recognised as such
NAMED_YEARS = 1700, 2100
COMMENTS = ("#", "%", "//")


def numbered_names(count: int) -> list[str]:
    """Return the names of columns without a header."""
    return [f"column{at + 1}" for at in range(count)]


def refuse_counts(path: Path | str, cells: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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


def header_below(text: str, above: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    """Return which of the rows is the header where a title or a comment stands above it; None where none does.

    Args:
        text: The first line.
        above: Its cells.
        rows: The cells of the lines below it.
    """
    at = _first_of_table(above, rows)
    if at is None or text.strip().startswith(COMMENTS):
        return at
    is_title = len([cell for cell in above if cell]) <= 1 or _is_header(rows[at], rows[at + 1 :])
    return at if is_title else None


def note_of_title(lines: int, text: str) -> str:
    """Return what is told of the lines above a header, of which ``text`` is the first."""
    above = "the line above the header is" if lines == 1 else f"the {lines} lines above the header are"
    return f"{above} left out: {text.strip().rstrip(',;| ').rstrip()[:60]!r}{', …' if lines > 1 else ''}"


def _first_of_table(above: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    """Return the first row of a table of several columns below a line that does not belong to it; None if it does."""
    filled = [at for at, cell in enumerate(above) if cell.strip()]
    if len(above) > 1 and len(filled) == 1 and (len(above) > 2 or filled == [0]):  # 'Title,,': as wide as the table
        at = next((at for at, row in enumerate(rows[:MOST_TITLES]) if all(row)), None)
        return at if at is not None and _is_header(rows[at], rows[at + 1 :]) else None
    widths = [len(row) for row in rows]
    if len(widths) < 2 or widths[-1] < 2 or len(above) in widths[-2:]:
        return None
    at = next((at for at in range(len(widths)) if len({*widths[at:]}) == 1), len(widths))
    return at if at <= min(MOST_TITLES, len(widths) - 2) else None


def _is_header(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether cells are names: all are different text, and some column below has numbers."""
    if len({*names}) < len(names) or any(not name or re.match(NUMBER, name) for name in names):
        return False

    def has_numbers(at: int) -> bool:
        cells = [row[at].strip() if len(row) > at else "short" for row in rows]
        present = [cell for cell in cells if cell.lower() not in ABSENT]
        return bool(present) and all(re.match(NUMBER, cell) for cell in present)

    return any(map(has_numbers, range(len(names))))


def _are_names_and_years(names: Sequence[str], is_number: Sequence[bool], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether texts that no row has are followed by years, such as Country, Code, 1960, 1961, 1962."""
    first = is_number.index(True) if any(is_number) else 0
    years = [int(name) if name.isdecimal() else 0 for name in names[first:]]
    again = any(row[at].strip() == names[at] for row in rows for at in range(min(first, len(row))))
    return (
        first > 0
        and not again
        and NAMED_YEARS[0] <= years[0]
        and years[-1] <= NAMED_YEARS[1]
        and years == [*range(years[0], years[0] + len(years))]
    )


def refuse_row_as_header(path: Path | str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Refuse a row in place of the header: most of it numbers, or cells that its columns have again below it."""
    if any([*names] == [str(first + at) for at in range(len(names))] for first in (0, 1)):  # 0, 1, … are names
        return
    if not names[0] and all(name.isdecimal() for name in names[1:]) and all(row[0].strip() for row in rows if row):
        counts = [int(name) for name in names[1:]]
        if counts == sorted({*counts}):  # years, or another count, beside an index
            return
    below = [row[0].strip() for row in rows if row]
    if not names[0] and below and all(below):  # R and pandas write an index below an empty name
        numbered = any(below == [str(first + at) for at in range(len(below))] for first in (0, 1))
        if numbered or not any(re.match(NUMBER, cell) for cell in below):
            return
    is_number = [bool(re.match(NUMBER, name)) for name in names]
    if _are_names_and_years(names, is_number, rows):
        return
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
        shown, looks = as_text, "looks like a row, for its cells are found again below it"
    if is_row:
        raise UserError(
            f"{path}: no header: the first line {looks} ({shown[0]}, …): read it as a row by "
            f"{setting('header', False)}, or put a line with a name for each column above it",
            {"header": ()},
        )
