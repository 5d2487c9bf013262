"""How dates and times are written: one day from each way to write it."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deltaprop import UserError
from deltaprop.data.cells import Form
from deltaprop.data.dates import ORDERS, in_order
from tests.data.reading import beside, columns_of, numbers_of, plan_of, read, repeated

DAY = 18262.0  # 2020-01-01, a Wednesday, is so many days after 1970-01-01: 50 · 365 + 12 leap days
DATES = {
    "ISO": [f"2020-01-{at + 1:02}" for at in range(28)],
    "points": [f"{at + 1}.1.2020" for at in range(28)],
    "points and zeros": [f"{at + 1:02}.01.2020" for at in range(28)],
    "slashes": [f"2020/1/{at + 1}" for at in range(28)],
    "both": [f"2020-01-{at + 1:02}" if at % 2 else f"{at + 1}.1.2020" for at in range(28)],
    "with a time": [f"2020-01-{at + 1:02}T00:00:00" for at in range(28)],
    "a blank and a time": [f"2020-01-{at + 1:02} 00:00" for at in range(28)],
    "in UTC": [f"2020-01-{at + 1:02}T00:00:00Z" for at in range(28)],
    "in a zone": [f"2020-01-{at + 1:02}T02:00:00+02:00" for at in range(28)],
    "in zones": [f"2020-01-{at + 1:02}T0{at % 3}:00+0{at % 3}00" for at in range(28)],
    "Arrow's dates": [datetime.date(2020, 1, at + 1) for at in range(28)],
    "Arrow's timestamps": [datetime.datetime(2020, 1, at + 1) for at in range(28)],
    "Arrow's nanoseconds": pa.array([datetime.datetime(2020, 1, at + 1) for at in range(28)], pa.timestamp("ns")),
    "Arrow's seconds": pa.array([datetime.datetime(2020, 1, at + 1) for at in range(28)], pa.timestamp("s")),
    "Arrow's zones": pa.array(
        [datetime.datetime(2020, 1, at + 1, tzinfo=datetime.UTC) for at in range(28)], pa.timestamp("us", "Asia/Tokyo")
    ),
    "Arrow's date64": pa.array([datetime.date(2020, 1, at + 1) for at in range(28)], pa.date64()),
}


@pytest.mark.parametrize("cells", DATES.values(), ids=DATES)
def test_a_date_is_its_day_and_its_weekday_however_it_is_written(cells: Any):
    """The month and the hour do not vary; Monday is 0."""
    table = beside(cells)
    day, weekday = columns_of("a", plan_of(table))
    assert (day.name, weekday.name) == ("a", "a (weekday)")
    np.testing.assert_array_equal(numbers_of(table, day), DAY + np.arange(28))
    np.testing.assert_array_equal(numbers_of(table, weekday), (2 + np.arange(28)) % 7)


@pytest.mark.parametrize(
    ("cells", "parts"),
    [
        ([f"{2000 + at}-06-15" for at in range(30)], ["day", "weekday"]),
        ([f"2020-{at % 12 + 1:02}-15" for at in range(24)], ["day", "month", "weekday"]),
        ([f"2020-01-01T{at % 24:02}:30" for at in range(24)], ["day", "hour"]),
        (["2020-01-01"] * 24, ["day"]),
        ([f"2020-01-01T00:{at:02}" for at in range(24)], ["day"]),
    ],
    ids=["years", "months", "hours", "one day", "minutes"],
)
def test_the_parts_of_a_date_are_those_that_vary(cells: list[str], parts: list[str]):
    plan = plan_of(beside(cells))
    assert [column.part for column in columns_of("a", plan)] == parts
    assert any("column 'a' has dates" in note for note in plan.notes)


@pytest.mark.parametrize(
    "cells",
    [[f"{at}:30" for at in range(24)], [f"{at:02}:30:00.0" for at in range(24)],
     [datetime.time(at, 30) for at in range(24)], pa.array([datetime.time(at, 30) for at in range(24)],
     pa.time32("s"))],
    ids=["text", "seconds", "Arrow's", "Arrow's seconds"],
)  # fmt: skip
def test_a_time_of_day_is_a_share_of_the_day(cells: Any):
    np.testing.assert_allclose(read(cells), (np.arange(24) + 0.5) / 24, rtol=1e-15)


@pytest.mark.parametrize("missing", ["", "NA", "-", None])
def test_a_missing_date_is_missing_in_all_its_parts(missing: str | None):
    table = beside([missing if at % 5 == 0 else f"2020-01-{at + 1:02}" for at in range(28)])
    for column in columns_of("a", plan_of(table)):
        assert np.isnan(numbers_of(table, column)).tolist() == [at % 5 == 0 for at in range(28)]


def test_a_date_that_does_not_exist_is_refused_with_its_row():
    with pytest.raises(UserError, match=r"column 'a': row 30 is '2020-02-30', and the other cells are dates"):
        plan_of(beside([f"2020-02-{at + 1:02}" for at in range(30) if at != 29] + ["2020-02-30"]))


def test_dates_whose_order_is_unknown_are_names_and_it_is_said():
    """1/2/2020 is in January or in February."""
    plan = plan_of(beside(repeated(["1/2/2020", "3/4/2020"])))
    assert columns_of("a", plan)[0].kind == "categories"
    hint = "day and month of its dates cannot be told apart: write them as 2020-12-31"
    assert f"column 'a' is read as names: {hint}" in plan.notes


def test_a_part_of_a_date_takes_no_other_columns_name():
    months = [f"2020-{at % 12 + 1:02}-01" for at in range(24)]
    plan = plan_of({"a": months, "a (month)": [f"{at}.5" for at in range(24)], "y": repeated(["u", "v"], 24)})
    assert [column.name for column in plan.inputs] == ["a", "a (month)_", "a (weekday)", "a (month)"]


def test_dates_far_away_are_days():
    """9999-12-31 stands for "no end" in many tables; its microseconds are beyond 2^53."""
    table = beside(repeated(["2020-01-01", "9999-12-31", "0001-01-01"]))
    day = columns_of("a", plan_of(table))[0]
    expected = [
        (datetime.date.fromisoformat(cell) - datetime.date(1970, 1, 1)).days
        for cell in repeated(["2020-01-01", "9999-12-31", "0001-01-01"])
    ]
    assert numbers_of(table, day).tolist() == expected


# --- dates in another order than ISO's ---

JANUARY = [datetime.datetime(2020, 1, at + 1, 17, 30) for at in range(28)]
WRITTEN = {  # strftime's pattern, and the order that it shows
    "%m/%d/%Y": "month/day/year",
    "%m/%d/%y": "month/day/year",
    "%m-%d-%Y": "month/day/year",
    "%d/%m/%Y": "day/month/year",
    "%d.%m.%y": "day/month/year",
    "%d-%b-%Y": "day month year",
    "%d-%b-%y": "day month year",
    "%d %B %Y": "day month year",
    "%d%b%Y": "day month year",
    "%b %d, %Y": "month day year",
    "%B %dth, %Y": "month day year",
}


@pytest.mark.parametrize("clock", ["", " %H:%M", " %H:%M:00", " %I:%M %p", " %I:%M%p"])
@pytest.mark.parametrize(("pattern", "order"), WRITTEN.items())
def test_an_order_that_the_column_shows_is_read_and_told(pattern: str, clock: str, order: str):
    table = beside([moment.strftime(pattern + clock) for moment in JANUARY])
    plan = plan_of(table)
    day, weekday = columns_of("a", plan)
    np.testing.assert_allclose(numbers_of(table, day), DAY + np.arange(28) + (17.5 / 24 if clock else 0), rtol=1e-15)
    np.testing.assert_array_equal(numbers_of(table, weekday), (2 + np.arange(28)) % 7)
    assert plan.notes == (f"column 'a' has dates, written {order}: day and weekday are numbers",)


@pytest.mark.parametrize("pattern", ["%b %Y", "%B %Y", "%b-%Y", "%Y-%m"])
def test_a_month_is_its_first_day(pattern: str):
    months = [datetime.date(2019 + at // 12, at % 12 + 1, 1) for at in range(24)]
    table = beside([month.strftime(pattern) for month in months])
    day, month = columns_of("a", plan_of(table))
    assert numbers_of(table, day).tolist() == [(each - datetime.date(1970, 1, 1)).days for each in months]
    assert numbers_of(table, month).tolist() == [at % 12 + 1 for at in range(24)]


@pytest.mark.parametrize(
    "cells",
    [
        [f"{year}-{(year + 1) % 100:02}" for year in range(1999, 2012)],  # seasons, of which 2001-02 may be a month
        [f"{at + 1:02}-{at + 2:02}-20" for at in range(8)],  # codes
        ["12/31/2020", "31/12/2020"],  # two orders
        ["02/30/2020", "12/31/2020"],  # a day that does not exist, in half of the rows
        ["3.2.45", "10.11.12", "1.10.99"],
        ["1200-07", "1316-23", "1316-04"],
        ["5jun45", "6jun46"],
        ["12/31/1066", "12/30/1066"],
        ["12/31/2020 13:00 pm", "12/31/2020 1:00 pm"],
        ["Sept 31, 2020", "May 1, 2020"],
        ["May", "June"],
    ],
    ids=["seasons", "codes", "orders", "days", "versions", "ranges", "letters", "years", "hours", "30 days", "months"],
)
def test_what_is_no_date_in_one_order_is_a_name(cells: list[str]):
    assert [column.kind for column in columns_of("a", plan_of(beside(repeated(cells))))] == ["categories"]


def test_a_later_table_is_read_in_the_order_of_the_first_or_in_isos():
    """Nothing in it needs to show the order."""
    day, *_ = columns_of("a", plan_of(beside([f"1/{at + 1}/2020" for at in range(28)])))
    assert numbers_of(beside(["1/2/2020", "2020-01-02", "2.1.2020"]), day).tolist() == [DAY + 1] * 3
    with pytest.raises(UserError, match=r"row 2, column 'a': '31/1/2020' is not a date as .*, or month/day/year"):
        numbers_of(beside(["1/31/2020", "31/1/2020"]), day)


def test_a_missing_cell_hides_no_order():
    cells = [f"1/{at + 1}/2020" if at % 5 else ["", "NA", "-"][at % 3] for at in range(28)]
    day, *_ = columns_of("a", plan_of(beside(cells)))
    assert np.isnan(numbers_of(beside(cells), day)).tolist() == [at % 5 == 0 for at in range(28)]


@pytest.mark.parametrize("wrong", ["2/30/2020", "31/1/2020", "soon"])
def test_a_few_cells_that_are_no_dates_are_named(wrong: str):
    cells = [f"1/{at + 1}/2020" for at in range(28)] + [wrong]
    with pytest.raises(UserError, match=f"row 29 is '{wrong}', and the other cells are dates") as error:
        plan_of(beside(cells))
    assert error.value.remedy == {"na_values": [wrong]}
    day, *_ = columns_of("a", plan_of(beside(cells), na_values=(wrong,)))
    assert np.isnan(numbers_of(beside(cells), day)).tolist() == [False] * 28 + [True]


def test_the_order_is_saved_with_the_model():
    for order in ORDERS:
        assert Form.from_json(Form(date=order).to_json()) == Form(date=order)
    with pytest.raises(ValueError, match="the form"):
        Form.from_json({"date": "day/year/month"})


def test_two_digits_of_a_year_are_of_1969_to_2068():
    years = [moment.year for text in ("1/1/69", "1/1/68", "1/1/00") if (moment := in_order(text, "month/day/year"))]
    assert years == [1969, 2068, 2000]
