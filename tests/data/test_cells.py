"""How numbers and names are written: one number and one spelling from each way to write them."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deltaprop import UserError
from deltaprop.data.cells import Form, canonical
from deltaprop.data.profile import profile
from tests.data.reading import ROWS, beside, columns_of, names_of, numbers_of, plan_of, read, repeated

NAN = math.nan

# --- numbers ---

FORMS: dict[str, tuple[list[str], list[float]]] = {
    "per cent": (["30 %", "5%", "-2.5 %"], [30, 5, -2.5]),
    "per mille": (["3 ‰", "0.5‰"], [3, 0.5]),
    "a decimal comma": (["1,5", "2,25", ",5", "-3", "4,"], [1.5, 2.25, 0.5, -3, 4]),
    "a decimal comma before three digits": (["0,123", "0,456"], [0.123, 0.456]),
    "a decimal comma, also before three digits": (["1,234", "2,5"], [1.234, 2.5]),
    "a decimal comma and an exponent": (["1,5e3", "2,5E-1"], [1500, 0.25]),
    "commas between thousands": (["1,234.5", "12.0", "1,000,000.25", "7"], [1234.5, 12, 1000000.25, 7]),
    "commas between thousands, a point elsewhere": (["1,234", "2.5"], [1234, 2.5]),
    "several commas": (["1,234,567", "1,234", "12"], [1234567, 1234, 12]),
    "points between thousands": (["1.234,5", "12,0", "1.000.000,25", "7", "1.234"], [1234.5, 12, 1000000.25, 7, 1234]),
    "several points": (["1.234.567", "12", "1.234"], [1234567, 12, 1234]),
    "apostrophes": (["1'234", "12'345.5", "3"], [1234, 12345.5, 3]),
    "typographic apostrophes": (["1\u2019234", "12'345", "3"], [1234, 12345, 3]),
    "blanks": (["1 100", "12", "2 000 000"], [1100, 12, 2000000]),
    "thin and no-break blanks": (["1\u2009100", "2\u00a0000,5", "3\u202f000"], [1100, 2000.5, 3000]),
    "dollars": (["$5", "$1,234.50", "-$3", "$-4", "6"], [5, 1234.5, -3, -4, 6]),
    "euros": (["5 €", "1.234,50 €", "-3€", "€ 4,5"], [5, 1234.5, -3, 4.5]),
    "a currency as a word": (["CHF 5", "CHF 1'200.50", "7 CHF"], [5, 1200.5, 7]),
    "a minus sign": (["\u22125", "3", "\u22122.5"], [-5, 3, -2.5]),
    "brackets": (["(5)", "3", "(1,234.5)"], [-5, 3, -1234.5]),
    "brackets around a currency": (["($5)", "$3"], [-5, 3]),
    "signs": (["+5", "-.5", "1.", "1e3"], [5, -0.5, 1, 1000]),
    "signs for missing": (["-", "5", "--", ".", "*", "\u2014", "2.5"], [NAN, 5, NAN, NAN, NAN, NAN, 2.5]),
    "words for missing": (["NA", "5", "n/a", "#N/A", "null", "None", "?", "", "2.5"], [NAN, 5, *[NAN] * 6, 2.5]),
}


@pytest.mark.parametrize(("cells", "expected"), FORMS.values(), ids=FORMS)
def test_a_number_is_read_however_the_column_writes_it(cells: list[str], expected: list[float]):
    np.testing.assert_array_equal(read(repeated(cells)), repeated(expected))


def test_a_unit_is_read_if_each_of_many_cells_has_it():
    """Of a few, such as 5 mg and 10 mg, they may be names."""
    np.testing.assert_array_equal(read([f"{at / 2} km/h" for at in range(30)]), np.arange(30) / 2)
    assert {*names_of(repeated(["5 mg", "10 mg"]))} == {"5 mg", "10 mg"}


@pytest.mark.parametrize("few",
[["5 mg", "1 g"], ["1 star", "2 stars"], ["1st", "2nd"], ["1/2", "3/4"], ["0x1f", "0x2a"],
                                 ["1_000", "2_000"], ["1.2.3", "1.2.4"], ["1-2", "3-4"], ["1,23,4", "2,34,5"],
                                 ["(a)", "(b)"], ["$", "€"], ["5 $ 3", "6 $ 2"]], ids=str)  # fmt: skip
def test_what_is_no_number_is_a_name(few: list[str]):
    assert names_of(repeated(few)) == repeated(few)


@pytest.mark.parametrize("cells", [["1,234", "2,500"], ["1,234", "12,500", "7"], ["$1,234", "$2,345"]], ids=str)
def test_a_comma_that_may_be_either_is_refused_once_and_each_hint_is_followed(cells: list[str]):
    with pytest.raises(
        UserError, match=r"column 'a': '\$?1,234' may be \$?1234 \(`decimal='point'`\) or \$?1\.234 "
    ) as error:
        read(repeated(cells))
    assert error.value.remedy == {"decimal": ["point"]}
    plain = [cell.strip("$") for cell in cells]
    points, commas = ([float(cell.replace(",", by)) for cell in plain] for by in ("", "."))
    np.testing.assert_array_equal(read(repeated(cells), decimal="point"), repeated(points))
    np.testing.assert_array_equal(read(repeated(cells), decimal="comma"), repeated(commas))


def test_the_decimal_sign_is_one_for_all_columns_that_need_it_only():
    """--decimal comma for one column leaves plain numbers in another as they are."""
    table = beside(repeated(["1,234", "2,500"]))
    plan = plan_of(table, decimal="comma")
    np.testing.assert_array_equal(numbers_of(table, plan.inputs[0]), repeated([1.234, 2.5]))
    np.testing.assert_allclose(numbers_of(table, plan.inputs[1]), 1.5 * np.arange(30) + 0.3)


@pytest.mark.parametrize(
    "cells",
    [[f"{at}.5 %" if at % 3 else f"{at}" for at in range(30)], [f"{at} {'€' if at % 2 else '$'}" for at in range(30)]],
    ids=["%", "currencies"],
)
def test_numbers_with_different_marks_are_refused_as_different_numbers(cells: list[str]):
    with pytest.raises(UserError, match="column 'a': its numbers are written in different ways, such as '0"):
        read(cells)


@pytest.mark.parametrize("found", [{"decimal": ";"}, {"thousands": "_"}, {"mark": "x" * 21}, {"sign": "-"}], ids=str)
def test_a_damaged_form_is_refused(found: dict[str, Any]):
    with pytest.raises((ValueError, TypeError)):
        Form.from_json(found)


def test_a_form_is_saved_as_what_differs_from_plain_numbers():
    form = Form(",", ".", "€")
    assert form.to_json() == {"decimal": ",", "thousands": ".", "mark": "€"}
    assert Form().to_json() == {}
    assert Form.from_json(form.to_json()) == form


def test_a_later_table_is_read_in_the_form_of_the_first():
    """1,234 is ambiguous by itself; in a column with a decimal comma it is 1.234, and 1.5 is an error, not 15."""
    (column, _) = plan_of(beside(repeated(["1,5", "2,25"]))).inputs
    assert numbers_of(beside(["1,234"]), column).tolist() == [1.234]
    with pytest.raises(
        UserError,
        match=r"row 1, column 'a': '1\.5' is not written as the numbers of this column in training \(a decimal comma\)",
    ):
        numbers_of(beside(["1.5"]), column)
    assert numbers_of(beside([1.5]), column).tolist() == [1.5]  # a number of Arrow's is one


# --- one spelling ---

SAME = {
    "whole numbers in float clothes": (["1.0", "2.0", "3.00"], ["1", "2", "3"]),
    "zeros": (["1.50", "2.5", "-0.0"], ["1.5", "2.5", "0"]),
    "Arrow's floats": ([1.0, 2.5], ["1", "2.5"]),
    "Arrow's integers": ([1, 2], ["1", "2"]),
    "decimals": ([decimal.Decimal("1.00"), decimal.Decimal("2.50")], ["1", "2.5"]),
    "truth": (["TRUE", "false", "True"], ["True", "False", "True"]),
    "Arrow's booleans": ([True, False], ["True", "False"]),
    "exponents": (["1e+20", "1e-07"], ["100000000000000000000", "1e-07"]),
    "codes": (["007", "7", "+1"], ["007", "7", "+1"]),
    "hexadecimal-like": (["12E4", "1E5"], ["12E4", "1E5"]),
    "blanks around": ([" Paris ", "Paris"], ["Paris", "Paris"]),
}


@pytest.mark.parametrize(("cells", "expected"), SAME.values(), ids=SAME)
def test_a_category_has_one_spelling_from_every_container(cells: list[Any], expected: list[str]):
    assert names_of(repeated(cells), categorical=("a",)) == repeated(expected)
    dictionary = pa.array(repeated(cells)).dictionary_encode()
    assert names_of(dictionary, categorical=("a",)) == repeated(expected)


def test_the_spelling_of_a_number_is_that_of_float64():
    """Whatever digits a CSV gives: pandas would write 0.1 for it, and Arrow's float is the same number."""
    assert canonical("0.10000000000000001") == canonical("0.1") == "0.1"
    assert canonical("1e+300") == str(int(1e300))
    assert canonical("1" * 30 + ".0") == str(int(float("1" * 30)))


