"""The profile of a column: counts of what its cells are, from which `infer` decides how it is read.

A table that is trained on is read twice: once for the profiles of its columns, once for its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.cells import (
    ABSENT,
    CODE,
    GROUPED,
    LARGE_INTEGER,
    MOST_EXACT,
    SIGNS,
    absent_numbers,
    canonical,
    decoded,
    words_in,
)
from deltaprop.data.columns import DatePart
from deltaprop.data.dates import ORDERS, OTHER_DATE, TIME, are_dates, in_order, is_season, matches, moments
from deltaprop.data.table import NUMBER, Table, type_family

MOST_COUNTED = 20_000  # different names of a column that are counted
SHUFFLED = 20  # rows from which on row numbers are recognised in any order
MOST_VALUES = 20  # different numbers of a column that are collected
DATE_PARTS: tuple[DatePart, ...] = ("month", "weekday", "hour")  # of a date, besides the day


@dataclass
class Profile:
    """What the cells of a column are.

    Attributes:
        name: In the header.
        families: The type families of its blocks, without those that have no value.
        rows: The number of rows.
        absent: The missing cells, by how they are written in lower case; null is "".
        numbers: The number of cells that are plain numbers.
        points: Those with a decimal point.
        grouped: Those of these such as 2.392, whose point may separate thousands.
        whole: Whether all numbers are whole.
        codes: Those with a leading zero, such as 007.
        large: Integers that float64 would round.
        infinite: The first row with infinity; None without one.
        dates: The number of cells that are dates or times.
        times: Those that are times of day.
        signs: The cells that are a sign such as -.
        other_dates: The number of cells such as 12/31/2020.
        orders: For each order in which some of those are dates, the different months, weekdays and hours.
        in_orders: The number of those that are dates in each order.
        are_seasons: Whether all of those may be seasons such as 2001-02.
        cells: The cells of blocks that have text, or codes, as they are written, with their counts.
        first: The first row of each text that is neither a number nor a date.
        overflow: Whether there are more different names than are counted.
        values: Different numbers, at most one more than ``MOST_VALUES``.
        numbering: The numbers in blocks, as long as they may be those of the rows in any order; None otherwise.
        parts: The different months, weekdays and hours.
    """

    name: str
    families: set[str] = field(default_factory=set)
    rows: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    points: int = 0
    grouped: int = 0
    whole: bool = True
    codes: int = 0
    large: int = 0
    infinite: int | None = None
    dates: int = 0
    times: int = 0
    signs: Counter[str] = field(default_factory=Counter)
    other_dates: int = 0
    orders: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    in_orders: Counter[str] = field(default_factory=Counter)
    are_seasons: bool = True
    cells: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    overflow: bool = False
    values: set[float] = field(default_factory=set)
    numbering: list[Any] | None = field(default_factory=list)
    parts: dict[str, set[int]] = field(default_factory=lambda: _no_parts())

    @cached_property
    def names(self) -> Counter[str]:
        """The counted cells, each in its one spelling; to be asked for when all blocks are counted."""
        names: Counter[str] = Counter()
        for text, count in self.cells.items():
            names[canonical(text)] += count
        return names

    @property
    def missing(self) -> int:
        """The number of missing cells, signs not among them."""
        return self.absent.total()

    @property
    def present(self) -> int:
        """The number of cells that are not missing."""
        return self.rows - self.missing

    @property
    def is_constant(self) -> bool:
        """Whether all cells that are not missing are the same."""
        are_numbers = self.numbers == self.present and not self.large
        different = len(self.values) if are_numbers else len(self.names)
        return different <= 1 and not self.overflow

    @property
    def texts(self) -> int:
        """The number of cells that are neither missing nor a number, a date or a sign."""
        return self.present - self.numbers - self.dates - self.signs.total()

    @property
    def order(self) -> str:
        """The order of a date's parts, if all cells are dates in one order that is not ISO's; else nothing."""
        orders = self.likely_orders
        if len(orders) != 1 or self.in_orders[orders[0]] < self.present - self.signs.total():
            return ""
        return "" if orders[0] == "year-month" and self.are_seasons else orders[0]

    @property
    def likely_orders(self) -> list[str]:
        """The orders in which the most cells are dates."""
        most = max(self.in_orders.values(), default=0)
        return [order for order, count in self.in_orders.items() if count == most]

    @property
    def starts(self) -> int | None:
        """0 or 1 if the numbers are those of the rows, counted from there; None otherwise.

        In a table of some rows they may be in any order, as after a shuffle.
        """
        if not self.numbering or self.missing:
            return None
        numbers = np.concatenate(self.numbering)
        if len(numbers) != self.rows or numbers.min() not in (0, 1) or numbers.max() - numbers.min() != self.rows - 1:
            return None  # all are different, see `_add_values`
        first = int(numbers.min())
        in_order = np.array_equal(numbers, np.arange(self.rows) + first)
        return first if in_order or self.rows >= SHUFFLED else None

    def add(self, cells: Any, absent: Collection[str]) -> None:
        """Count a block of cells, a pyarrow array; ``absent`` are further words that mean a missing value."""
        import pyarrow
        from pyarrow import compute, types

        cells = decoded(cells)
        family = type_family(cells.type)
        before, self.rows = self.rows, self.rows + len(cells)
        if types.is_null(cells.type):
            self.absent[""] += len(cells)
            return
        if types.is_floating(cells.type):
            cells = compute.if_else(compute.is_nan(cells), None, cells)
        if family != "text":
            self.absent[""] += cells.null_count
        if len(cells) > cells.null_count or family == "text":
            self.families.add(family)
        if family == "numbers":
            if numbers := absent_numbers([*absent]):
                are_absent = np.isin(cells.cast("float64", safe=False).to_numpy(zero_copy_only=False), numbers)
                self.absent["a number"] += int(are_absent.sum())
                cells = compute.if_else(pyarrow.array(are_absent), None, cells)
            self._add_numbers(cells, before)
        elif family == "dates":
            self.dates += len(cells) - cells.null_count
            self.times += len(cells) - cells.null_count if types.is_time(cells.type) else 0
            _add_parts(self.parts, moments(cells))
        elif family == "text":
            if types.is_boolean(cells.type):
                cells = compute.if_else(cells, "True", "False")
            cells = compute.utf8_trim_whitespace(cells.cast("string"))
            is_absent = words_in(cells, (*ABSENT, *absent)) | _are_equal(cells, absent_numbers([*absent]))
            for entry in compute.value_counts(compute.utf8_lower(cells.filter(pyarrow.array(is_absent)))):
                self.absent[entry["values"].as_py() or ""] += entry["counts"].as_py()
            self._add_text(compute.if_else(pyarrow.array(is_absent), None, cells), before)

    def _add_numbers(self, cells: Any, before: int) -> None:
        """Count numbers of Arrow's types, null where missing."""
        import pyarrow
        from pyarrow import types

        self.numbers += len(cells) - cells.null_count
        if types.is_integer(cells.type) or types.is_decimal(cells.type):
            exact = cells.cast("float64", safe=False).to_numpy(zero_copy_only=False)
            self._add_values(exact, before)
            large = np.abs(np.nan_to_num(exact)) >= MOST_EXACT
            if large.any() and types.is_integer(cells.type):
                self.large += int(large.sum())
                self._count(cells.cast(pyarrow.string()))
        else:
            self._add_values(cells.cast("float64").to_numpy(zero_copy_only=False), before)

    def _add_values(self, values: Any, before: int) -> None:
        """Record numbers as float64, NaN where missing."""
        infinite = np.isinf(values)
        if infinite.any() and self.infinite is None:
            self.infinite = before + int(infinite.argmax()) + 1
        present = values[~np.isnan(values) & ~infinite]
        self.whole = self.whole and bool((present % 1 == 0).all())
        if len(self.values) <= MOST_VALUES:
            self.values |= {*np.unique(present)[: MOST_VALUES + 1].tolist()}
        if self.numbering is not None:
            whole = len(present) == len(values) and self.whole and bool((present >= 0).all())
            differ = whole and len(np.unique(present)) == len(present)
            self.numbering = [*self.numbering, present] if differ else None

    def _add_text(self, cells: Any, before: int) -> None:
        """Count text, null where missing."""
        import pyarrow
        from pyarrow import compute

        try:
            values = cells.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
        except pyarrow.ArrowInvalid:
            is_number = matches(cells, NUMBER)
            self.numbering = None
            self._add_others(cells, is_number, before)
            self._count_points(cells)
            self._count_codes(cells)
            values = compute.if_else(pyarrow.array(is_number), cells, None).cast("float64", safe=False)
            values = values.to_numpy(zero_copy_only=False)
            self._count(cells)
        else:
            self._count_points(cells)
            # Only whole numbers are codes or too large; a search for them costs as much as the cast.
            if (np.trunc(values) == values).any() and self._count_codes(cells):
                self._count(cells)
        self.numbers += int((~np.isnan(values)).sum())
        if not np.isnan(values).all():
            self._add_values(values, before)

    def _count_points(self, cells: Any) -> None:
        """Count plain numbers with a point."""
        points = int(matches(cells, r"^[+-]?\d*\.\d*(?:[eE][+-]?\d+)?$").sum())
        self.points += points
        self.grouped += int(matches(cells, GROUPED).sum()) if points else 0

    def _count_codes(self, cells: Any) -> bool:
        """Count codes and integers that float64 would round; return whether there are any."""
        import pyarrow

        codes = int(matches(cells, CODE).sum())
        large = matches(cells, LARGE_INTEGER)
        large[large] = [abs(int(text)) >= MOST_EXACT for text in cells.filter(pyarrow.array(large)).to_pylist()]
        self.codes += codes
        self.large += int(large.sum())
        return codes > 0 or bool(large.any())

    def _add_others(self, cells: Any, is_number: Any, before: int) -> None:
        """Count dates and signs, and record the first rows of other text."""
        import pyarrow

        is_date, is_sign = are_dates(cells), words_in(cells, SIGNS)
        if is_date.any():
            dates = cells.filter(pyarrow.array(is_date))
            _add_parts(self.parts, moments(dates))
            self.dates += len(dates)
            self.times += int(matches(dates, TIME).sum())
        is_other = matches(cells, OTHER_DATE) & ~is_date
        if is_other.any():
            self._add_other_dates(cells.filter(pyarrow.array(is_other)))
        for sign in cells.filter(pyarrow.array(is_sign)).to_pylist():
            self.signs[sign] += 1
        is_text = ~is_number & ~is_date & ~is_sign & np.asarray(cells.is_valid())
        if len(self.first) < MOST_COUNTED and is_text.any():
            texts = cells.filter(pyarrow.array(is_text)).dictionary_encode()
            _, first = np.unique(texts.indices.to_numpy(), return_index=True)  # by appearance
            rows = np.flatnonzero(is_text)[first] + before + 1
            for text, row in zip(texts.dictionary.to_pylist(), rows.tolist(), strict=True):
                self.first.setdefault(text, row)

    def _add_other_dates(self, cells: Any) -> None:
        """Count dates that are not written in ISO's order, for each order in which they are dates."""
        import pyarrow

        self.other_dates += len(cells)
        counts = {entry["values"]: entry["counts"] for entry in cells.value_counts().to_pylist()}
        self.are_seasons = self.are_seasons and all(map(is_season, counts))
        for order in ORDERS:
            found = {text: moment for text in counts if (moment := in_order(text, order))}
            if found:
                self.in_orders[order] += sum(counts[text] for text in found)
                moments_of = pyarrow.array([*found.values()], pyarrow.timestamp("us"))
                _add_parts(self.orders.setdefault(order, _no_parts()), moments_of)

    def _count(self, cells: Any) -> None:
        """Count cells as they are written, up to so many different ones."""
        if self.overflow:
            return
        for entry in cells.drop_null().value_counts().to_pylist():
            self.cells[entry["values"]] += entry["counts"]
        self.overflow = len(self.cells) > MOST_COUNTED


