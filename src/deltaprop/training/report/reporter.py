"""The interface that receives a run's progress, and the result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltaprop.training.setup import Setup


class Reporter(Protocol):
    """What a run tells while it goes; the console is one, silence another."""

    def reading(self, what: str, done: int, total: int) -> None:
        """Tell how many bytes of a table have been read, and of how many."""

    def start(self, setup: Setup, folder: Path) -> None:
        """Tell what will be trained, on what, where."""

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Tell that a step of an epoch of so many steps is done, or that and those before it, taken together."""

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Tell the figures of an epoch."""

    def end(self, setup: Setup, result: Result) -> None:
        """Tell how it ended."""

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Tell from which checkpoint it goes on, in which epoch, so many steps of which are done."""

    def stopped(self, folder: Path) -> None:
        """Tell that it was asked to stop, and has saved everything."""

    def warn(self, text: str) -> None:
        """Tell of something that is not as it should be, in one line."""


class Silent:
    """A reporter that says nothing."""

    def reading(self, what: str, done: int, total: int) -> None:
        """Say nothing."""

    def start(self, setup: Setup, folder: Path) -> None:
        """Say nothing."""

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Say nothing."""

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Say nothing."""

    def end(self, setup: Setup, result: Result) -> None:
        """Say nothing."""

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Say nothing."""

    def stopped(self, folder: Path) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        metrics: The last epoch's line of metrics.jsonl.
        best: The line of the epoch with the lowest validation loss; None without validation.
        stopped_early: Whether patience ran out.
        seconds: Of training, evaluation and logging.
        folder: Of the run.
    """

    metrics: dict[str, Any]
    best: dict[str, Any] | None
    stopped_early: bool
    seconds: float
    folder: Path
