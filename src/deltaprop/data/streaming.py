"""Rows of a table to scaled inputs while a net trains: the formula of ``encoding.py`` and `Scaling`, made fast.

A net that is fed from the disk waits for this. Of rows on disk, which are float32 less a shift s and in a unit u per
column, x = (s + u r − m)/d is one product and one sum in float32: x = r (u/d) + (s − m)/d, the factors in float64 until
then. One-hot inputs are written where they are 1. ``tests/data/test_streaming.py`` holds it to the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.columns import Numbers
from deltaprop.data.encoding import UNKNOWN, Encoding
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Rows
from deltaprop.data.store import OnDisk, Store
from deltaprop.errors import UserError, setting


@dataclass(eq=False)
class Encoder:
    """Takes rows of a store to inputs.

    Attributes:
        encoding: What columns become.
        recodes: Of each column of categories, as it was read: the number in ``encoding`` of each of its names.
        scaling: Of the encoded inputs; of one-hot ones it is none.
        dtype: Of the inputs.
        where: What messages call the table.
    """

    encoding: Encoding
    recodes: Sequence[Numbers | None]
    scaling: Scaling
    dtype: torch.dtype
    where: str
    _lines: tuple[OnDisk, Tensor, Tensor] | None = None

    def __call__(self, store: Store, rows: Rows, x: Tensor) -> None:
        """Write the inputs of some rows, in the order given, into x, [M, n].

        Raises:
            UserError: If one has no room in the dtype.
        """
        count = len(self.encoding.numbers)
        numbers, names = x[:, :count], x[:, count:]
        raw: NDArray[Any]
        if isinstance(store, OnDisk) and self.dtype == torch.float32:
            raw, shift, unit = store.kept(rows), store.shift, store.unit
            factor, offset = self._line(store)
            torch.mul(torch.from_numpy(raw)[:, self._columns], factor, out=numbers)
            numbers += offset
        else:
            raw, shift, unit = store.take(rows), np.zeros(raw_width := len(self.encoding.inputs)), np.ones(raw_width)
            scaling = self.scaling
            numbers.copy_((torch.from_numpy(raw)[:, self._columns] - scaling.mean[:count]) / scaling.scale[:count])
        if self._fills is not None:
            torch.where(numbers.isnan(), self._fills.to(self.dtype), numbers, out=numbers)
        if not numbers.sum().isfinite() and not numbers.isfinite().all():  # the sum is quick, and tells of nearly all
            self._tell(numbers, store, rows)
        names.zero_()
        first = 0
        for at in self.encoding.categories:
            number, which = self._ones(raw[:, at], at, float(shift[at]), float(unit[at]))
            names[torch.from_numpy(number), torch.from_numpy(which + first)] = 1.0
            first += len(self.encoding.inputs[at].categories)

    @cached_property
    def _columns(self) -> slice | list[int]:
        """Which columns are of numbers: as a slice where they stand side by side, which costs no copy."""
        of = self.encoding.numbers
        side_by_side = bool(of) and of == list(range(of[0], of[-1] + 1))
        return slice(of[0], of[-1] + 1) if side_by_side else of

    def _line(self, store: OnDisk) -> tuple[Tensor, Tensor]:
        """Return u/d and (s − m)/d of the columns of numbers, worked out in float64."""
        if self._lines is None or self._lines[0] is not store:
            of = self.encoding.numbers
            mean, scale = (t[: len(of)] for t in (self.scaling.mean, self.scaling.scale))
            factor, offset = (
                torch.from_numpy(store.unit[of]) / scale,
                (torch.from_numpy(store.shift[of]) - mean) / scale,
            )
            self._lines = store, factor.float(), offset.float()
        return self._lines[1:]

    @cached_property
    def _fills(self) -> Tensor | None:
        """What stands for a missing number, scaled; None where none may be missing."""
        fills = [self.encoding.inputs[at].fill for at in self.encoding.numbers]
        if all(fill is None for fill in fills):
            return None
        count = len(fills)
        return (torch.tensor(fills, dtype=torch.float64) - self.scaling.mean[:count]) / self.scaling.scale[:count]

    def _ones(self, cells: NDArray[Any], at: int, shift: float, unit: float) -> tuple[Rows, Rows]:
        """Return where the inputs of a column of categories are 1: rows, and the number of the category in each."""
        recode = self.recodes[at]
        assert recode is not None, "a column of categories"
        code = np.nan_to_num(
            cells * np.float64(unit) + shift, nan=len(recode)
        )  # what is missing has a place of its own
        found = np.append(recode, UNKNOWN).astype(np.intp)[code.astype(np.intp)]
        rows = np.flatnonzero(found >= 0)
        return rows, found[rows]

    def _tell(self, x: Tensor, store: Store, rows: Rows) -> None:
        """Say which value has no room.

        Raises:
            UserError: Always.
        """
        at, column = (int(index) for index in (~x.isfinite()).nonzero()[0])
        value = store.take(rows[at : at + 1])[0, self.encoding.numbers[column]]
        name = self.encoding.names[column]
        raise UserError(
            f"{self.where}: column {name!r}: a value such as {value:g} does not fit in {self.dtype} after scaling: "
            f"mend it, or {setting('drop', name)}"
        )
