"""Terminal output of all commands: tables, progress bars and the report of a training run."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from deltaprop.cli.errors import as_flags, print_warning
from deltaprop.data import Dataset
from deltaprop.data.dataset import TableFacts
from deltaprop.data.table import NUMBER
from deltaprop.distributed import prefers_factors
from deltaprop.errors import counted, rounded
from deltaprop.training.baseline import FEW_ROWS, Baseline
from deltaprop.training.config import TrainConfig
from deltaprop.training.devices import describe_device
from deltaprop.training.report.reporter import Reporter, Result
from deltaprop.training.setup import Setup

Cell = str | Text
MOST_LISTED = 6  # names in a line
PART_NAMES = {"train": "rows to train", "val": "to validate", "test": "to test"}
METRIC_NAMES = {"log_loss": "log loss", "r2": "R²"}  # where the name is not the key


def terminal(**options: Any) -> Console:
    """Return a console that prints text as it is, without markup, highlighting or line breaks of its own."""
    return Console(highlight=False, markup=False, soft_wrap=True, **options)


def print_table(
    console: Console, header: Iterable[Cell], rows: Iterable[Iterable[Cell]], no_wrap: bool = False
) -> None:
    """Print a table of numbers without lines; the first column, of names, is folded unless ``no_wrap``."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at else "left", overflow="fold", no_wrap=no_wrap and at == 0)
    for row in rows:
        table.add_row(*row)
    _print(console, table)


def _print(console: Console, table: Table) -> None:
    """Print a table without trailing blanks."""
    with console.capture() as capture:
        console.print(table, soft_wrap=False)
    blanks = re.compile(r"(?:[ ]|\x1b\[[0-9;]*m)+$", re.MULTILINE)  # colour codes stay
    console.file.write(blanks.sub(lambda match: match[0].replace(" ", ""), capture.get()))


