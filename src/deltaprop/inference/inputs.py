"""Data for a trained model: from files and tables of all kinds to scaled inputs, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaprop.data import Encoding, Scaling
from deltaprop.data.classes import Targets, TargetValues, array_targets
from deltaprop.data.columns import Column, Missing, Numbers, Progress, Reader, check_columns, silent
from deltaprop.data.encoding import Encoder, Input, unseen_categories
from deltaprop.data.formats import open_source
from deltaprop.data.formats.arrays import ArrayFile
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.formats.idx import IdxFolder
from deltaprop.data.frames import frame_table
from deltaprop.data.splits import Rows
from deltaprop.data.store import ROWS_AT_ONCE, InMemory
from deltaprop.data.table import DEFAULT_READING, Batch, ReadOptions, Table
from deltaprop.errors import UserError


@dataclass(frozen=True)
class Block:
    """Some rows.

    Attributes:
        x: Scaled inputs, [N, n].
        targets: As they were read, [N, k]; [N, 0] if they are not read.
        batch: What was read of the table; None for arrays.
    """

    x: Tensor
    targets: Numbers
    batch: Batch = None


class Preprocessing(NamedTuple):
    """The steps from raw data to the inputs of a network, as in training.

    Attributes:
        encoding: The inputs that columns of a table become; None for a model that was trained on arrays.
        scaling: The scaling of the encoded inputs.
        dtype: The dtype of the network.
        missing: What is done about missing cells.
        absent: Words in lower case that mean a missing value, besides the usual ones.
    """

    encoding: Encoding | None
    scaling: Scaling
    dtype: torch.dtype
    missing: Missing
    absent: tuple[str, ...] = ()


@dataclass
class InputBlocks:
    """Rows of data as a model takes them; they can be iterated over once.

    Attributes:
        encoding: The inputs that the columns become.
        steps: The preprocessing.
        raw: Blocks [N, p + k] of inputs and targets, the row numbers from 1, and what was read of a table.
        target_columns: The columns of targets.
        reader: The reader of a table; None for arrays.
    """

    encoding: Encoding
    steps: Preprocessing
    raw: Iterator[tuple[Numbers, Rows, Batch]]
    target_columns: list[Column]
    reader: Reader | None = None

    @property
    def table(self) -> Table | None:
        """The table; None for arrays."""
        return None if self.reader is None else self.reader.table

    @property
    def dropped(self) -> int:
        """The number of rows that were dropped for a missing cell, after all rows were read."""
        return 0 if self.reader is None else self.reader.dropped

    @property
    def unlabelled(self) -> int:
        """The number of rows that were left out because their target is missing, after all rows were read."""
        return 0 if self.reader is None else self.reader.unlabelled

    @property
    def warnings(self) -> list[str]:
        """A warning for each column with categories that training has not seen, after all rows were read."""
        if self.reader is None:
            return []
        return unseen_categories(
            self.encoding, [*self.reader.inputs], str(self.reader.table.path), self.reader.rows - self.reader.dropped
        )

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, block by block; refuse a cell that does not fit."""
        width = len(self.encoding.inputs)
        for raw, numbers, batch in self.raw:
            columns = self.encoding.columns() if self.reader is None else [*self.reader.inputs]
            place = partial(self._place, numbers)
            encode = Encoder(self.encoding, columns, self.steps.scaling, self.steps.dtype, place)
            for start in range(0, len(raw), ROWS_AT_ONCE):
                rows = np.arange(start, min(start + ROWS_AT_ONCE, len(raw)))
                x = torch.empty(len(rows), len(self.encoding), dtype=self.steps.dtype)
                encode(InMemory(raw), rows, x)
                some = slice(start, start + ROWS_AT_ONCE)
                yield Block(x, raw[some, width:], None if batch is None else batch[some])

    def inputs(self) -> Iterator[Tensor]:
        """Yield scaled inputs, block by block."""
        return (block.x for block in self.blocks())

    def _place(self, numbers: Rows, at: int) -> str:
        return f"row {numbers[at]}" if self.table is None else self.table.place(int(numbers[at]))


