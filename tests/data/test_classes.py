"""Classes: counted as numpy.unique counts, block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaprop import UserError
from deltaprop.data import classes
from deltaprop.data.classes import check_classes, tally


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, 1e300, 7.0]), max_size=40), st.integers(1, 9))
def test_a_tally_is_what_unique_returns_however_it_is_cut(values: list[float], at_once: int):
    expected = np.unique(np.array(values), return_index=True, return_counts=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "AT_ONCE", at_once)
        found = tally(np.array(values))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_class_that_is_in_no_training_row_is_named():
    train = np.array([0, 2, 2])
    check_classes(train, {"validation": np.array([2, 0]), "test": np.array([], dtype=np.int64)})
    with pytest.raises(UserError, match=r"^class 'b' is in the test part and in no row of the training part"):
        check_classes(train, {"validation": np.array([2]), "test": np.array([0, 1])}, ("a", "b", "c"))
    with pytest.raises(UserError, match=r"^class 3 is in the validation part"):
        check_classes(train, {"validation": np.array([3])})
