"""Every command reads data as the run was trained on them, unless told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaprop.cli import main

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
