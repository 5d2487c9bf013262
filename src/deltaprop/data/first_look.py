"""How the columns of a large table are read: inferred from its first rows and from some of the others.

The first rows show whether a column numbers them, the others whether one is constant only at the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.columns import TableOptions
from deltaprop.data.infer import TablePlan, choose_columns, infer
from deltaprop.data.profile import Profile
from deltaprop.data.row_groups import RowGroup
from deltaprop.data.table import Table

FIRST_ROWS, FURTHER_ROWS, FURTHER_GROUPS = 1 << 19, 1 << 15, 16


def infer_from_some(
    table: Table, options: TableOptions, groups: Sequence[RowGroup], others: Collection[str] = ()
) -> TablePlan:
    """Return how a table is read, as :func:`~deltaprop.data.infer.infer` does, without reading all of it.

    Args:
        table: The table.
        options: The user's choices.
        groups: Its row groups.
        others: The columns of the table to test on.

    Raises:
        UserError: If a column cannot be read, or a file is damaged.
    """
    inputs, targets, _ = choose_columns(table, options, others)
    looked_at = _Look([*inputs, *targets], options.na_values)
    first = [group for group in groups if group.first < FIRST_ROWS]
    for group in first:
        looked_at.add(group, FIRST_ROWS - group.first)
    begun, starts = looked_at.rows, {name: found.starts for name, found in looked_at.profiles.items()}
    if further := groups[len(first) :]:
        for at in sorted({*np.linspace(0, len(further) - 1, FURTHER_GROUPS).round().astype(int).tolist()}):
            looked_at.add(further[at], FURTHER_ROWS)
        for name, found in looked_at.profiles.items():
            start, numbers = starts[name], np.concatenate(found.numbering or [[]])[begun:]
            goes_on = start is not None and np.array_equal(numbers, looked_at.indices()[begun:] + start)
            found.numbering = [np.arange(found.rows) + start] if goes_on and start is not None else None
            found.first = {text: looked_at.in_table(row) for text, row in found.first.items()}
            found.infinite = None if found.infinite is None else looked_at.in_table(found.infinite)
    plan = infer(table, options, looked_at.profiles, others)
    rows = groups[-1].first + groups[-1].rows
    if looked_at.rows == rows:
        return plan
    left_out = [(name, _of_table(why, rows, starts.get(name))) for name, why in plan.left_out]
    notes = (*plan.notes, f"columns are inferred from {looked_at.rows} of {rows} rows")
    return replace(plan, left_out=tuple(left_out), notes=notes)


def _of_table(why: str, rows: int, start: int | None) -> str:
    """Return why a column is left out, with the numbers of all rows where it numbers them."""
    return f"row numbers, {start} to {start + rows - 1}" if start is not None and why.startswith("row numbers") else why


class _Look:
    """The profiles of columns in some rows of a table.

    Attributes:
        profiles: By column.
        rows: How many rows were looked at.
    """

    def __init__(self, names: Sequence[str], absent: Sequence[str]) -> None:
        self.profiles = {name: Profile(name) for name in names}
        self.rows = 0
        self._absent = tuple(word.lower() for word in absent)
        self._begins: list[tuple[int, int]] = []  # rows before those of a row group, and the first's index in the table

    def add(self, group: RowGroup, most: int) -> None:
        """Look at the first rows of a row group, at least so many."""
        self._begins.append((self.rows, group.first))
        end = self.rows + most
        for batch in replace(group, names=[*self.profiles], rows_at_once=FURTHER_ROWS).batches():
            for at, found in enumerate(self.profiles.values()):
                found.add(batch.column(at), self._absent)
            self.rows += len(batch)
            if self.rows >= end:
                return

    def in_table(self, row: int) -> int:
        """Return the number in the table of a row that was looked at, both from 1."""
        before, first = max(begin for begin in self._begins if begin[0] < row)
        return row - before + first

    def indices(self) -> NDArray[np.int64]:
        """Return the index in the table of each row that was looked at."""
        ends = [*(before for before, _ in self._begins[1:]), self.rows]
        return np.concatenate(
            [np.arange(end - before) + first for (before, first), end in zip(self._begins, ends, strict=True)]
        )
