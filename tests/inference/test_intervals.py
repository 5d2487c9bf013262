"""Conformal intervals: the radius by hand, coverage over many draws, and the intervals of trained runs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaprop as dp
from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.inference.evaluation import evaluation_report
from deltaprop.inference.intervals import interval_radius
from deltaprop.training import TrainConfig, train
from deltaprop.training.load_run import load_run
from deltaprop.training.validation_outputs import ValidationOutputs
from tests.inference.conftest import Runs, first, inputs_of, predictions_by_hand, write_csv


@pytest.mark.parametrize(
    ("n", "level", "rank"),
    [(9, 0.9, 9), (19, 0.9, 18), (10, 0.9, 10), (9, 0.7, 7), (9, 0.1, 1), (99, 0.99, 99), (4, 0.5, 3), (1, 0.5, 1)],
)
def test_the_rank_by_hand(n: int, level: float, rank: int):
    """⌈(n + 1) level⌉: 10 · 0.9 = 9, 20 · 0.9 = 18, 11 · 0.9 = 9.9, 10 · 0.7 = 7 (7.000000000000001 in float64), …."""
    residuals = np.random.default_rng(0).permutation(n)[:, None] + 1.0
    assert interval_radius(residuals, level).tolist() == [rank]


def test_each_target_has_its_own_radius():
    residuals = np.array([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0]])
    assert interval_radius(residuals, 0.5).tolist() == [2.0, 20.0]  # ⌈4 · 0.5⌉ = 2


@pytest.mark.parametrize(
    ("n", "level", "least"), [(8, 0.9, 9), (0, 0.5, 1), (98, 0.99, 99), (18, 0.95, 19), (2, 0.7, 3)]
)
def test_too_few_rows_are_refused_with_the_number_needed(n: int, level: float, least: int):
    """The least n with ⌈(n + 1) level⌉ ≤ n is ⌈level / (1 − level)⌉: with that many it works."""
    with pytest.raises(
        UserError, match=rf"level {level} needs at least {least} validation rows?, and the run has {n}:"
    ):
        interval_radius(np.ones((n, 1)), level)
    assert interval_radius(np.ones((least, 1)), level).tolist() == [1.0]


@pytest.mark.parametrize("level", [0, 1, -0.5, 2, float("nan"), True, "0.9"], ids=str)
def test_a_level_out_of_range_is_refused(level: Any):
    with pytest.raises(UserError, match="a level lies between 0 and 1"):
        interval_radius(np.ones((9, 1)), level)


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (20, 0.8), (30, 0.5)])
def test_the_coverage_is_that_of_the_theorem(n: int, level: float):
    """For residuals without ties it is ⌈(n + 1) level⌉ / (n + 1) exactly: 0.9, 17/21 and 16/31.

    20000 draws of n residuals and a new one; the standard error of the share is below 0.0036.
    """
    draws = np.abs(np.random.default_rng(0).standard_t(3, size=(n + 1, 20000)))
    covered = (draws[n] <= interval_radius(draws[:n], level)).mean()
    assert covered == pytest.approx(np.ceil((n + 1) * level) / (n + 1), abs=0.012)


def test_a_model_covers_new_rows_over_several_seeds(runs: Runs):
    """39 new validation rows and 500 test rows each of 20 seeds, for one model: ⌈40 · 0.9⌉ / 40 = 0.9.

    The coverage with one validation part has a deviation of √(0.9 · 0.1 / 41) = 0.047; the mean of 20 has 0.011.
    """
    model, shares = dp.load(runs["single"].folder), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(539, 1))
        y = np.sin(x) + rng.standard_t(4, size=(539, 1))
        targets = model.target_scaling.apply(torch.from_numpy(y[:39]))
        of_seed = replace(model, validation=ValidationOutputs(model.outputs(x[:39]), targets))
        low, high = of_seed.predict_interval(x[39:], 0.9)
        shares.append(((low <= y[39:, 0]) & (y[39:, 0] <= high)).mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.03)


@pytest.mark.slow
def test_trained_runs_cover_new_rows(tmp_path: Path):
    """Over 20 seeds of data, split and weights: 60 validation rows and 500 new rows each."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(650, 2))
        y = 100 * x[:, 0] + 20 * rng.standard_t(4, 650)
        np.savez(tmp_path / "t.npz", x=x[:150], y=y[:150])
        run = tmp_path / f"run{seed}"
        settings: dict[str, Any] = {"hidden": (8,), "epochs": 10, "val_fraction": 0.5, "log_every": 0, "lr": 0.02}
        train(TrainConfig(data=str(tmp_path / "t.npz"), run_dir=run, seed=seed, **settings))
        low, high = dp.load(run).predict_interval(x[150:], 0.9)
        shares.append(((low <= y[150:]) & (y[150:] <= high)).mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.03)


