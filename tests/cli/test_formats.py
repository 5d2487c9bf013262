"""Every command reads data as the run was trained on them, unless told otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc

from deltaprop.cli import main
from deltaprop.data.formats import open_table

SMALL = ["--hidden", "2", "--epochs", "1", "--log-every", "0", "--device", "cpu", "--run-dir", "run"]
ROWS = "".join(f"{i},{i * 7 % 5},{'no' if i % 2 else 'yes'}\n" for i in range(30))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_without_a_header_predicts_without_one(capsys: pytest.CaptureFixture[str]):
    Path("t.csv").write_text(ROWS)
    Path("inputs.csv").write_text("3,4\n5,6\n")
    Path("named.csv").write_text("column2,column1\n4,3\n6,5\n")
    assert main(["train", "--data", "t.csv", "--no-header", *SMALL]) == 0
    assert "target column3: 2 classes: no 50 %, yes 50 %" in capsys.readouterr().out
    assert main(["evaluate", "run", "--data", "t.csv"]) == 0
    assert "rows      30\n" in capsys.readouterr().out
    for words in (["inputs.csv", "--keep", "column1"], ["named.csv", "--header", "--keep", "column1"]):
        assert main(["predict", "run", "--out", "-", "--data", *words]) == 0
    first, second = capsys.readouterr().out.split('"column1"')[1:]
    assert first == second
    assert first.count("\n") == 3
    assert main(["predict", "run", "--out", "-", "--data", "inputs.csv", "--header", "--no-header"]) == 2
    assert capsys.readouterr().err == "error: --header and --no-header: choose one of them\n"


def lines_of_json(path: Path) -> None:
    rows = [{"id": 2**53 + at, "a": at, "b": "pqr"[at % 3], "y": ["no", "yes"][at % 2]} for at in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arrow_batches(path: Path) -> None:
    lines_of_json(Path("source.jsonl"))
    table = pa.Table.from_batches(open_table(Path("source.jsonl")).batches())
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def workbook(path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl, of the extra excel")
    lines_of_json(Path("source.jsonl"))
    rows = pa.Table.from_batches(open_table(Path("source.jsonl")).batches()).to_pylist()
    book = openpyxl.Workbook()
    sheet = book.create_sheet("birds", 1)
    for row in ([*rows[0]], *([str(row["id"]), *[*row.values()][1:]] for row in rows)):
        sheet.append(row)
    book.save(path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("t.jsonl", lines_of_json, []),
        ("t.feather", arrow_batches, []),
        ("t.xlsx", workbook, ["--sheet", "birds"]),
    ],
)
def test_a_format_is_trained_on_evaluated_and_predicted_with_columns_kept(
    name: str, write: Callable[[Path], None], words: list[str]
):
    """An integer beyond 2^53 is kept to the digit, in text and in Parquet."""
    write(Path(name))
    assert main(["train", "--data", name, "--drop", "id", *words, *SMALL]) == 0
    assert main(["evaluate", "run", "--data", name, "--json", "e.json"]) == 0
    assert json.loads(Path("e.json").read_text())["rows"] == 30
    for out in ("o.csv", "o.parquet"):
        assert main(["predict", "run", "--data", name, "--keep", "id", "b", "--out", out]) == 0
        kept = pa.Table.from_batches(open_table(Path(out)).batches())
        assert [int(value) for value in kept["id"].to_pylist()] == [2**53 + at for at in range(30)]
        assert kept["b"].to_pylist() == ["p", "q", "r"] * 10


def test_the_settings_of_one_format_are_refused_where_they_mean_nothing(capsys: pytest.CaptureFixture[str]):
    Path("t.csv").write_text("a,b,y\n" + ROWS)
    for words in (["--sheet", "x"], ["--data", "moons", "--no-header"], ["--data", "moons", "--sheet", "x"]):
        assert main(["train", "--data", "t.csv", *words, *SMALL]) == 2
        assert words[-2 if words[-1] == "x" else -1] in capsys.readouterr().err
    assert not Path("run").exists()
