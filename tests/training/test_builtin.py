"""The built-in data sets are learned with the default settings, by the commands of docs/training.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from deltaprop.cli import main
from deltaprop.data import BUILTIN, BUILTIN_LR
from tests.training.conftest import starter


def test_each_built_in_set_has_its_learning_rate():
    assert BUILTIN_LR.keys() == BUILTIN.keys()


def test_the_sine_is_learned_with_the_default_settings(tmp_path: Path):
    """0.11 with seed 4; at η 0.05 it was 0.72, worse than the 0.6 of a straight line."""
    result = starter(tmp_path)(data="sine", hidden=(128, 64), epochs=30, engine="explicit", seed=4)
    assert result.metrics["test_rmse"] < 0.2


def final_figures(folder: Path, words: list[str], name: str) -> list[float]:
    """Return a figure of the last epoch of ten runs, sorted; seeds 0 to 9."""
    found = []
    for seed in range(10):
        run = folder / str(seed)
        assert main(["train", *words, "--log-every", "0", "--seed", str(seed), "--run-dir", str(run)]) == 0
        found.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])[name])
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["", "--engine explicit", "--loss huber"])
def test_the_commands_for_the_sine_learn_it_with_every_seed(words: str, tmp_path: Path):
    """The noise alone has an rmse of 0.05."""
    found = final_figures(tmp_path, ["--data", "sine", *words.split()], "test_rmse")
    assert statistics.median(found) <= 0.1
    assert found[-1] <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "least"), [("digits", 0.96), ("moons", 0.985), ("circles", 0.985), ("spirals", 0.98), ("xor", 0.985)]
)
def test_the_sets_with_classes_are_learned_with_every_seed(data: str, least: float, tmp_path: Path):
    """In the worst of ten runs."""
    assert final_figures(tmp_path, ["--data", data, "--engine", "explicit"], "test_accuracy")[0] >= least
