"""``deltaprop info``: what a model was trained on and how, even if its data no longer exists."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import deltaprop as dp
from deltaprop.cli import main
from tests.inference.conftest import KINDS, TABLES, Runs, write_csv


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


def printed(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int = 300) -> str:
    """Return the printed text with runs of spaces collapsed."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["info", str(run)]) == 0
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["info", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is not valid JSON


def test_the_printed_lines(runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """300 rows: a fifth for testing, a tenth of the other 240 for validation; 5·8 + 8 + 8·3 + 3 = 75 parameters."""
    run = runs["mixed"]
    output = printed(run.folder, capsys, monkeypatch)
    resolved = run.saved["resolved"]
    for line in (
        f"run {run.folder}",
        f"data {run.data} (sha256 {resolved['data_sha256'][:12]}…)",
        "216 rows to train, 24 to validate, 60 to test",
        "city: 3 categories: Paris, Rome, São Paulo",
        f"b: numbers, missing values become {resolved['columns']['inputs'][2]['fill']:.4g}",
        "target y",
        "classes hi, lo, mid",
        "model 5 → 8 relu → 3",
        "75 parameters",
        "loss cross-entropy",
        "epochs 4 of 4",
        f"weights final: {run.folder}/model.safetensors",
    ):
        assert line in output
    assert f"test accuracy {run.metrics['test_accuracy']:.4g}" in output
    assert f"deltaprop {dp.__version__}" in output


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_described(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
):
    run = runs[kind]
    output, resolved = as_json(run.folder, capsys), run.saved["resolved"]
    for name, key in (("task", "task"), ("classes", "class_names"), ("columns", "columns"), ("sizes", "sizes")):
        assert output[name] == resolved[key]
    assert output["rows"] == resolved["rows"]
    assert output["epochs_done"] == 4
    assert output["last"]["test_loss"] == pytest.approx(run.metrics["test_loss"])
    assert output["best"]["val_loss"] <= output["last"]["val_loss"]
    assert output["settings"]["lr"] == run.saved["lr"]
    assert {*output["weights"]} == {"final", "best"}
    assert printed(run.folder, capsys, monkeypatch).startswith(f"run {run.folder}\n")


@pytest.mark.parametrize("width", [60, 100])
def test_nothing_is_cut_on_a_narrow_terminal(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
):
    run = runs["mixed"].folder
    wide = printed(run, capsys, monkeypatch).split()
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "".join(out.split()) == "".join(wide)


def test_missing_data_weights_and_metrics_are_accepted(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """An interrupted run may have no weights yet."""
    path = write_csv(tmp_path / "t.csv", TABLES["numbers"])
    run = runs.train("left", path)
    path.unlink()
    moved = tmp_path / "moved"
    shutil.move(run.folder, moved)
    assert f"data {path}" in printed(moved, capsys, monkeypatch)
    (moved / "model.safetensors").unlink()
    assert [*as_json(moved, capsys)["weights"]] == ["best"]
    (moved / "best.safetensors").unlink()
    output = as_json(moved, capsys)
    assert (output["weights"], output["parameters"]) == ({}, None)
    assert "parameters" not in printed(moved, capsys, monkeypatch)
    (moved / "metrics.jsonl").unlink()
    assert "epochs 0 of 4" in printed(moved, capsys, monkeypatch)


def test_markup_in_names_is_printed_unchanged(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    columns = {"[red]a[/]": TABLES["numbers"]["a"], "y": TABLES["numbers"]["y"]}
    run = runs.train("[bold]", write_csv(tmp_path / "t.csv", columns))
    assert "[red]a[/]: numbers" in printed(run.folder, capsys, monkeypatch)


INVALID_VALUES = [None, 5, "x", [], {}, True, [1], {"a": 1}]


@pytest.mark.parametrize("weights", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("inner", [True, False])
def test_a_damaged_config_is_reported_in_one_line(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], inner: bool, weights: bool
):
    """Each entry in turn, also in ``resolved``: an error in one line, or no error."""
    run = runs["numbers"]
    folder = run.copy(tmp_path / "copy")
    if not weights:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    crashed = []
    for name in run.saved["resolved"] if inner else run.saved:
        for value in INVALID_VALUES:
            saved = run.saved
            (saved["resolved"] if inner else saved)[name] = value
            (folder / "config.json").write_text(json.dumps(saved))
            code = main(["info", str(folder)])
            error = capsys.readouterr().err
            if code not in (0, 2) or error.count("\n") > 1:
                crashed.append((name, value, error.strip()[:80]))
    assert crashed == []


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": "x"}', '{"epoch": 1, "val_loss": "x"}', "5", "{}"])
def test_damaged_metrics_are_at_most_one_error_line(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
):
    """An error in one line, or the damaged line is ignored."""
    folder = runs["numbers"].copy(tmp_path / "copy")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert main(["info", str(folder)]) in (0, 2)
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize("args", [[], ["none"], ["."]])
def test_a_missing_run_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["info", *args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")


def test_a_file_of_a_run_is_refused_in_one_line(runs: Runs, capsys: pytest.CaptureFixture[str]):
    folder = runs["numbers"].folder
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        assert main(["info", str(folder / name)]) == 2
        message = f"error: {folder / name}: this is a file, not the folder of a run: name its folder, {folder}\n"
        assert capsys.readouterr().err == message
