"""What a model answers, row by row, as columns of a table: written as they come, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deltaprop.data.columns import Column, RowRange
from deltaprop.data.formats.table import Batch
from deltaprop.errors import UserError, setting
from deltaprop.inference.inputs import FromTable
from deltaprop.inference.model import Model

FORMATS = (".csv", ".csv.gz", ".parquet")
STDOUT = "-"
unfinished: set[Path] = set()  # files that are being written


def columns_of(model: Model, outputs: Tensor, *, proba: bool = True) -> dict[str, Any]:
    """Return the answers for outputs [N, n_L]: ``prediction`` and ``probability_<class>``, or the values.

    Args:
        model: That gave them.
        outputs: As the loss takes them.
        proba: Whether probabilities are wanted, where there are some.
    """
    if model.class_names:
        found: dict[str, Any] = {"prediction": model.classes[model.objective.decide(outputs).numpy()]}
        if proba and model.objective.has_probabilities:
            shares = model.objective.probabilities(outputs).numpy()
            found |= {f"probability_{name}": shares[:, at] for at, name in enumerate(model.class_names)}
        return found
    values = model.in_units(outputs).numpy()
    names = ["prediction"] if values.shape[1] == 1 else [f"prediction_{name}" for name in model.target_names]
    return {name: values[:, at] for at, name in enumerate(names)}


def answers(
    model: Model, blocks: Any, keep: Sequence[str] = (), *, proba: bool = True, as_csv: bool = True
) -> Iterator[Batch]:
    """Give the answers, block by block, each a pyarrow.RecordBatch, in the order of the rows.

    Args:
        model: That answers.
        blocks: The rows, of :meth:`Model.blocks`.
        keep: Columns of the data to stand before the answers.
        proba: Whether probabilities are wanted.
        as_csv: Whether they will be text; if not, text that is a number to the model is made one.

    Raises:
        UserError: If a cell does not fit.
    """
    import pyarrow

    first = 1
    known = {} if as_csv or not isinstance(blocks, FromTable) else numbers_of(model)
    kinds: dict[str, Any] = {}  # of the columns that are kept, as the first block has them
    for block in blocks.blocks():
        columns: dict[str, Any] = {}
        for name in keep:
            column = block.batch.column(name)
            if pyarrow.types.is_nested(column.type) or (as_csv and is_binary(column.type)):
                raise UserError(
                    f"{setting('keep', name)}: the column is of type {column.type}, which a plain table cannot hold"
                )
            kind = column.type
            if name in known and pyarrow.types.is_string(kind):
                kind = known[name]
                values = Column(name, "numbers", forced=True).read(column, RowRange(blocks.table, first, advises=False))
                column = pyarrow.array(values, from_pandas=True)
            try:
                columns[name] = column.cast(kinds.setdefault(name, kind))
            except pyarrow.ArrowInvalid as error:
                raise UserError(f"{setting('keep', name)}: {error}") from error
        first += len(block.x)
        columns |= columns_of(model, model.feed(block.x).cpu(), proba=proba)
        yield pyarrow.RecordBatch.from_pydict(columns)


def is_binary(kind: Any) -> bool:
    """Return whether a type of Arrow is of bytes, which are no text."""
    return "binary" in str(kind)


def numbers_of(model: Model) -> dict[str, Any]:
    """Return the columns that are numbers to a model, inputs and targets, each with its type of Arrow."""
    import pyarrow

    if model.encoding is None:
        return {}
    found = {column.name: pyarrow.float64() for column in model.encoding.inputs if column.kind == "numbers"}
    if not model.class_names or model.classes.dtype.kind == "i":
        kind = pyarrow.int64() if model.class_names else pyarrow.float64()
        found |= dict.fromkeys(model.target_names, kind)
    return found


def check_keep(blocks: Any, keep: Sequence[str]) -> None:
    """Refuse columns to keep that are not there.

    Raises:
        UserError: If one is not.
    """
    from deltaprop.data.columns import unlisted

    for at, name in enumerate(keep):
        if name == "prediction" or name.startswith(("prediction_", "probability_")):
            raise UserError(f"{setting('keep', name)}: this is what an answer is called; rename the column")
        if name in keep[:at]:
            raise UserError(f"{setting('keep', name)}: it is named twice")
        if not isinstance(blocks, FromTable):
            raise UserError(f"{setting('keep', name)}: the data are arrays, whose columns have no names")
        if name not in blocks.table.names:
            raise UserError(f"{setting('keep', name)}: {unlisted(name, blocks.table.names)}")


def write(batches: Iterator[Batch], out: str) -> int:
    """Write batches as they come; return how many rows there were.

    Args:
        batches: At least one.
        out: A file that ends in .csv, .csv.gz or .parquet; ``-`` for CSV to stdout.

    Raises:
        UserError: If the file cannot be written. There is none then, or the old one.
    """
    if out == STDOUT:
        return _write_csv(batches, sys.stdout.buffer)
    path = Path(out).resolve()  # through a link, to what it stands for
    temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(4)}"
    unfinished.add(temporary)
    try:
        if path.suffix.lower() == ".parquet":
            rows = _write_parquet(batches, temporary)
        else:
            with temporary.open("wb") as file:
                rows = _write_csv(batches, file, gzip=path.suffix.lower() == ".gz")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{setting('out', out)}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        unfinished.discard(temporary)
    return rows


def _write_csv(batches: Iterator[Batch], file: Any, *, gzip: bool = False) -> int:
    import pyarrow
    from pyarrow import csv

    rows = 0
    options = csv.WriteOptions(quoting_style="needed")
    with contextlib.ExitStack() as stack:
        sink: Any = pyarrow.PythonFile(file, mode="w")
        if gzip:
            sink = stack.enter_context(pyarrow.CompressedOutputStream(sink, "gzip"))
        writer: Any = None
        for batch in batches:
            if writer is None:
                writer = stack.enter_context(csv.CSVWriter(sink, batch.schema, write_options=options))
            writer.write_batch(batch)
            file.flush()
            rows += len(batch)
    return rows


def _write_parquet(batches: Iterator[Batch], path: Path) -> int:
    from pyarrow import parquet

    rows = 0
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for batch in batches:
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, batch.schema))
            writer.write_batch(batch)
            rows += len(batch)
    return rows
