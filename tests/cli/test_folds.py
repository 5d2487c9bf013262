"""``deltaprop train --folds``: a line for each fold, and a final command that works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from deltaprop.cli import main

SMALL = ["--data", "xor", "--hidden", "4", "--epochs", "1", "--log-every", "0", "--batch-size", "100"]


def test_it_prints_a_line_a_fold_their_mean_and_the_final_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--folds", "2", "--run-dir", "cv"]) == 0
    printed = capsys.readouterr().out
    saved = json.loads(Path("cv/folds.json").read_text())
    rows = re.findall(r"^ +(\d) +(\d+) +([\d.]+) % +([\d.]+) +([\d.]+) %$", printed, flags=re.MULTILINE)
    assert [row[:3] for row in rows] == [
        (str(fold["fold"]), "500", f"{100 * fold['figures']['accuracy']:.2f}") for fold in saved["folds"]
    ]
    mean, std = saved["mean"], saved["std"]
    line = f"test    accuracy {100 * mean['accuracy']:.2f} % ± {100 * std['accuracy']:.2f} %, log loss "
    assert f"\n{line}{mean['log_loss']:.4g} ± {std['log_loss']:.4g} (mean ± standard deviation of 2 folds)\n" in printed
    assert f"\nbase    accuracy {100 * saved['baseline']['accuracy']:.2f} %, log loss" in printed
    final = re.search(r"^final .*: deltaprop (.*)$", printed, flags=re.MULTILINE)
    assert final is not None
    assert main([*shlex.split(final[1]), "--run-dir", "final"]) == 0
    config = json.loads(Path("final/config.json").read_text())
    assert (config["folds"], config["fold"], config["hidden"], config["batch_size"]) == (0, 0, [4], 100)

    again = ["--resume", "cv"]
    for words in (again, ["--resume", "auto", "--run-dir", "cv"], [*SMALL, "--folds", "2", "--run-dir", "cv"]):
        assert main(["train", *words]) == 0
        assert line in capsys.readouterr().out
    for words, message in (
        ([*again, "--epochs", "2"], "error: cv: its folds were trained with other settings: epochs 1 → 2; name a new"),
        ([*again, "--lr", "1", "--override", "lr"], "error: --override is for --resume: all folds have the same"),
    ):
        assert main(["train", *words]) == 2
        assert capsys.readouterr().err.startswith(message)