# --- runs ---


def residuals_by_hand(run: Path, weights: str) -> np.ndarray:
    """Return |y − ŷ| of the validation rows of a run, in the targets' own units, by a forward pass in float64."""
    setup = load_run(run, weights)
    part, scaling = setup.dataset.val, setup.dataset.target_scaling
    with torch.no_grad():
        outputs = setup.model.double()(part.inputs(slice(None)).double())
    return ((outputs - part.y.double()).abs() * scaling.scale).numpy()


@pytest.mark.parametrize("kind", ["value", "two"])
@pytest.mark.parametrize("weights", ["final", "best"])
def test_the_interval_is_a_residual_of_the_weights_that_are_loaded(runs: Runs, kind: str, weights: str):
    """24 validation rows: at level 0.8 the 20th smallest of each target, at 0.5 the 13th."""
    run, data = runs[kind], first(inputs_of(kind), 5)
    model = dp.load(run.folder, weights)
    residuals = np.sort(residuals_by_hand(run.folder, weights), axis=0)
    assert len(residuals) == 24
    for level, rank in ((0.8, 20), (0.5, 13)):
        low, high = model.predict_interval(data, level)
        predicted = model.predict(data)
        assert low.shape == predicted.shape
        expected = residuals[rank - 1] if kind == "two" else residuals[rank - 1, 0]
        np.testing.assert_allclose(high - predicted, np.broadcast_to(expected, predicted.shape), rtol=1e-4)
        np.testing.assert_allclose(predicted - low, high - predicted, rtol=1e-9)


def test_classes_have_no_intervals(runs: Runs):
    with pytest.raises(UserError, match=r"it is for numbers, and the model predicts classes"):
        dp.load(runs["numbers"].folder).predict_interval(first(inputs_of("numbers"), 2))


def test_coverage_and_width_are_evaluated(runs: Runs):
    """Predictions of which the first three of four are within the radius, one of them just so."""
    model = dp.load(runs["value"].folder)
    radius = float(model.interval_radius(0.9)[0])
    y = np.array([[0.0], [1.0], [-1.0], [5.0]])
    outputs = model.target_scaling.apply(torch.from_numpy(y + radius * np.array([[0.0], [0.999], [-0.5], [1.001]])))
    report = evaluation_report(model, outputs, y)
    assert report.intervals == {"v": {"coverage": 0.75, "width": pytest.approx(2 * radius)}}
    found = report.to_json()["intervals"]
    assert found == {"level": 0.9, "targets": report.intervals, "reason": None}


def test_too_few_validation_rows_are_told_by_evaluate_and_refused_by_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """8 validation rows, and 9 are needed; without a validation part there are none."""
    data = write_csv(tmp_path / "t.csv", {"a": [*range(100)], "v": [at**1.5 for at in range(100)]})
    few = "an interval of level 0.9 needs at least 9 validation rows, and the run has 8: take a lower level, or train"
    none = "the run folder has no outputs for validation rows, which intervals need: train again"
    for name, fraction, text in (
        ("few", 0.1, f"{few} with a larger --val-fraction"),
        ("none", 0.0, f"{none}, with a --val-fraction above 0"),
    ):
        run = tmp_path / name
        settings: dict[str, Any] = {"hidden": (), "epochs": 1, "val_fraction": fraction, "log_every": 0}
        train(TrainConfig(data=str(data), run_dir=run, task="regression", **settings))
        assert main(["evaluate", str(run), "--json", str(tmp_path / "o.json")]) == 0
        assert f"none: {text}" in " ".join(capsys.readouterr().out.split())
        assert json.loads((tmp_path / "o.json").read_text())["intervals"]["targets"] is None
        assert (
            main(["predict", str(run), "--data", str(data), "--interval", "0.9", "--out", str(tmp_path / "p.csv")]) == 2
        )
        assert capsys.readouterr().err == f"error: {text}\n"
        assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("kind", ["value", "two"])
