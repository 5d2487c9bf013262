"""``deltaprop evaluate``: metrics of a trained model on data."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text

from deltaprop.cli.console import METRIC_NAMES, Cell, ProgressBar, baseline_notes, print_rows, print_table, terminal
from deltaprop.cli.errors import as_flags, print_warning
from deltaprop.cli.files import PICTURES, OutputFile, is_stream
from deltaprop.cli.parsing import DataArguments, optional, read_arguments, training_data
from deltaprop.data.formats import open_table
from deltaprop.errors import counted, rounded
from deltaprop.inference.evaluation import EvaluationReport, evaluate_file, evaluation_report
from deltaprop.inference.intervals import LEVEL
from deltaprop.inference.model import Model, load
from deltaprop.inference.seen_rows import SeenRows
from deltaprop.inference.thresholds import Threshold, read_threshold
from deltaprop.training.evaluate import evaluate, outputs_of_groups, raw_targets
from deltaprop.training.load_run import load_run
from deltaprop.training.seen_rows import EQUAL, read_training_rows

MAX_CONFUSION_CLASSES = 12  # in a confusion matrix on the terminal


@dataclass(frozen=True)
class Arguments(DataArguments):
    """Classification: loss, accuracy, precision, recall and F1 of each class, calibration error, confusion matrix.

    For two classes also ROC AUC. Regression: loss, RMSE, MAE and R², and the share of rows in the prediction intervals
    of level 0.9, in the units of the targets. Rows that the model was trained on are counted.
    """

    #: Table with the target column, arrays with y, or folder of IDX files.
    data: Annotated[Path | None, optional("PATH", "the test part of the run")] = None
    #: For two classes: the least probability at which the positive class is predicted; f1 or balanced choose it on the
    #: validation rows of the run.
    threshold: Annotated[str | None, optional("P|f1|balanced", "the more probable class")] = None
    positive: Annotated[str | None, optional("CLASS", "the second class")] = None  # Class that the threshold is for.
    json: Annotated[Path | None, optional("FILE.json", "")] = None  # Write the metrics to this file.
    picture: Annotated[Path | None, optional("FILE", "")] = None  # Write plots to this .png, .svg or .pdf file.


def main(words: Sequence[str]) -> int:
    """Print the metrics of a model, and write them to the files asked for."""
    arguments = read_arguments(Arguments, "evaluate", words)
    run, data = arguments.folder, arguments.data
    figures = OutputFile("--json", arguments.json, () if arguments.json and is_stream(arguments.json) else (".json",))
    picture = OutputFile("--picture", arguments.picture, PICTURES)
    model = load(run, arguments.weights)
    threshold = read_threshold(model, arguments.threshold, arguments.positive)
    for file in (figures, picture):
        file.check_apart(run, *([data] if data else []), *training_data(model.config))
    console = terminal()
    with contextlib.closing(ProgressBar(console)) as bar:
        if data is None:
            report = _on_test_part(run, model, threshold)
        else:
            known, reading = read_training_rows(run), arguments.reading(model.config.reading)
            report = evaluate_file(model, data, known=known, threshold=threshold, reading=reading, progress=bar)
    source = str(data or "its own test part")
    console.print(f"{run} ({model.weights} weights) on {source}", style="bold")
    _print_report(console, model, report, run)
    if figures.path is not None:
        about = {"run": str(run), "weights": model.weights, "data": source, **report.to_json()}
        if threshold is not None:
            about["threshold"] = threshold.to_json(model)
        figures.write(json.dumps(about, indent=2, allow_nan=False) + "\n")
        console.print(f"json {figures.path}")
    if picture.path is not None:
        from deltaprop.inference.plots import evaluation_figure  # matplotlib is slow to import

        picture.write_figure(evaluation_figure(model, report))
        console.print(f"picture {picture.path}")
    return 0


def _on_test_part(run: Path, model: Model, threshold: Threshold | None) -> EvaluationReport:
    """Return the metrics on the test part of the run's own data."""
    setup = load_run(run, model.weights)
    dataset, test = setup.dataset, setup.dataset.test
    dropped: int | None = 0
    if dataset.table is not None and dataset.table.dropped:  # known for a separate test table, not for a random part
        config = setup.config
        table = None if config.test is None else open_table(Path(config.test), config.reading)
        dropped = None if table is None else sum(map(len, table.batches())) - dataset.rows["test"]
    if dataset.grouped is not None:
        outputs, y = outputs_of_groups(setup.model, dataset.grouped, "test")
        return evaluation_report(model, outputs, y.numpy(), threshold, dropped=dropped)
    evaluation = evaluate(setup.model, setup.objective, test, dataset.target_scaling)
    assert evaluation is not None  # the test part always has rows
    y = test.y if model.class_names else raw_targets(test, dataset.target_scaling)
    return evaluation_report(model, evaluation.outputs, y.numpy(), threshold, dropped=dropped)


