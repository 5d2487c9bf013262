"""Weights of rows: scikit-learn's steps, k equal rows for a weight of k, and nothing at all for a weight of 0."""
# ruff: noqa: N806  # X is scikit-learn's name

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV

from deltaprop import UserError
from deltaprop.sklearn import MLPClassifier, MLPRegressor, base
from sklearn import datasets
from tests.sklearn.test_estimators import ESTIMATORS, assert_same_weights, data_for, paired_estimators, small

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

WEIGHTS = np.random.RandomState(0).randint(1, 5, 150).astype(float)


def weighted_data(kind: type) -> tuple[Any, Any]:
    """150 rows in random order."""
    X, y = data_for(kind)
    order = np.random.RandomState(1).permutation(150)
    return X[order], y[order]


def assert_same_net(model: Any, other: Any, rtol: float = 0.0) -> None:
    for one, two in zip(model.coefs_ + model.intercepts_, other.coefs_ + other.intercepts_, strict=True):
        assert_allclose(one, two, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("kind", "early"), [(MLPClassifier, False), (MLPRegressor, False), (MLPRegressor, True)])
def test_weights_give_scikit_learns_steps(kind: type, early: bool):
    """Batches of 40 rows, the last of 30: the loss of each is Σ w c / Σ w; the score of early stopping is weighted.

    It has scikit-learn's rows in regression alone: its classifier orders classes in reverse when it stratifies.
    """
    X, y = weighted_data(kind)
    X = (X - X.mean(0)) / X.std(0)
    options = {"early_stopping": True, "validation_fraction": 0.3} if early else {}
    estimator, reference = paired_estimators(
        kind, (X, y), batch_size=40, learning_rate_init=0.02, max_iter=10, **options
    )
    estimator.fit(X, y, sample_weight=WEIGHTS)
    reference.fit(X, y, sample_weight=WEIGHTS)
    if not early:
        assert_same_weights(estimator, reference)
    else:  # the first is from the fit that gave the initial weights
        assert_allclose(estimator.validation_scores_[1:], reference.validation_scores_[1:], rtol=1e-9)


@pytest.mark.parametrize(("kind", "balance"), [(MLPClassifier, False), (MLPClassifier, True), (MLPRegressor, False)])
def test_a_weight_of_k_is_k_equal_rows(kind: type, balance: bool):
    """In one batch of all rows, to rounding; standardisation and balanced class weights count k rows too."""
    X, y = weighted_data(kind)
    X[:, 0] = 0.1  # a constant column stays one
    options = {"class_weight": "balanced"} if balance else {}
    X_repeated, y_repeated = (np.repeat(part, WEIGHTS.astype(int), axis=0) for part in (X, y))
    model, repeated = (
        small(kind, dtype="float64", max_iter=20, batch_size=rows, **options) for rows in (150, len(y_repeated))
    )
    model.fit(X, y, sample_weight=7 * WEIGHTS)
    repeated.fit(X_repeated, y_repeated)
    assert_same_net(model, repeated, rtol=1e-9)
    assert_allclose(model.loss_curve_, repeated.loss_curve_, rtol=1e-9)
    assert_allclose(model.predict(X), repeated.predict(X), rtol=1e-8)


@pytest.mark.parametrize("loss", MLPRegressor._losses)
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_loss_of_a_regressor_is_weighted(loss: str, outputs: int):
    """One step on all rows, with three targets a row too."""
    rng = np.random.RandomState(0)
    X, y, weights = rng.normal(size=(12, 3)), 3 * rng.normal(size=(12, outputs)).squeeze(), np.arange(1, 13)
    options = {"loss": loss, "dtype": "float64", "max_iter": 1}
    model = small(MLPRegressor, batch_size=12, **options).fit(X, y, sample_weight=weights)
    X, y = (np.repeat(part, weights, axis=0) for part in (X, y))
    assert_same_net(model, small(MLPRegressor, batch_size=len(y), **options).fit(X, y), rtol=1e-11)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("early", [False, True])
