"""Fixtures and helpers of the training tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaprop.training import Result, TrainConfig, train
from deltaprop.training.report.reporter import Reporter


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that trains a small net on moons into a new folder; settings may be replaced."""
    return starter(tmp_path)


def starter(tmp_path: Path) -> Callable[..., Result]:
    """Return the function of the fixture ``run``, for new folders below ``tmp_path``."""
    count = 0

    def start(reporter: Reporter | None = None, **settings: Any) -> Result:
        nonlocal count
        count += 1
        small = {
            "data": "moons",
            "hidden": (8,),
            "epochs": 3,
            "log_every": 0,
            "seed": 0,
            "run_dir": tmp_path / f"run{count}",
        }
        return train(TrainConfig(**{**small, **settings}), reporter)

    return start


def metrics_of(result: Result) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]


TIMES = ("seconds", "samples_per_second")


def without_times(result: Result) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl without the measured times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics_of(result)]