@pytest.mark.parametrize(
    "cells",
    [[2**53, 2**53 + 1], pa.array([2**53, 2**53 + 1], pa.uint64()), pa.array([2**64 - 1, 2**64 - 2], pa.uint64()),
     [str(2**53), str(2**53 + 1)], [-(2**63), -(2**63) + 1]],
    ids=["int64", "uint64", "2^64", "text", "negative"],
)  # fmt: skip
def test_integers_that_float64_rounds_keep_their_digits(cells: Any):
    values = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    column = pa.array(repeated(values), cells.type) if isinstance(cells, pa.Array) else repeated(values)
    assert names_of(column) == repeated([str(value) for value in values])
    table = beside(column)
    plan = plan_of(table, target=("a",))
    numbers_of(table, plan.targets[0])
    assert {*plan.targets[0].names} == {str(value) for value in values}
    assert any("integers beyond 2^53" in note for note in plan.notes)


@pytest.mark.parametrize(
    "cells",
    [[-99, 1, 2], [-99.0, 1.5, 2.0], pa.array([-99, 1, 2], pa.float32()), ["-99.0", "1", "2"], ["-99,0", "1,5", "2,0"]],
    ids=["int64", "float64", "float32", "text", "decimal comma"],
)
def test_a_number_that_means_a_missing_value_does_so_however_it_is_stored(cells: Any):
    """A word of `na_values` is compared as a number with numbers: -99 is -99.0, in a CSV as in Parquet."""
    column = pa.array(repeated(cells.to_pylist()), cells.type) if isinstance(cells, pa.Array) else repeated(cells)
    numbers = read(column, na_values=("-99",))
    assert np.isnan(numbers).tolist() == [at % 3 == 0 for at in range(ROWS)]


