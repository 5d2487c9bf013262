"""Tables as inputs: the columns of a DataFrame are encoded as those of a file on the command line."""
# ruff: noqa: N806  # X is scikit-learn's name

from __future__ import annotations

import datetime
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline

import deltaprop as dp
from deltaprop import UserError
from deltaprop.sklearn import MLPClassifier, MLPRegressor
from deltaprop.training import TrainConfig, train
from tests.sklearn.test_estimators import ESTIMATORS, data_for, small
from tests.test_compat import required

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = 48
RNG = np.random.RandomState(0)
# Numbers with a missing cell in eight, text with a missing cell in six, and a boolean.
COLUMNS: dict[str, list[Any]] = {
    "age": [None if at % 8 == 0 else float(at % 5) + 0.5 for at in range(ROWS)],
    "colour": [None if at % 6 == 0 else ["red", "green", "blue"][at % 3] for at in range(ROWS)],
    "new": [at % 2 == 0 for at in range(ROWS)],
    "size": RNG.normal(size=ROWS).tolist(),
}
NAMES = ["age", "size", "age=(missing)", "colour=blue", "colour=green", "colour=red", "colour=(missing)"]
NAMES += ["new=False", "new=True"]
Y = np.arange(ROWS) % 3


@pytest.fixture(scope="module")
def pandas() -> ModuleType:
    return required("pandas")


@pytest.fixture(scope="module")
def polars() -> ModuleType:
    return required("polars")


def encoded() -> np.ndarray[Any, Any]:
    """The inputs, written out by hand, before they are standardised: a missing number is the mean of the others."""
    age = np.array([np.nan if cell is None else cell for cell in COLUMNS["age"]])
    colour = np.array(COLUMNS["colour"], dtype=object)
    new = np.array(COLUMNS["new"])
    flags = [np.isnan(age), *(colour == name for name in ("blue", "green", "red", None)), ~new, new]
    return np.stack([np.where(np.isnan(age), np.nanmean(age), age), COLUMNS["size"], *flags], axis=1).astype(float)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_columns_become_the_inputs_of_the_command_line(kind: type):
    """Numbers are standardised, what tells a category is 0 or 1, and a missing cell has an input of its own."""
    model = small(kind, dtype="float64").fit(COLUMNS, Y)
    assert model.table_encoder_.encoding.names == NAMES
    x = encoded()
    x[:, :2] = (x[:, :2] - x[:, :2].mean(0)) / x[:, :2].std(0)
    assert_allclose(model._inputs(model.table_encoder_.encode(COLUMNS, "").x), x, rtol=1e-12, atol=1e-12)
    alone = small(kind, dtype="float64", standardize=False)
    if kind is MLPClassifier:
        assert_allclose(alone.fit(x, Y).predict_proba(x), model.predict_proba(COLUMNS), rtol=1e-9)


def test_a_file_on_the_command_line_has_the_same_inputs(tmp_path: Path):
    rows = zip(*COLUMNS.values(), Y, strict=True)
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join([",".join([*COLUMNS, "y"]), *lines, ""]))
    few = {"hidden": (2,), "epochs": 1, "log_every": 0, "run_dir": tmp_path / "run"}
    run = train(TrainConfig(data=str(tmp_path / "t.csv"), task="classification", **few))
    encoding = dp.load(run.folder).encoding
    assert encoding is not None
    assert encoding.names == NAMES


def test_every_container_gives_the_same_model(pandas: ModuleType, polars: ModuleType):
    """Pandas with an index in another order, polars, and a dict of columns."""
    model = small(MLPClassifier).fit(COLUMNS, Y)
    frames = pandas.DataFrame(COLUMNS, index=range(ROWS, 0, -1)), polars.DataFrame(COLUMNS)
    nullable = pandas.DataFrame(COLUMNS).astype({"age": "Float64", "colour": "string", "new": "boolean"})
    for frame in (*frames, nullable, frames[1].to_arrow()):
        again = clone(model).fit(frame, Y)
        assert_array_equal(again.predict_proba(frame), model.predict_proba(COLUMNS))
        assert_array_equal(again.feature_names_in_, [*COLUMNS])
        assert again.n_features_in_ == 4


