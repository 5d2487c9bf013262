"""What a run says on the terminal; line by line and without a bar where there is none."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from deltaprop.cli.errors import print_warning
from deltaprop.data import Dataset, Encoding
from deltaprop.training.devices import describe_device
from deltaprop.training.report.reporter import Result
from deltaprop.training.setup import Setup


def print_table(console: Console, table: Table) -> None:
    """Print a table without blanks at the ends of its lines."""
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        ending = re.search(r"(?:[ ]|\x1b\[[0-9;]*m)*$", line)
        assert ending is not None  # it matches nothing, if need be
        console.file.write(f"{line[: ending.start()]}{ending[0].replace(' ', '')}\n")


def quoted(name: str) -> str:
    """Return a name as it stands in a list: in quotes where it holds a comma."""
    return repr(name) if "," in name else name


class ReadingBar:
    """Shows how far a long reading is, on a terminal; call it with what is read, the bytes done and of how many."""

    PATIENCE = 0.5  # seconds, before which nothing is shown

    def __init__(self, console: Console) -> None:
        self.began = self.drawn = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar, ten times a second at most."""
        now = time.monotonic()
        if self.progress.disable or now - self.began < self.PATIENCE or now - self.drawn < 0.1:
            return
        self.drawn = now
        if self.task is None:
            self.task = self.progress.add_task(what, total=total)
            self.progress.start()
        self.progress.update(self.task, description=escape(what), completed=done, total=total)

    def stop(self) -> None:
        """Take it away."""
        self.progress.stop()


class ConsoleReporter:
    """Tells a run on a terminal, or in lines to whatever stdout is.

    Args:
        console: Where to write; stdout by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=False)
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar = ReadingBar(self.console)
        self.task: TaskID | None = None
        self.drawn = 0.0
        self.folder: Path | None = None

    def reading(self, what: str, done: int, total: int) -> None:
        """Show how far the reading of a table is, where it takes long."""
        self.bar(what, done, total)

    def start(self, setup: Setup, folder: Path) -> None:
        """Say what is trained, on what, where."""
        self.folder = folder
        self.bar.stop()
        for line in setup.dataset.table.warnings if setup.dataset.table else ():
            self.warn(line)
        self._rows([(name, escape(text)) for name, text in describe(setup)])
        self.console.print()
        metric = "accuracy" if setup.objective.task == "classification" else "rmse"
        self.console.print(
            f"[bold]{'epoch':>7} {'train loss':>11} {'val loss':>11} {'val ' + metric:>13} {'seconds':>8}[/bold]",
        )
        self.task = self.progress.add_task("", total=1, epoch=1, epochs=setup.config.epochs)
        self.progress.start()

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Move the bar, ten times a second at most."""
        now = time.monotonic()
        if self.task is not None and not self.progress.disable and now - self.drawn > 0.1:
            self.drawn = now
            epochs = self.progress.tasks[0].fields["epochs"]
            self.progress.update(self.task, total=epochs * steps, completed=(epoch - 1) * steps + step, epoch=epoch)

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Write the line of an epoch."""
        metric = metrics.get("val_accuracy") if "val_accuracy" in metrics else metrics.get("val_rmse")
        is_class = "val_accuracy" in metrics
        self.console.print(
            f"{metrics['epoch']:>7} {metrics['train_loss']:>11.4g} {_number(metrics['val_loss']):>11} "
            f"{_percent(metric) if is_class else _number(metric):>13} {metrics['seconds']:>8.2f}"
        )

    def end(self, setup: Setup, result: Result) -> None:
        """Say how it ended, where the run is and how to look at it."""
        self.progress.stop()
        self.console.print()
        last, best = result.metrics, result.best
        rows = [("test", f"[bold green]{_test(setup, last)}[/bold green] (final weights, epoch {last['epoch']})")]
        if best is not None:
            rows.append(("best", f"{_test(setup, best)} (epoch {best['epoch']}, lowest validation loss)"))
        if result.stopped_early:
            rows.append(("", f"stopped early: no lower validation loss in {setup.config.patience} epochs"))
        rows.append(("time", f"{result.seconds:.1f} s"))
        rows.append(("run", escape(str(result.folder))))
        # All runs of the default place side by side; one alone where the user chose its folder.
        shown = result.folder if setup.config.run_dir else result.folder.parent
        rows.append(("look", escape(f"tensorboard --logdir {shlex.quote(str(shown))}")))
        self._rows(rows)

    def _rows(self, rows: list[tuple[str, str]]) -> None:
        """Print names and texts side by side; long texts are folded under themselves on a terminal, whole elsewhere."""
        if not self.console.is_terminal:
            for name, text in rows:
                self.console.print(f"{name:<6}  {text}", soft_wrap=True)
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        print_table(self.console, table)

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Say where it goes on."""
        within = f", after {_count(done, 'step')} of it" if done else ""
        self._rows([("resume", escape(f"{path}: in epoch {epoch}{within}"))])

    def stopped(self, folder: Path) -> None:
        """Say what an interrupted run has left."""
        self.progress.stop()
        self.console.print(
            f"\nsaved; go on with: deltaprop train --resume {escape(shlex.quote(str(folder)))}", soft_wrap=True
        )

    def warn(self, text: str) -> None:
        """Tell of something that is not as it should be, on stderr."""
        print_warning(text)

    def close(self) -> None:
        """Put the terminal back, whatever happened."""
        self.bar.stop()
        self.progress.stop()


