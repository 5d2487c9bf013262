"""The interface that receives a run's progress, and the result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.training.baseline import Baseline
from deltaprop.training.setup import Setup


class Reporter:
    """Receives the progress of a run; each method does nothing unless it is overridden."""

    def reading(self, description: str, done: int, total: int) -> None:
        """Called while a table is read, with a description, the bytes done and their total."""

    def building(self) -> None:
        """Called before the compiler builds the compiled engine, which takes some seconds."""

    def start(self, setup: Setup, folder: Path) -> None:
        """Called before the first epoch."""

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Called after one or more steps of an epoch: ``step`` of ``steps`` are done."""

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Called after each epoch with its metrics."""

    def end(self, setup: Setup, result: Result) -> None:
        """Called at the end of the run."""

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Called when a run resumes from the checkpoint at ``path``, with ``done`` steps of ``epoch`` done."""

    def stopped(self, folder: Path) -> None:
        """Called when the run was interrupted, after it has saved a checkpoint."""

    def warn(self, text: str) -> None:
        """Called with a one-line warning."""


class Silent(Reporter):
    """Reporter that prints nothing."""


class NoViews:
    """In place of TensorBoard's events, in the processes that do not write."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> NoViews:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def flush(self) -> None:
        """Do nothing, as the other methods."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Do nothing."""

    def views(self, epoch: int, test: object = None) -> None:
        """Do nothing."""

    def end(self, metrics: dict[str, Any]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        metrics: The last epoch's line of metrics.jsonl.
        best: The line of the epoch with the lowest validation loss; None without validation.
        stopped_early: Whether the run stopped because of `patience`.
        seconds: Wall time of training, evaluation and logging.
        folder: Run folder.
        baseline: What the simplest predictions reach on the test rows.
        health: One line about a layer that learns little, and what to try; None if all learn.
        weights: Which weights are the model: ``"final"``, or ``"best"``, those of the lowest validation loss.
    """

    metrics: dict[str, Any]
    best: dict[str, Any] | None
    stopped_early: bool
    seconds: float
    folder: Path
    weights: str = "final"
    baseline: Baseline | None = None
    health: str | None = None

    @property
    def model_metrics(self) -> dict[str, Any]:
        """The line of metrics.jsonl of the epoch whose weights are the model."""
        return self.metrics if self.weights == "final" or self.best is None else self.best