def test_types_of_pandas_are_read(pandas: ModuleType):
    """Dates are numbers; a column of type category is categorical though it has numbers; Int64 may miss cells."""
    frame = pandas.DataFrame({
        "when": [datetime.datetime(2020, 1 + at % 12, 1) for at in range(ROWS)],
        "code": pandas.Series(np.arange(ROWS) % 3 + 1).astype("category"),
        "count": pandas.Series([None if at % 4 == 0 else at % 7 for at in range(ROWS)], dtype="Int64"),
        "mixed": [at % 2 if at % 3 else "other" for at in range(ROWS)],
    })  # fmt: skip
    names = small(MLPRegressor).fit(frame, Y).table_encoder_.encoding.names
    assert {"when", "when (month)", "code=1", "code=2", "code=3", "count", "count=(missing)", "mixed=other"} <= {*names}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_frame_of_numbers_is_an_array(pandas: ModuleType, polars: ModuleType, kind: type):
    """The same bits as without names; a column of row numbers is used there too."""
    X, y = data_for(kind)
    X = np.column_stack([X, np.arange(len(X))])
    names = [f"c{at}" for at in range(X.shape[1])]
    model = small(kind).fit(X, y)
    for frame in (pandas.DataFrame(X, columns=names), polars.DataFrame(X, schema=names)):
        again = small(kind).fit(frame, y)
        assert again.table_encoder_ is None
        assert_array_equal(again.coefs_[0], model.coefs_[0])
        assert_array_equal(again.predict(frame), model.predict(X))


def test_missing_numbers_of_a_frame_are_filled_and_of_an_array_refused(pandas: ModuleType):
    X, y = data_for(MLPClassifier)
    X[::4, 1] = np.nan
    model = small(MLPClassifier).fit(pandas.DataFrame(X, columns=list("abcd")), y)
    assert model.table_encoder_.encoding.names == ["a", "b", "c", "d", "b=(missing)"]
    with pytest.raises(ValueError, match="Input X contains NaN"):
        small(MLPClassifier).fit(X, y)


def test_model_selection_and_inspection_take_frames(pandas: ModuleType, polars: ModuleType):
    frame = pandas.DataFrame(COLUMNS)
    pipeline = make_pipeline(small(MLPClassifier))
    search = GridSearchCV(pipeline, {"mlpclassifier__max_iter": [1, 2]}, cv=2, error_score="raise").fit(frame, Y)
    assert 0 <= search.best_score_ <= 1
    predicted = cross_val_predict(small(MLPClassifier), frame, Y, cv=2)
    assert_array_equal(cross_val_predict(small(MLPClassifier), polars.DataFrame(COLUMNS), Y, cv=2), predicted)
    importance = permutation_importance(search, frame, Y, n_repeats=1, random_state=0)
    assert importance.importances_mean.shape == (4,)


def test_a_row_of_weight_0_has_no_influence_and_weights_count_in_what_is_filled():
    """A weight of k is k equal rows: the mean that fills a missing number is weighted."""
    weights = np.where(np.arange(ROWS) < 6, 0, 1 + np.arange(ROWS) % 3)
    wild = {**COLUMNS, "age": [1e6] * 3 + COLUMNS["age"][3:], "colour": ["pink"] * 3 + COLUMNS["colour"][3:]}
    options = {"dtype": "float64", "batch_size": 200}
    repeated = {
        name: [c for c, k in zip(cells, weights, strict=True) for _ in range(k)] for name, cells in COLUMNS.items()
    }
    model = small(MLPClassifier, **{**options, "batch_size": 42}).fit(wild, Y, sample_weight=weights)
    other = small(MLPClassifier, **{**options, "batch_size": int(weights.sum())}).fit(repeated, Y.repeat(weights))
    assert_allclose(model.predict_proba(COLUMNS), other.predict_proba(COLUMNS), rtol=1e-9)


