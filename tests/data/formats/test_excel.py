"""Workbooks: the table of a sheet, each cell as Excel shows it, and refusals that name what was found."""

from __future__ import annotations

import datetime
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deltaprop import UserError
from deltaprop.data.formats import excel, open_table
from deltaprop.data.formats.excel import ExcelTable
from deltaprop.data.table import ReadOptions

openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl, of the extra excel")

DAY = datetime.datetime(2020, 1, 2)


def write(path: Path, *rows: Sequence[Any], sheet: str = "Sheet", more: Sequence[str] = ()) -> Path:
    """Write rows of a sheet; text that begins with # and ends in ! is an error's."""
    workbook = openpyxl.Workbook()
    found = workbook.active
    found.title = sheet
    for at, row in enumerate(rows, start=1):
        for column, value in enumerate(row, start=1):
            cell = found.cell(at, column, value)
            if isinstance(value, str) and value in ("#N/A", "#DIV/0!"):
                cell.data_type = "e"
    for name in more:
        workbook.create_sheet(name).append(["only", name])
    workbook.save(path)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_table(path, ReadOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def columns(path: Path, **options: Any) -> dict[str, Any]:
    return pa.Table.from_batches(open_table(path, ReadOptions(**options)).batches()).to_pydict()


def test_a_table_is_read_from_its_first_filled_row_to_its_last(tmp_path: Path):
    """Empty rows and columns around and within it are none; a row is named by its number in the sheet too."""
    path = write(tmp_path / "t.xlsx", [], [None, None], [None, "a", None, "y", ""], [None, 1, None, "x"], [" ", None],
                 [None, 2, None, "z", "  "], [None], [None, None, None, None, None, None])  # fmt: skip
    assert columns(path) == {"a": [1, 2], "y": ["x", "z"]}
    assert open_table(path).place(2) == f"{path}: row 2 (row 6 of sheet 'Sheet')"


@pytest.mark.parametrize(
    ("cells", "arrow_type", "values"),
    [
        ([1, 2.0, 3], pa.int64(), [1, 2, 3]),
        ([1, 0.5], pa.float64(), [1.0, 0.5]),
        ([1.5, "2B", 3, None], pa.string(), ["1.5", "2B", "3", None]),
        ([7, "#N/A", "#DIV/0!"], pa.string(), ["7", "#N/A", "#DIV/0!"]),
        ([True, False], pa.bool_(), [True, False]),
        ([DAY, DAY.replace(hour=5)], pa.timestamp("us"), [DAY, DAY.replace(hour=5)]),
        ([DAY, "unknown", 5], pa.string(), ["2020-01-02", "unknown", "5"]),
        ([datetime.time(5, 30), None], pa.time64("us"), [datetime.time(5, 30), None]),
    ],
)
def test_a_column_has_one_type_that_holds_all_of_its_cells(
    tmp_path: Path, cells: list[Any], arrow_type: Any, values: list[Any]
):
    """A whole number among text is written as Excel shows it; an error is text, never an empty cell."""
    path = write(tmp_path / "t.xlsx", ["a", "y"], *[[cell, 0] for cell in cells])
    table = pa.Table.from_batches(open_table(path).batches())
    assert (table["a"].type, table["a"].to_pylist()) == (arrow_type, values)


def test_a_sheet_is_chosen_by_name(tmp_path: Path):
    path = write(tmp_path / "T.XLSX", ["a", "y"], [1, 2], sheet="1", more=["second", "third"])
    assert open_table(path).names == ["a", "y"]
    assert open_table(path, ReadOptions(sheet="third")).names == ["only", "third"]
    assert refused(path, sheet="3") == "`sheet='3'`: there is no such sheet (sheets: 1, second, third)"


def test_the_header_is_checked_as_that_of_a_csv(tmp_path: Path):
    """The index of pandas has no name; a number is a name as Excel shows it."""
    rows = [5.1, "x"], [4.9, "y"], [4.9, "x"]
    path = tmp_path / "t.xlsx"
    assert columns(write(path, [None, "y"], [0, 2], [1, 3])) == {"": [0, 1], "y": [2, 3]}
    assert [*columns(write(path, ["a", 2001, "y"], [0, 2, 1]))] == ["a", "2001", "y"]
    assert columns(write(path, *rows), header=False) == {"column1": [5.1, 4.9, 4.9], "column2": ["x", "y", "x"]}
    assert "no header: the first line has numbers" in refused(path)
    title = write(path, ["Report"], [], ["a", "y"], *rows)
    assert columns(title) == {"a": [5.1, 4.9, 4.9], "y": ["x", "y", "x"]}
    table = open_table(title)
    assert isinstance(table, ExcelTable)
    assert table.notes == ("the 2 lines above the header are left out: 'Report', …",)
    assert table.place(1) == f"{path}: row 1 (row 4 of sheet 'Sheet')"
    assert refused(write(path, ["a", None, "y"], [1, 2, 3])).startswith("sheet 'Sheet': column 2 has no name")
    assert "columns 1 and 2 are both called 'a'" in refused(write(path, ["a", " a "], [1, 2]))
    assert "has one column, 'a'" in refused(write(path, ["a"], [1]))
    assert refused(write(path, [])) == "sheet 'Sheet' is empty: a header and rows are needed"


def test_a_formula_that_was_never_computed_is_refused_by_its_cell(tmp_path: Path):
    """Openpyxl writes formulas without values, as do many programs: to read them as missing would be wrong."""
    path = write(tmp_path / "t.xlsx", ["a", "y"], [1, 2], ["=A2+1", 3])
    assert "cell A3: the formula has no value yet: open the file in a spreadsheet program" in refused(path)


def test_a_file_that_is_no_workbook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))  # a compound file, as Excel encrypts in
    assert refused(path).startswith("this is encrypted, or an old .xls: save it as .xlsx without a password")
    path.write_text("a,y\n1,2\n")
    assert refused(path) == "not a sound workbook: File is not a zip file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", "a,y\n1,2\n")
    assert refused(path).startswith("not a sound workbook: ")
    good = write(tmp_path / "u.xlsx", ["a", "y"], [1, 2]).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert refused(path).startswith("not a sound workbook: ")
    assert refused(tmp_path / "none.xlsx") == "there is no such file"
    path.write_bytes(good)
    monkeypatch.setattr(excel, "MOST_BYTES", 5000)
    assert "unpacked it has" in refused(path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path.write_bytes(good)
    assert refused(path) == "reading a workbook needs openpyxl: pip install 'deltaprop[excel]'"


def test_a_wrong_declared_size_of_a_sheet_cuts_nothing_off(tmp_path: Path):
    """Some programs write a dimension that is too small."""
    path = write(tmp_path / "t.xlsx", ["a", "y"], [1, 2], [3, 4])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert b'ref="A1:B3"' in members[name]
    members[name] = members[name].replace(b'ref="A1:B3"', b'ref="A1:A2"')
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert columns(path) == {"a": [1, 3], "y": [2, 4]}
