"""Predictions of a model as columns of a table, written block by block; the file appears only when it is complete."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from deltaprop.data.cells import LARGE_INTEGER, MOST_EXACT
from deltaprop.data.classes import Targets
from deltaprop.data.columns import Column, Numbers, RowRange
from deltaprop.data.table import Batch, unlisted
from deltaprop.errors import UserError, setting
from deltaprop.inference.inputs import InputBlocks
from deltaprop.inference.model import Model
from deltaprop.inference.thresholds import Threshold

OUTPUT_ENDINGS = (".csv", ".csv.gz", ".parquet")
STDOUT = "-"


def prediction_batches(
    model: Model,
    data: InputBlocks,
    keep: Sequence[str] = (),
    *,
    proba: bool = True,
    as_csv: bool = True,
    threshold: Threshold | None = None,
    level: float | None = None,
) -> Iterator[Batch]:
    """Yield the predictions block by block, each a pyarrow.RecordBatch, in the order of the rows.

    Args:
        model: The model.
        data: The rows, from :meth:`Model.blocks`.
        keep: Columns of the data to write before the predictions.
        proba: Whether probabilities are wanted, if the model has them.
        as_csv: Whether the file will be text; if not, text that is a number to the model becomes one.
        threshold: Decides between two classes; by default the larger probability does.
        level: The level of intervals to write for numbers; None for no intervals.

    Raises:
        UserError: If a cell does not fit.
    """
    import pyarrow

    first = 1
    radius = None if level is None else model.interval_radius(level)
    numeric = {} if as_csv else _numeric_columns(model)
    types: dict[str, Any] = {}  # of the columns that are kept, as the first block has them
    for block in data.blocks():
        columns: dict[str, Any] = {}
        for name in keep:
            assert data.table is not None, "see check_keep"
            column = block.batch.column(name)
            if pyarrow.types.is_nested(column.type) or (as_csv and "binary" in str(column.type)):
                raise UserError(
                    f"{setting('keep', name)}: the column is of type {column.type}, which a plain table cannot hold"
                )
            arrow_type = column.type
            if name in numeric and pyarrow.types.is_string(arrow_type):
                column = _as_numbers(numeric[name], column, RowRange(data.table, first, training=False))
                arrow_type = column.type
            try:
                columns[name] = column.cast(types.setdefault(name, arrow_type))
            except pyarrow.ArrowInvalid as error:
                raise UserError(f"{setting('keep', name)}: {error}") from error
        first += len(block.x)
        outputs = model.feed(block.x).cpu()
        columns |= _prediction_columns(model, outputs, proba)
        if threshold is not None:
            columns["prediction"] = model.classes[threshold.decide(model, outputs)]
        if radius is not None:
            columns |= _interval_columns(model, outputs, radius)
        yield pyarrow.RecordBatch.from_pydict(columns)


def _prediction_columns(model: Model, outputs: Tensor, proba: bool) -> dict[str, Any]:
    """Return ``prediction`` and ``probability_<class>``, or the values, for outputs [N, n_L]."""
    if model.class_names:
        columns: dict[str, Any] = {"prediction": model.classes[model.objective.decide(outputs).numpy()]}
        if proba and model.objective.has_probabilities:
            shares = model.objective.probabilities(outputs).numpy()
            columns |= {f"probability_{name}": shares[:, at] for at, name in enumerate(model.class_names)}
        return columns
    values = model.in_units(outputs).numpy()
    names = ["prediction"] if values.shape[1] == 1 else [f"prediction_{name}" for name in model.target_names]
    return {name: values[:, at] for at, name in enumerate(names)}


def _interval_columns(model: Model, outputs: Tensor, radius: Numbers) -> dict[str, Any]:
    """Return ``low`` and ``high``, for several targets ``low_<target>`` and ``high_<target>``."""
    values = model.in_units(outputs).numpy()
    ends = [""] if len(radius) == 1 else [f"_{name}" for name in model.target_names]
    columns: dict[str, Any] = {}
    for at, end in enumerate(ends):
        columns |= {f"low{end}": values[:, at] - radius[at], f"high{end}": values[:, at] + radius[at]}
    return columns


def _numeric_columns(model: Model) -> dict[str, Column]:
    """Return the columns of a table that are numbers to a model, inputs and targets; integer classes as categories."""
    if model.encoding is None:
        return {}
    absent = tuple(word.lower() for word in model.config.na_values)
    inputs = [column for column in model.encoding.inputs if column.kind == "numbers" and not column.part]
    columns = {column.name: column.column(absent) for column in inputs}
    if not model.class_names or model.classes.dtype.kind == "i":
        targets = Targets(model.objective.task, model.class_names)
        for column in targets.columns(model.target_names, model.encoding.target_forms, absent):
            columns[column.name] = column
    return columns


def _as_numbers(column: Column, cells: Any, rows: RowRange) -> Any:
    """Return text as numbers, exactly: integers as int64, others as float64.

    Raises:
        UserError: If a cell is not a number, or an integer that float64 would change.
    """
    import pyarrow

    if column.kind == "categories":
        try:
            return column.text(cells).cast(pyarrow.int64())
        except pyarrow.ArrowInvalid:  # such as 1.0
            column = Column(column.name, form=column.form, absent=column.absent)
    values = column.parse(cells, rows)
    for at in np.flatnonzero(np.abs(values) >= MOST_EXACT).tolist():
        text = cells[at].as_py().strip()
        if re.fullmatch(LARGE_INTEGER, text) and int(text) != int(values[at]):
            raise rows.error(at, column.name, f"float64 would change {text}: write a .csv, which keeps its digits", "")
    return pyarrow.array(values, from_pandas=True)


def check_keep(data: InputBlocks, keep: Sequence[str], *, intervals: bool = False) -> None:
    """Refuse columns to keep that do not exist, or whose name a prediction has; or an interval, if they are written."""
    own = ("prediction", *(("low", "high") if intervals else ()))
    for at, name in enumerate(keep):
        if name in own or name.startswith(("probability_", *(f"{word}_" for word in own))):
            raise UserError(f"{setting('keep', name)}: this is the name of a prediction; rename the column")
        if name in keep[:at]:
            raise UserError(f"{setting('keep', name)}: it is listed twice")
        if data.table is None:
            raise UserError(f"{setting('keep', name)}: the data are arrays, whose columns have no names")
        if name not in data.table.names:
            raise UserError(f"{setting('keep', name)}: {unlisted(name, data.table.names)}")


def write(batches: Iterator[Batch], out: str) -> int:
    """Write batches as they come; return the number of rows.

    Args:
        batches: At least one.
        out: A file that ends in .csv, .csv.gz or .parquet; ``-`` for CSV to stdout.

    Raises:
        UserError: If the file cannot be written; an existing file is left as it was.
    """
    if out == STDOUT:
        return _write_batches(batches, sys.stdout.buffer, ".csv")
    path = Path(out).resolve()  # through a link, to its target
    temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(4)}"
    try:
        with temporary.open("wb") as file:
            rows = _write_batches(batches, file, path.suffix.lower())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{setting('out', out)}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return rows


def _write_batches(batches: Iterator[Batch], file: Any, ending: str) -> int:
    """Write batches in the format of a file's ending."""
    import pyarrow
    from pyarrow import csv, parquet

    rows = 0
    with contextlib.ExitStack() as stack:
        sink: Any = pyarrow.PythonFile(file, mode="w")
        if ending == ".gz":
            sink = stack.enter_context(pyarrow.CompressedOutputStream(sink, "gzip"))
        writer: Any = None
        for batch in batches:
            if writer is None and ending == ".parquet":
                writer = stack.enter_context(parquet.ParquetWriter(sink, batch.schema))
            elif writer is None:
                options = csv.WriteOptions(quoting_style="needed")
                writer = stack.enter_context(csv.CSVWriter(sink, batch.schema, write_options=options))
            writer.write_batch(batch)
            file.flush()
            rows += len(batch)
    return rows
