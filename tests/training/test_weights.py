"""Which weights are the model of a run: chosen when it is trained, recorded, and used by every later command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.errors import UserError
from deltaprop.training import Result, TrainConfig, setup, train
from deltaprop.training.load_run import recorded_weights
from deltaprop.training.setup import prepare
from tests.training.conftest import metrics_of

SMALL = {"hidden": (4,), "epochs": 6, "lr": 0.3, "log_every": 0, "seed": 0, "device": "cpu"}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with a table of classes that are noise, one of numbers, arrays and images."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(80, 2)), rng.normal(size=80)
    rows = [f"{a:.3f},{b:.3f}" for a, b in x]
    for name, y in (("classes", np.where(noise > 0, "yes", "no")), ("numbers", x[:, 0] + noise)):
        lines = [f"{row},{value}" for row, value in zip(rows, y, strict=True)]
        Path(f"{name}.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    np.savez("arrays.npz", x=x, y=x[:, 0] > 0)
    np.savez("images.npz", x=rng.integers(256, size=(80, 3, 3), dtype=np.uint8), y=np.arange(80) % 2)


@pytest.fixture
def noisy(tables: None) -> Result:
    """A run on the table of classes whose lowest validation loss is not that of the last epoch."""
    result = train(TrainConfig(**{**SMALL, "data": "classes.csv", "run_dir": "run"}))
    assert result.best is not None
    assert result.best["epoch"] < result.metrics["epoch"]
    return result


@pytest.mark.parametrize(
    ("data", "val_fraction", "weights"),
    [("classes.csv", 0.1, "best"), ("arrays.npz", 0.1, "best"), ("classes.csv", 0.0, "final"),
     ("numbers.csv", 0.1, "final"), ("images.npz", 0.1, "final"), ("moons", 0.1, "final")],
)  # fmt: skip
def test_auto_is_best_for_classes_of_own_tables_with_validation_rows(
    tables: None, data: str, val_fraction: float, weights: str
):
    config = TrainConfig(**{**SMALL, "data": data, "val_fraction": val_fraction})
    prepared = prepare(config)
    assert (prepared.config.weights, prepared.to_json()["resolved"]["weights"]) == (weights, weights)
    assert prepare(dataclasses.replace(config, weights="final")).config.weights == "final"  # the user's own choice


def same(model: dp.Model, file: str) -> bool:
    state = model.net.state_dict()
    return all(torch.equal(state[name], value) for name, value in load_file(file).items())


def test_every_command_uses_the_recorded_weights_and_names_them(noisy: Result, capsys: pytest.CaptureFixture[str]):
    assert not same(dp.load("run", "final"), "run/best.safetensors")
    for weights, file in ((None, "best"), ("best", "best"), ("final", "model")):
        assert same(dp.load("run", weights), f"run/{file}.safetensors")
        words, name = (["--weights", weights], weights) if weights else ([], "best")
        assert main(["evaluate", "run", "--json", "e.json", *words]) == 0
        assert main(["predict", "run", "--data", "classes.csv", "--out", "p.csv", *words]) == 0
        assert main(["export", "run", "--to", "state-dict", "--out", "e.safetensors", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"run ({name} weights) on its own test part" in lines
        assert f"80 rows: p.csv ({name} weights)" in lines
        assert any(re.fullmatch(rf"e\.safetensors: \d+ bytes, {name} weights", line) for line in lines)
        evaluation = json.loads(Path("e.json").read_text())
        metrics = noisy.best if name == "best" else noisy.metrics
        assert evaluation["weights"] == name
        assert evaluation["loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)  # type: ignore[index]
    assert main(["info", "run"]) == 0
    assert "best: run/best.safetensors (the model)" in capsys.readouterr().out
    assert main(["trace", "run", "--rows", "30"]) == 0
    assert "its best weights" in capsys.readouterr().out


def test_the_end_of_training_says_which_weights_are_the_model(tables: None, capsys: pytest.CaptureFixture[str]):
    words = ["--hidden", "4", "--epochs", "6", "--lr", "0.3", "--log-every", "0", "--seed", "0"]
    for weights, other in (("best", "final"), ("final", "best")):
        run = ["--data", "classes.csv", "--weights", weights, "--run-dir", weights]
        assert main(["train", *words, *run]) == 0
        printed = capsys.readouterr().out
        rows = {name: line for line in printed.splitlines() for name in ("test", other) if line.startswith(name)}
        lines = map(json.loads, Path(weights, "metrics.jsonl").read_text().splitlines())
        best = min(lines, key=lambda line: line["val_loss"])
        epochs = {"best": best["epoch"], "final": 6}
        assert rows["test"].endswith(f"({weights} weights, epoch {epochs[weights]})")
        assert f"(epoch {epochs[other]}" in rows[other]
        assert ("the weights of the lowest validation loss" in printed) == (weights == "best")


def test_the_metrics_of_the_model_are_those_of_its_epoch(noisy: Result):
    assert noisy.weights == "best"
    assert noisy.model_metrics == noisy.best == min(metrics_of(noisy), key=lambda m: m["val_loss"])
    assert dataclasses.replace(noisy, weights="final").model_metrics == noisy.metrics


def change(edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the run's config.json."""
    path = Path("run/config.json")
    saved = json.loads(path.read_text())
    edit(saved)
    path.write_text(json.dumps(saved))


def test_a_run_that_records_none_has_the_final_weights(noisy: Result):
    """As of version 0.1."""
    change(lambda saved: (saved.pop("weights"), saved["resolved"].pop("weights")))
    assert recorded_weights(noisy.folder) == "final"
    assert same(dp.load("run"), "run/model.safetensors")


def test_a_damaged_record_is_refused(noisy: Result):
    change(lambda saved: saved["resolved"].update(weights="final"))
    with pytest.raises(UserError, match=r"run/config.json: damaged: its weights are 'best', and resolved 'final'"):
        dp.load("run")


def test_the_model_of_a_run_that_has_not_ended_is_named_first(noisy: Result):
    """Its best weights so far are no model, unless they are asked for."""
    Path("run/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: there is no such file: take `weights='best'`"):
        dp.load("run")
    assert same(dp.load("run", "best"), "run/best.safetensors")


def test_a_finished_run_may_record_other_weights_on_resume(noisy: Result):
    assert main(["train", "--resume", "run", "--weights", "final"]) == 0
    assert recorded_weights(noisy.folder) == "final"
    assert main(["train", "--resume", "run"]) == 0
    assert recorded_weights(noisy.folder) == "final"
    assert same(dp.load("run"), "run/model.safetensors")


def test_best_weights_need_validation_rows():
    with pytest.raises(UserError, match=r"`weights` must be .* used with a `val_fraction` above 0, got best"):
        TrainConfig(weights="best", val_fraction=0.0).validate()


@pytest.mark.parametrize("settings", [{"weights": "best"}, {"patience": 3}], ids=str)
def test_what_needs_validation_rows_is_refused_without_any(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]):
    """Also where the data, and not ``val_fraction``, leave none."""

    def load(*args: Any, **options: Any) -> Any:
        dataset = dp.data.load("moons", val_fraction=0.0)
        assert not len(dataset.val)
        return dataset

    monkeypatch.setattr(setup, "load", load)
    (name,) = settings
    with pytest.raises(
        UserError, match=f"^`{name}=.*`: there are no rows to validate on: take `{name}=.*`, or a larger"
    ):
        prepare(TrainConfig(data="moons", **settings))
    assert prepare(TrainConfig(data="moons")).config.weights == "final"
