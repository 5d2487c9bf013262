"""``deltaprop evaluate``: how good a trained model is on data that it has not seen."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deltaprop.cli.console import ReadingBar, print_table
from deltaprop.cli.errors import print_warning
from deltaprop.cli.files import check_apart, check_file, is_stream, write_file
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.runs import RunArgument, learnt_from, named
from deltaprop.data.formats import open_table
from deltaprop.errors import UserError
from deltaprop.inference.evaluation import EvaluationReport, evaluate_file, evaluation_report
from deltaprop.inference.model import Model, load
from deltaprop.training.evaluate import evaluate
from deltaprop.training.load_run import load_run

DESCRIPTION = """Judge a trained model: loss, accuracy, precision, recall and F1 of each class and the confusion matrix,
ROC AUC of two classes; RMSE, MAE and R² of numbers, in their own units.

Without --data: on the run's own test part. Exit codes: 0 done, 2 wrong input."""

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Arguments:
    """What to evaluate, and on what.

    Attributes:
        run: The folder of the run.
        data: A table with the column of the target, arrays with y, or a folder with IDX files; by default the run's own
            test part.
        weights: final, or best for those of the lowest validation loss.
        delimiter: Of a CSV; by default that of the training data.
        json: A file for the figures: .json.
        picture: A file for a picture of them: .png, .svg or .pdf.
    """

    run: RunArgument = None
    data: Path | None = None
    weights: str = "final"
    delimiter: str | None = None
    json: Path | None = None
    picture: Path | None = None


def main(words: Sequence[str]) -> int:
    """Judge, tell, and return 0.

    Raises:
        UserError: If the run or the data are at fault.
    """
    arguments = read_flags(Arguments, "evaluate", words, DESCRIPTION)
    run = named(arguments.run)
    check_file("--json", arguments.json)
    check_file("--picture", arguments.picture)
    if arguments.picture is not None and arguments.picture.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {arguments.picture}: the name must end in {', '.join(FORMATS)}")
    if arguments.json is not None and not is_stream(arguments.json) and arguments.json.suffix.lower() != ".json":
        raise UserError(f"--json {arguments.json}: the name must end in .json")
    console = Console(highlight=False)
    model = load(run, arguments.weights)
    data = [] if arguments.data is None else [arguments.data]
    for flag, file in (("--json", arguments.json), ("--picture", arguments.picture)):
        check_apart(flag, file, run, *data, *learnt_from(model.config))
    bar = ReadingBar(console)
    try:
        if arguments.data is None:
            found, of = _own_test_part(run, arguments.weights, model), "its own test part"
        else:
            found = evaluate_file(model, arguments.data, delimiter=arguments.delimiter, progress=bar)
            of = str(arguments.data)
    finally:
        bar.stop()
    tell(console, model, found, f"{run} ({arguments.weights} weights) on {of}")
    if arguments.json is not None:
        about = {"run": str(run), "weights": arguments.weights, "data": of}
        write_file("--json", arguments.json, json.dumps({**about, **found.to_json()}, indent=2, allow_nan=False) + "\n")
        console.print(f"json {arguments.json}", markup=False, soft_wrap=True)
    if arguments.picture is not None:
        from deltaprop.inference.plots import evaluation_figure  # matplotlib: slow to import

        content = io.BytesIO()
        evaluation_figure(model, found).savefig(content, format=arguments.picture.suffix[1:].lower())
        write_file("--picture", arguments.picture, content.getvalue())
        console.print(f"picture {arguments.picture}", markup=False, soft_wrap=True)
    return 0


def _own_test_part(run: Path, weights: str, model: Model) -> EvaluationReport:
    """Return the judgement on the rows that the run has kept for it."""
    setup = load_run(run, weights)
    table, test = setup.dataset.table, setup.dataset.test
    dropped: int | None = 0
    if table is not None and table.dropped:  # of a table of its own it is known how many, else not of which part
        in_all = None if setup.config.test is None else rows_of(Path(setup.config.test), setup.config.delimiter)
        dropped = None if in_all is None else in_all - len(test)
    found = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
    assert found is not None  # the test part always has rows
    y = setup.dataset.test.y
    true = y.numpy() if model.class_names else setup.dataset.target_scaling.invert(y.double()).numpy()
    return evaluation_report(model, found.outputs, true, dropped=dropped)


def rows_of(path: Path, delimiter: str) -> int:
    """Return how many rows a table has."""
    return sum(len(batch) for batch in open_table(path, delimiter).batches())


MOST_CLASSES = 12  # in a confusion matrix on the terminal


def tell(console: Console, model: Model, found: EvaluationReport, of: str) -> None:
    """Print the figures."""
    for line in found.warnings:
        print_warning(line)
    console.print(f"[bold]{escape(of)}[/bold]", soft_wrap=True)
    left_out = f", {found.dropped} more left out for something missing in them" if found.dropped else ""
    console.print(f"rows      {found.rows}{left_out}", soft_wrap=True)
    balanced = ", balanced" if model.config.class_weight == "balanced" else ""
    console.print(f"loss      {found.loss:.4g} ({model.objective.name}{balanced})", soft_wrap=True)
    if found.confusion is None:
        # Of several targets, in units of their own, only what has no unit is told together.
        names = ("r2",) if found.by_class else tuple(found.figures)
        for name, value in ((name, found.figures[name]) for name in names):
            console.print(f"{name:<9} {value:.4g}")
        if found.by_class:
            print_table(console, _table("target", found.by_class))
        return
    right = int(found.confusion.trace())
    console.print(f"accuracy  [bold green]{100 * right / found.rows:.2f} %[/bold green] ({right} of {found.rows})")
    for name, label in (("balanced_accuracy", "balanced"), ("macro_f1", "macro F1"), ("roc_auc", "ROC AUC")):
        if name in found.figures:
            value = found.figures[name]
            percent = name == "balanced_accuracy"
            shown = "-" if math.isnan(value) else f"{100 * value:.2f} %" if percent else f"{value:.4f}"
            console.print(f"{label:<9} {shown}")
    console.print()
    print_table(console, _table("class", found.by_class))
    if len(model.class_names) <= MOST_CLASSES:
        console.print()
        print_table(console, _confusion(model, found, console.width))


def _table(kind: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(kind, overflow="fold")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for name, figures in rows.items():
        cells = [str(v) if isinstance(v, int) else "-" if math.isnan(v) else f"{v:.4g}" for v in figures.values()]
        table.add_row(escape(name), *cells)
    return table


CORNER = "true↓ predicted→"


def _confusion(model: Model, found: EvaluationReport, width: int) -> Table:
    """Return the confusion matrix, a column for each class that was predicted, its name as whole as there is room."""
    assert found.confusion is not None
    names, counts = model.class_names, [max(map(len, map(str, column))) for column in found.confusion.T.tolist()]
    first = max(len(CORNER), *map(len, names))

    def needed(most: int) -> int:
        return first + sum(2 + max(min(len(name), most), n) for name, n in zip(names, counts, strict=True))

    longest = max(map(len, names))
    most = next((most for most in range(longest, 8, -1) if needed(most) <= width - 2), min(longest, 8))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(CORNER, no_wrap=True)
    for name in names:
        table.add_column(escape(name if len(name) <= most else f"{name[: most - 1]}…"), justify="right", no_wrap=True)
    for at, (name, row) in enumerate(zip(model.class_names, found.confusion.tolist(), strict=True)):
        cells = [
            f"[green]{n}[/]" if at == column and n else f"[red]{n}[/]" if n else "[dim]·[/]"
            for column, n in enumerate(row)
        ]
        table.add_row(escape(name), *cells)
    return table
