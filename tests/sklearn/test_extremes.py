"""Estimators on the largest inputs and labels: a finite result, or one line that says where the problem is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from deltaprop import MLPClassifier, MLPRegressor
from deltaprop.errors import UserError

X = np.random.default_rng(0).normal(size=(40, 3))
POSITIVE = X[:, 0] > 0
BIG = 2**63
pytestmark = pytest.mark.filterwarnings("ignore:max_iter")


@pytest.fixture(scope="module")
def classifier() -> MLPClassifier:
    return MLPClassifier((4,), max_iter=5, random_state=0).fit(X, POSITIVE)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
@pytest.mark.parametrize(
    ("factor", "message"), [(1e300, r"3e\+300 does not fit in float32"), (1e37, r"3e\+37 .* outputs .* are not finite")]
)
def test_a_huge_input_is_refused_by_row_and_column(classifier: Any, method: str, factor: float, message: str):
    """Row 4 is huge, and most so in column 1; 3e37 fits in float32, and overflows by weights of a hundred."""
    x, model = X.copy(), copy.deepcopy(classifier)
    model.coefs_[0][:] *= 100  # a view of the weights
    x[4] = 0.0, 3 * factor, 0.0
    with pytest.raises(UserError, match=f"X, row 4, column 1: {message}"):
        getattr(model, method)(x)


def test_a_huge_column_is_refused_by_its_name(classifier: Any):
    classifier.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    try:
        with pytest.raises(UserError, match=r"X, row 0, column 'c': 1e\+300 does not fit"):
            classifier._inputs(np.array([[0.0, 0.0, 1e300]]))
    finally:
        del classifier.feature_names_in_


def test_large_inputs_give_finite_probabilities(classifier: Any):
    assert np.isfinite(classifier.predict_proba(X * 1e30)).all()


def test_the_regressor_computes_huge_inputs_in_float64():
    assert np.isfinite(MLPRegressor((4,), max_iter=5).fit(X, X[:, 0]).predict(X * 1e300)).all()


@pytest.mark.parametrize("spread", [1e-200, 1e200])
def test_targets_that_float64_cannot_hold_are_refused(spread: float):
    with pytest.raises(UserError, match=r"y has a standard deviation of .*multiplied by 1e"):
        MLPRegressor((4,), max_iter=5).fit(X, spread * X[:, 0])


@pytest.mark.parametrize(
    "labels", [(BIG, BIG + 1), (3, BIG + 1), (2**64 - 2, 2**64 - 1), (-(2**63), 2**53 + 1)], ids=str
)
@pytest.mark.parametrize("kind", ["list", "object", "array"])
def test_whole_numbers_beyond_float64_stay_different_labels(labels: tuple[int, int], kind: str):
    """NumPy makes float64 of a list with 3 and 2^63, and of two neighbours there one number."""
    y: Any = [labels[int(positive)] for positive in POSITIVE]
    if kind != "list":
        dtype = np.int64 if min(labels) < 0 else np.uint64
        y = np.array(y, dtype=object if kind == "object" else dtype)
    model = MLPClassifier((4,), max_iter=5).fit(X, y)
    assert model.classes_.tolist() == [*labels]
    assert {*model.predict(X).tolist()} <= {*labels}
    first = MLPClassifier((4,)).partial_fit(X, y, classes=[*labels])
    assert first.classes_.tolist() == [*labels]


@pytest.mark.parametrize("labels", [(2**64, 1), (-1, BIG)], ids=str)
def test_whole_numbers_that_no_integer_type_holds_are_refused(labels: tuple[int, int]):
    with pytest.raises(UserError, match="fit in neither int64 nor uint64: give them as text"):
        MLPClassifier((4,), max_iter=5).fit(X, [labels[int(positive)] for positive in POSITIVE])
