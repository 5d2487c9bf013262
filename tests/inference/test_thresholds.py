"""Thresholds between two classes: given, or chosen on the validation rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

import deltaprop as dp
from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.inference.evaluation import evaluate_file, evaluation_report
from deltaprop.inference.thresholds import Threshold, _best, find_threshold
from deltaprop.training.load_run import load_run
from tests.inference.conftest import Runs, first, inputs_of, probabilities_by_hand, write_csv


def test_a_threshold_changes_decisions_and_not_the_ranking(runs: Runs):
    """Probabilities of the second class σ(−2) 0.12, σ(1) 0.73, σ(3) 0.95, σ(−1) 0.27, and the truth 0 0 1 1.

    From 0.2 on: 0 1 1 1, so recall 1 and precision 2/3 of the second class; from 0.9 on 0 0 1 0.
    """
    model = dp.load(runs["numbers"].folder)
    outputs, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 0, 1, 1])
    plain = evaluation_report(model, outputs, y)
    for value, predicted, confusion in ((0.2, [0, 1, 1, 1], [[1, 1], [0, 2]]), (0.9, [0, 0, 1, 0], [[2, 0], [1, 1]])):
        report = evaluation_report(model, outputs, y, Threshold(1, value))
        assert report.predicted.tolist() == predicted
        assert report.confusion is not None
        assert report.confusion.tolist() == confusion
        assert report.figures["accuracy"] == 0.75
        assert (report.loss, report.figures["roc_auc"]) == (plain.loss, plain.figures["roc_auc"])
        assert report.figures["ece"] == plain.figures["ece"]
    # Of the first class, from 0.8 on: 0.88, 0.27, 0.05 and 0.73.
    assert Threshold(0, 0.8).decide(model, outputs).tolist() == [0, 1, 1, 1]
    p = float(model.objective.probabilities(outputs.double())[1, 1])
    assert Threshold(1, p).decide(model, outputs).tolist() == [0, 1, 1, 0]  # at least the threshold


@pytest.mark.parametrize("kind", ["numbers", "logit"])
@pytest.mark.parametrize(("by", "score"), [("f1", f1_score), ("balanced", balanced_accuracy_score)])
@pytest.mark.parametrize("positive", [0, 1])
def test_the_chosen_threshold_is_the_best_on_the_validation_rows(
    runs: Runs, kind: str, by: str, score: Any, positive: int
):
    """Against scikit-learn's scores at each probability that occurs, on the run's own validation rows."""
    folder = runs[kind].folder
    model, setup = dp.load(folder), load_run(folder)
    found = find_threshold(model, by, model.class_names[positive])
    part = setup.dataset.val
    with torch.no_grad():
        p = setup.objective.probabilities(setup.model(part.inputs(slice(None))).double())[:, positive].numpy()
    true = part.y.numpy() == positive
    best = max(score(true, p >= value) for value in np.unique(p))
    assert (found.positive, found.chosen, found.rows) == (positive, by, len(true))
    assert score(true, p >= found.value) == pytest.approx(best)


def test_the_choice_by_hand():
    """Positives at 0.2, 0.6 and 0.9, a negative at 0.3 and one at 0.4.

    F1: from above 0.4 on 2 of 3 found and none wrong: 2 · 2 / (2 + 3) = 0.8; all: 2 · 3 / (5 + 3) = 0.75. Thresholds
    between 0.4 and 0.6 decide the same; the nearest to ½ is taken. Balanced accuracy there: (2/3 + 1) / 2.
    """
    p, true = np.array([0.9, 0.3, 0.2, 0.6, 0.4]), np.array([True, False, True, True, False])
    assert _best(p, true, "f1") == 0.5
    assert _best(p, true, "balanced") == 0.5
    assert _best(p[:3], true[:3], "f1") == pytest.approx(0.1)  # all of 0.2, 0.3, 0.9: F1 0.8, from 0.3 on 0.5
    assert _best(np.array([0.7]), np.array([False]), "f1") == 0.5
    # One positive at 0.3, below three of ten negatives: from 0.3 on (1 + 0.7) / 2, with none predicted (0 + 1) / 2.
    p = np.array([0.3, 0.4, 0.5, 0.6, *[0.05] * 7])
    assert _best(p, np.arange(11) == 0, "balanced") == pytest.approx(0.175)


@pytest.mark.parametrize("words", [["--threshold", "0.3"], ["--threshold", "f1"], ["--threshold", "balanced"]], ids=str)
def test_evaluate_and_predict_use_the_same_threshold(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
):
    run, out = runs["numbers"], tmp_path / "o.csv"
    found = find_threshold(dp.load(run.folder), words[1])
    assert main(["predict", str(run.folder), "--data", run.data, "--out", str(out), *words]) == 0
    assert ("threshold" in capsys.readouterr().out) is (words[1] != "0.3")
    rows = [*csv.DictReader(out.read_text().splitlines())]
    probabilities = probabilities_by_hand(run, inputs_of("numbers"))[:, 1]
    sure = np.abs(probabilities - found.value) > 1e-4
    predicted = np.array([row["prediction"] for row in rows])
    assert (predicted[sure] == np.where(probabilities >= found.value, "yes", "no")[sure]).all()
    assert main(["evaluate", str(run.folder), "--data", run.data, "--json", str(tmp_path / "o.json"), *words]) == 0
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["threshold"] == {"class": "yes", "probability": found.value, "chosen_by": found.chosen or None}
    assert sum(row[1] for row in report["confusion"]) == (predicted == "yes").sum()
    assert f"threshold  {found.value:.4g} for class 'yes'" in capsys.readouterr().out
    expected = evaluate_file(dp.load(run.folder), run.data, threshold=found)
    assert report["accuracy"] == expected.figures["accuracy"]


def test_a_threshold_of_the_first_class(runs: Runs, tmp_path: Path):
    """The own test part: with 0.3 of 'no' the same as with 0.7 of 'yes', up to ties."""
    found = []
    for words in (["--threshold", "0.3", "--positive", "no"], ["--threshold", "0.7"]):
        assert main(["evaluate", str(runs["numbers"].folder), "--json", str(tmp_path / "o.json"), *words]) == 0
        found.append(json.loads((tmp_path / "o.json").read_text()))
    assert found[0]["confusion"] == found[1]["confusion"]
    assert found[0]["threshold"]["class"] == "no"


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("numbers", ["--threshold", "0"], "--threshold 0: it must be a probability between 0 and 1, both excluded"),
        ("numbers", ["--threshold", "1"], "--threshold 1: it must be"),
        ("numbers", ["--threshold", "1.5"], "or f1 or balanced"),
        ("numbers", ["--threshold", "nan"], "--threshold nan: it must be"),
        ("numbers", ["--threshold", "F2"], "--threshold F2: it must be"),
        (
            "numbers",
            ["--threshold", "0.5", "--positive", "maybe"],
            "--positive maybe: there is no such class (classes: no,",
        ),
        ("numbers", ["--positive", "no"], "--positive no: it is used with --threshold"),
        ("mixed", ["--threshold", "0.5"], "a threshold is for two classes, and the model predicts 3 classes"),
        ("value", ["--threshold", "f1"], "a threshold is for two classes, and the model predicts numbers"),
        ("mse", ["--threshold", "0.5"], "the model was trained by the loss mse: it has no probabilities"),
    ],
    ids=range(10),
)
def test_other_thresholds_are_refused(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: list[str], message: str
):
    path, out = write_csv(tmp_path / "t.csv", first(inputs_of(kind), 3)), tmp_path / "o.csv"
    for command in (["evaluate", str(runs[kind].folder)], ["predict", str(runs[kind].folder), "--out", str(out)]):
        assert main([*command, "--data", str(path), *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not out.exists()


def test_a_run_without_validation_rows_has_no_threshold_to_choose(runs: Runs):
    run = runs.train("no-validation", runs["numbers"].data, val_fraction=0.0, epochs=1)
    assert not (run.folder / "validation.safetensors").exists()
    with pytest.raises(
        UserError, match="no outputs for validation rows, on which it would be chosen: give a probability"
    ):
        find_threshold(dp.load(run.folder), "f1")
    assert find_threshold(dp.load(run.folder), 0.25).value == 0.25
