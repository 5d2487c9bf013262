"""JSON lines: keys are columns in the order of their first appearance, and numbers are exact."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deltaprop import UserError
from deltaprop.data.formats import jsonl, open_table
from deltaprop.data.table import Table


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], Table]:
    """A function that opens a text."""

    def open_text(text: str) -> Table:
        path = tmp_path / "t.jsonl"
        path.write_bytes(text.encode(errors="surrogatepass"))
        return open_table(path)

    return open_text


def column(table: Table, at: int = 0) -> tuple[Any, list[Any]]:
    """Return the type and the values of a column."""
    values = pa.chunked_array([batch.column(at) for batch in table.batches()])
    return values.type, values.to_pylist()


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "T.JSONL", "t.jsonl.gz", "t.ndjson.gz"])
def test_keys_are_columns_and_a_missing_key_is_a_missing_cell(tmp_path: Path, name: str):
    text = '\ufeff{"a": 1, "y": "x"}\r\n\n{" b ": 2.5, "y": null}\n{}\n{"y": "é", "a": 3}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    table = open_table(tmp_path / name)
    assert table.names == ["a", "y", "b"]
    expected = [[1, None, None, 3], ["x", None, None, "é"], [None, 2.5, None, None]]
    assert [column(table, at)[1] for at in range(3)] == expected
    assert table.place(2) == f"{tmp_path / name}: row 2"


@pytest.mark.parametrize(
    ("cells", "arrow_type", "values"),
    [
        ("1 -2", pa.int64(), [1, -2]),
        ("1 9007199254740993", pa.int64(), [1, 2**53 + 1]),
        ("18446744073709551615 0", pa.uint64(), [2**64 - 1, 0]),
        ("18446744073709551615 -1", pa.string(), ["18446744073709551615", "-1"]),
        ("1e2 36893488147419103232", pa.string(), ["100", "36893488147419103232"]),
        ("0.5 9007199254740992", pa.float64(), [0.5, 2.0**53]),
        ("0.5 9007199254740993", pa.string(), ["0.5", "9007199254740993"]),
        ("true false", pa.bool_(), [True, False]),
        ('true "x"', pa.string(), ["True", "x"]),
        ('1.0 "2B"', pa.string(), ["1", "2B"]),
        ("null null", pa.null(), [None, None]),
        ("[1] 2", pa.list_(pa.null()), [None, None]),
        ('{"k":1} null', pa.list_(pa.null()), [None, None]),
    ],
)
def test_a_column_has_one_type_that_holds_all_of_its_values(
    opened, monkeypatch: pytest.MonkeyPatch, cells: str, arrow_type: Any, values: list[Any]
):
    """Also when each block has a single row."""
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 1)
    table = opened("".join(f'{{"a": {cell}, "y": 0}}\n' for cell in cells.split()))
    assert column(table) == (arrow_type, values)
    assert len([*table.batches()]) == 2


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_a_table_too(tmp_path: Path, name: str, indent: int | None):
    text = "\n " + json.dumps([{"a": 1, "y": "x"}, {"a": None, "y": "z"}, {"y": "x", "b": 2.5}], indent=indent)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    table = open_table(path)
    assert table.names == ["a", "y", "b"]
    assert [column(table, at)[1] for at in range(3)] == [[1, None, None], ["x", "z", "x"], [None, None, 2.5]]


PROBLEMS = {
    '{"a": 1, "b": 2}\n\n{"a": 1,\n': r"line 3 is not JSON: Expecting property name .*\('\{\"a\": 1,'\)",
    '[{"a": 1, "b": 2}, 3]\n': "item 2 is no object: JSON lines have an object a line, whose keys are columns",
    '[{"a": 1, "b": 2},\n': "t.jsonl is not JSON: ",
    "[]": "the file is empty: lines of JSON objects are needed",
    '{"a": 1, "b": 2}\n[{"a": 1, "b": 2}]\n': "line 2 is a list: JSON lines have an object a line",
    '{\n"a": 1}\n': "line 1 is not JSON: .*: is this one JSON document\\? JSON lines have an object a line",
    '"a"\n': "line 1 is text: ",
    "7\n": "line 1 is no object: ",
    '{"a": 1, "b": 2, "a": 3}\n': "line 1 has the key 'a' twice: rename one",
    '{"a": "\\ud800", "b": 2}\n': r"line 1: '\\ud800' is not Unicode text",
    '{"a\\udc00": 1, "b": 2}\n': r"line 1: 'a\\udc00' is not Unicode text",
    '{"a": "\ud800", "b": 2}\n': r"line 1 is not UTF-8 \(byte 0xed at 7\)",
    '{"a": 1, " a": 2}\n': "columns 1 and 2 are both called 'a'",
    '{"a": 1, "": 2}\n': "column 2 has no name",
    '{"a": 1}\n{"a": 2}\n': "the only key is 'a': inputs and a target need two",
    '{"a": ' + "[" * 100000 + "\n": "line 1 is not JSON: ",
    '{"a": ' + "9" * 5000 + "}\n": "line 1 is not JSON: ",
    "\n  \n": "the file is empty: lines of JSON objects are needed",
}


@pytest.mark.parametrize("text", PROBLEMS, ids=range(len(PROBLEMS)))
def test_a_bad_line_is_refused_with_its_number(opened, text: str):
    with pytest.raises(UserError, match=PROBLEMS[text]) as caught:
        opened(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_that_changed_is_read_again(opened):
    assert opened('{"a": 1, "b": 2}\n').names == ["a", "b"]
    assert opened('{"c": 1, "bb": 2}\n').names == ["c", "bb"]


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path):
    (tmp_path / "t.jsonl.gz").write_text("{}")
    with pytest.raises(UserError, match="not compressed by gzip: name it without "):
        open_table(tmp_path / "t.jsonl.gz")
    (tmp_path / "u.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match="this is gzip, not JSON lines: name it "):
        open_table(tmp_path / "u.jsonl")
    with pytest.raises(UserError, match="there is no such file"):
        open_table(tmp_path / "v.jsonl")


def test_the_bytes_read_are_told(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"a": at, "y": at}) + "\n" for at in range(3000)))
    told: list[int] = []
    assert sum(len(batch) for batch in open_table(path).batches(told.append)) == 3000
    assert told == sorted(told)
    assert 0 < told[-1] <= path.stat().st_size
