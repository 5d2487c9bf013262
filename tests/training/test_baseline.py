"""The baseline of a run: what the simplest predictions reach on the test rows, by hand."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaprop.cli import main
from deltaprop.cli.console import cross_validation
from deltaprop.errors import UserError
from deltaprop.inference.evaluation import evaluation_report
from deltaprop.inference.model import load
from deltaprop.training.baseline import Baseline, classes_baseline, numbers_baseline
from tests.training.conftest import metrics_of, starter


def test_the_majority_is_that_of_training_and_its_share_that_of_the_rows():
    """Class b has most training rows, and two of the five rows."""
    assert classes_baseline([2, 7], ["a", "b"], [3, 2]) == Baseline("b", 0.4)


def test_the_deviation_is_over_all_entries_each_from_its_column_mean():
    """Columns 0, 2 and 10, 10: squares 1, 1, 0, 0."""
    found = numbers_baseline(torch.tensor([[0.0, 10.0], [2.0, 10.0]]).double())
    assert found.to_json() == {"rmse": pytest.approx(math.sqrt(0.5))}


@pytest.mark.parametrize(
    ("baseline", "accuracy", "r2", "is_beaten"),
    [
        (Baseline("a", 0.5), 0.51, None, True),
        (Baseline("a", 0.5), 0.5, None, False),
        (Baseline("a", 1.0), 1.0, None, True),  # nothing could be better
        (Baseline(rmse=1.0), None, 0.01, True),
        (Baseline(rmse=1.0), None, 0.0, False),
        (Baseline(rmse=0.0), None, None, True),  # R² is undefined
    ],
)
def test_a_model_beats_it_or_not(baseline: Baseline, accuracy: float | None, r2: float | None, is_beaten: bool):
    assert baseline.is_beaten_by(accuracy, r2) == is_beaten


def test_r2_of_the_metrics_follows_from_rmse_and_deviation(tmp_path: Path):
    """1 − rmse² / deviation² for one target."""
    result = starter(tmp_path)(data="sine", epochs=1)
    assert result.baseline is not None
    assert result.baseline.rmse is not None
    line = metrics_of(result)[-1]
    assert line["test_r2"] == pytest.approx(1 - (line["test_rmse"] / result.baseline.rmse) ** 2)


def write(path: Path, rows: int, seed: int = 0) -> None:
    """Write a table whose classes, four fifths of them no, have nothing to do with its inputs."""
    rng = np.random.default_rng(seed)
    lines = [f"{rng.normal()},{rng.normal()},{'no' if row % 5 else 'yes'}" for row in range(rows)]
    path.write_text("a,b,y\n" + "\n".join(lines) + "\n")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_a_useless_model_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    write(Path("t.csv"), 150)
    words = ["--data", "t.csv", "--epochs", "1", "--lr", "1e-6", "--hidden", "3", "--log-every", "0", "--run-dir", "r"]
    out = printed(capsys, "train", *words, "--seed", "1")
    assert "baseline: 80.00 % are of the most frequent class in training, 'no'" in out
    assert "note    the model is no better than always predicting 'no'" in out
    assert "too few" not in out
    out = printed(capsys, "evaluate", "r")
    assert "baseline  80.00 % (the most frequent class in training, 'no')" in out
    assert "note      the model is no better than always predicting 'no'" in out


def test_few_test_rows_get_the_command_that_cross_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    """A fifth of 60 rows are 12."""
    monkeypatch.chdir(tmp_path)
    write(Path("t.csv"), 60)
    words = ["--data", "t.csv", "--epochs", "1", "--hidden", "3", "--log-every", "0", "--run-dir", "r"]
    out = printed(capsys, "train", *words)
    command = "deltaprop train --data t.csv --epochs 1 --hidden 3 --log-every 0 --folds 5"
    assert f"12 test rows, too few for a reliable figure; cross-validate with: {command}\n" in out


def test_the_command_that_cross_validates_has_as_many_folds_as_the_rows_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    """Of 2 + 2 + 16 rows, 16 of a class of their own are never tested on, so four folds are the most."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{at % 7 + at / 3:.2f},{'uvuv'[at] if at < 4 else f'c{at}'}\n" for at in range(20))
    Path("t.csv").write_text("a,y\n" + rows)
    out = printed(
        capsys,
        "train",
        "--data",
        "t.csv",
        "--epochs",
        "1",
        "--hidden",
        "3",
        "--log-every",
        "0",
        "--rare-classes",
        "keep",
    )
    command = shlex.split(out.partition("cross-validate with: ")[2].partition("\n")[0])
    assert command[-2:] == ["--folds", "4"]
    assert main([*command[1:], "--run-dir", "folds"]) == 0


def test_the_command_that_cross_validates_is_quoted_and_has_no_run_folder():
    assert cross_validation(["--data", "a b.csv", "--run_dir=x"]) == "deltaprop train --data 'a b.csv' --folds 5"
    assert cross_validation(["--resume", "x"]) is None
    assert cross_validation([]) is None


def test_counts_of_classes_in_config_json_are_checked_and_may_be_absent(tmp_path: Path):
    """A run of an older version has none: the report then has no baseline."""
    folder = starter(tmp_path)(epochs=1).folder
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    assert load(folder).class_counts == tuple(saved["resolved"]["class_counts"])
    assert sum(saved["resolved"]["class_counts"]) == saved["resolved"]["rows"]["train"]
    saved["resolved"]["class_counts"] = [1, -1]
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"config\.json: damaged: its class counts \[1, -1\]"):
        load(folder)
    del saved["resolved"]["class_counts"]
    path.write_text(json.dumps(saved))
    assert evaluation_report(load(folder), torch.eye(2), np.array([0, 1])).baseline is None