def test_a_number_that_means_a_missing_value_is_not_counted_as_one():
    """Else a column of 1 to N with such a cell would be taken for row numbers, or a constant for two values."""
    for cells in ([-99, 5, 5], ["-99.0", "5", "5"]):
        found = profile(beside(repeated(cells)), ["a"], ["-99"], lambda done: None)["a"]
        assert (found.missing, found.numbers, found.is_constant) == (ROWS // 3, ROWS - ROWS // 3, True)
    assert names_of(repeated([-99, 5, 7]), categorical=("a",), na_values=("-99",)) == repeated([None, "5", "7"])


def test_a_date_read_as_a_category_is_called_as_in_a_csv():
    midnight, noon = datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 2, 12, 30)
    for kind in (pa.timestamp("ns"), pa.timestamp("us"), pa.timestamp("s")):
        cells = pa.array(repeated([midnight, noon]), kind)
        assert names_of(cells, categorical=("a",)) == repeated(["2020-01-02", "2020-01-02 12:30:00"])
    assert names_of(repeated([midnight.date()]), categorical=("a",)) == repeated(["2020-01-02"])


def test_a_category_of_float32_has_the_digits_of_a_csv():
    assert names_of(pa.array(repeated([0.1, 2.0, 1e30]), pa.float32()), categorical=("a",)) == repeated(
        ["0.1", "2", str(int(1e30))]
    )


@pytest.mark.parametrize("numbers", [[30.0, 40.0], [30, 40]])
def test_numbers_without_a_sign_are_refused_where_training_had_percent(numbers: list[Any]):
    """A workbook has 0.3 in a cell that shows 30 %, and a CSV 30."""
    table = beside(repeated(["30 %", "40 %"]))
    (column,) = columns_of("a", plan_of(table))
    other = beside(repeated(numbers))
    with pytest.raises(UserError, match=r"the table: row 1, column 'a': it has numbers without the sign %"):
        numbers_of(other, column)


def test_names_of_polars_are_read_like_others():
    """Its categories are indices into views of text, which pyarrow does not take by index."""
    views = pa.array(["a", "b"], pa.string_view())
    cells = pa.DictionaryArray.from_arrays(pa.array(repeated([0, 1, None]), pa.int32()), views)
    assert names_of(cells) == repeated(["a", "b", None])
