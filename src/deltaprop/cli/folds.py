"""Terminal output of a cross-validation: one line for each fold, and their mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from deltaprop.cli.console import METRIC_NAMES, Cell, ConsoleReporter, describe, print_rows
from deltaprop.cli.errors import as_flags
from deltaprop.errors import counted, rounded, setting
from deltaprop.training.config import TrainConfig
from deltaprop.training.folds import CrossValidation, Figures, FoldResult
from deltaprop.training.report.reporter import Result
from deltaprop.training.setup import Setup


class FoldsReporter(ConsoleReporter):
    """Prints a cross-validation to a terminal: its settings once, and a line for each fold.

    Args:
        config: Its configuration.
        console: Console to print to; stdout by default.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        super().__init__(console)
        self._config, self._described, self._warned = config, False, set[str]()

    def reading(self, description: str, done: int, total: int) -> None:
        """Show how far the table is read the first time."""
        if not self._described:
            super().reading(description, done, total)

    def start(self, setup: Setup, folder: Path) -> None:
        """Print the configuration before the first fold."""
        self._describe(setup)
        self._epochs = setup.config.total_epochs

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Print nothing: a fold has one line."""

    def end(self, setup: Setup, result: Result) -> None:
        """Print nothing but the configuration, where the first fold was trained before."""
        self._describe(setup)
        self._training.close()

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Print nothing: a fold has one line."""

    def stopped(self, folder: Path) -> None:
        """Print the command that resumes the cross-validation."""
        super().stopped(folder.parent)

    def warn(self, text: str) -> None:
        """Print each warning once."""
        if text not in self._warned:
            self._warned.add(text)
            super().warn(text)

    def _describe(self, setup: Setup) -> None:
        if self._described:
            return
        self._described = True
        self._reading.close()
        for line in setup.dataset.table.warnings if setup.dataset.table else ():
            self.warn(line)
        kept = [row for row in describe(setup) if "rows to train" not in row[1]]
        rows = sum(len(part) for part in (setup.dataset.train, setup.dataset.val, setup.dataset.test))
        kept.insert(1, ("folds", f"{self._config.folds} of {rows} rows, each the test rows of one run"))
        print_rows(self.console, kept)
        names = ("accuracy", "log_loss") if setup.objective.task == "classification" else ("rmse", "r2")
        columns = " ".join(f"{METRIC_NAMES.get(name, name):>11}" for name in (*names, "baseline"))
        self.console.print(f"\n{'fold':>7} {'test rows':>11} {columns}", style="bold")

    def fold(self, result: FoldResult) -> None:
        """Print the line of a fold."""
        self._training.close()
        figures = " ".join(f"{_value(name, value):>11}" for name, value in result.figures.items())
        first = next(iter(result.baseline))
        baseline = f"{_value(first, result.baseline[first]):>11}"
        self.console.print(f"{result.fold:>7} {result.rows:>11} {figures} {baseline}")

    def summary(self, result: CrossValidation) -> None:
        """Print mean and deviation, the baseline, and how to train the final model."""
        mean, std, baseline = result.mean, result.std, result.baseline
        is_class = "accuracy" in mean
        of_all = "" if is_class else "; R² of all rows"
        how = f" (mean ± standard deviation of {counted(len(result.folds), 'fold')}{of_all})"
        test = Text.assemble((_line(mean, std), "bold green"), how)
        best = "the most frequent class, by the shares of the training rows" if is_class else "their mean"
        command = " ".join(["deltaprop train", *_flags(self._config)])
        rows: list[tuple[str, Cell]] = [
            ("test", test),
            ("base", f"{_line(baseline)} ({best})"),
            ("run", str(result.folder)),
            ("final", f"to train one model on these data: {command}"),
        ]
        self.console.print()
        print_rows(self.console, rows)


def _value(name: str, value: float | None) -> str:
    """Return a metric for a table."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name == "accuracy" else rounded(value)


def _line(figures: Figures, std: Figures | None = None) -> str:
    """Return metrics that are defined in one line, with their deviations."""
    parts = []
    for name, value in figures.items():
        if value is not None:
            spread = "" if std is None or std[name] is None else f" ± {_value(name, std[name])}"
            parts.append(f"{METRIC_NAMES.get(name, name)} {_value(name, value)}{spread}")
    return ", ".join(parts)


def _flags(config: TrainConfig) -> list[str]:
    """Return the flags of the settings that are not the defaults, without those of a cross-validation."""
    flags = []
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("folds", "fold", "run_dir", "config"):
            if value == ():
                flags.append(f"--{field.name.replace('_', '-')}")
            else:
                flags.append(as_flags(setting(field.name, *(value if isinstance(value, tuple) else (value,)))))
    return flags