def _print_report(console: Console, model: Model, report: EvaluationReport, run: Path) -> None:
    for line in report.warnings:
        print_warning(line)
    rows = _overall(model, report)
    if report.others is not None:
        rows = _beside(rows, _overall(model, report.others))
    left_out = {"because of missing cells": report.dropped, "without a target": report.unlabelled}
    left_out |= {"of classes left out in training": report.rare}
    if any(left_out.values()):
        text = ", ".join(f"{counted(count, 'row')} {why}" for why, count in left_out.items() if count)
        rows.insert(0, ("left out", text))
    if report.seen is not None and (text := _seen_text(report, report.seen, run)):
        rows.insert(0, ("seen", text))
    rows += _baseline_rows(report)
    if report.threshold is not None:
        rows.insert(0, ("threshold", report.threshold.describe(model)))
    if report.no_intervals:
        rows.append(("intervals", as_flags(f"none: {report.no_intervals}")))
    print_rows(console, rows, width=len("accuracy"))
    if report.by_class:
        console.print()
        kind = ("target" if report.confusion is None else "class") + (", all rows" if report.others else "")
        header = [kind, *(METRIC_NAMES.get(name, name) for name in next(iter(report.by_class.values())))]
        cells = [[name, *map(_format, figures.values())] for name, figures in report.by_class.items()]
        print_table(console, header, cells)
    if report.confusion is not None and len(model.class_names) <= MAX_CONFUSION_CLASSES:
        console.print()
        names = [Text(name, no_wrap=True, overflow="ellipsis") for name in model.class_names]  # cut to fit the width
        matrix: list[list[Cell]] = [
            [name, *(_format_count(count, row == column) for column, count in enumerate(counts))]
            for row, (name, counts) in enumerate(zip(model.class_names, report.confusion.tolist(), strict=True))
        ]
        print_table(console, ["true↓ predicted→", *names], matrix, no_wrap=True)


def _baseline_rows(report: EvaluationReport) -> list[tuple[str, Cell]]:
    """Return what the simplest predictions reach, and a note if the model does not reach more."""
    baseline = report.baseline
    if baseline is None:
        return []
    share, r2 = baseline.accuracy, report.figures.get("r2")
    r2 = None if r2 is None or math.isnan(r2) else r2
    rows: list[tuple[str, Cell]] = []
    if share is not None:
        rows.append(("baseline", f"{100 * share:.2f} % (the most frequent class in training, {baseline.majority!r})"))
    elif baseline.rmse is not None and not report.by_class:  # the units of several targets differ
        rows.append(("deviation", f"{rounded(baseline.rmse)} (of the targets)"))
    return rows + [("note", note) for note in baseline_notes(baseline, report.figures.get("accuracy"), r2)]


def _overall(model: Model, report: EvaluationReport) -> list[tuple[str, Cell]]:
    """Return the metrics of all rows of a report, as rows of a name and a text."""
    name = model.objective.name + (", balanced" if model.config.class_weight == "balanced" else "")
    rows: list[tuple[str, Cell]] = [("rows", str(report.rows)), ("loss", f"{rounded(report.loss)} ({name})")]
    if report.confusion is None:
        # The units of several targets differ: only R² has none.
        names = ["r2"] if report.by_class else [*report.figures]
        rows += [(METRIC_NAMES.get(name, name), rounded(report.figures[name])) for name in names]
        for name, interval in (report.intervals or {}).items():
            of = f" of {name}" if len(report.intervals or {}) > 1 else ""
            inside = f"{100 * interval['coverage']:.1f} % inside at level {LEVEL:g}{of}"
            rows.append(("intervals", f"{inside}, {rounded(interval['width'])} wide"))
        return rows
    right = int(report.confusion.trace())
    accuracy = (f"{100 * right / report.rows:.2f} %", "bold green")
    rows.append(("accuracy", Text.assemble(accuracy, f" ({right} of {report.rows})")))
    rows.append(("balanced", f"{100 * report.figures['balanced_accuracy']:.2f} %"))
    for name, label in (("macro_f1", "macro F1"), ("roc_auc", "ROC AUC"), ("ece", "ECE")):
        value = report.figures.get(name)
        rows += [] if value is None else [(label, "-" if math.isnan(value) else f"{value:.4f}")]
    return rows


def _beside(rows: list[tuple[str, Cell]], others: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Return the metrics of all rows, and beside them those of rows that the run was not trained on."""
    left = [Text("all rows", "dim"), *(Text.assemble(cell) for _, cell in rows)]
    right = [Text("other rows", "dim"), *(Text.assemble(cell) for _, cell in others)]
    width = max(cell.cell_len for cell in left) + 3
    for cell in left:
        cell.pad_right(width - cell.cell_len)
    both = [Text.assemble(one, other) for one, other in zip(left, right, strict=True)]
    return [*zip(["", *(name for name, _ in rows)], both, strict=True)]


def _seen_text(report: EvaluationReport, seen: SeenRows, run: Path) -> str:
    """Return what is known of rows that the run was trained on, and where the metrics of new rows are."""
    own = f"for new rows, its own test part: deltaprop evaluate {shlex.quote(str(run))}"
    if seen.same_file:
        return f"this is the data that the run was trained on; {own}"
    if seen.total is None:
        return f"unknown: {seen.unknown}" if seen.unknown else ""
    if seen.total == report.rows:
        return f"all {report.rows} rows are {EQUAL}; {own}"
    return f"{seen.total} of {report.rows} rows {'is' if seen.total == 1 else 'are'} {EQUAL}" if seen.total else ""


def _format_count(count: int, is_right: bool) -> Text:
    return Text(str(count), "green" if is_right else "red") if count else Text("·", "dim")


def _format(value: float) -> str:
    return str(value) if isinstance(value, int) else "-" if math.isnan(value) else rounded(value)
