"""Rows of a table to scaled inputs while a net trains: the formula of ``encoding.py`` and `Scaling`, made fast.

A net that is fed from the disk waits for this. Of rows on disk, which are float32 less a shift s and in a unit u per
column, x = (s + u r − m)/d is one product and one sum in float32: x = r (u/d) + (s − m)/d, the factors in float64 until
then. One-hot inputs are written where they are 1. ``tests/data/test_streaming.py`` holds it to the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.columns import Numbers
from deltaprop.data.encoding import Encoding
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Rows
from deltaprop.data.store import OnDisk, Store
from deltaprop.errors import UserError


@dataclass(frozen=True, eq=False)
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

    def __call__(self, store: Store, rows: Rows) -> Tensor:
        """Return the inputs of some rows, [M, n], in the order given.

        Raises:
            UserError: If one has no room in the dtype.
        """
        encoding, count = self.encoding, len(self.encoding.numbers)
        x = torch.zeros(len(rows), len(encoding), dtype=self.dtype)
        mean, scale = self.scaling.mean[:count].numpy(), self.scaling.scale[:count].numpy()
        raw: NDArray[Any]
        if isinstance(store, OnDisk) and self.dtype == torch.float32:
            raw = store.kept(rows)
            shift, unit = store.shift, store.unit
            of = encoding.numbers
            factor, offset = (unit[of] / scale).astype(np.float32), ((shift[of] - mean) / scale).astype(np.float32)
            numbers = raw if count == raw.shape[1] else raw[:, of]
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                numbers *= factor
                numbers += offset
        else:
            raw = store.take(rows)
            shift, unit = np.zeros(raw.shape[1]), np.ones(raw.shape[1])
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = (raw[:, encoding.numbers] - mean) / scale
        if self._fills is not None:
            numbers = np.where(np.isnan(numbers), self._fills.astype(numbers.dtype), numbers)
        x[:, :count] = torch.from_numpy(numbers)
        if not x.sum().isfinite() and not x.isfinite().all():  # the sum is quick, and tells of nearly all
            self._tell(x, store, rows)
        first = count
        for at in encoding.categories:
            number, which = self._ones(raw[:, at], at, float(shift[at]), float(unit[at]))
            x[torch.from_numpy(number), torch.from_numpy(which + first)] = 1.0
            first += len(encoding.inputs[at].categories)
        return x

    @property
    def _fills(self) -> Numbers | None:
        """What stands for a missing number, scaled; None where none may be missing."""
        fills = [self.encoding.inputs[at].fill for at in self.encoding.numbers]
        if all(fill is None for fill in fills):
            return None
        count = len(fills)
        mean, scale = self.scaling.mean[:count].numpy(), self.scaling.scale[:count].numpy()
        scaled: Numbers = (np.array(fills, dtype=np.float64) - mean) / scale
        return scaled

    def _ones(self, cells: NDArray[Any], at: int, shift: float, unit: float) -> tuple[Rows, Rows]:
        """Return where the inputs of a column of categories are 1: rows, and the number of the category in each."""
        rows = np.flatnonzero(~np.isnan(cells))
        number = (cells[rows] * np.float64(unit) + shift).astype(np.intp)
        recode = self.recodes[at]
        assert recode is not None, "a column of categories"
        found = recode[number]
        known = found >= 0
        return rows[known], found[known].astype(np.intp)

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
            f"mend it, or --drop {name!r}"
        )