def describe(setup: Setup) -> list[tuple[str, str]]:
    """Return what a run is, as rows of a name and a text."""
    dataset, config = setup.dataset, setup.config
    rows_columns = dataset.image_shape
    inputs = f"{rows_columns[0]}×{rows_columns[1]} pixels" if rows_columns else _count(dataset.n_inputs, "input")
    kind = _count(dataset.n_outputs, "class" if dataset.task == "classification" else "number")
    if dataset.table is not None:
        inputs, kind = _columns(dataset.table.encoding), ""
    layers = [f"{setup.sizes[0]}"]
    layers += [
        f"{n} {name}" for n, name in zip(setup.sizes[1:], [*config.activations, config.output_activation], strict=True)
    ]
    layers[-1] = layers[-1].removesuffix(" none")
    counts = [sum(p.numel() for p in m.parameters()) for m in setup.model if isinstance(m, nn.Linear)]
    threads = f", {_count(setup.threads, 'thread')}" if setup.device.type == "cpu" else ""
    products = "" if config.precision == "float32" else f", products in {config.precision}"
    rows = [
        ("data", f"{dataset.name}: {inputs}" + (f", {kind}" if kind else "")),
        *(("", line) for line in _understood(dataset)),
        ("", f"{len(dataset.train)} rows to train, {len(dataset.val)} to validate, {len(dataset.test)} to test"),
        *([("", f"to train on, deformed anew in every epoch: {config.augment}")] if setup.deformation else []),
        ("model", " → ".join(layers)),
        ("", f"{sum(counts)} parameters ({' + '.join(map(str, counts))})"),
        ("loss", setup.objective.name + (", every class counting alike" if setup.objective.is_weighted else "")),
        ("sgd", describe_sgd(setup)),
        ("device", f"{describe_device(setup.device)}{threads}, {config.dtype}{products}"),
    ]
    if setup.tuned:
        tried = ", ".join(f"{count}: {1e6 * seconds:.0f}" for count, seconds in setup.tuned.items())
        rows.append(("tuned", f"threads: µs a step at {tried}"))
    if config.engine == "explicit":
        rows.append(("engine", "explicit: the δ recursion as one loop, without a tape"))
    if "step" in (*config.activations, config.output_activation):
        rows.append(("note", "step has slope 0: the layers before it get no gradient and will not learn"))
    return rows


def _columns(encoding: Encoding) -> str:
    """Return which columns a table has, by kind."""
    numbers, categories = len(encoding.numbers), len(encoding.categories)
    parts = [_count(numbers, "column") + " of numbers"] if numbers else []
    if categories:
        names = len(encoding) - numbers
        parts.append(f"{_count(categories, 'column')} of categories ({_count(names, 'name')}, one-hot)")
    return " and ".join(parts)


MOST_SHOWN = 6  # names in one line


def _understood(dataset: Dataset) -> list[str]:
    """Return what was understood of a table: its target, and what was left out of it or filled."""
    if dataset.table is None:
        return []
    facts = dataset.table
    targets = ", ".join(map(quoted, facts.encoding.targets))
    if dataset.task == "classification":
        parts = [
            torch.bincount(part.y, minlength=len(dataset.class_names))
            for part in (dataset.train, dataset.val, dataset.test)
        ]
        counts = torch.stack(parts).sum(0)
        shares = [
            f"{quoted(name)} {100 * n / int(counts.sum()):.3g} %"
            for name, n in zip(dataset.class_names, counts.tolist(), strict=True)
        ]
        lines = [f"target {targets}: {_count(len(shares), 'class')}: {_listed(shares)}"]
    else:
        mean, scale = dataset.target_scaling.mean.tolist(), dataset.target_scaling.scale.tolist()
        of = [
            f"{quoted(name)}: {m:.4g} ± {s:.4g}" for name, m, s in zip(facts.encoding.targets, mean, scale, strict=True)
        ]
        lines = [f"target {_listed(of)} (mean ± deviation)"]
    if facts.left_out:
        lines.append(f"{_count(len(facts.left_out), 'column')} left out: {_listed([*map(quoted, facts.left_out)])}")
    if facts.dropped:
        lines.append(f"{_count(facts.dropped, 'row')} left out for something missing in them")
    if facts.gaps:
        lines.append(f"{_count(facts.gaps, 'missing cell')} filled")
    if dataset.is_streamed:
        lines.append("too large for memory: read from a cache on disk, chunk by chunk")
    return lines


def _listed(names: Sequence[str]) -> str:
    """Return names in a row, the rest of many by their number."""
    more = f", … ({len(names)})" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


def describe_sgd(setup: Setup) -> str:
    """Return the optimizer's settings in words."""
    config = setup.config
    parts = [f"η {config.rate:g}", f"batch {config.batch_size}"]
    if config.momentum:
        parts.append(f"{'Nesterov ' if config.nesterov else ''}momentum {config.momentum:g}")
    if config.weight_decay:
        parts.append(f"weight decay {config.weight_decay:g}")
    if config.lr_schedule != "constant" or config.lr_warmup:
        parts.append(
            f"{config.lr_schedule} schedule" + (f", {config.lr_warmup} epochs warm-up" if config.lr_warmup else "")
        )
    return ", ".join(parts)


def _test(setup: Setup, metrics: dict[str, Any]) -> str:
    if setup.objective.task == "regression":
        return f"rmse {_number(metrics['test_rmse'])}, loss {_number(metrics['test_loss'])}"
    rows = len(setup.dataset.test)
    right = round(metrics["test_accuracy"] * rows)
    return f"{_percent(metrics['test_accuracy'])} right ({right} of {rows}), loss {_number(metrics['test_loss'])}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