def blocks_of(
    data: Any,
    steps: Preprocessing,
    *,
    targets: Targets | None = None,
    n_targets: int = 1,
    reading: ReadOptions = DEFAULT_READING,
    progress: Progress = silent,
) -> InputBlocks:
    """Return the rows of data as a model takes them.

    Args:
        data: A file, a table in memory, an array or a tensor.
        steps: The preprocessing of the model.
        targets: Whether targets are classes or numbers; None if they are not to be read.
        n_targets: The number of columns of targets.
        reading: How a table is read.
        progress: Called while a table is read.

    Raises:
        UserError: If a column does not exist, or the shape does not fit.
    """
    encoding, n_inputs, missing = steps.encoding, len(steps.scaling.mean), steps.missing
    table: Table | None = data if isinstance(data, CsvTable) else None
    read: TargetValues | None = None
    if isinstance(data, str | Path):
        opened = open_source(Path(data), replace(reading, least=1))
        if not isinstance(opened, ArrayFile | IdxFolder):
            table = opened
        elif targets is None:
            data = opened.inputs()
        else:
            data, y = opened.evaluation_part()
            read = array_targets(opened.path, "y", y, targets.task)
            if len(read.columns) != n_targets:
                raise UserError(f"{opened.path}: y has {len(read.columns)} columns, the model predicts {n_targets}")
    if table is None and isinstance(data, np.ndarray | Tensor | list | tuple):
        x = _as_rows(data, encoding, n_inputs)
        if encoding is None:
            encoding = Encoding(tuple(Input(str(at + 1), "numbers") for at in range(n_inputs)), ())
        values = np.empty((len(x), 0)) if read is None else read.values
        columns = [] if read is None else [*read.columns]
        return InputBlocks(encoding, steps, _array_blocks(x, values), columns)
    if table is None:
        table = frame_table(data)
    if encoding is None:
        encoding = _by_position(table, n_inputs, 0 if targets is None else n_targets)
    inputs, columns = encoding.columns(steps.absent), []
    if targets is not None:
        columns = targets.columns(encoding.targets, encoding.target_forms, steps.absent)
    check_columns(table, [*inputs, *columns], "the model needs")
    # A row cannot be dropped where each gets a prediction; in an evaluation they are, as in training.
    policy: Missing = missing
    if targets is None and missing == "drop":
        fills = all(column.fill is not None or column.kind == "categories" for column in encoding.inputs)
        policy = "mean" if fills else "refuse"
    reader = Reader(table, inputs, columns, policy, training=False)
    return InputBlocks(encoding, steps, reader.blocks(progress), columns, reader)


def _array_blocks(x: Any, targets: Numbers) -> Iterator[tuple[Numbers, Rows, None]]:
    """Yield blocks of an array [N, p] and its targets, as `InputBlocks.raw`."""
    for start in range(0, len(x), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        raw = np.concatenate([np.asarray(x[some], dtype=np.float64), targets[some]], axis=1)
        yield raw, np.arange(len(raw)) + start + 1, None


def _as_rows(data: Any, encoding: Encoding | None, n_inputs: int) -> Any:
    """Return an array or a tensor as [N, p], after checking it."""
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.dtype == torch.bfloat16 else data).numpy()
    try:
        x = np.asarray(data)
    except ValueError as error:
        raise UserError(f"the data must be [N, n], rows of the same length: {error}") from error
    inputs = () if encoding is None else encoding.inputs
    columns = n_inputs if encoding is None else len(inputs)
    if encoding is not None and encoding.categories:
        names = ", ".join(inputs[at].name for at in encoding.categories[:3])
        raise UserError(f"columns of categories ({names}) need names: give a table (a DataFrame, a dict of columns)")
    if x.dtype.kind not in "biuf":
        raise UserError(f"the data must be numbers, got an array of {x.dtype}")
    if x.ndim < 2 or int(np.prod(x.shape[1:])) != columns:
        one = "; one sample is [1, n]" if x.ndim == 1 else ""
        raise UserError(f"the data must be [N, {columns}], got {list(x.shape)}{one}")
    x = x.reshape(len(x), columns)
    bad = ~np.isfinite(x)
    if any(column.fill is not None for column in inputs):
        bad &= ~(np.isnan(x) & np.array([column.fill is not None for column in inputs]))
    if bad.any():
        at = np.argwhere(bad)[0]
        raise UserError(f"row {at[0] + 1}, column {at[1] + 1}: {x[tuple(at)]} is not a finite number")
    return x


def _by_position(table: Table, n_inputs: int, n_targets: int) -> Encoding:
    """Return an encoding of columns in the order of the table, for a model that was trained on arrays."""
    names = table.names
    if len(names) != n_inputs + n_targets:
        plural = "s" if n_targets > 1 else ""
        what = f"{n_inputs} columns of inputs" + (f" and then {n_targets} target{plural}" if n_targets else "")
        raise UserError(f"{table.path}: the model was trained on arrays: {what} are needed, got {len(names)} columns")
    return Encoding(tuple(Input(name, "numbers") for name in names[:n_inputs]), tuple(names[n_inputs:]))
