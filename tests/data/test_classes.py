"""Classes are recognised, numbered and checked block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaprop import UserError
from deltaprop.data import classes
from deltaprop.data.classes import Targets, TargetValues, are_classes, check_classes
from deltaprop.data.columns import Column, RowRange
from deltaprop.data.table import ArrowTable


@given(st.lists(st.integers(-30, 30).map(float) | st.sampled_from([0.5, 1e18]), max_size=40), st.integers(1, 9))
def test_classes_are_recognised_for_any_block_size(values: list[float], at_once: int):
    """Classes are whole numbers with at most 20 different values, and 5 rows for each if they are more than 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "VALUES_AT_ONCE", at_once)
        result = are_classes(np.array(values))
    different = len({*values})
    enough = different <= 5 or len(values) >= 5 * different
    assert result == (different <= 20 and enough and all(value % 1 == 0 for value in values))


def test_only_the_first_block_of_real_numbers_is_inspected(monkeypatch: pytest.MonkeyPatch):
    block_sizes: list[int] = []
    union = np.union1d
    monkeypatch.setattr(np, "union1d", lambda one, other: block_sizes.append(len(other)) or union(one, other))
    monkeypatch.setattr(classes, "VALUES_AT_ONCE", 10)
    assert not are_classes(np.linspace(0, 1, 1000))
    assert block_sizes == [10]


@pytest.mark.parametrize("is_text", [False, True])
def test_labels_are_numbered_block_by_block(is_text: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classes, "VALUES_AT_ONCE", 3)
    values = np.array([2.0, 0.0, 1.0, 1.0, 2.0, 0.0, 0.0, 1.0])[:, None]
    column = Column("y", "categories", names={"c": 0, "a": 1, "b": 2}) if is_text else Column("y", "numbers")
    targets = Targets("classification", ("a", "b", "c") if is_text else ("0", "1", "2"))
    expected = [1, 2, 0, 0, 1, 2, 2, 0] if is_text else [2, 0, 1, 1, 2, 0, 0, 1]
    assert targets.encode(TargetValues([column], values, "t.csv")).tolist() == expected
    few = Targets("classification", ("a", "c") if is_text else ("0", "1"))
    with pytest.raises(UserError, match=r"t\.csv: row 1, column 'y': class '[b2]' is in no training row"):
        few.encode(TargetValues([column], values, "t.csv"))


def test_a_class_without_training_rows_is_refused_by_name():
    train = np.array([0, 2, 2])
    check_classes(train, {"validation": np.array([2, 0]), "test": np.array([], dtype=np.int64)})
    with pytest.raises(UserError, match=r"^class 'b' is in the test part and in no row of the training part"):
        check_classes(train, {"validation": np.array([2]), "test": np.array([0, 1])}, ("a", "b", "c"))
    with pytest.raises(UserError, match=r"^class 3 is in the validation part"):
        check_classes(train, {"validation": np.array([3])})


@pytest.mark.parametrize("cell", ["+1", "1.", "1.0", "1e0", "\u22121", "01", True])
def test_a_class_that_is_a_number_is_the_same_however_it_is_written(cell: Any):
    """Training reads +1 as the number 1; so must an evaluation, which looks for the class by its name."""
    targets = Targets("classification", ("-1", "0", "1"))
    (column,) = targets.columns(["y"])
    table = ArrowTable(pa.table({"y": [cell, cell]}))
    (batch,) = table.batches()
    if cell is True:  # a truth value is a class of its own, but for the classes 0 and 1 alone
        (column,) = Targets("classification", ("0", "1")).columns(["y"])
        targets = Targets("classification", ("0", "1"))
    values = column.parse(batch.column(0), RowRange(table, 1))
    expected = targets.class_names.index("-1" if cell == "\u22121" else "1")
    assert targets.encode(TargetValues([column], values[:, None], "t")).tolist() == [expected] * 2


def test_a_sign_is_a_missing_target_where_classes_are_numbers():
    cells = pa.array(["-", "1", "2"])
    table = ArrowTable(pa.table({"y": cells}))
    (column,) = Targets("classification", ("1", "2")).columns(["y"])
    assert np.isnan(column.parse(cells, RowRange(table, 1))).tolist() == [True, False, False]
    (column,) = Targets("classification", ("-", "b")).columns(["y"])
    assert not np.isnan(column.parse(cells, RowRange(table, 1))).any()


def test_codes_and_large_integers_are_compared_by_their_digits():
    for names in (("007", "7"), (str(2**53), str(2**53 + 1))):
        (column,) = Targets("classification", names).columns(["y"])
        assert not column.numeric