def print_rows(console: Console, rows: Iterable[tuple[str, Cell]], width: int = 6) -> None:
    """Print (name, text) in two columns, the first at least ``width`` wide; a repeated name is printed once."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    last = ""
    for name, text in rows:
        table.add_row("" if name == last else name, text if isinstance(text, Text) else Text(text))
        last = name
    _print(console, table)


class ProgressBar:
    """Progress bar on a terminal; prints nothing elsewhere.

    Args:
        console: Console to draw on.
        amount: Column that shows how much is done; bytes by default.
        delay: Seconds before the bar appears.
    """

    def __init__(self, console: Console, amount: ProgressColumn | None = None, delay: float = 0.5) -> None:
        text, bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)
        columns = (text, bar, amount or DownloadColumn(), TimeRemainingColumn(compact=True))
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._next = time.monotonic() + delay

    def __call__(self, description: str, done: int, total: int) -> None:
        """Move the bar, at most ten times a second."""
        now = time.monotonic()
        if self.progress.disable or now < self._next:
            return
        self._next = now + 0.1
        if not self.progress.tasks:
            self.progress.add_task(description)
            self.progress.start()
        self.progress.update(self.progress.task_ids[0], description=description, completed=done, total=total)

    def close(self) -> None:
        """Remove the bar."""
        self.progress.stop()


class ConsoleReporter(Reporter):
    """Prints a run to a terminal, or line by line without progress bars elsewhere.

    Args:
        console: Console to print to; stdout by default.
        words: The words after ``train`` on the command line, from which a hint makes another command.
    """

    def __init__(self, console: Console | None = None, words: Sequence[str] = ()) -> None:
        self.console, self.words = console or terminal(), words
        if not self.console.is_terminal:
            self.console.width = 100_000  # lines of a file are not folded
        self._reading = ProgressBar(self.console)
        self._training = ProgressBar(self.console, TextColumn("{task.percentage:>3.0f} %"), delay=0.0)

    def reading(self, description: str, done: int, total: int) -> None:
        """Show how far a table has been read."""
        self._reading(description, done, total)

    def building(self) -> None:
        """Say what takes some seconds, once for a kind of model."""
        self._reading.close()
        self.console.print(
            "building the compiled engine, which takes some seconds; it is kept for later runs", style="dim"
        )

    def start(self, setup: Setup, folder: Path) -> None:
        """Print the configuration and the header of the epochs."""
        self._reading.close()
        for line in setup.dataset.table.warnings if setup.dataset.table else ():
            self.warn(line)
        print_rows(self.console, describe(setup))
        metric = "accuracy" if setup.objective.task == "classification" else "rmse"
        header = f"{'epoch':>7} {'train loss':>11} {'val loss':>11} {'val ' + metric:>13} {'seconds':>8}"
        self.console.print(f"\n{header}", style="bold")
        self._epochs = setup.config.total_epochs

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Move the progress bar."""
        self._training(f"epoch {epoch}/{self._epochs}", (epoch - 1) * steps + step, self._epochs * steps)

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Print the metrics of an epoch."""
        percent = "val_accuracy" in metrics
        metric = _format(metrics["val_accuracy" if percent else "val_rmse"], percent)
        self.console.print(
            f"{metrics['epoch']:>7} {metrics['train_loss']:>11.4g} {_format(metrics['val_loss']):>11} "
            f"{metric:>13} {_seconds(metrics['seconds']):>8}"
        )

    def end(self, setup: Setup, result: Result) -> None:
        """Print the test metrics, the run folder and the command that shows it in TensorBoard."""
        self._training.close()
        self.console.print()
        last, best, model = result.metrics, result.best, result.model_metrics
        which = f" ({result.weights} weights, epoch {model['epoch']})"
        rows: list[tuple[str, Cell]] = [("test", Text.assemble((_format_test(setup, model), "bold green"), which))]
        if result.baseline is not None:
            rows.append(("test", describe_baseline(result.baseline, model.get("test_r2"))))
        if result.weights == "best":
            rows.append(("final", f"{_format_test(setup, last)} (epoch {last['epoch']})"))
        elif best is not None:
            rows.append(("best", f"{_format_test(setup, best)} (epoch {best['epoch']}, lowest validation loss)"))
        if result.stopped_early:
            rows.append(("", f"stopped early: no lower validation loss in {setup.config.patience} epochs"))
        # All runs of the default parent folder together; only this one if the user chose its folder.
        logdir = result.folder if setup.config.run_dir else result.folder.parent
        look = f"tensorboard --logdir {shlex.quote(str(logdir))}"
        rows += [("note", as_flags(note)) for note in self._notes(setup, result)]
        rows += [("time", f"{result.seconds:.1f} s"), ("run", str(result.folder)), ("look", look)]
        print_rows(self.console, rows)

    def _notes(self, setup: Setup, result: Result) -> list[str]:
        """Return what there is to say about a model that may be of no use."""
        notes, metrics, rows = [], result.model_metrics, setup.dataset.rows["test"]
        if result.baseline is not None:
            notes += baseline_notes(result.baseline, metrics.get("test_accuracy"), metrics.get("test_r2"))
        if untested := _untested(setup.dataset):
            notes.append(f"no test row is of {enumerate_names([*map(repr, untested)], 3)}: nothing is known of that")
        folds = min(5, _most_folds(setup.dataset))
        few = rows < FEW_ROWS and setup.config.test is None and folds > 1
        if few and (command := cross_validation(self.words, folds)):
            notes.append(f"{counted(rows, 'test row')}, too few for a reliable figure; cross-validate with: {command}")
        return notes + ([] if result.health is None else [result.health])

    def resumed(self, path: Path, epoch: int, done: int) -> None:
        """Print the checkpoint that the run resumes from."""
        where = f"in epoch {epoch}, after {counted(done, 'step')} of it" if done else f"after epoch {epoch - 1}"
        print_rows(self.console, [("resume", f"{path}: {where}")])

    def stopped(self, folder: Path) -> None:
        """Print the command that resumes an interrupted run."""
        self._training.close()
        command = f"deltaprop train --resume {shlex.quote(str(folder))}"
        self.console.print(Text(f"\nsaved; resume with: {command}"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning to stderr."""
        print_warning(text)

    def close(self) -> None:
        """Remove the progress bars, also after an error."""
        self._reading.close()
        self._training.close()


def describe_baseline(baseline: Baseline, r2: float | None) -> str:
    """Return what the simplest predictions reach, for the line below a model's own figures."""
    if baseline.accuracy is not None:
        share = _format(baseline.accuracy, percent=True)
        return f"baseline: {share} are of the most frequent class in training, {baseline.majority!r}"
    found = "undefined" if r2 is None else rounded(r2)
    return f"baseline: the test targets have a standard deviation of {_format(baseline.rmse)}; R² is {found}"


def baseline_notes(baseline: Baseline, accuracy: float | None, r2: float | None) -> list[str]:
    """Return a line if a model is no better than the simplest predictions."""
    if baseline.is_beaten_by(accuracy, r2):
        return []
    simple = "the mean" if baseline.majority is None else f"{baseline.majority!r}"
    return [f"the model is no better than always predicting {simple}"]


def _untested(dataset: Dataset) -> list[str]:
    """Return the classes of a table without a test row."""
    if not dataset.class_names or dataset.table is None:
        return []
    counts = zip(dataset.class_names, dataset.class_counts("test"), strict=True)
    return [name for name, count in counts if not count]


