"""Data that a trained model is given: from files and tables of all kinds to scaled inputs, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaprop.data import Encoding, Scaling, load_idx_folder
from deltaprop.data.columns import Numbers, Reader
from deltaprop.data.encoding import Input, recoded, unseen_categories
from deltaprop.data.formats import is_table, open_table
from deltaprop.data.formats.arrays import is_array, read_inputs
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.formats.table import Batch, Table, as_table
from deltaprop.data.from_table import Targets, check_columns, columns_of
from deltaprop.data.store import ROWS_AT_ONCE, Progress, silent
from deltaprop.errors import UserError


@dataclass(frozen=True)
class Block:
    """Some rows.

    Attributes:
        x: Scaled inputs, [N, n].
        targets: As they were read, [N, k]; [N, 0] where they were not asked for.
        batch: What was read of the table; None where the data are arrays.
    """

    x: Tensor
    targets: Numbers
    batch: Batch | None = None


class Blocks(ABC):
    """The rows of some data; made to be gone through once."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Give them, block by block."""

    def inputs(self) -> Iterator[Tensor]:
        """Give scaled inputs, block by block."""
        return (block.x for block in self.blocks())


@dataclass
class FromTable(Blocks):
    """Rows of a table.

    Attributes:
        table: The table.
        reader: Of its columns.
        encoding: What they become.
        scaling: Of the inputs.
        dtype: Of the inputs.
        progress: Told how far the reading is.
    """

    table: Table
    reader: Reader
    encoding: Encoding
    scaling: Scaling
    dtype: torch.dtype
    progress: Progress = silent

    def blocks(self) -> Iterator[Block]:
        """Give them, block by block."""
        width = len(self.encoding.inputs)
        total = sum(path.stat().st_size for path in self.table.files if path.is_file())
        name = self.table.path.name

        def on_bytes(done: int) -> None:
            self.progress(f"reading {name}", done, total)

        for rows, numbers, batch in self.reader.beside(on_bytes):
            raw = recoded(rows[:, :width], self.encoding.recode(self.reader.inputs))
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = slice(start, start + ROWS_AT_ONCE)
                encoded = self.encoding.encode(raw[some])
                x = self.scaling.apply(torch.from_numpy(encoded)).to(self.dtype)
                _check_finite(x, encoded, self.encoding, partial(_place, self.table, numbers[some].tolist()))
                yield Block(x, rows[some, width:], batch[start : start + ROWS_AT_ONCE])

    @property
    def warnings(self) -> list[str]:
        """Names of categories that training has not seen, by column, once all rows are read."""
        return unseen_categories(self.encoding, self.reader.inputs, str(self.table.path))


