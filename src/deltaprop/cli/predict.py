"""``deltaprop predict``: the class and probabilities, or the values, that a trained model gives each row."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deltaprop.cli.console import ReadingBar
from deltaprop.cli.errors import print_warning
from deltaprop.cli.files import check_apart, check_file
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.runs import RunArgument, learnt_from, named
from deltaprop.data.formats.csv import CsvTable
from deltaprop.errors import UserError
from deltaprop.inference.model import load
from deltaprop.inference.predictions import FORMATS, STDOUT, check_keep, prediction_batches, unfinished, write

DESCRIPTION = """Predict the class and the probability of each class, or the values, row by row, in order.

The data need no column of the target; columns are found by their names. Rows are read, answered and written a block at
a time. - stands for CSV on stdin and stdout. Exit codes: 0 done, 2 wrong input (no file is written then)."""


@dataclass(frozen=True)
class Arguments:
    """What to predict, and where to write it.

    Attributes:
        run: The folder of the run.
        data: A table (.csv, .tsv, these with .gz, .parquet, a folder of .parquet parts), arrays (.npz with x, .npy), or
            - for CSV on stdin.
        out: A file that ends in .csv, .csv.gz or .parquet, or - for CSV on stdout.
        weights: final, or best for those of the lowest validation loss.
        keep: Columns of the data to write before the answers, such as an identifier; from a CSV to Parquet those that
            are numbers to the model as numbers, others as text.
        delimiter: Of a CSV; by default that of the training data.
    """

    run: RunArgument = None
    data: str | None = None
    out: str | None = None
    weights: str = "final"
    keep: tuple[str, ...] = ()
    delimiter: str | None = None


def main(words: Sequence[str]) -> int:
    """Predict, write, and return 0.

    Raises:
        UserError: If the run, the data or the file to write are at fault.
    """
    arguments = read_flags(Arguments, "predict", words, DESCRIPTION)
    run = named(arguments.run)
    data, out = arguments.data, arguments.out
    if data is None:
        raise UserError("--data is needed: a file, or - for stdin")
    if out is None:
        raise UserError("--out is needed: a file, or - for stdout")
    if out != STDOUT:
        check_file("--out", Path(out))
        if not out.lower().endswith(FORMATS):
            raise UserError(f"--out {out}: the name must end in {', '.join(FORMATS)}, or be - for stdout")
    model = load(run, arguments.weights)
    console = Console(highlight=False, stderr=out == STDOUT)
    bar = ReadingBar(console)
    delimiter = arguments.delimiter or model.config.delimiter
    source: Any = stdin_table(delimiter) if data == "-" else data
    blocks = model.blocks(source, delimiter=delimiter, progress=bar)
    if out != STDOUT:
        check_apart("--out", Path(out), run, *([] if data == "-" else [data]), *learnt_from(model.config))
    check_keep(blocks, arguments.keep)
    found = prediction_batches(model, blocks, arguments.keep, as_csv=not out.lower().endswith(".parquet"))
    try:
        with ended_by_signals() if data == "-" else contextlib.nullcontext():
            rows = write(at_least_one(found, "stdin" if data == "-" else data), out)
    finally:
        bar.stop()
    for line in blocks.warnings:
        print_warning(line)
    if out != STDOUT:
        console.print(f"{rows} rows: {out}", markup=False, soft_wrap=True)
    return 0


@contextlib.contextmanager
def ended_by_signals(patience: float = 1.0) -> Iterator[None]:
    """See that a signal ends the process while pyarrow waits for stdin, where Python hears of none.

    Args:
        patience: Seconds, in which Python may hear of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(heard, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                time.sleep(patience)
                for path in [*unfinished]:
                    path.unlink(missing_ok=True)
                os._exit(128 + number[0])
        os.close(heard)

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)


def at_least_one(batches: Iterator[Any], data: str) -> Iterator[Any]:
    """Give the batches.

    Raises:
        UserError: If there are none.
    """
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise UserError(f"{data}: there is a header, and no row below it")


def stdin_table(delimiter: str) -> CsvTable:
    """Return the table that comes by stdin, of which the first bytes are read for its header."""
    return CsvTable.of_stream(Path("stdin"), sys.stdin.buffer, delimiter)