def test_predict_writes_the_intervals(runs: Runs, tmp_path: Path, kind: str):
    run, columns = runs[kind], first(inputs_of(kind), 7)
    path, out = write_csv(tmp_path / "t.csv", columns), tmp_path / "o.csv"
    assert main(["predict", str(run.folder), "--data", str(path), "--interval", "0.8", "--out", str(out)]) == 0
    rows = [*csv.DictReader(out.read_text().splitlines())]
    low, high = dp.load(run.folder).predict_interval(columns, 0.8)
    ends = [""] if kind == "value" else ["_u", "_v"]
    assert [*rows[0]] == [
        *(f"prediction{end}" for end in ends),
        *(f"{side}{end}" for end in ends for side in ("low", "high")),
    ]
    expected = predictions_by_hand(run, columns)
    for at, end in enumerate(ends):
        values = {
            name: np.array([float(row[f"{name}{end}"]) for row in rows]) for name in ("prediction", "low", "high")
        }
        np.testing.assert_allclose(values["prediction"], expected[:, at], rtol=1e-4)
        np.testing.assert_allclose(values["low"], low.reshape(7, -1)[:, at], rtol=1e-9)
        np.testing.assert_allclose(values["high"], high.reshape(7, -1)[:, at], rtol=1e-9)


def test_a_column_called_low_can_be_kept_unless_intervals_are_written(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_csv(tmp_path / "t.csv", {**first(inputs_of("value"), 3), "low": [1, 2, 3]})
    words = [
        "predict",
        str(runs["value"].folder),
        "--data",
        str(path),
        "--keep",
        "low",
        "--out",
        str(tmp_path / "o.csv"),
    ]
    assert main(words) == 0
    assert main([*words, "--interval", "0.5"]) == 2
    assert "--keep low: this is the name of a prediction" in capsys.readouterr().err


def test_outputs_of_other_weights_or_a_damaged_file_are_not_used(runs: Runs, tmp_path: Path):
    folder = runs["value"].copy(tmp_path / "run")
    path = folder / "validation.safetensors"
    assert dp.load(folder).validation is not None
    content = path.read_bytes()
    for damaged in (content[:-1], b"", b"x" * 100, None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert dp.load(folder).validation is None
        path.write_bytes(content)
    state = load_file(folder / "model.safetensors")
    save_file({name: value + 0.5 for name, value in state.items()}, folder / "model.safetensors")
    for checkpoint in (folder / "checkpoints").iterdir():  # it would show that the weights are others
        checkpoint.unlink()
    assert dp.load(folder).validation is None
    assert dp.load(folder, "best").validation is not None


def test_outputs_of_equal_weights_are_stored_once(runs: Runs):
    """The best epoch of one epoch is the last."""
    run = runs.train("one-epoch", runs["value"].data, epochs=1)
    assert load_file(run.folder / "validation.safetensors").keys() == {"targets", "outputs.final"}
    assert load_file(runs["two"].folder / "validation.safetensors").keys() >= {"targets", "outputs.final"}
    for weights in ("final", "best"):
        assert dp.load(run.folder, weights).validation is not None


def test_many_validation_rows_are_thinned_evenly(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    """At most 10 of 24 rows are stored: each third, 8."""
    monkeypatch.setattr("deltaprop.training.validation_outputs.MOST_STORED", 10)
    run = runs.train("thinned", runs["value"].data, epochs=1)
    validation = dp.load(run.folder).validation
    assert validation is not None
    assert torch.equal(validation.targets, load_run(run.folder).dataset.val.y[::3])
