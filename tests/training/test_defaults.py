"""The values that ``auto`` stands for, by the data; a value that the user gives is never replaced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltaprop.cli.console import describe
from deltaprop.training import TrainConfig, defaults, train
from deltaprop.training.config import read_toml
from deltaprop.training.setup import farthest, make_optimizer, prepare
from tests.training.test_resume import interrupted_and_resumed

TABLE = {"lr": 0.01, "lr_schedule": "cosine", "weight_decay": 0.01}
OTHER = {"lr": 0.05, "lr_schedule": "constant", "weight_decay": 0.0, "epochs": 30, "log_every": 5, "weights": "final"}
AUTO = ("lr", "lr_schedule", "weight_decay", "epochs", "log_every", "weights")


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with 100 rows as a table of classes, one of numbers, arrays and images."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(100, 2))
    for name, y in (("classes", np.where(x[:, 0] > 0, "yes", "no")), ("numbers", x.sum(1))):
        Path(f"{name}.csv").write_text("\n".join(["a,b,y", *(f"{a},{b},{c}" for (a, b), c in zip(x, y, strict=True))]))
    np.savez("arrays.npz", x=x, y=x[:, 0] > 0)
    np.savez("images.npz", x=np.zeros((100, 3, 3), dtype=np.uint8), y=np.arange(100) % 2)


def resolved(data: str, **settings: Any) -> dict[str, Any]:
    config = prepare(TrainConfig(data=data, hidden=(4,), **settings)).config
    return {name: getattr(config, name) for name in AUTO}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # 100 rows: 20 to test, 8 to validate, 72 to train: 5 steps of 16, of which 1000 are 200 epochs; a third is 67.
        ("classes.csv", {**TABLE, "epochs": 200, "log_every": 67, "weights": "best"}),
        ("numbers.csv", {**TABLE, "epochs": 200, "log_every": 67, "weights": "final"}),
        ("arrays.npz", {**TABLE, "epochs": 200, "log_every": 67, "weights": "best"}),
        ("images.npz", OTHER),
        ("digits", OTHER),
        ("moons", OTHER),
    ],
)
def test_auto_depends_on_the_data(data: str, expected: dict[str, Any]):
    assert resolved(data) == expected


@pytest.mark.parametrize("outlier", ["", "a", "y"], ids=["none", "an input", "a target"])
def test_the_learning_rate_of_a_table_falls_with_the_square_of_its_largest_number(outlier: str):
    """One row of N that differs is about √N deviations from the mean: of 2000 rows 45, and (20/45)² is 0.2."""
    cells = {"a": [at % 2 for at in range(2000)], "y": [at % 3 + 0.5 for at in range(2000)]}
    if outlier:
        cells[outlier][7] = -1e6
    Path("t.csv").write_text("\n".join(["a,y", *(f"{a},{y}" for a, y in zip(cells["a"], cells["y"], strict=True))]))
    setup = prepare(TrainConfig(data="t.csv", hidden=(4,), test="t.csv", val_fraction=0.0))
    assert farthest(setup.dataset) == pytest.approx(1999**0.5 if outlier else 1.2, rel=0.03)
    assert setup.config.lr == pytest.approx(0.01 * 400 / 1999 if outlier else 0.01, rel=0.05)
    assert prepare(replace(setup.config, lr="auto", scaling="none")).config.lr == 0.01


def test_a_table_with_heavy_tails_is_learned():
    """Log-normal numbers; at η 0.01 all units die, and R² is 0."""
    rng = np.random.default_rng(1)
    a = np.exp(2 * rng.normal(size=2000))
    y = 3 * a + rng.normal(size=2000)
    Path("t.csv").write_text("\n".join(["a,y", *(f"{u},{v}" for u, v in zip(a, y, strict=True))]))
    result = train(TrainConfig(data="t.csv", epochs=10, log_every=0, engine="explicit", run_dir=Path("r")))
    assert result.metrics["test_r2"] > 0.9


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1000), (33, 31), (34, 30), (1000, 30)])
def test_there_are_at_least_30_epochs_and_1000_steps(steps: int, epochs: int):
    """⌈1000/33⌉ = 31 and ⌈1000/34⌉ = 30."""
    assert defaults.usual_epochs(steps) == epochs


def test_the_steps_of_an_epoch_depend_on_the_batch():
    """72 rows are 3 steps of 32, of which 1000 are 334 epochs."""
    assert resolved("classes.csv", batch_size=32)["epochs"] == 334


@pytest.mark.parametrize("data", ["classes.csv", "moons"])
def test_a_value_of_the_users_wins(data: str):
    """Also one that is the default for other data."""
    own = {"lr": 0.5, "lr_schedule": "step", "weight_decay": 0.0, "epochs": 3, "log_every": 5, "weights": "final"}
    assert resolved(data, **own) == own
    for name, value in own.items():
        others = {"epochs": ("epochs", "log_every")}.get(name, (name,))
        assert resolved(data, **{name: value}) == {**resolved(data), **{other: own[other] for other in others}}


def test_auto_is_a_value_of_a_file(tmp_path: Path):
    Path("c.toml").write_text("".join(f'{name.replace("_", "-")} = "auto"\n' for name in AUTO))
    assert TrainConfig(**read_toml(Path("c.toml"))) == TrainConfig()


@pytest.mark.parametrize(("epochs", "every"), [(1, 5), (30, 5), (31, 6), (300, 50)])
def test_the_costly_views_are_about_six(epochs: int, every: int):
    """Every 5 epochs, as ever, in runs of up to 30."""
    assert resolved("moons", epochs=epochs)["log_every"] == every


def test_only_weights_decay():
    """λ 0.01 is for weights alone."""
    setup = prepare(TrainConfig(data="classes.csv", hidden=(4,)))
    weights, biases = make_optimizer(setup.model, setup.config).param_groups
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.01, 0.0)


def test_the_summary_tells_the_values():
    rows = dict(describe(prepare(TrainConfig(data="classes.csv", hidden=(4,)))))
    assert rows["sgd"] == "η 0.01, batch 16, momentum 0.9, weight decay 0.01, cosine schedule"
    assert rows["epochs"] == "200, each of 5 steps"


def test_a_run_records_the_values_and_resumes_with_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same bits as a run that was not interrupted."""
    monkeypatch.setattr(defaults, "EPOCHS", 2)
    monkeypatch.setattr(defaults, "FEWEST_STEPS", 12)  # 3 epochs of 5 steps
    config = TrainConfig(data="classes.csv", hidden=(4,), log_every=0, run_dir=tmp_path / "whole")
    whole = train(config)
    saved = json.loads((whole.folder / "config.json").read_text())
    assert {name: saved[name] for name in AUTO} == {**TABLE, "epochs": 3, "log_every": 0, "weights": "best"}
    config = TrainConfig(data="classes.csv", hidden=(4,), log_every=0, run_dir=tmp_path / "interrupted")
    folder = interrupted_and_resumed(config, 7)
    for name in ("model.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
    monkeypatch.setattr(defaults, "EPOCHS", 9)  # a later default changes nothing
    assert train(config, resume=folder).metrics["epoch"] == 3
