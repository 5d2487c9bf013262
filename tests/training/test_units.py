"""Figures of numeric targets in their own units: computed in float64, whatever their size and offset.

The rows are always the same up to the unit of the target, so that the figures in that unit are known from those of
plain targets: rmse times the factor, mse times its square.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaprop.errors import UserError
from deltaprop.inference.evaluation import evaluate_file
from deltaprop.inference.model import load
from deltaprop.training import Result
from deltaprop.training.checkpoint import encode, read_checkpoint
from deltaprop.training.config import TrainConfig
from deltaprop.training.evaluate import SELECTED_BY
from deltaprop.training.loop import train
from tests.training.conftest import metrics_of

X = np.random.default_rng(0).normal(size=(120, 2))
PLAIN = X[:, 0] + X[:, 1] ** 2

# The targets as offset + factor · PLAIN, and how far float64 resolves the figures.
UNITS = {
    "times in seconds": (1.7e9, 60.0, 1e-6),
    "small differences": (1e5, 0.01, 1e-6),
    "tiny": (0.0, 1e-24, 1e-6),
    "huge": (0.0, 1e20, 1e-6),
    "large whole numbers": (1e15, 50.0, 1e-2),  # float64 has steps of 0.125 there
}


@pytest.fixture
def fit(run: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Return a function that trains on targets, which it writes to a file of their own."""

    def fit(y: np.ndarray[Any, Any], **settings: Any) -> Result:
        path = tmp_path / "numbers.npz"
        np.savez(path, x=X, y=y)
        return run(**{"data": str(path), "task": "regression", "hidden": (4,), "lr": 0.02, "epochs": 3, **settings})

    return fit


@pytest.mark.parametrize(("unit", "engine"), [*((unit, "explicit") for unit in UNITS), ("huge", "autograd")])
def test_figures_are_those_of_plain_targets_in_another_unit(fit: Callable[..., Result], unit: str, engine: str):
    """The net sees the same standardised targets, so it learns the same, and the same epoch is the best."""
    offset, factor, tolerance = UNITS[unit]
    plain, scaled = fit(PLAIN, engine=engine), fit(offset + factor * PLAIN, engine=engine)
    assert scaled.best is not None
    assert plain.best is not None
    assert scaled.best["epoch"] == plain.best["epoch"]
    for one, other in zip(metrics_of(scaled), metrics_of(plain), strict=True):
        for part in ("train", "val", "test"):
            assert one[f"{part}_loss"] == pytest.approx(other[f"{part}_loss"] * factor**2, rel=tolerance, abs=0)
        assert one["val_rmse"] == pytest.approx(other["val_rmse"] * factor, rel=tolerance, abs=0)
        assert one["val_loss"] == pytest.approx(one["val_rmse"] ** 2, rel=1e-12, abs=0)
        assert one[SELECTED_BY] == pytest.approx(other[SELECTED_BY], rel=tolerance)


def test_evaluate_tells_the_same_figures_as_training(fit: Callable[..., Result], tmp_path: Path):
    """Predictions less the raw targets, squared, by hand: 1.7e9 in float32 has steps of 128."""
    y = 1.7e9 + 60 * PLAIN
    result = fit(y)
    model = load(result.folder)
    report = evaluate_file(model, tmp_path / "numbers.npz")
    by_hand = float(np.square(model.predict(X) - y).mean())
    assert report.loss == pytest.approx(by_hand, rel=1e-12)
    assert report.figures["rmse"] == pytest.approx(math.sqrt(by_hand), rel=1e-12)
    assert by_hand < 60**2 * PLAIN.var()


def test_early_stopping_and_the_best_epoch_follow_the_loss_that_is_minimised(fit: Callable[..., Result]):
    """In their own units the second target, noise in thousands, is nearly all of the loss told."""
    noise = np.random.default_rng(1).normal(size=len(X))
    result = fit(np.stack([PLAIN, 1000 * noise], axis=1), epochs=20, patience=4, lr=0.01)
    lines = metrics_of(result)
    told, minimised = (int(np.argmin([line[name] for line in lines])) for name in ("val_loss", SELECTED_BY))
    assert result.best is not None
    assert result.best["epoch"] == 1 + minimised
    assert told != minimised, "the case does not distinguish the two"
    assert len(lines) == min(20, 1 + minimised + 4)


def test_an_older_checkpoint_gets_the_loss_that_selects_from_its_best_weights(fit: Callable[..., Result]):
    """Without the field, and with a loss in own units that was told wrongly: later epochs are still compared right."""
    result = fit(PLAIN)
    assert result.best is not None
    path = result.folder / "checkpoints" / "last.safetensors"
    checkpoint = read_checkpoint(path)
    best = {name: value for name, value in checkpoint.state["best"].items() if name != SELECTED_BY}
    checkpoint.state["best"] = {**best, "val_loss": 0.0}  # type: ignore[index]
    checkpoint.tensors["total"] = checkpoint.tensors["total"].float()  # type: ignore[index]
    path.write_bytes(encode(checkpoint))
    config = json.loads((result.folder / "config.json").read_text())
    longer = train(
        TrainConfig(
            data=config["data"], task="regression", hidden=(4,), lr=0.02, epochs=6, log_every=0, seed=0,
            run_dir=result.folder,
        ),
        resume=result.folder,
    )  # fmt: skip
    lines = metrics_of(longer)
    assert longer.best is not None
    assert longer.best["epoch"] == 1 + int(np.argmin([line[SELECTED_BY] for line in lines])) > 3


REFUSED = {
    "1e-200": (1e-200, 0.0, r"standard deviation of \S+e-200.*multiplied by 1e200"),
    "1e200": (1e200, 0.0, r"standard deviation of \S+e\+200.*multiplied by 1e-200"),
    "1e307": (1e307, 0.0, r"multiplied by 1e-300"),
    "offset": (50.0, 1e17, r"less than three digits.*subtract 1e\+17"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_float64_cannot_hold_are_refused_by_name(tmp_path: Path, case: str):
    factor, offset, message = REFUSED[case]
    path = tmp_path / "t.csv"
    rows = zip(X.tolist(), (offset + factor * PLAIN).tolist(), strict=True)
    path.write_text("a,b,price\n" + "".join(f"{a!r},{b!r},{y!r}\n" for (a, b), y in rows))
    with pytest.raises(UserError, match="the target 'price' .*" + message):
        train(TrainConfig(data=str(path), run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factor", [1e-149, 1e149])
def test_the_hint_at_another_unit_works(fit: Callable[..., Result], factor: float):
    """Just within the limits; those beyond, multiplied as the message says, are about 1."""
    result = fit(factor * PLAIN, epochs=1)
    assert result.metrics["val_loss"] == pytest.approx(result.metrics["val_rmse"] ** 2, rel=1e-12, abs=0)


def test_losses_of_an_epoch_are_summed_in_float64(fit: Callable[..., Result]):
    result = fit(PLAIN, epochs=1)
    checkpoint = read_checkpoint(result.folder / "checkpoints" / "last.safetensors")
    assert checkpoint.tensors["total"].dtype == torch.float64
