"""Labels of pandas and polars keep their type, which scikit-learn's own estimators make floats."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from deltaprop import UserError
from deltaprop.sklearn import MLPClassifier
from tests.sklearn.test_estimators import small
from tests.test_compat import required

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.RandomState(0).normal(size=(12, 2))
Y = np.arange(12) % 2


@pytest.fixture(scope="module")
def pandas() -> ModuleType:
    return required("pandas")


@pytest.fixture(scope="module")
def polars() -> ModuleType:
    return required("polars")


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        ("int64", np.array([0, 1])),
        ("Int64", np.array([0, 1])),
        ("UInt8", np.array([0, 1], dtype=np.uint8)),
        ("int64[pyarrow]", np.array([0, 1])),
        ("boolean", np.array([False, True])),
        ("bool[pyarrow]", np.array([False, True])),
        ("string", np.array(["0", "1"], dtype=object)),
        ("category", np.array([0, 1])),
    ],
)
def test_labels_of_pandas_keep_their_type(pandas: ModuleType, dtype: str, classes: Any):
    """As a Series, and the classes of partial_fit too."""
    y = pandas.Series(Y).astype(dtype)
    model = small(MLPClassifier).fit(X, y)
    assert_array_equal(model.classes_, classes, strict=True)
    assert model.predict(X).dtype == classes.dtype
    assert 0 <= model.score(X, y) <= 1
    by_parts = small(MLPClassifier).partial_fit(X, y, classes=y.drop_duplicates())
    assert_array_equal(by_parts.classes_, classes, strict=True)


def test_a_frame_of_one_column_keeps_its_type(pandas: ModuleType):
    """With scikit-learn's warning that y should have one dimension."""
    with pytest.warns(UserWarning, match="column-vector"):
        model = small(MLPClassifier).fit(X, pandas.DataFrame({"y": pandas.Series(Y, dtype="Int64")}))
    assert_array_equal(model.classes_, np.array([0, 1]), strict=True)


def test_labels_of_polars_keep_their_type(polars: ModuleType):
    for values in (Y.tolist(), (Y == 1).tolist(), ["ab"[label] for label in Y]):
        model = small(MLPClassifier).fit(X, polars.Series(values))
        assert_array_equal(model.classes_, np.unique(values), strict=True)


def test_labels_beyond_2_to_the_63_keep_their_value():
    """A uint64 of this size is no int64, and float64 rounds it."""
    large = np.array([2**63 + 1, 2**63 + 3], dtype=np.uint64)
    assert_array_equal(small(MLPClassifier).fit(X, large[Y]).classes_, large, strict=True)


@pytest.mark.parametrize("kind", ["Int64", "boolean", "string", "category", "object", "list", "polars"])
def test_a_missing_label_is_refused_with_its_row(kind: str):
    values = [None, *["ab"[label] for label in Y[1:]]]
    message = "Input y contains NaN: the label of row 1 is missing"
    if kind in ("list", "object"):
        y: Any = values if kind == "list" else np.array(values, dtype=object)
    elif kind == "polars":
        y = required("polars").Series(values)
    else:
        values = values if kind in ("string", "category") else [None, *Y[1:].tolist()]
        y = required("pandas").Series(values, dtype=kind)
    with pytest.raises(UserError, match=message):
        MLPClassifier().fit(X, y)