def _most_folds(dataset: Dataset) -> int:
    """Return how many folds the rows allow: each tests a row, and never the only one of a class."""
    if dataset.grouped is not None:
        return 0
    if not dataset.class_names:
        return sum(dataset.rows.values())
    return sum(count for count in _of_all_parts(dataset) if count > 1)


def _of_all_parts(dataset: Dataset) -> list[int]:
    """Return the number of rows of each class."""
    return [sum(of_class) for of_class in zip(*map(dataset.class_counts, dataset.rows), strict=True)]


def cross_validation(words: Sequence[str], folds: int = 5) -> str | None:
    """Return the command that cross-validates as the words after ``train`` say; None if they are of another kind."""
    kept, skip = [], False
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if skip:
            skip = False
        elif flag in ("--resume", "--folds"):
            return None
        elif flag == "--run-dir":
            skip = "=" not in word
        else:
            kept.append(word)
    return shlex.join(["deltaprop", "train", *kept, "--folds", str(folds)]) if kept else None


ENGINE_WORDS = {
    "explicit": "the δ recursion as one loop, without autograd",
    "compiled": "the δ recursion as one loop, in C++",
}


PARALLEL_WORDS = {
    "ddp": "each process has the whole model (DDP)",
    "fsdp": "each process has a part of every parameter (FSDP)",
}


def describe(setup: Setup) -> list[tuple[str, str]]:
    """Return the data, model and settings of a run as rows of a name and a text."""
    config = setup.config
    steps = math.ceil(setup.dataset.rows["train"] / config.batch_size)
    parameters = [sum(p.numel() for p in m.parameters()) for m in setup.model if isinstance(m, nn.Linear)]
    threads = f", {counted(setup.threads, 'thread')}" if setup.device.type == "cpu" else ""
    together = f" in each of {setup.processes} processes" if setup.processes > 1 else ""
    precision = "" if config.precision == "float32" else f", products in {config.precision}"
    rows = [
        *(("data", line) for line in _describe_data(setup.dataset)),
        *describe_config(config, setup.to_json()["resolved"], parameters),
        ("epochs", f"{config.epochs}, each of {counted(steps, 'step')}"),
        ("device", f"{describe_device(setup.device)}{threads}{together}, {config.dtype}{precision}"),
    ]
    if setup.tuned:
        tried = ", ".join(f"{count}: {1e6 * seconds:.0f}" for count, seconds in setup.tuned.items())
        rows.append(("tuned", f"threads: µs per step at {tried}"))
    if config.engine in ENGINE_WORDS:
        rows.append(("engine", f"{config.engine}: {ENGINE_WORDS[config.engine]}"))
    elif setup.processes > 1:
        rows.append(("engine", f"{config.engine}: {PARALLEL_WORDS[config.parallel]}"))
    if config.engine == "explicit" and setup.processes > 1:
        rows.append(("sent", _describe_exchange(setup)))
    if "step" in (*config.activations, config.output_activation):
        rows.append(("note", "step has derivative 0: the layers before it get no gradient and are not trained"))
    return rows


def _describe_exchange(setup: Setup) -> str:
    """Return which layers' gradients several processes send as sums, and which as factors."""
    config, layers = setup.config, [*enumerate(pairwise(setup.sizes), start=1)]
    is_factors = [prefers_factors(config.batch_size, *sizes, config.exchange) for _, sizes in layers]
    numbers = [str(number) for number, _ in layers if is_factors[number - 1]]
    narrow = ", in bfloat16" if config.exchange_dtype == "bfloat16" else ""
    if not numbers:
        return f"the sums of ∂C/∂W of all layers{narrow}"
    rest = "" if all(is_factors) else ", the sums of the others"
    return f"δ and a_prev of layer{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}{rest}{narrow}"


def describe_config(config: TrainConfig, resolved: dict[str, Any], parameters: list[int]) -> list[tuple[str, str]]:
    """Return the rows that ``train`` and ``info`` have in common; ``parameters`` are counted by layer, or in all."""
    parts = resolved.get("rows") or {}
    layers = zip(resolved["sizes"], ["", *config.activations, config.output_activation], strict=True)
    balanced = ", balanced class weights" if config.class_weight == "balanced" else ""
    rows = [("data", ", ".join(f"{parts[part]} {text}" for part, text in PART_NAMES.items() if part in parts))]
    if config.augment != "none":
        rows.append(("data", f"training images deformed anew in every epoch: {config.augment}"))
    rows.append(("model", " → ".join(f"{size} {name}".removesuffix("none").strip() for size, name in layers)))
    if parameters:
        each = f" ({' + '.join(map(str, parameters))})" if len(parameters) > 1 else ""
        rows.append(("model", f"{sum(parameters)} parameters{each}"))
    if config.weights == "best":
        rows.append(("model", "the weights of the lowest validation loss"))
    return [*rows, ("loss", f"{resolved['loss']}{balanced}"), ("sgd", _describe_sgd(config))]