def test_columns_are_found_by_name_in_the_order_of_fit():
    model = small(MLPClassifier).fit(COLUMNS, Y)
    fewer = {name: COLUMNS[name] for name in ("age", "new", "size")}
    with pytest.raises(UserError, match="should match those that were passed during fit: missing colour"):
        model.predict(fewer)
    with pytest.raises(UserError, match="passed during fit: unknown more"):
        model.predict({**COLUMNS, "more": Y})
    with pytest.raises(UserError, match="passed during fit, in the same order"):
        model.predict(dict(reversed(COLUMNS.items())))
    with pytest.raises(UserError, match=r"X must be a table with the columns age, colour, new, size, got \[48, 3\]"):
        model.predict(np.zeros((48, 3)))


def test_an_array_of_cells_is_read_by_position_with_scikit_learns_warning():
    """As ``permutation_importance`` makes of a polars frame."""
    model = small(MLPClassifier).fit(COLUMNS, Y)
    cells = np.array([*COLUMNS.values()], dtype=object).T
    with pytest.warns(UserWarning, match="X does not have valid feature names, but MLPClassifier was fitted") as caught:
        predicted = model.predict(cells)
    assert caught[0].filename == __file__
    assert_array_equal(predicted, model.predict(COLUMNS))


def test_names_that_training_has_not_seen_are_told():
    model = small(MLPClassifier).fit(COLUMNS, Y)
    with pytest.warns(UserWarning, match="column 'colour' has a name not seen in training, such as 'pink'") as caught:
        model.predict({**COLUMNS, "colour": ["pink", *COLUMNS["colour"][1:]]})
    assert caught[0].filename == __file__
    with pytest.raises(UserError, match=r"column 'colour': no training row has any of its names.*X$"):
        model.predict({**COLUMNS, "colour": ["pink"] * ROWS})


def test_columns_left_out_are_told():
    identifiers = {**COLUMNS, "id": [f"r{at}" for at in range(ROWS)]}
    with pytest.warns(UserWarning, match=r"1 column of X left out: id \(48 names, all different\)") as caught:
        model = small(MLPClassifier).fit(identifiers, Y)
    assert caught[0].filename == __file__
    assert model.n_features_in_ == 5
    assert_array_equal(model.predict(identifiers), small(MLPClassifier).fit(COLUMNS, Y).predict(COLUMNS))


def test_cells_that_do_not_fit_are_refused_without_words_of_the_command_line():
    wrong = {**COLUMNS, "size": [*map(str, COLUMNS["size"][:-1]), "large"]}
    message = r"column 'size': row 48 is 'large', and the other cells are numbers: correct these cells.*X$"
    with pytest.raises(UserError, match=message) as refused:
        small(MLPClassifier).fit(wrong, Y)
    assert "`" not in str(refused.value)


def test_partial_fit_and_a_warm_start_keep_the_encoding():
    half = {name: cells[:24] for name, cells in COLUMNS.items()}
    rest = {name: cells[24:] for name, cells in COLUMNS.items()}
    model = small(MLPClassifier).partial_fit(half, Y[:24], classes=[0, 1, 2])
    encoder = model.table_encoder_
    model.partial_fit(rest, Y[24:])
    assert model.table_encoder_ is encoder
    model = small(MLPClassifier, warm_start=True).fit(COLUMNS, Y)
    before = model.table_encoder_
    assert model.fit(COLUMNS, Y).table_encoder_ is before
    assert small(MLPClassifier).fit(COLUMNS, Y).fit(encoded(), Y).table_encoder_ is None


def test_a_saved_estimator_keeps_its_columns():
    model = small(MLPClassifier, early_stopping=True, validation_fraction=0.3).fit(COLUMNS, Y)
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(COLUMNS), model.predict_proba(COLUMNS))
