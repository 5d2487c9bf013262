"""Excel workbooks: a table in a sheet, read by openpyxl (extra ``excel``).

openpyxl, and not the faster python-calamine: that one returns an error such as #DIV/0! as an empty cell.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.data.cells import spelled
from deltaprop.data.formats.dialect import MOST_SAMPLES
from deltaprop.data.formats.files import read_errors
from deltaprop.data.formats.header import header_below, note_of_title, numbered_names, refuse_row_as_header
from deltaprop.data.formats.values import SeenValues, as_array
from deltaprop.data.table import BATCH_ROWS, Batch, ReadOptions, check_names
from deltaprop.errors import UserError, listed, setting

EXCEL_NAMES = (".xlsx", ".xlsm")
MOST_BYTES = 1 << 31  # of XML, which openpyxl reads for an hour
OLD_OR_ENCRYPTED = b"\xd0\xcf\x11\xe0"


@dataclass(frozen=True)
class ExcelTable:
    """A sheet of a workbook, in memory.

    Attributes:
        path: The file.
        names: The names of the columns.
        files: The file.
        sheet: The name of the sheet.
        table: The rows as a pyarrow.Table.
        numbers: The number in the sheet of each row.
        notes: What is told of rows above the header.
    """

    path: Path
    names: list[str]
    files: tuple[Path, ...]
    sheet: str
    table: Any
    numbers: list[int]
    notes: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Return the file, the number of a row, and its number in the sheet."""
        return f"{self.path}: row {row} (row {self.numbers[row - 1]} of sheet {self.sheet!r})"

    @classmethod
    def open(cls, path: Path, options: ReadOptions) -> ExcelTable:
        """Return the table of a sheet; see :func:`open_table`."""
        with read_errors(path):
            about = path.stat()
        state = about.st_size, about.st_mtime_ns
        sheet, table, numbers, notes = _read_sheet(path, state, options.sheet, options.header)
        names = [*table.column_names]
        if len(names) < options.least:
            others = [name for name in _sheet_names(path) if name != sheet]
            hint = f"; {setting('sheet', others[0])} reads another" if others else ""
            raise UserError(f"{path}: sheet {sheet!r} has one column, {names[0]!r}: inputs and a target need two{hint}")
        return cls(path, names, (path,), sheet, table, numbers, notes)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block."""
        on_bytes(self.path.stat().st_size)
        yield from self.table.to_batches(max_chunksize=BATCH_ROWS)


def is_workbook(path: str | Path) -> bool:
    """Return whether a path is a workbook, by its name."""
    return str(path).lower().endswith(EXCEL_NAMES)


@functools.lru_cache(maxsize=2)  # the commands open a table more than once
def _read_sheet(
    path: Path, state: tuple[int, int], sheet: str | None, header: bool
) -> tuple[str, Any, list[int], tuple[str, ...]]:
    """Return the sheet's name, the table, the rows' numbers, and notes; ``state`` is that of the file."""
    import pyarrow

    name, rows = _rows_of(path, sheet)
    where = f"{path}: sheet {name!r}"
    if not rows:
        raise UserError(f"{where} is empty: a header and rows are needed")
    width, notes = max(len(row) for _, row in rows), []
    first, *below = [
        [(spelled(value) or "").strip() for value in row] + [""] * (width - len(row)) for _, row in rows[:MOST_SAMPLES]
    ]
    if header:
        at = header_below(" ".join(first), first, below)
        if at is not None:
            notes.append(note_of_title(rows[at + 1][0] - rows[0][0], " ".join(first)))
            first, below, rows = below[at], below[at + 1 :], rows[at + 1 :]
        refuse_row_as_header(where, first, below)
    names, body = (first, rows[1:]) if header else (numbered_names(width), rows)
    columns = [[row[at] if at < len(row) else None for _, row in body] for at in range(width)]
    used = [at for at in range(width) if (header and names[at]) or any(value is not None for value in columns[at])]
    names = [names[at] for at in used] if header else numbered_names(len(used))
    check_names(where, names)
    arrays = []
    for at in used:
        seen = SeenValues()
        for value in columns[at]:
            seen.add(value)
        arrays.append(as_array(columns[at], seen.arrow_type()))
    return name, pyarrow.table(arrays, names), [number for number, _ in body], tuple(notes)


def _sheet_names(path: Path) -> list[str]:
    """Return the names of the sheets of a workbook that can be read."""
    import openpyxl

    workbook = openpyxl.load_workbook(path, read_only=True)
    try:
        return [*workbook.sheetnames]
    finally:
        workbook.close()


def _rows_of(path: Path, sheet: str | None) -> tuple[str, list[tuple[int, list[Any]]]]:
    """Return the name of a sheet, and its rows that are not empty, each with its number."""
    with read_errors(path), path.open("rb") as file:
        if file.read(4) == OLD_OR_ENCRYPTED:
            raise UserError(f"{path}: this is encrypted, or an old .xls: save it as .xlsx without a password")
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise UserError(f"{path}: unpacked it has {size >> 30} GiB, which is too much: save it as CSV")
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(f"{path}: reading a workbook needs openpyxl: pip install 'deltaprop[excel]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it cannot keep when it would write the file again
            workbook = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
            try:
                found = _sheet_of(path, workbook, sheet)
                rows = [*_filled_rows(found)]
                if any(value is None for _, row in rows for value in row):
                    _refuse_formulas(path, found.title)
                return found.title, rows
            finally:
                workbook.close()
    except UserError:
        raise
    except Exception as error:  # of zipfile, the XML parser, or openpyxl
        raise UserError(f"{path}: not a sound workbook: {' '.join(str(error).split())[:200]}") from error


def _sheet_of(path: Path, workbook: Any, sheet: str | None) -> Any:
    """Return the sheet of this name, or the first."""
    by_name = {found.title: found for found in workbook.worksheets}
    if sheet is None and by_name:
        return next(iter(by_name.values()))
    if sheet not in by_name:
        asked = f"{setting('sheet', sheet)}: " if sheet is not None else ""
        raise UserError(f"{path}: {asked}there is no such sheet (sheets: {listed(by_name)})")
    return by_name[sheet]


def _filled_rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows that are not empty, with their numbers and without empty cells at their ends."""
    sheet.reset_dimensions()  # what the file declares may be wrong
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        values = [None if isinstance(value, str) and not value.strip() else value for value in row]
        while values and values[-1] is None:
            values.pop()
        if values:
            yield number, values


def _refuse_formulas(path: Path, name: str) -> None:
    """Refuse a formula whose value was never computed, as programs other than Excel write them: it reads as empty."""
    import openpyxl

    values = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    formulas = openpyxl.load_workbook(path, read_only=True, keep_links=False)
    try:
        both = values[name], formulas[name]
        for sheet in both:
            sheet.reset_dimensions()
        for value_row, row in zip(*(sheet.iter_rows() for sheet in both), strict=False):
            for value, formula in zip(value_row, row, strict=False):
                if value.value is None and formula.data_type == "f":
                    raise UserError(
                        f"{path}: sheet {name!r}, cell {formula.coordinate}: the formula has no value yet: open the "
                        "file in a spreadsheet program and save it"
                    )
    finally:
        values.close()
        formulas.close()