def _describe_sgd(config: TrainConfig) -> str:
    momentum = "Nesterov momentum" if config.nesterov else "momentum"
    settings = {"η": config.rate, "batch": config.batch_size, momentum: config.momentum, "weight decay": config.decay}
    parts = [f"{name} {value:g}" for name, value in settings.items() if value]
    if config.lr_schedule != "constant" or config.lr_warmup:
        parts.append(f"{config.lr_schedule} schedule")
    if config.lr_warmup:
        parts.append(f"{counted(config.lr_warmup, 'epoch')} warm-up")
    return ", ".join(parts)


def _describe_data(dataset: Dataset) -> list[str]:
    """Return the inputs and targets; of a table also the columns, rows and cells that were dropped or filled."""
    table, shape = dataset.table, dataset.image_shape
    if table is None:
        inputs = f"{shape[0]}×{shape[1]} pixels" if shape else counted(dataset.n_inputs, "input")
        outputs = counted(dataset.n_outputs, "class" if dataset.task == "classification" else "number")
        return [f"{dataset.name}: {inputs}, {outputs}", *dataset.notes]
    numbers, categories = len(table.encoding.numbers), len(table.encoding.categories)
    columns = [counted(numbers, "column") + " of numbers"] if numbers else []
    if categories:
        one_hot = counted(sum(len(table.encoding.inputs[at].categories) for at in table.encoding.categories), "name")
        columns.append(f"{counted(categories, 'column')} of categories ({one_hot}, one-hot)")
    lines = [f"{dataset.name}: {' and '.join(columns)}"]
    names = [*map(quoted, table.encoding.targets)]
    if dataset.task == "classification":
        counts = _of_all_parts(dataset)
        classes = [*zip(dataset.class_names, counts, strict=True)]
        if len(classes) > MOST_LISTED:
            classes.sort(key=lambda each: -each[1])
        shares = [
            f"{repr(name) if re.match(NUMBER, name) else quoted(name)} {100 * count / sum(counts):.3g} %"
            for name, count in classes
        ]
        lines.append(f"target {', '.join(names)}: {counted(len(shares), 'class')}: {enumerate_names(shares)}")
    else:
        scaling = dataset.target_scaling
        statistics = zip(names, scaling.mean.tolist(), scaling.scale.tolist(), strict=True)
        targets = [f"{name}: {rounded(mean)} ± {rounded(scale)}" for name, mean, scale in statistics]
        lines.append(f"target {enumerate_names(targets)} (mean ± standard deviation of the training rows)")
    lines += [as_flags(note) for note in (*table.notes, *dataset.notes)]
    if table.left_out:
        lines.append(f"{counted(len(table.left_out), 'column')} left out: {enumerate_names(_with_reasons(table))}")
    if table.unlabelled:
        lines.append(f"{counted(table.unlabelled, 'row')} left out: the target is missing")
    if table.dropped:
        lines.append(f"{counted(table.dropped, 'row')} dropped because of missing cells")
    if table.gaps:
        lines.append(f"{counted(table.gaps, 'missing cell')} filled")
    if dataset.grouped is not None:
        lines.append("larger than --memory: read from its row groups, each process its own; pictures show a sample")
    elif dataset.is_streamed:
        lines.append("larger than --memory: read from a cache on disk, chunk by chunk")
    return lines


def _with_reasons(table: TableFacts) -> list[str]:
    """Return the columns that are left out, each with the reason; an unnamed one is its reason alone."""
    return [
        f"{quoted(name)} ({reason})" if name and reason else quoted(name) or reason for name, reason in table.left_out
    ]


def quoted(name: str) -> str:
    """Return a name for an enumeration, in quotes if it contains a comma."""
    return repr(name) if "," in name else name


def enumerate_names(names: Sequence[str], most: int = MOST_LISTED) -> str:
    """Return the first names separated by commas, and the total if there are more."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 0.1 else f"{seconds:.2f}"


def _format_test(setup: Setup, metrics: dict[str, Any]) -> str:
    loss = f"loss {_format(metrics['test_loss'])}"
    if setup.objective.task == "regression":
        return f"rmse {_format(metrics['test_rmse'])}, {loss}"
    rows = setup.dataset.rows["test"]
    right = round(metrics["test_accuracy"] * rows)
    return f"{_format(metrics['test_accuracy'], percent=True)} right ({right} of {rows}), {loss}"


def _format(value: float | None, percent: bool = False) -> str:
    return "-" if value is None else f"{100 * value:.2f} %" if percent else rounded(value)
