"""NaN and infinity: detected within 50 steps, reported with steps and layer, and never saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltaprop.training import TrainingError, train
from deltaprop.training.checkpoint import state_tensors
from deltaprop.training.finite_check import all_finite
from deltaprop.training.loop import Run
from deltaprop.training.report.reporter import Silent
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import small

ENGINES = ["autograd", "explicit"]


def assert_finite(folder: Path) -> None:
    """Assert that every tensor in a run folder is finite."""
    for path in folder.rglob("*.safetensors"):
        for name, value in load_file(path).items():
            assert bool(value.isfinite().all()), f"{path}: {name}"


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_is_reported_with_steps_layer_and_remedies(engine: str, tmp_path: Path):
    """With a huge η the float32 weights overflow within some steps."""
    folder = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        train(small(folder, engine=engine, lr=1e30, activation=("identity",), loss="quadratic", batch_size=8))
    message = str(error.value)
    assert "\n" not in message
    for word in (
        "not finite: layer 1 (",
        "epoch 1, steps 1 to ",
        "lower `lr` (it is 1e+30)",
        "`init`",
    ):
        assert word in message
    assert_finite(folder)
    load_checkpoint(folder / "checkpoints" / LAST)


class Corruptor(Silent):
    """A reporter that writes a value into the state after a step, or after the block of steps that contains it."""

    def __init__(self, at: int, what: str, value: float) -> None:
        self.at, self.what, self.value = at, what, value
        self.done = 0

    def step(self, epoch: int, steps: int, step: int) -> None:
        before, self.done = self.done, (epoch - 1) * steps + step
        if before < self.at <= self.done:
            self.corrupted_at = self.done
            self.corrupt()

    def corrupt(self) -> None:
        run = Corruptor.run
        if self.what == "loss":
            run.state.progress.total += self.value
            return
        tensors = state_tensors(run.setup.model, run.optimizer)
        name = {"weight": "model.0.weight", "bias": "model.2.bias", "momentum": "optimizer.momentum_buffer.2.weight"}[
            self.what
        ]
        tensors[name].view(-1)[0] = self.value

    run: Run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("what", "value"),
    [(what, math.nan) for what in ("weight", "bias", "momentum", "loss")]
    + [("weight", math.inf), ("momentum", -math.inf), ("loss", math.inf)],
)
@pytest.mark.parametrize("at", [3, 97])
def test_nan_and_infinity_are_detected_within_50_steps(
    what: str, value: float, at: int, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The state is corrupted after a step of the first of two epochs of 144 steps."""
    init = Run.__init__

    def remember(self: Run, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        Corruptor.run = self

    monkeypatch.setattr(Run, "__init__", remember)
    reporter = Corruptor(at, what, value)
    with pytest.raises(TrainingError) as error:
        train(small(tmp_path / "run", batch_size=5, activation=("tanh",), engine=engine), reporter)
    first, last = (int(word) for word in str(error.value).partition("steps ")[2].partition(":")[0].split(" to "))
    assert first <= reporter.corrupted_at + 1
    assert reporter.corrupted_at <= last <= reporter.corrupted_at + 50
    assert_finite(tmp_path / "run")


def test_the_finite_check_does_not_run_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A check waits for the device."""
    checks = []
    monkeypatch.setattr("deltaprop.training.loop.all_finite", lambda tensors: checks.append(1) or all_finite(tensors))
    train(small(tmp_path / "run", batch_size=5))  # 288 steps, 2 epochs, and 4 checkpoints
    assert len(checks) <= 288 // 49 + 2 + 4 + 2


def test_a_non_finite_validation_loss_is_never_the_best(tmp_path: Path):
    """Finite weights may give infinite outputs."""
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"the (validation|training) loss became|not finite"):
        train(small(folder, lr=1e18, activation=("identity",), loss="quadratic", momentum=0.0))
    assert_finite(folder)


def test_finite_numbers_whose_sum_overflows_are_accepted():
    big = torch.full((8,), 3e38)
    assert all_finite([big])
    assert not all_finite([big, torch.tensor([math.nan])])
    assert all_finite([])
    assert all_finite([torch.tensor([1, 2])])
