"""CSV files in other encodings than UTF-8; what rows may look like is in test_unusual_tables.py and its neighbours."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pytest

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.data.formats import csv
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.table import ReadOptions
from tests.data.cases import SMALL

ROWS = 400
TEXT = "größe;prix €;y\r\n" + "".join(
    f"{at + 0.5};{'äß'[at % 2]}\u20ac;{'naïve' if at % 3 else 'œuf'}\r\n" for at in range(ROWS)
)


def cells(table: CsvTable) -> pa.Table:
    return pa.Table.from_batches([*table.batches()]).combine_chunks()


@pytest.mark.parametrize("block", [7, 1 << 22])
@pytest.mark.parametrize(
    ("encoding", "asked"),
    [
        ("cp1252", "cp1252"),
        ("utf-16", "auto"),
        ("utf-16-le", "utf-16-le"),
        ("iso8859-15", "l9"),
        ("utf-8", "utf-8"),
        ("utf-32", "utf-32"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_the_cells_are_those_of_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, asked: str, packed: bool, block: int
):
    """Whatever is read at once, half a character included."""
    monkeypatch.setattr(csv, "READ_BYTES", max(block, 60))
    plain, other = tmp_path / "a.csv", tmp_path / ("b.csv.gz" if packed else "b.csv")
    plain.write_text(TEXT, encoding="utf-8", newline="")
    content = TEXT.encode(encoding)
    other.write_bytes(gzip.compress(content) if packed else content)
    found = CsvTable.open(other, ReadOptions(encoding=asked))
    assert cells(found).equals(cells(CsvTable.open(plain, ReadOptions())))
    pipe = io.BytesIO(content)
    assert cells(CsvTable.of_stream(Path("stdin"), pipe, ReadOptions(encoding=asked))).equals(cells(found))


def test_the_error_names_the_encoding_that_windows_writes_and_the_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(TEXT.encode("cp1252"))
    assert main(["train", "--data", "t.csv", *SMALL]) == 2
    command = capsys.readouterr().err.split("deltaprop ")[-1].split()
    assert command[-2:] == ["--encoding", "cp1252"]
    assert main([*command, "--run-dir", "run"]) == 0
    assert dp.load("run").class_names == ("naïve", "œuf")


@pytest.mark.parametrize("mark", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_wins(tmp_path: Path, mark: str):
    """A later table may come from elsewhere than the one that the run was trained on."""
    (tmp_path / "t.csv").write_bytes(TEXT.encode(mark))
    assert CsvTable.open(tmp_path / "t.csv", ReadOptions(encoding="cp1252")).names == ["größe", "prix €", "y"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("name", ["xx", "rot13", "hex"])
def test_an_unknown_encoding_is_refused_by_every_command(command: str, name: str, capsys: pytest.CaptureFixture[str]):
    out = ["--out", "-"] if command == "predict" else []
    assert main([command, "tests/fixtures/runs-0.1/classes/run", "--data", "t.csv", "--encoding", name, *out]) == 2
    assert f"--encoding must be auto, or the name of an encoding such as cp1252, got {name}" in capsys.readouterr().err


def test_evaluate_and_predict_read_as_training_did_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(TEXT.encode("cp1252"))
    Path("u.csv").write_text(TEXT, encoding="utf-8", newline="")
    assert main(["train", "--data", "t.csv", *SMALL, "--encoding", "cp1252", "--run-dir", "run"]) == 0
    assert main(["predict", "run", "--data", "t.csv", "--out", "a.csv"]) == 0
    assert main(["predict", "run", "--data", "u.csv", "--encoding", "auto", "--out", "b.csv"]) == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "u.csv", "--encoding", "auto"]) == 0
    assert f"320 of {ROWS} rows are equal" in capsys.readouterr().out
