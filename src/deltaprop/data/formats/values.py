"""Python values as columns: the one Arrow type that holds all values of a column exactly, and arrays of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from deltaprop.data.cells import spelled

EXACT = 1 << 53  # integers up to this size are exact in float64


class SeenValues:
    """Collects the types of a column's values, and the range of its integers.

    Attributes:
        kinds: The types seen, without that of None.
        low: The smallest integer, or 0.
        high: The largest integer, or 0.
    """

    def __init__(self) -> None:
        self.kinds: set[type] = set()
        self.low = self.high = 0

    def add(self, value: Any) -> None:
        """Note a value."""
        if value is None:
            return
        kind = type(value)
        self.kinds.add(kind)
        if kind is int:
            self.low, self.high = min(self.low, value), max(self.high, value)

    def arrow_type(self) -> Any:
        """Return the type of the column; text if its values have nothing else in common.

        Integers that no type of Arrow holds, or that float64 would round beside fractions, are text too. A list or an
        object makes it a type of lists, which is refused where the column is used.
        """
        import pyarrow

        kinds, types = self.kinds, datetime
        if not kinds:
            return pyarrow.null()
        if kinds & {list, dict}:
            return pyarrow.list_(pyarrow.null())
        if kinds == {bool}:
            return pyarrow.bool_()
        if kinds == {int} and (self.low >= -(2**63) and self.high < 2**63):
            return pyarrow.int64()
        if kinds == {int} and self.low >= 0 and self.high < 2**64:
            return pyarrow.uint64()
        if float in kinds and kinds <= {int, float} and self.low >= -EXACT and self.high <= EXACT:
            return pyarrow.float64()
        if kinds <= {types.datetime, types.date}:
            return pyarrow.timestamp("us")
        if kinds == {types.time}:
            return pyarrow.time64("us")
        if kinds == {types.timedelta}:
            return pyarrow.duration("us")
        return pyarrow.string()


def as_array(values: Iterable[Any], arrow_type: Any) -> Any:
    """Return values as an array of the type that `SeenValues.arrow_type` found for them."""
    from pyarrow import array, types

    if types.is_string(arrow_type):
        values = [spelled(value) for value in values]
    elif types.is_list(arrow_type):
        values = [None for _ in values]
    elif types.is_timestamp(arrow_type):
        values = [value if value is None else _as_datetime(value) for value in values]
    return array([*values], arrow_type)


def _as_datetime(value: datetime.date) -> datetime.datetime:
    return value if isinstance(value, datetime.datetime) else datetime.datetime(value.year, value.month, value.day)
