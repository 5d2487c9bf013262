"""Rows that a run was trained on are recognised in any file; their number and the metrics of the others are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.data.classes import Targets, TargetValues
from deltaprop.inference.evaluation import EvaluationReport, evaluate_file
from deltaprop.inference.seen_rows import RowMatcher
from deltaprop.training.load_run import load_run
from deltaprop.training.seen_rows import read_training_rows
from tests.data.conftest import encode_idx
from tests.inference.conftest import IMAGES, KINDS, LABELS, TABLES, N, Run, Runs, first, inputs_of, write_csv
from tests.inference.test_model import FORMS


def evaluated(run: Run, data: Path | str) -> EvaluationReport:
    return evaluate_file(dp.load(run.folder), data, known=read_training_rows(run.folder))


def trained_on(run: Run) -> int:
    """Return the number of rows to train and to validate on."""
    rows = run.saved["resolved"]["rows"]
    return rows["train"] + rows["val"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "digits"])
def test_the_rows_of_every_kind_of_run_are_recognised_in_its_own_data(runs: Runs, kind: str):
    """All rows of these sets differ, so the others are the test part, and have its metrics."""
    run = runs[kind]
    report = evaluated(run, run.data)
    assert report.seen is not None
    assert report.others is not None
    assert report.seen.total == trained_on(run) == 240
    assert (report.rows, report.others.rows) == (N, 60)
    metric = "test_rmse" if "test_rmse" in run.metrics else "test_accuracy"
    assert report.others.figures[metric.removeprefix("test_")] == pytest.approx(run.metrics[metric], rel=1e-5)
    assert report.others.loss == pytest.approx(run.metrics["test_loss"], rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["mixed", "two"])
def test_every_container_gives_the_same_digests(runs: Runs, tmp_path: Path, kind: str, form: str):
    """Files and tables in memory, their columns in another order."""
    model, known = dp.load(runs[kind].folder), read_training_rows(runs[kind].folder)
    data = FORMS[form](tmp_path, dict(reversed(inputs_of(kind).items())))
    assert known.digests is not None
    blocks = model.blocks(data, targets=Targets(model.objective.task, model.class_names), n_targets=2)
    matcher, values = RowMatcher(model, known, blocks), []
    for block in blocks.blocks():
        matcher.add(block.x)
        values.append(block.targets)
    columns = TargetValues(blocks.target_columns, np.concatenate(values), "the table")
    y = Targets(model.objective.task, model.class_names).encode(columns)
    assert matcher.match(y, tmp_path).total == 240


def test_arrays_images_and_tables_of_the_same_rows_are_recognised(runs: Runs, tmp_path: Path):
    run = runs["images"]
    np.save(tmp_path / "t.npy", np.concatenate([IMAGES.reshape(N, -1), LABELS[:, None]], axis=1))
    columns = {f"p{at}": pixels for at, pixels in enumerate(IMAGES.reshape(N, -1).T.tolist())}
    for path in (tmp_path / "t.npy", write_csv(tmp_path / "t.csv", {**columns, "digit": LABELS.tolist()})):
        report = evaluated(run, path)
        assert report.seen is not None
        assert report.seen.total == trained_on(run)


def test_a_test_set_of_images_with_a_row_of_training(runs: Runs, tmp_path: Path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 3, 3), dtype=np.uint8), (np.arange(80) % 3).astype(np.uint8)
    images[79], labels[79] = images[0], labels[0]
    for part, some in (("train", slice(60)), ("t10k", slice(60, 80))):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(encode_idx(images[some]))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels[some]))
    report = evaluated(runs.train("idx-seen", tmp_path), tmp_path)
    assert report.seen is not None
    assert report.seen.mask is not None
    assert np.flatnonzero(report.seen.mask).tolist() == [19]


def test_another_target_makes_another_row(runs: Runs, tmp_path: Path):
    """So does another input, by one unit of float32: 1 + 2⁻²³ near 1."""
    run, columns = runs["value"], inputs_of("value")
    columns["v"][0] += 1
    columns["a"][1] *= 1 + 1e-6
    report = evaluated(run, write_csv(tmp_path / "t.csv", columns))
    trained = load_run(run.folder).dataset
    raw = torch.cat([trained.input_scaling.invert(part.x.double()) for part in (trained.train, trained.val)])
    changed = [bool((raw[:, 0] - inputs_of("value")["a"][at]).abs().min() < 1e-5) for at in (0, 1)]
    assert report.seen is not None
    assert report.seen.total == 240 - sum(changed)
    assert any(changed)


# --- what is told ---


def written(run: Path, *words: str) -> dict[str, Any]:
    assert main(["evaluate", str(run), *words, "--json", str(run / "o.json")]) == 0
    return json.loads((run / "o.json").read_text())


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def test_the_metrics_of_the_other_rows_are_beside_those_of_all(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = runs["numbers"]
    folder = run.copy(tmp_path / "run")
    found = written(folder, "--data", run.data)
    out = capsys.readouterr().out
    assert "seen      240 of 300 rows are equal to rows of training or validation" in out
    (accuracy,) = [line for line in out.splitlines() if line.startswith("accuracy")]
    right = sum(row[at] for at, row in enumerate(found["confusion"]))
    others = found["others"]
    assert f"({right} of 300)" in accuracy
    assert accuracy.endswith(f"{100 * others['accuracy']:.2f} % ({round(60 * others['accuracy'])} of 60)")
    assert (found["rows_seen"], others["rows"]) == (240, 60)
    assert others["accuracy"] == run.metrics["test_accuracy"]


def test_rows_that_are_all_of_training_point_to_the_test_part(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, columns = runs["single"].copy(tmp_path / "run"), inputs_of("single")
    report = evaluated(runs["single"], runs["single"].data)
    assert report.seen is not None
    assert report.seen.mask is not None
    keep = np.flatnonzero(report.seen.mask)
    path = write_csv(tmp_path / "t.csv", {name: [values[at] for at in keep] for name, values in columns.items()})
    found = written(folder, "--data", str(path))
    assert (found["rows_seen"], found["others"]) == (240, None)
    text = "all 240 rows are equal to rows of training or validation; for new rows, its own test part: "
    assert f"{text}deltaprop evaluate {folder}" in capsys.readouterr().out


def test_new_rows_and_the_test_part_say_nothing(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = runs["numbers"].copy(tmp_path / "run")
    path = write_csv(tmp_path / "t.csv", {"a": [0.123], "b": [4.5], "y": ["no"]})
    found = written(folder, "--data", str(path))
    assert (found["rows_seen"], found["others"]) == (0, None)
    assert "rows_seen" not in written(folder)
    assert "seen" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"other", "flipped"], ids=str)
def test_a_damaged_file_of_digests_is_said_and_no_error(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str | None
):
    folder = runs["numbers"].copy(tmp_path / "run")
    path = folder / "rows.u64"
    whole = path.read_bytes()
    if isinstance(content, str):
        content = bytes([whole[0] ^ 1]) + whole[1:]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    part = write_csv(tmp_path / "t.csv", first(inputs_of("numbers"), 9))
    assert written(folder, "--data", str(part))["rows_seen"] is None
    assert f"unknown: {path} is missing or damaged" in capsys.readouterr().out
    assert written(folder, "--data", runs["numbers"].data)["same_file"] is True
    assert "this is the data that the run was trained on; for new rows" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["mixed", "two", "integers", "images"])
def test_a_run_without_digests_recognises_its_own_file(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    """As of version 0.1: of other data nothing is said."""
    run = runs[kind]
    folder = run.copy(tmp_path / "run", lambda saved: saved["resolved"].pop("row_digests"))
    (folder / "rows.u64").unlink()
    assert written(folder, "--data", run.data)["same_file"] is True
    assert "this is the data that the run was trained on" in capsys.readouterr().out
    if kind == "images":
        np.savez(tmp_path / "part.npz", x=IMAGES[:9], y=LABELS[:9])
        part = tmp_path / "part.npz"
    else:
        part = write_csv(tmp_path / "part.csv", first(inputs_of(kind), 9))
    found = written(folder, "--data", str(part))
    assert (found["rows_seen"], found["same_file"], found["others"]) == (None, None, None)
    assert "seen" not in capsys.readouterr().out


def test_of_many_rows_only_the_file_is_compared(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Beyond a limit, here 239 of 240 rows; and where rows are read from the disk, which rounds them."""
    path = write_csv(tmp_path / "t.csv", TABLES["numbers"])
    disk = runs.train("from-disk", path, memory="1k", cache=tmp_path / "cache", epochs=1)
    monkeypatch.setattr("deltaprop.data.digests.MOST_DIGESTS", 239)
    many = runs.train("many", path, epochs=1)
    other = write_csv(tmp_path / "other.csv", first(TABLES["numbers"], 9))
    for run in (disk, many):
        assert not (run.folder / "rows.u64").exists()
        assert written(run.folder, "--data", str(path))["same_file"] is True
        assert "this is the data that the run was trained on" in capsys.readouterr().out
        assert written(run.folder, "--data", str(other))["rows_seen"] is None
        assert "unknown: rows are not compared if they are on disk or more than 1000000" in capsys.readouterr().out


def test_a_copy_of_a_run_folder_recognises_rows_too(runs: Runs, tmp_path: Path):
    """The data of the run are not needed."""
    shutil.copytree(runs["filled"].folder, tmp_path / "run")
    report = evaluate_file(dp.load(tmp_path / "run"), runs["filled"].data, known=read_training_rows(tmp_path / "run"))
    assert report.seen is not None
    assert report.seen.total == 240
