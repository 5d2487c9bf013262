"""The cells of a table: which mean a missing value, how numbers are written, and one spelling for each name.

A `Form` tells how the numbers of a column are written where they are not plain, such as ``1.234,5 €`` or ``30 %``. It
is found in training and saved with the model, so that the same text is the same number afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.dates import ORDERS, matches
from deltaprop.data.table import NUMBER

# Missing values, in lower case, as R, pandas and people write them.
ABSENT = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?")
# Signs that mean a missing value in a column of numbers; elsewhere they are text.
SIGNS = ("-", "--", "---", ".", "..", "...", "*", "\u2013", "\u2014", "\u2026")

BLANKS = " \u00a0\u2009\u202f"  # between thousands: a blank, no-break, thin and narrow
CODE = r"^[+-]?0\d+$"  # a leading zero: a code such as 007, not a number
GROUPED = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"  # 2.392: a number, or thousands where a comma is the decimal sign
LARGE_INTEGER = r"^[+-]?\d{16,}$"
MOST_EXACT = 2**53  # float64 has every integer up to here

_BODY = rf"\d[\d.,'{BLANKS}]*|[.,]\d+"
CURRENCIES = ("USD", "EUR", "GBP", "CHF", "JPY")
_CURRENCY = rf"[$€£¥₹]|{'|'.join(CURRENCIES)}"
_UNIT = r"[^\W\d_]{1,8}(?:/[^\W\d_]{1,4})?[²³]?|°[CF]?"
_WRITTEN = re.compile(
    rf"(?:[+-]\s?)?(?P<before>{_CURRENCY})?\s?[+-]?(?P<body>{_BODY})(?P<exponent>[eE][+-]?\d+)?"
    rf"\s?(?P<after>%|‰|{_CURRENCY}|{_UNIT})?"
)
_DIGITS = r"[1-9]\d{0,2}"  # before groups of thousands
# How digits are separated: the name of the shape, and whether it fits a text without sign and mark.
_SHAPES = [
    ("whole", re.compile(r"\d+")),
    ("ambiguous", re.compile(rf"{_DIGITS},\d{{3}}")),  # 1,234: 1234 or 1.234
    ("comma", re.compile(r"\d*,\d+|\d+,")),
    ("point", re.compile(r"\d*\.\d+|\d+\.")),
    ("thousands ,", re.compile(rf"{_DIGITS}(?:,\d{{3}})+(?:\.\d+)?")),
    ("thousands .", re.compile(rf"{_DIGITS}(?:\.\d{{3}})+(?:,\d+)?")),
    ("thousands '", re.compile(rf"{_DIGITS}(?:'\d{{3}})+(?P<decimal>[.,]\d+)?")),
    ("thousands  ", re.compile(rf"{_DIGITS}(?:[{BLANKS}]\d{{3}})+(?P<decimal>[.,]\d+)?")),
]


@dataclass(frozen=True)
class Form:
    """How the numbers or dates of a column are written.

    Attributes:
        decimal: The decimal sign, a point or a comma.
        thousands: What separates thousands: nothing, a comma, a point, an apostrophe, or ``" "`` for any blank.
        mark: What is written before or after a number: %, a currency or a unit.
        date: The order of a date's parts, a name of `dates.ORDERS`; nothing where they are in ISO's.
    """

    decimal: str = "."
    thousands: str = ""
    mark: str = ""
    date: str = ""

    def to_json(self) -> dict[str, str]:
        """Return what differs from a plain number."""
        return {name: value for name, value in asdict(self).items() if value != getattr(PLAIN, name)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Form:
        """Return the form that :meth:`to_json` gave; raises a ValueError if it is damaged."""
        form = cls(**found)
        are_known = (
            form.decimal in (".", ",") and form.thousands in ("", ",", ".", "'", " ") and form.date in ("", *ORDERS)
        )
        if not are_known or len(form.mark) > 20:
            raise ValueError(f"the form {found!r:.60}")
        return form

    def describe(self) -> str:
        """Return how numbers are written, for the summary of a table."""
        parts = ["a decimal comma"] if self.decimal == "," else []
        if self.thousands:
            names = {" ": "blanks", ",": "commas", ".": "points", "'": "apostrophes"}
            parts.append(f"thousands separated by {names[self.thousands]}")
        return ", ".join([*parts, *([self.mark] if self.mark else [])])


PLAIN = Form()


def shape_of(text: str) -> tuple[str, str] | None:
    """Return the mark of a number with its sign taken away, and its shape, a name of ``_SHAPES``; None for other text.

    Example:
        >>> shape_of("$1,234.50"), shape_of("30 %"), shape_of("(1,5)"), shape_of("12 km/h"), shape_of("2B or not 2B")
        (('$', 'thousands ,'), ('%', 'whole'), ('', 'comma'), ('km/h', 'whole'), None)
    """
    text = text.replace("\u2212", "-").replace("\u2019", "'")
    if text.startswith("(") and text.endswith(")") and len(text) > 2:
        text = f"-{text[1:-1].strip()}"
    found = _WRITTEN.fullmatch(text)
    if found is None or (found["before"] and found["after"]):
        return None
    body, mark = found["body"].rstrip(BLANKS), found["before"] or found["after"] or ""
    for name, pattern in _SHAPES:
        if match := pattern.fullmatch(body):
            decimal = match.groupdict().get("decimal") or ""
            return mark, name + (f" {decimal[0]}" if decimal else "")
    return None


def plain_numbers(cells: Any, form: Form) -> Any:
    """Return cells as text that is cast to float64 where they are numbers of a form; others are left as they are."""
    from pyarrow import compute

    cells = compute.replace_substring(cells, "\u2212", "-")
    if form.thousands == "'":
        cells = compute.replace_substring(cells, "\u2019", "'")
    cells = compute.replace_substring_regex(cells, r"^\(\s*(.+?)\s*\)$", r"-\1")
    if form.mark:
        mark = re.escape(form.mark)
        if form.mark in "%‰":  # 0.3 is not 0.3 % where other cells have the sign
            marked = compute.match_substring(cells, form.mark)
            cells = compute.if_else(marked, cells, compute.binary_join_element_wise("x", cells, ""))
        cells = compute.replace_substring_regex(cells, rf"^([+-]?)\s?{mark}\s?(.+)$", r"\1\2")
        cells = compute.replace_substring_regex(cells, rf"^(.*\d\S*)\s?{mark}$", r"\1")
    if form.thousands or form.decimal == ",":
        separator = f"[{BLANKS}]" if form.thousands == " " else re.escape(form.thousands)
        decimal = re.escape(form.decimal)
        grouped = rf"^[+-]?{_DIGITS}(?:{separator}\d{{3}})+(?:{decimal}\d*)?$"
        is_grouped = compute.match_substring_regex(cells, grouped) if form.thousands else None
        is_comma = compute.match_substring_regex(cells, rf"^[+-]?(?:\d+{decimal}?\d*|{decimal}\d+)(?:[eE][+-]?\d+)?$")
        own = cells
        if is_grouped is not None:
            own = compute.if_else(is_grouped, compute.replace_substring_regex(own, separator, ""), own)
        fits = is_comma if is_grouped is None else compute.or_(is_grouped, is_comma)
        if form.decimal == ",":
            own = compute.replace_substring(own, ",", ".")
        # A point that is no decimal sign here, such as 1.5 among 1,5, must not be taken for one.
        cells = compute.if_else(fits, own, compute.binary_join_element_wise("x", cells, ""))
    return cells


def are_numbers(cells: Any, form: Form) -> NDArray[np.bool_]:
    """Return which cells are numbers of a form; missing ones are not."""
    return matches(plain_numbers(cells, form), NUMBER)


def words_in(cells: Any, words: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return which cells are one of some words in lower case, or null if "" is one of them."""
    import pyarrow
    from pyarrow import compute

    found = compute.is_in(compute.utf8_lower(cells), pyarrow.array(words, pyarrow.string()))
    found = np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
    if "" in words:
        found |= np.asarray(cells.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    return found


def decoded(cells: Any) -> Any:
    """Return cells with the values of a dictionary in place of its indices."""
    import pyarrow
    from pyarrow import types

    if not types.is_dictionary(cells.type):
        return cells
    values = cells.dictionary
    if types.is_string_view(values.type):  # of polars, which pyarrow does not take by index
        values = values.cast(pyarrow.string())
    return values.take(cells.indices)


def absent_numbers(words: Sequence[str]) -> list[float]:
    """Return the words for a missing value that are numbers: -99 is -99.0 too, and a number of Parquet.

    Example:
        >>> absent_numbers(["unknown", "-99"])
        [-99.0]
    """
    return [float(word) for word in words if re.match(NUMBER, word)]


def short(cells: Any) -> Any:
    """Return numbers of fewer bits than float64 as the float64 of their shortest digits: 0.1 of float32 is 0.1.

    So a number is the same from a file that has its digits, and from one that has its bits.
    """
    import pyarrow
    from pyarrow import types

    if not types.is_floating(cells.type) or types.is_float64(cells.type):
        return cells
    return cells.cast("float32").cast(pyarrow.string()).cast("float64")


def plain(value: float) -> str:
    """Return the name of a number as a class or category.

    Example:
        >>> plain(3.0), plain(0.5)
        ('3', '0.5')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def spelled(value: Any) -> str | None:
    """Return a value as text: a number without a fraction as an integer, a date without a time as a date.

    Example:
        >>> spelled(1.0), spelled(0.5), spelled(True), spelled(datetime(2020, 1, 2))
        ('1', '0.5', 'True', '2020-01-02')
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else str(value)


_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+(?:[eE][+-]\d+)?|-?[1-9](?:\.\d+)?[eE][+-]\d+|-0")


def canonical(name: str) -> str:
    """Return the one spelling of a category: 1.0 and 1 are the same number, TRUE and True the same truth value.

    A code such as 007, +1 or 12E4 is a name of its own.

    Example:
        >>> [canonical(name) for name in ("1.0", "2.50", "TRUE", "007", "12E4", "Paris")]
        ['1', '2.5', 'True', '007', '12E4', 'Paris']
    """
    if _DECIMAL.fullmatch(name):
        return plain(float(name))
    return name.capitalize() if name.lower() in ("true", "false") else name
