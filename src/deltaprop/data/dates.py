"""Dates and times in the cells of a table: how they are written, and which moments they are.

ISO's order and 31.12.2020 are read wherever they occur. 12/31/2020 is read where the whole column shows the order of
day and month, which is saved with the model.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATE = r"^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?$"
DATE_BY_POINTS = r"^\d{1,2}\.\d{1,2}\.\d{4}(?:[T ]\d\d:\d\d(?::\d\d)?)?$"
DATE_BY_SLASHES = r"^\d{4}/\d{1,2}/\d{1,2}(?:[T ]\d\d:\d\d(?::\d\d)?)?$"
TIME = r"^(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?$"

_DAY, _MONTH, _YEAR = r"(?P<day>\d{1,2})", r"(?P<month>\d{1,2})", r"(?P<year>\d{4}|\d\d)"
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAMED = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_CLOCK = r"(?:[T ,]+(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?\s?(?P<half>[ap]m)?)?"
# The orders that a column may show, by name.
ORDERS = {
    name: re.compile(pattern + _CLOCK, re.IGNORECASE)
    for name, pattern in {
        "month/day/year": rf"{_MONTH}(?P<sign>[/-]){_DAY}(?P=sign){_YEAR}",
        "day/month/year": rf"{_DAY}(?P<sign>[/.-]){_MONTH}(?P=sign){_YEAR}",
        "day month year": rf"{_DAY}(?P<sign>[ -]?){_NAMED}[ ,-]?\s?{_YEAR}",
        "month day year": rf"{_NAMED} {_DAY}(?:st|nd|rd|th)?,? (?P<year>\d{{4}})",
        "month year": rf"{_NAMED}[ -](?P<year>\d{{4}})",
        "year-month": r"(?P<year>\d{4})-(?P<month>\d\d)",
        "year quarter": r"(?P<year>\d{4})[ :-]?Q(?P<quarter>[1-4])",
        "quarter year": r"Q(?P<quarter>[1-4])[ -]?(?P<year>\d{4})",
    }.items()
}
MONTHS = ("month year", "year-month", "year quarter", "quarter year")  # those without a day
# What these have in common, for a first search.
OTHER_DATE = (
    r"^(?i)(?:\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}|\d{4}-\d\d|\d{4}[ :-]?q[1-4]|q[1-4][ -]?\d{4}|"
    r"(?:\d{1,2}[ -]?)?(?:jan|feb|mar|apr|may|ju[nl]|aug|sep|oct|nov|dec)[a-z]{0,6}\.?[ ,-]?[\d, adhnrst-]*\d\d)"
    r"(?:[T ,]+\d{1,2}:\d\d[\d:apm ]*)?$"
)
YEARS = 1700, 2100  # beyond them it is rather another number
CENTURY_BEGINS = 69  # 68 is 2068 and 69 is 1969, as POSIX has it


def matches(cells: Any, pattern: str) -> NDArray[np.bool_]:
    """Return which cells match a pattern; missing ones do not."""
    from pyarrow import compute

    found = compute.match_substring_regex(cells, pattern).fill_null(False)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def moments(cells: Any, order: str = "") -> Any:
    """Return dates and times as a pyarrow array of timestamps in µs, null where missing; zones are converted to UTC.

    Args:
        cells: Text in one of the patterns above, or an Arrow type of dates or times. A time of day is of 1970-01-01.
        order: The order that its column has, besides ISO's; nothing for that of ISO alone.

    Raises:
        ValueError: If a text is not a date or a time (pyarrow.ArrowInvalid is one).
    """
    import pyarrow
    from pyarrow import types

    if types.is_time(cells.type):
        return cells.cast(pyarrow.time64("us"), safe=False).cast("int64").cast(pyarrow.timestamp("us"))
    if not types.is_string(cells.type):
        zone = getattr(cells.type, "tz", None)  # an instant with a zone is stored as UTC
        return cells.cast(pyarrow.timestamp("us", zone), safe=False).cast("int64").cast(pyarrow.timestamp("us"))
    try:
        return cells.cast(pyarrow.timestamp("us"))
    except pyarrow.ArrowInvalid:  # not ISO, or with a zone
        texts = cells.dictionary_encode()
        found = [None if text is None else _microseconds(text, order) for text in texts.dictionary.to_pylist()]
        return pyarrow.array(found, pyarrow.int64()).cast(pyarrow.timestamp("us")).take(texts.indices)


def in_order(text: str, order: str) -> datetime | None:
    """Return the moment of a date written in one of ``ORDERS``; None if it is not.

    Example:
        >>> in_order("12/31/99", "month/day/year"), in_order("31-Dec-2020 5:30 pm", "day month year")
        (datetime.datetime(1999, 12, 31, 0, 0), datetime.datetime(2020, 12, 31, 17, 30))
    """
    found = ORDERS[order].fullmatch(text)
    if found is None:
        return None
    parts = found.groupdict()
    year, month = int(parts["year"]), parts.get("month") or str(3 * int(parts.get("quarter") or 1) - 2)
    if len(parts["year"]) == 2:
        is_padded = re.match(r"\d\d\.\d\d\.", text)
        if not (month[0].isalpha() and parts["sign"]) and parts["sign"] != "/" and not is_padded:
            return None  # 10-11-12, 3.2.45 and 12jun45 are rather codes
        year += 1900 if year >= CENTURY_BEGINS else 2000
    if not YEARS[0] <= year <= YEARS[1]:
        return None
    hour = int(parts["hour"] or 0)
    if parts["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (parts["half"].lower() == "pm")
    number = int(month) if month.isdecimal() else _NAMES.index(month[:3].lower()) + 1
    day, minute, second = int(parts.get("day") or 1), int(parts["minute"] or 0), int(parts["second"] or 0)
    try:
        return datetime(year, number, day, hour, minute, second)
    except ValueError:  # there is no such day
        return None


def is_season(text: str) -> bool:
    """Return whether a text such as 2001-02 may be a season of two years, and not a month."""
    found = re.fullmatch(r"\d\d(\d\d)-(\d\d)", text)
    return found is not None and (int(found[1]) + 1) % 100 == int(found[2])


def _microseconds(text: str, order: str = "") -> int:
    """Return the microseconds since 1970, UTC, of a date or a time of day."""
    if order and (written := in_order(text, order)):
        return (written - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    if re.match(TIME, text):
        hours, minutes, *seconds = text.split(":")
        return round((3600 * int(hours) + 60 * int(minutes) + float(*seconds or "0")) * 1_000_000)
    if match := re.match(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(.*)", text):
        text = f"{match[3]}-{match[2]:0>2}-{match[1]:0>2}{match[4]}"
    elif match := re.match(r"(\d{4})/(\d{1,2})/(\d{1,2})(.*)", text):
        text = f"{match[1]}-{match[2]:0>2}-{match[3]:0>2}{match[4]}"
    moment = datetime.fromisoformat(text)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC if moment.tzinfo else None)
    return since // timedelta(microseconds=1)


def are_dates(cells: Any) -> NDArray[np.bool_]:
    """Return which texts are dates or times as they are read; 2020-02-30 is none."""
    found = matches(cells, "|".join((DATE, DATE_BY_POINTS, DATE_BY_SLASHES, TIME)))
    if found.any() and not is_moment(cells.filter(found)):
        found[found] = [is_moment(cells[at : at + 1]) for at in np.flatnonzero(found).tolist()]
    return found


def is_moment(cells: Any, order: str = "") -> bool:
    """Return whether all cells are dates or times."""
    try:
        moments(cells, order)
    except ValueError:
        return False
    return True
