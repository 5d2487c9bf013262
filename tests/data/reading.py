"""Shared by the tests of how columns are read: a plan for columns in memory, and the numbers that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from deltaprop.data import TableOptions
from deltaprop.data.columns import Column, RowRange
from deltaprop.data.infer import TablePlan, infer
from deltaprop.data.profile import profile
from deltaprop.data.table import ArrowTable, Table

ROWS = 30


def repeated(cells: Sequence[Any], rows: int = ROWS) -> list[Any]:
    """Return cells over and over."""
    return [cells[at % len(cells)] for at in range(rows)]


def beside(cells: Any, rows: int | None = None) -> ArrowTable:
    """Return a table of a column a with these cells, an input b of numbers and a target y of two classes."""
    count = len(cells) if rows is None else rows
    numbers = [f"{1.5 * at + 0.3:.2f}" for at in range(count)]
    return ArrowTable(pa.table({"a": cells, "b": numbers, "y": ["uv"[at % 2] for at in range(count)]}))


def plan_of(table: Table | Mapping[str, Any], **options: Any) -> TablePlan:
    """Return how a table is read."""
    opened = ArrowTable(pa.table(table)) if isinstance(table, Mapping) else table
    chosen = TableOptions(**options)
    return infer(opened, chosen, profile(opened, opened.names, chosen.na_values, lambda done: None))


def columns_of(name: str, plan: TablePlan) -> list[Column]:
    """Return the inputs and targets that a column of the table becomes."""
    return [column for column in (*plan.inputs, *plan.targets) if column.source == name]


def numbers_of(table: ArrowTable, column: Column) -> np.ndarray:
    """Return what is read of a column, NaN where missing."""
    blocks = [batch.column(table.names.index(column.source)) for batch in table.batches()]
    return np.concatenate([column.parse(cells, RowRange(table, 1)) for cells in blocks])


def read(cells: Any, **options: Any) -> np.ndarray:
    """Return the numbers that the only input of such cells has; it must be a column of numbers."""
    table = beside(cells)
    (column,) = columns_of("a", plan_of(table, **options))
    assert column.kind == "numbers"
    return numbers_of(table, column)


def names_of(cells: Any, **options: Any) -> list[str | None]:
    """Return the category of each cell, None where missing; they must be categories."""
    table = beside(cells)
    (column,) = columns_of("a", plan_of(table, **options))
    assert column.kind == "categories"
    indices = numbers_of(table, column)
    names = [*column.names]
    return [None if np.isnan(index) else names[int(index)] for index in indices]
