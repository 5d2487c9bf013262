"""``deltaprop predict``: write the predictions of a trained model, row by row."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from deltaprop.cli.console import ProgressBar, terminal
from deltaprop.cli.errors import print_warning
from deltaprop.cli.files import OutputFile
from deltaprop.cli.parsing import DataArguments, optional, read_arguments, training_data
from deltaprop.data.formats.csv import CsvTable
from deltaprop.errors import UserError, counted
from deltaprop.inference.model import load
from deltaprop.inference.predictions import OUTPUT_ENDINGS, STDOUT, check_keep, prediction_batches, write
from deltaprop.inference.thresholds import read_threshold


@dataclass(frozen=True)
class Arguments(DataArguments):
    """Writes the class and the probability of each class, or the predicted values, of each row, in order.

    Columns are matched by name; the target column is not needed. Rows are read, predicted and written block by block.
    The name - stands for CSV on stdin or stdout.
    """

    #: Table (as for train), arrays (.npz with x, .npy), folder of IDX files, or -, CSV on stdin.
    data: Annotated[str | None, optional("PATH", "required")] = None
    out: Annotated[str | None, optional("FILE", "required")] = (
        None  # File to write: .csv, .csv.gz, .parquet or -, stdout.
    )
    #: Columns of the data to write before the predictions, such as an identifier; from a CSV to Parquet, numeric inputs
    #: as numbers and others as text.
    keep: Annotated[tuple[str, ...], optional("COLUMN ...", "none")] = ()
    #: For two classes: the least probability at which the positive class is predicted; f1 or balanced choose it on the
    #: validation rows of the run.
    threshold: Annotated[str | None, optional("P|f1|balanced", "the more probable class")] = None
    positive: Annotated[str | None, optional("CLASS", "the second class")] = None  # Class that the threshold is for.
    #: For numbers: write intervals, in the columns low and high, that contain this share of new rows.
    interval: Annotated[float | None, optional("LEVEL", "none")] = None


def main(words: Sequence[str]) -> int:
    """Write the predictions."""
    arguments = read_arguments(Arguments, "predict", words)
    run, data, out = arguments.folder, arguments.data, arguments.out
    if data is None:
        raise UserError("--data is needed: a file, or - for stdin")
    if out is None:
        raise UserError("--out is needed: a file, or - for stdout")
    file = OutputFile("--out", None if out == STDOUT else Path(out), OUTPUT_ENDINGS)
    model = load(run, arguments.weights)
    reading = arguments.reading(model.config.reading)
    threshold = read_threshold(model, arguments.threshold, arguments.positive)
    level = arguments.interval
    if level is not None:
        model.interval_radius(level)  # refuses a level that the run cannot give
    is_stdin = data == "-"
    console = terminal(stderr=out == STDOUT)
    with contextlib.closing(ProgressBar(console)) as bar:
        source: Any = CsvTable.of_stream(Path("stdin"), sys.stdin.buffer, reading) if is_stdin else data
        blocks = model.blocks(source, reading=reading, progress=bar)
        file.check_apart(run, *([] if is_stdin else [data]), *training_data(model.config))
        check_keep(blocks, arguments.keep, intervals=level is not None)
        as_csv = not out.lower().endswith(".parquet")
        batches = prediction_batches(model, blocks, arguments.keep, as_csv=as_csv, threshold=threshold, level=level)
        rows = write(_not_empty(batches, "stdin" if is_stdin else data), out)
    for line in blocks.warnings:
        print_warning(line)
    if blocks.reader is not None and blocks.reader.gaps:
        console.print(f"{counted(blocks.reader.gaps, 'missing cell')} filled")
    if out != STDOUT:
        if threshold is not None and threshold.chosen:
            console.print(f"threshold {threshold.describe(model)}")
        console.print(f"{rows} rows: {out} ({model.weights} weights)")
    return 0


def _not_empty(batches: Iterator[Any], data: str) -> Iterator[Any]:
    """Yield the batches, of which there must be one."""
    batch = None
    for batch in batches:
        yield batch
    if batch is None:
        raise UserError(f"{data}: there is a header, and no row below it")
