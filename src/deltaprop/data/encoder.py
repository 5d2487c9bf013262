"""Rows of a table to scaled inputs: while a network trains, and when it predicts.

For a column of numbers x = (raw − m)/d, a missing number being the mean of the training rows; then 1 for the category
of each row and 0 for the others, not scaled (scikit-learn's ``OneHotEncoder``, which is slower; a network that trains
from the disk waits for this). Rows on disk are float32 less a shift s and in a unit u per column, so that
x = (s + u r − m)/d is one product and one sum in float32: x = r (u/d) + (s − m)/d, the factors computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.columns import Column, Numbers
from deltaprop.data.encoding import Encoding
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Rows
from deltaprop.data.store import InMemory, OnDisk, Store
from deltaprop.errors import UserError, setting


class Encoder:
    """Writes inputs of a network from rows of a store.

    Args:
        encoding: The inputs that the columns become.
        columns: The columns as they were read from this table: their categories may have other indices.
        scaling: The scaling of the encoded inputs, which is the identity for one-hot ones.
        dtype: The dtype of the inputs.
        place: Returns the file and number of a row for error messages; or the name of the table, where rows of the
            store have no numbers.
    """

    def __init__(
        self,
        encoding: Encoding,
        columns: list[Column],
        scaling: Scaling,
        dtype: torch.dtype,
        place: str | Callable[[int], str],
    ) -> None:
        self.encoding, self.scaling, self.dtype, self.place = encoding, scaling, dtype, place
        numbers = encoding.numbers
        side_by_side = bool(numbers) and numbers == list(range(numbers[0], numbers[-1] + 1))
        # A slice costs no copy.
        self._numbers: slice | list[int] = slice(numbers[0], numbers[-1] + 1) if side_by_side else numbers
        self._mean, self._scale = (values[: len(numbers)] for values in (scaling.mean, scaling.scale))
        self._indices = {at: encoding.indices(at, columns[at].names) for at in encoding.categories}
        self._lines: tuple[OnDisk, Tensor, Tensor] | None = None

    def __call__(self, store: Store, rows: Rows, x: Tensor) -> None:
        """Write the inputs of some rows, in the order given, into x, [M, n].

        Raises:
            UserError: If a value is too large for the dtype.
        """
        count = len(self.encoding.numbers)
        numbers, one_hot = x[:, :count], x[:, count:]
        raw: NDArray[Any]
        shift: Numbers | None = None
        if isinstance(store, OnDisk) and self.dtype == torch.float32:
            raw, shift, unit = store.take_stored(rows), store.shift, store.unit
            factor, offset = self._line(store)
            torch.mul(torch.from_numpy(raw)[:, self._numbers], factor, out=numbers)
            numbers += offset
        else:
            raw = store.take(rows)
            numbers.copy_((torch.from_numpy(raw)[:, self._numbers] - self._mean) / self._scale)
        if self._fills is not None:
            torch.where(numbers.isnan(), self._fills.to(self.dtype), numbers, out=numbers)
        if not numbers.sum().isfinite() and not numbers.isfinite().all():  # the sum is quick, and nearly always enough
            raise self._too_large(numbers, store, rows)
        one_hot.zero_()
        first = 0
        for at, indices in self._indices.items():
            cells = raw[:, at] if shift is None else raw[:, at] * np.float64(unit[at]) + float(shift[at])
            missing = len(indices) - 1
            category = indices[np.nan_to_num(cells, nan=missing).astype(np.intp)]
            known = np.flatnonzero(category >= 0)
            one_hot[torch.from_numpy(known), torch.from_numpy(category[known] + first)] = 1.0
            first += len(self.encoding.inputs[at].categories)

    def _line(self, store: OnDisk) -> tuple[Tensor, Tensor]:
        """Return u/d and (s − m)/d of the columns of numbers, computed in float64."""
        if self._lines is None or self._lines[0] is not store:
            of = self.encoding.numbers
            factor = torch.from_numpy(store.unit[of]) / self._scale
            offset = (torch.from_numpy(store.shift[of]) - self._mean) / self._scale
            self._lines = store, factor.float(), offset.float()
        return self._lines[1:]

    @cached_property
    def _fills(self) -> Tensor | None:
        """The scaled values of missing numbers; None if none may be missing."""
        fills = [self.encoding.inputs[at].fill for at in self.encoding.numbers]
        if all(fill is None for fill in fills):
            return None
        return (torch.tensor(fills, dtype=torch.float64) - self._mean) / self._scale

    def _too_large(self, x: Tensor, store: Store, rows: Rows) -> UserError:
        """Return the error for the first value that is not finite after scaling."""
        at, column = (int(index) for index in (~x.isfinite()).nonzero()[0])
        value = store.take(rows[at : at + 1])[0, self.encoding.numbers[column]]
        name = self.encoding.names[column]
        problem = f"column {name!r}: {value:g} does not fit in {self.dtype} after scaling"
        if isinstance(self.place, str):
            return UserError(f"{self.place}: {problem}: correct it, or {setting('drop', name)}")
        return UserError(f"{self.place(int(rows[at]))}, {problem}")


def encode_unscaled(encoding: Encoding, raw: Numbers) -> Numbers:
    """Return the inputs, [N, n], before scaling.

    Args:
        encoding: The inputs that the columns become.
        raw: [N, p], a category by its index in the encoding, `UNKNOWN` for another one, NaN for a missing cell.
    """
    columns = [Column(c.name, names={name: at for at, name in enumerate(c.categories)}) for c in encoding.inputs]
    x = torch.empty(len(raw), len(encoding), dtype=torch.float64)
    Encoder(encoding, columns, Scaling.identity(len(encoding)), torch.float64, "the rows")(
        InMemory(raw), np.arange(len(raw)), x
    )
    return x.numpy()