@dataclass
class FromArrays(Blocks):
    """Rows of an array.

    Attributes:
        x: [N, n], raw.
        encoding: What the columns become; None for as they are.
        scaling: Of the inputs.
        dtype: Of the inputs.
        y: Targets, [N, k].
    """

    x: Any
    encoding: Encoding | None
    scaling: Scaling
    dtype: torch.dtype
    y: Numbers | None = None
    warnings: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Block]:
        """Give them, block by block."""
        for start in range(0, len(self.x), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            raw = np.array(self.x[some], dtype=np.float64)
            if self.encoding is not None:
                raw = self.encoding.encode(raw)
            targets = np.empty((len(raw), 0)) if self.y is None else self.y[some]
            x = self.scaling.apply(torch.from_numpy(raw)).to(self.dtype)
            _check_finite(x, raw, self.encoding, partial(_place, None, range(start + 1, start + 1 + len(raw))))
            yield Block(x, targets)


def _place(table: Table | None, numbers: Sequence[int], at: int) -> str:
    """Return where a row of a block is, whose rows have these numbers."""
    return f"row {numbers[at]}" if table is None else table.place(numbers[at])


def _check_finite(x: Tensor, raw: Numbers, encoding: Encoding | None, place: Callable[[int], str]) -> None:
    """Refuse a value that has no room in the net's dtype.

    Raises:
        UserError: If there is one.
    """
    if not x.isfinite().all():
        at, column = (int(index) for index in (~x.isfinite()).nonzero()[0])
        name = f"{column + 1}" if encoding is None else repr(encoding.names[column])
        raise UserError(f"{place(at)}, column {name}: {raw[at, column]:g} does not fit in {x.dtype} after scaling")


def blocks_of(
    data: Any,
    *,
    encoding: Encoding | None,
    n_inputs: int,
    scaling: Scaling,
    dtype: torch.dtype,
    missing: str,
    kinds: Targets | None = None,
    n_targets: int = 1,
    delimiter: str = "auto",
    progress: Progress = silent,
) -> FromTable | FromArrays:
    """Return the rows of data as a net takes them.

    Args:
        data: A file, a table in memory, an array or a tensor.
        encoding: What columns of a table become; None where the net was trained on arrays.
        n_inputs: Inputs of the net.
        scaling: Of the encoded inputs.
        dtype: Of the net.
        missing: What was done about missing cells when the net was trained.
        kinds: Of the targets; None where they are not to be read.
        n_targets: How many columns they are.
        delimiter: Of a CSV.
        progress: Told how far the reading is.

    Raises:
        UserError: If a column is not there, or the shape does not fit.
    """
    if isinstance(data, str | Path) and is_array(data):
        data = read_inputs(Path(data))
    elif isinstance(data, str | Path) and Path(data).is_dir() and not is_table(data):
        raw = load_idx_folder(str(data))
        data = raw.x if raw.x_test is None else raw.x_test
    if isinstance(data, np.ndarray | Tensor | list | tuple):
        x = _flat(data, encoding, n_inputs)
        return FromArrays(x, encoding, scaling, dtype)
    if isinstance(data, CsvTable):
        table: Table = data
    else:
        table = open_table(Path(data), delimiter, least=1) if isinstance(data, str | Path) else _in_memory(data)
    if encoding is None:
        encoding = _by_place(table, n_inputs, kinds, n_targets)
    wanted = [column.name for column in encoding.inputs] + ([] if kinds is None else [*encoding.targets])
    check_columns(table, wanted, "the model needs")
    inputs, targets = columns_of(encoding, kinds)
    # A row cannot be dropped where each gets a prediction; in an evaluation they are, as in training.
    policy = "refuse" if kinds is None and missing == "drop" else missing
    reader = Reader(table, inputs, targets, policy, advises=False)  # type: ignore[arg-type]  # one of the choices
    return FromTable(table, reader, encoding, scaling, dtype, progress)


def _in_memory(data: Any) -> Table:
    if isinstance(data, Mapping):
        for name, values in data.items():
            if isinstance(values, str | bytes) or np.isscalar(values) or getattr(values, "ndim", 1) == 0:
                raise UserError(f"the table: column {name!r} is {values!r:.40}: give a list for each column")
        data = {name: _plain_column(values) for name, values in data.items()}
    return as_table(data)


def _plain_column(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _flat(data: Any, encoding: Encoding | None, n_inputs: int) -> Any:
    """Return an array or a tensor as [N, n]."""
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.dtype == torch.bfloat16 else data).numpy()
    try:
        x = np.asarray(data)
    except ValueError as error:
        raise UserError(f"the data must be [N, n], rows of the same length: {error}") from error
    columns = n_inputs if encoding is None else len(encoding.inputs)
    if encoding is not None and encoding.categories:
        names = ", ".join(encoding.inputs[at].name for at in encoding.categories[:3])
        raise UserError(f"columns of categories ({names}) need names: give a table (a DataFrame, a dict of columns)")
    if x.dtype.kind not in "biuf":
        raise UserError(f"the data must be numbers, got an array of {x.dtype}")
    if x.ndim < 2 or int(np.prod(x.shape[1:])) != columns:
        one = "; one sample is [1, n]" if x.ndim == 1 else ""
        raise UserError(f"the data must be [N, {columns}], got {list(x.shape)}{one}")
    x = x.reshape(len(x), columns)
    fills = [encoding is not None and column.fill is not None for column in (encoding.inputs if encoding else ())]
    bad = ~np.isfinite(x) if x.dtype.kind == "f" else np.zeros(x.shape, dtype=bool)
    if any(fills):
        bad &= ~(np.isnan(x) & np.array(fills))
    if bad.any():
        at = np.argwhere(bad)[0]
        raise UserError(f"row {at[0] + 1}, column {at[1] + 1}: {x[tuple(at)]} is no finite number")
    return x


def _by_place(table: Table, n_inputs: int, kinds: Targets | None, n_targets: int) -> Encoding:
    """Return an encoding of columns in the order of the table, for a net that was trained on arrays."""
    names = table.names
    outputs = 0 if kinds is None else n_targets
    if len(names) != n_inputs + outputs:
        plural = "s" if outputs > 1 else ""
        what = f"{n_inputs} columns of inputs" + (f" and then {outputs} target{plural}" if outputs else "")
        raise UserError(f"{table.path}: the model was trained on arrays: {what} are needed, got {len(names)} columns")
    return Encoding(tuple(Input(name, "numbers") for name in names[:n_inputs]), tuple(names[n_inputs:]))
