"""The model of a run in scikit-learn's metrics, inspection and calibration."""
# X is scikit-learn's name

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_predict

import deltaprop as dp
from deltaprop import UserError
from deltaprop.training import TrainConfig, train
from tests.test_compat import required

ROWS = [(f"{at % 7}.5", "red" if at % 3 else "", str(at % 2 == at % 3)) for at in range(60)]


def train_on(folder: Path, data: str, **settings: Any) -> Any:
    few = {"hidden": (4,), "epochs": 2, "log_every": 0, "run_dir": folder / "run"}
    return dp.load(train(TrainConfig(data=data, **{**few, **settings})).folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of a number, a column of text with missing cells, and the classes False and True; read-only."""
    folder = tmp_path_factory.mktemp("table")
    path = folder / "t.csv"
    path.write_text("a,colour,y\n" + "\n".join(map(",".join, ROWS)) + "\n")
    return train_on(folder, str(path))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of arrays; read-only."""
    return train_on(tmp_path_factory.mktemp("points"), "xor", epochs=5)


X = np.array([[float(a), colour or None] for a, colour, _ in ROWS], dtype=object)
Y = np.array([y == "True" for *_, y in ROWS])


def test_it_predicts_as_the_model_does(table: Any):
    estimator = table.as_sklearn()
    columns = {"colour": [row[1] for row in X], "a": [row[0] for row in X]}
    assert is_classifier(estimator)
    assert_array_equal(estimator.classes_, [False, True], strict=True)
    assert_array_equal(estimator.predict(columns), table.predict(columns) == "True")
    assert_array_equal(estimator.predict_proba(X), table.predict_proba(columns))
    assert estimator.score(X, Y) == accuracy_score(Y, estimator.predict(X))
    assert (estimator.n_features_in_, estimator.feature_names_in_.tolist()) == (2, ["a", "colour"])
    assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict(X), estimator.predict(X))


def test_frames_are_read_by_name_without_their_index(table: Any):
    pandas = required("pandas")
    frame = pandas.DataFrame(X, columns=["a", "colour"]).iloc[::-1]
    assert_array_equal(table.as_sklearn().predict(frame), table.as_sklearn().predict(X)[::-1])
    importance = permutation_importance(table.as_sklearn(), frame, Y[::-1], n_repeats=1, random_state=0)
    assert importance.importances_mean.shape == (2,)


def test_scikit_learn_inspects_and_calibrates_it(points: Any):
    x = np.random.RandomState(0).uniform(-1, 1, (40, 2))
    estimator = points.as_sklearn()
    y = np.where(x[:, 0] * x[:, 1] > 0, "same sign", "opposite sign")
    assert estimator.classes_.tolist() == sorted(points.class_names) != [*points.class_names]
    assert_array_equal(estimator.predict_proba(x), points.predict_proba(x)[:, ::-1])
    assert permutation_importance(estimator, x, y, n_repeats=2, random_state=0).importances.shape == (2, 2)
    assert partial_dependence(estimator, x, [0], grid_resolution=3)["average"].shape == (1, 3)
    calibrated = CalibratedClassifierCV(FrozenEstimator(estimator)).fit(x, y)
    assert_array_equal(calibrated.classes_, estimator.classes_)
    assert calibrated.predict_proba(x).shape == (40, 2)


def test_a_clone_trains_with_the_settings_of_the_run(points: Any):
    """On all rows that it gets; the run stays as it is."""
    estimator = points.as_sklearn()
    copied = clone(estimator)
    x = np.random.RandomState(0).uniform(-1, 1, (60, 2))
    with pytest.raises(NotFittedError, match="a clone that is not fitted yet: call fit"):
        copied.predict(x)
    before = points.predict(x)
    y = np.array(["far", "near"])[(np.abs(x[:, 0]) < 0.5).astype(int)]
    copied.fit(x, y)
    assert copied.classes_.tolist() == ["far", "near"]
    assert copied.model_.sizes == points.sizes
    assert copied.model_.config.epochs == points.config.epochs
    assert_array_equal(points.predict(x), before)
    again = clone(estimator).fit(x, y)
    assert_array_equal(again.predict_proba(x), copied.predict_proba(x))


def test_cross_validation_trains_clones(table: Any):
    predicted = cross_val_predict(table.as_sklearn(), X, Y, cv=2)
    assert (predicted.dtype, predicted.shape) == (np.dtype(bool), (60,))


def test_a_regressor_predicts_in_the_units_of_the_data(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("a,y,z\n" + "\n".join(f"{at / 7},{1e4 + at},{at / 3}" for at in range(40)) + "\n")
    estimator = train_on(tmp_path, str(path), target=("y", "z")).as_sklearn()
    assert is_regressor(estimator)
    assert not hasattr(estimator, "predict_proba")
    y = np.array([[1e4 + at, at / 3] for at in range(40)])
    a = np.arange(40)[:, None] / 7
    assert np.abs(estimator.predict(a) - y)[:, 0].max() < 100
    assert clone(estimator).fit(a, y).predict(a).shape == (40, 2)


@pytest.mark.parametrize(
    ("data", "y", "message"),
    [
        (X[:, :1], Y, r"X must be \[N, 2\], the columns of the run, got \[60, 1\]"),
        (X, Y[:5], "y must hold one target for each of 60 rows, got 5"),
        (X, [None, *Y[1:]], "Input y contains NaN: the target of row 1 is missing"),
        (X, np.stack([Y, Y], axis=1), "y must hold 1 targets per row, as in the run, got 2"),
        (X, np.zeros(60), "the data: the target 'y' is '0' in every row"),
    ],
)
def test_errors_of_fit_speak_of_the_data(table: Any, data: Any, y: Any, message: str):
    with pytest.raises(UserError, match=message) as refused:
        clone(table.as_sklearn()).fit(data, y)
    assert "parquet" not in str(refused.value)


def test_images_are_trained_on_as_images(tmp_path: Path):
    """Pixels of digits, 0 to 16; with the divisor of the run."""
    model = train_on(tmp_path, "digits", epochs=1)
    x = np.random.RandomState(0).randint(0, 17, (30, 64))
    fitted = clone(model.as_sklearn()).fit(x, np.arange(30) % 3)
    assert fitted.model_.input_scaling.scale[0] == model.input_scaling.scale[0]
    assert fitted.model_.image_shape == (8, 8)
    with pytest.raises(UserError, match="pixels that are whole numbers from 0 to 255"):
        clone(model.as_sklearn()).fit(x / 3, np.arange(30) % 3)