def _no_parts() -> dict[str, set[int]]:
    return {part: set() for part in DATE_PARTS}


def _add_parts(parts: dict[str, set[int]], when: Any) -> None:
    """Collect the months, weekdays and hours of some moments."""
    from pyarrow import compute

    for part, of in zip(DATE_PARTS, (compute.month, compute.day_of_week, compute.hour), strict=True):
        parts[part] |= {*compute.unique(of(when)).drop_null().to_pylist()}


def _are_equal(cells: Any, numbers: Sequence[float]) -> NDArray[np.bool_]:
    """Return which texts are plain numbers equal to one of some numbers."""
    import pyarrow
    from pyarrow import compute

    if not numbers:
        return np.zeros(len(cells), dtype=bool)
    plain = compute.if_else(pyarrow.array(matches(cells, NUMBER)), cells, None).cast("float64")
    return np.isin(plain.to_numpy(zero_copy_only=False), numbers)


def profile(table: Table, names: Iterable[str], absent: Sequence[str], on_bytes: Any) -> dict[str, Profile]:
    """Return the profile of some columns of a table, by name.

    Args:
        table: The table.
        names: The columns.
        absent: Words that mean a missing value, besides the usual ones.
        on_bytes: As for :meth:`Table.batches`.
    """
    profiles = {name: Profile(name) for name in names}
    places = {name: at for at, name in enumerate(table.names)}
    words = tuple(word.lower() for word in absent)
    for batch in table.batches(on_bytes):
        for name, found in profiles.items():
            found.add(batch.column(places[name]), words)
    return profiles