def test_a_row_of_weight_0_has_no_influence(kind: type, early: bool):
    """Not on scaling, batches, or the rows held out: the same bits as without these rows, whatever they hold."""
    X, y = weighted_data(kind)
    weights = np.where(np.arange(150) % 3 == 0, 0.0, WEIGHTS)
    rows = weights > 0
    X_wild = np.where(rows[:, None], X, 1e6)
    options = {"batch_size": 20, "early_stopping": early}
    model = small(kind, **options).fit(X_wild, y, sample_weight=weights)
    assert_same_net(model, small(kind, **options).fit(X[rows], y[rows], sample_weight=weights[rows]))


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("weight", [1.0, 1e-300, 1e300])
def test_equal_weights_are_none(kind: type, weight: float):
    """The same bits."""
    X, y = weighted_data(kind)
    model = small(kind, batch_size=20).fit(X, y, sample_weight=np.full(150, weight))
    assert_same_net(model, small(kind, batch_size=20).fit(X, y))


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_weights_of_any_size_have_a_finite_result(kind: type):
    """From 1e250 to 1e300; float32 holds 1e-38 to 3e38."""
    X, y = weighted_data(kind)
    weights = np.logspace(250, 300, 150)
    assert np.isfinite(small(kind, batch_size=20).fit(X, y, sample_weight=weights).predict(X)).all()


def test_a_weight_of_a_row_multiplies_that_of_its_class():
    X, y = weighted_data(MLPClassifier)
    by_class = {0: 1.0, 1: 5.0, 2: 0.25}
    both = small(MLPClassifier, dtype="float64", class_weight=by_class).fit(X, y, sample_weight=WEIGHTS)
    products = WEIGHTS * np.array([by_class[label] for label in y])
    X = both.input_scaling_.apply(base.as_tensor(X)).numpy()  # the products would scale the inputs by classes too
    options = {"dtype": "float64", "standardize": False}
    alone = small(MLPClassifier, **options).fit(X, y, sample_weight=products)
    assert_same_net(both, alone, rtol=1e-9)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_partial_fit_takes_weights(kind: type):
    """One epoch in one batch, as repeated rows; the first call's weights count in the scaling."""
    X, y = weighted_data(kind)
    options = {"classes": [0, 1, 2]} if kind is MLPClassifier else {}
    model = small(kind, dtype="float64", batch_size=150).partial_fit(X, y, sample_weight=WEIGHTS, **options)
    X, y = (np.repeat(part, WEIGHTS.astype(int), axis=0) for part in (X, y))
    assert_same_net(model, small(kind, dtype="float64", batch_size=len(y)).partial_fit(X, y, **options), rtol=1e-11)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([-1.0, *[1.0] * 149], r"sample_weight must be finite and at least 0, got -1\.0 in row 1"),
        ([1.0, np.nan, *[1.0] * 148], r"sample_weight must be finite and at least 0, got nan in row 2"),
        ([np.inf] * 150, "sample_weight must be finite and at least 0, got inf in row 1"),
        ([0.0] * 150, "sample_weight is zero for every row: there is nothing to learn from"),
        ([1.0] * 149, r"sample_weight must be one number for each row, \[150\], got \[149\]"),
        (np.ones((150, 1)), r"got \[150, 1\]"),
        (["a"] * 150, "sample_weight must be one number for each row"),
    ],
    ids=["negative", "nan", "inf", "zero", "short", "column", "text"],
)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_weights_that_mean_nothing_are_refused(kind: type, weights: Any, message: str):
    with pytest.raises(UserError, match=message):
        small(kind).fit(*data_for(kind), sample_weight=weights)


def test_a_batch_of_one_row_warns_that_weights_cancel():
    with pytest.warns(UserWarning, match="batch_size=1: the weight of a row cancels") as caught:
        small(MLPRegressor, batch_size=1, max_iter=1).fit(*data_for(MLPRegressor), sample_weight=WEIGHTS)
    assert caught[0].filename == __file__


def test_weights_pass_through_a_search():
    X, y = datasets.load_iris(return_X_y=True)
    search = GridSearchCV(small(MLPClassifier), {"max_iter": [1, 2]}, cv=3).fit(X, y, sample_weight=WEIGHTS)
    again = small(MLPClassifier, **search.best_params_).fit(X, y, sample_weight=WEIGHTS)
    assert_array_equal(search.best_estimator_.coefs_[0], again.coefs_[0])
