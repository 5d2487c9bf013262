"""``dp.load``: predictions for data of each kind, and refused data and runs."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose
from pyarrow import parquet

import deltaprop as dp
from deltaprop import UserError
from tests.inference.conftest import (
    ARRAY_KINDS,
    CATEGORICAL_KINDS,
    KINDS,
    REGRESSION_KINDS,
    TABLE_KINDS,
    TABLES,
    N,
    Run,
    Runs,
    first,
    inputs_of,
    outputs_by_hand,
    predictions_by_hand,
    probabilities_by_hand,
    without,
    write_csv,
)

ROUNDING = {"rtol": 1e-4, "atol": 2e-5}  # of float32, through two layers of inputs up to 5 deviations away


# --- predictions ---


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_by_hand(runs: Runs, kind: str):
    """Computed with NumPy from config.json and model.safetensors only."""
    run, data = runs[kind], inputs_of(kind)
    assert_allclose(dp.load(run.folder).outputs(data), outputs_by_hand(run, data), **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_classes_and_values_by_hand(runs: Runs, kind: str):
    run, data = runs[kind], inputs_of(kind)
    actual, expected = dp.load(run.folder).predict(data), predictions_by_hand(run, data)
    if kind in REGRESSION_KINDS:
        assert actual.shape == ((N, 2) if kind == "two" else (N,))
        scale = np.array(run.saved["resolved"]["target_scaling"]["scale"])
        assert_allclose(actual.reshape(N, -1) / scale, expected / scale, **ROUNDING)
    else:
        assert actual.astype(str).tolist() == expected.tolist()
        assert len({*expected}) > 1  # a model of constant predictions would not pass


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*REGRESSION_KINDS, "mse")])
def test_probabilities_by_hand(runs: Runs, kind: str):
    run, data = runs[kind], inputs_of(kind)
    model = dp.load(run.folder)
    actual = model.predict_proba(data)
    assert_allclose(actual, probabilities_by_hand(run, data), **ROUNDING)
    assert_allclose(actual.sum(axis=1), 1, rtol=1e-6)
    assert model.classes[actual.argmax(axis=1)].tolist() == model.predict(data).tolist()


@pytest.mark.parametrize(("kind", "message"), [("value", "numbers"), ("mse", "by the loss mse")])
def test_a_model_without_probabilities_refuses_predict_proba(runs: Runs, kind: str, message: str):
    with pytest.raises(UserError, match=f"the model was trained on {message}: it has no probabilities"):
        dp.load(runs[kind].folder).predict_proba(inputs_of(kind))


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("numbers", ["no", "yes"]),
        ("integers", [-1, 0, 7]),
        ("images", [0, 10, 20]),
        ("mixed", ["hi", "lo", "mid"]),
        ("value", []),
    ],
)
def test_integer_classes_stay_integers(runs: Runs, kind: str, classes: list[Any]):
    assert dp.load(runs[kind].folder).classes.tolist() == classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("-3", "0", "12"), [-3, 0, 12]),
        (("--5", "1"), ["--5", "1"]),
        (("-0", "1"), ["-0", "1"]),
        (("01", "1"), ["01", "1"]),
        (("12345678901234567890", "1"), ["12345678901234567890", "1"]),
        (("\u0661", "1"), ["\u0661", "1"]),
    ],
)
def test_classes_that_only_look_like_integers_are_text(runs: Runs, names: tuple[str, ...], expected: list[Any]):
    """Two minus signs, leading zeros, numbers beyond int64, digits of another script."""
    model = dataclasses.replace(dp.load(runs["numbers"].folder), class_names=names)
    assert model.classes.tolist() == expected


def test_the_best_weights_differ_from_the_final_ones(runs: Runs):
    """With η = 3 the loss is not monotonic."""
    run = runs.train("wild", runs["numbers"].data, lr=3.0, lr_schedule="constant", epochs=6)
    final, best = (dp.load(run.folder, weights).outputs(inputs_of("numbers")) for weights in ("final", "best"))
    assert not torch.equal(final, best)


# --- input formats ---


def _gz(path: Path, columns: Mapping[str, Any]) -> Path:
    plain = write_csv(path.with_name("plain.csv"), columns)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def _parts(path: Path, columns: Mapping[str, Any]) -> Path:
    path.mkdir()
    table = pa.table(dict(columns))
    parquet.write_table(table.slice(0, 100), path / "p1.parquet")
    parquet.write_table(table.slice(100), path / "p2.parquet")
    return path


def _parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    parquet.write_table(pa.table(dict(columns)), path)
    return path


def _chunked(columns: Mapping[str, Any]) -> pa.Table:
    table = pa.table(dict(columns))
    return pa.concat_tables([table.slice(0, 7), table.slice(7, 150), table.slice(157)])


def _dictionaries(columns: Mapping[str, Any]) -> pa.Table:
    """Return a table whose text is dictionary-encoded, as from pandas's Categorical."""
    table = pa.table(dict(columns))
    arrays = [c.dictionary_encode() if pa.types.is_string(c.type) else c for c in table.columns]
    return pa.table(arrays, names=table.column_names)


FORMS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "csv": lambda folder, columns: write_csv(folder / "t.csv", columns),
    "csv by its name": lambda folder, columns: str(write_csv(folder / "t.csv", columns)),
    "csv.gz": lambda folder, columns: _gz(folder / "t.csv.gz", columns),
    "tsv": lambda folder, columns: write_csv(folder / "t.tsv", columns, "\t"),
    "semicolons": lambda folder, columns: write_csv(folder / "t.txt", columns, ";"),
    "parquet": lambda folder, columns: _parquet(folder / "t.parquet", columns),
    "parts": lambda folder, columns: _parts(folder / "parts", columns),
    "dict": lambda folder, columns: columns,
    "pyarrow.Table": lambda folder, columns: pa.table(dict(columns)),
    "in chunks": lambda folder, columns: _chunked(columns),
    "dictionaries": lambda folder, columns: _dictionaries(columns),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["numbers", "mixed", "two", "dates"])
def test_every_table_format_gives_the_same_outputs(runs: Runs, tmp_path: Path, kind: str, form: str):
    model, columns = dp.load(runs[kind].folder), inputs_of(kind)
    assert_allclose(model.outputs(FORMS[form](tmp_path, columns)), model.outputs(columns), rtol=0, atol=1e-6)


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda x: x,
    "tensor": torch.from_numpy,
    "list": lambda x: x.tolist(),
    "not contiguous": lambda x: np.repeat(x, 2, axis=0)[::2],
    "fortran": np.asfortranarray,
    "requires grad": lambda x: torch.from_numpy(x).double().requires_grad_(),
}


@pytest.mark.parametrize("form", ARRAYS)
@pytest.mark.parametrize("kind", ["numbers", "dates", "images", "digits"])
def test_every_array_type_gives_the_same_outputs(runs: Runs, kind: str, form: str):
    """For a model trained on a table the array's columns are in the table's order."""
    model, data = dp.load(runs[kind].folder), inputs_of(kind)
    x = np.array([*without(data, "y").values()]).T if kind in TABLE_KINDS else data
    assert_allclose(model.outputs(ARRAYS[form](x)), model.outputs(data), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["x.npy", "x.npz", "keras.npz"])
@pytest.mark.parametrize("kind", ["numbers", "images"])
def test_arrays_in_files_give_the_same_outputs(runs: Runs, tmp_path: Path, kind: str, form: str):
    model, data = dp.load(runs[kind].folder), inputs_of(kind)
    x = np.array([*without(data, "y").values()]).T if kind in TABLE_KINDS else data
    path = tmp_path / form
    if form == "x.npy":
        np.save(path, x)
    else:
        np.savez(path, **{"x" if form == "x.npz" else "x_train": x})
    assert_allclose(model.outputs(path), model.outputs(data), rtol=0, atol=1e-6)


def test_a_model_of_arrays_takes_table_columns_in_order(runs: Runs, tmp_path: Path):
    x = inputs_of("images").reshape(N, -1)
    path = write_csv(tmp_path / "t.csv", {f"p{at}": x[:, at].tolist() for at in range(x.shape[1])})
    model = dp.load(runs["images"].folder)
    assert_allclose(model.outputs(path), model.outputs(x), rtol=0, atol=1e-6)


def test_columns_may_be_tensors(runs: Runs):
    columns = without(inputs_of("numbers"), "y")
    model = dp.load(runs["numbers"].folder)
    tensors = {name: torch.tensor(cells, dtype=torch.float64) for name, cells in columns.items()}
    assert torch.equal(model.outputs(tensors), model.outputs(columns))


@pytest.mark.parametrize("kind", ["numbers", "mixed", "two"])
def test_columns_are_found_by_their_names(runs: Runs, tmp_path: Path, kind: str):
    """In any order, with other columns, without the target."""
    columns = inputs_of(kind)
    targets = runs[kind].saved["resolved"]["columns"]["targets"]
    reordered = {"id": [*range(N)], **dict(reversed(without(columns, *targets).items())), "note": ["x, y"] * N}
    model = dp.load(runs[kind].folder)
    for data in (reordered, write_csv(tmp_path / "t.csv", reordered)):
        assert_allclose(model.outputs(data), model.outputs(columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["csv", "parquet", "dict", "csv.gz"])
def test_a_model_of_one_input_needs_no_other_column(runs: Runs, tmp_path: Path, form: str):
    model, columns = dp.load(runs["single"].folder), without(inputs_of("single"), "v")
    data = FORMS[form](tmp_path, columns)
    assert_allclose(model.outputs(data), model.outputs(inputs_of("single")), rtol=0, atol=1e-6)


def test_booleans_are_the_same_in_every_format(runs: Runs, tmp_path: Path):
    """In CSV they are True and False, as pandas writes them."""
    columns = {"a": TABLES["numbers"]["a"], "f": [a > 0 for a in TABLES["numbers"]["a"]]}
    columns["y"] = ["p" if f else "q" for f in columns["f"]]
    model = dp.load(runs.train("truths", write_csv(tmp_path / "t.csv", columns)).folder)
    expected = model.outputs(tmp_path / "t.csv")
    for form in ("dict", "parquet"):
        assert_allclose(model.outputs(FORMS[form](tmp_path, columns)), expected, rtol=0, atol=1e-6)


def test_integer_categories_are_the_same_in_every_format(runs: Runs, tmp_path: Path):
    columns = {"a": TABLES["numbers"]["a"], "code": [at % 3 for at in range(N)], "y": [at % 2 for at in range(N)]}
    model = dp.load(runs.train("codes", write_csv(tmp_path / "t.csv", columns), categorical=("code",)).folder)
    expected = model.outputs(tmp_path / "t.csv")
    for kind in (int, float, str):
        data = {**columns, "code": [kind(code) if kind is not str else f" {code} " for code in columns["code"]]}
        assert_allclose(model.outputs(data), expected, rtol=0, atol=1e-6)


def test_a_column_of_text_and_numbers_in_memory_is_text(runs: Runs, tmp_path: Path):
    """As pandas has it of a workbook."""
    pandas = pytest.importorskip("pandas")
    names = {"code": [("7", "x", "8")[at % 3] for at in range(N)], "y": ["pq"[at % 2] for at in range(N)]}
    columns = {"a": TABLES["numbers"]["a"], **names}
    model = dp.load(runs.train("texts", write_csv(tmp_path / "t.csv", columns)).folder)
    mixed = {**columns, "code": [int(code) if code != "x" else code for code in columns["code"]]}
    for data in (mixed, pandas.DataFrame(mixed)):
        assert_allclose(model.outputs(data), model.outputs(columns), rtol=0, atol=1e-6)


# --- missing cells and unseen categories ---


@pytest.mark.parametrize("kind", CATEGORICAL_KINDS)
def test_an_unseen_category_is_all_zeros_and_reported(runs: Runs, tmp_path: Path, kind: str):
    """Like a missing one: all its inputs are 0; with one warning for each column."""
    model, columns = dp.load(runs[kind].folder), first(inputs_of(kind), 4)
    columns["city"] = ["Bonn", "Paris", "Oslo", ""]
    blocks = model.blocks(write_csv(tmp_path / "t.csv", columns))
    actual = torch.cat([*map(model.feed, blocks.inputs())])
    assert_allclose(actual, outputs_by_hand(runs[kind], columns), **ROUNDING)
    assert torch.equal(actual, model.outputs({**columns, "city": [None, "Paris", None, None]}))
    assert blocks.warnings == [
        f"{tmp_path}/t.csv: column 'city' has 2 names not seen in training, such as 'Bonn'",
    ]


@pytest.mark.parametrize("cell", [None, float("nan")])
def test_a_missing_number_is_the_mean_of_the_training_rows(runs: Runs, cell: float | None):
    run = runs["mixed"]
    mean = next(c["fill"] for c in run.saved["resolved"]["columns"]["inputs"] if c["name"] == "b")
    model, columns = dp.load(run.folder), first(inputs_of("mixed"), 2)
    assert torch.equal(model.outputs({**columns, "b": [cell, 2.0]}), model.outputs({**columns, "b": [mean, 2.0]}))


def test_a_missing_number_in_an_array_is_filled_as_in_a_table(runs: Runs):
    model = dp.load(runs["filled"].folder)
    x = np.array([[np.nan, 2.0], [1.0, np.nan]])
    assert torch.equal(model.outputs(x), model.outputs({"a": [None, 1.0], "b": [2.0, None]}))


@pytest.mark.parametrize("missing", ["mean", "drop", "auto"])
@pytest.mark.parametrize("cell", ["", "NA", "-"])
def test_a_missing_cell_is_filled_where_training_dropped_such_rows_too(
    runs: Runs, tmp_path: Path, missing: str, cell: str
):
    """Every row needs a prediction: that with the mean of the training rows."""
    name = f"trained by {missing}"
    if name not in runs.trained:
        path = write_csv(tmp_path / "train.csv", TABLES["filled" if missing != "auto" else "numbers"])
        runs.trained[name] = runs.train(name, path, missing=missing)
    model = dp.load(runs.trained[name].folder)
    fill = next(c["fill"] for c in runs.trained[name].saved["resolved"]["columns"]["inputs"] if c["name"] == "b")
    columns = first(inputs_of("numbers"), 9)
    columns["b"][6] = cell
    path = write_csv(tmp_path / "t.csv", columns)
    expected = model.outputs({**columns, "b": [fill if at == 6 else value for at, value in enumerate(columns["b"])]})
    assert torch.equal(model.outputs(path), expected)


@pytest.mark.parametrize("version_0_1", [False, True])
@pytest.mark.parametrize(("cell", "message"), [("", "the cell is empty"), ("NA", "'NA' means a missing value")])
def test_a_missing_cell_is_refused_with_its_row(runs: Runs, tmp_path: Path, version_0_1: bool, cell: str, message: str):
    """If training refused such cells, and for a run of version 0.1 that dropped their rows and has no mean for them."""
    if "refusing" not in runs.trained:
        path = write_csv(tmp_path / "train.csv", TABLES["numbers"])
        runs.trained["refusing"] = runs.train("refusing", path, missing="refuse")
    model = dp.load(runs.trained["refusing"].folder)
    if version_0_1:
        model = dataclasses.replace(model, missing="drop")
    columns = first(inputs_of("numbers"), 9)
    columns["b"][6] = cell
    with pytest.raises(UserError, match=rf"t\.csv: row 7, column 'b': {message}") as error:
        model.predict(write_csv(tmp_path / "t.csv", columns))
    assert "--missing" not in str(error.value)  # a flag of train, of no use for predicting


# --- blocks of rows ---


def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.parquet.BATCH_ROWS", 5)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)  # about ten rows


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "parts", "pyarrow.Table", "in chunks"])
@pytest.mark.parametrize("kind", ["numbers", "mixed"])
def test_rows_keep_their_order_for_any_block_size(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: str
):
    """To rounding, because products of other shapes sum in another order."""
    model, columns = dp.load(runs[kind].folder), inputs_of(kind)
    expected = model.outputs(columns)
    _small_blocks(monkeypatch)
    blocks = list(model.blocks(FORMS[form](tmp_path, columns)).inputs())
    assert len(blocks) > 30
    assert_allclose(torch.cat([model.feed(x) for x in blocks]), expected, rtol=0, atol=1e-6)


def test_rows_of_an_array_keep_their_order(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    model, x = dp.load(runs["images"].folder), inputs_of("images")
    expected = model.outputs(x)
    _small_blocks(monkeypatch)
    assert_allclose(model.outputs(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "data",
    [
        np.empty((0, 2)),
        torch.empty(0, 2),
        {"a": [], "b": []},
        pa.table({"a": pa.array([], pa.float64()), "b": pa.array([], pa.float64())}),
    ],
    ids=["numpy", "tensor", "dict", "pyarrow.Table"],
)
def test_no_rows_give_no_predictions(runs: Runs, data: Any):
    model = dp.load(runs["numbers"].folder)
    assert model.predict(data).shape == (0,)
    assert model.predict_proba(data).shape == (0, 2)


# --- refused data ---


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("numbers", np.zeros((2, 3)), r"the data must be \[N, 2\], got \[2, 3\]"),
        ("numbers", np.zeros(2), r"the data must be \[N, 2\], got \[2\]; one sample is \[1, n\]"),
        ("numbers", np.float64(2), "must be a file, an array or a table with columns, got float64"),
        ("numbers", [[1.0, 2.0], [3.0]], r"the data must be"),
        ("numbers", np.array([["1", "2"]]), "the data must be numbers, got an array of <U1"),
        ("numbers", np.array([[1 + 2j, 2]]), "the data must be numbers, got an array of complex128"),
        ("images", np.full((2, 3, 4), np.nan), "row 1, column 1: nan is not a finite number"),
        ("numbers", np.array([[np.inf, 2.0]]), "row 1, column 1: inf is not a finite number"),
        ("numbers", {"a": [1.0], "b": [np.inf]}, "row 1, column 'b': inf is not a finite number"),
        (
            "numbers",
            {"a": [1.0], "bb": [1.0]},
            "there is no column 'b', which the model needs: did you mean 'bb'",
        ),
        (
            "numbers",
            {"a": [1.0], "B": [1.0]},
            "there is no column 'b', which the model needs: did you mean 'B'",
        ),
        ("numbers", {"a": [1.0, 2.0], "b": [1.0]}, "the data must be a file, an array or a table"),
        ("numbers", {"a": ["1", "x"], "b": [1.0, 2.0]}, "row 2, column 'a': 'x' is text"),
        ("numbers", {"a": [1.0], "b": [[1.0]]}, "column 'b' is of type list<.*>: neither numbers, text nor dates"),
        ("numbers", pa.table([[1.0], [2.0], [3.0]], names=["a", "a", "b"]), "'a'"),
        ("numbers", None, "must be a file, an array or a table with columns, got NoneType"),
        ("numbers", 5, "must be a file, an array or a table with columns, got int"),
        ("mixed", np.zeros((2, 3)), r"columns of categories \(city\) need names"),
        ("images", np.zeros((2, 3, 3)), r"the data must be \[N, 12\], got \[2, 3, 3\]"),
        ("images", {"p": [1.0]}, "trained on arrays: 12 columns of inputs are needed, got 1"),
    ],
    ids=range(20),
)
def test_invalid_data_is_refused_in_one_line(runs: Runs, kind: str, data: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        dp.load(runs[kind].folder).predict(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [{"a": [1e300], "b": [1.0]}, np.array([[1e300, 1.0]])], ids=["table", "array"])
def test_a_number_too_large_for_float32_is_refused(runs: Runs, data: Any):
    """Float32 ends at 3e38: the input would be infinite and the prediction NaN."""
    with pytest.raises(UserError, match=r"1e\+300|does not fit in"):
        dp.load(runs["numbers"].folder).predict(data)


# --- the folder of a run ---


def test_unknown_weights_are_refused(runs: Runs):
    with pytest.raises(UserError, match="unknown weights 'bset': did you mean 'best'"):
        dp.load(runs["numbers"].folder, "bset")


def test_a_moved_run_without_its_data_can_be_loaded(runs: Runs, tmp_path: Path):
    """The training data was deleted, and the run's folder was moved."""
    path = write_csv(tmp_path / "t.csv", TABLES["mixed"])
    run = runs.train("moving", path, missing="mean")
    expected = dp.load(run.folder).outputs(inputs_of("mixed"))
    path.unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(run.folder, moved)
    assert torch.equal(dp.load(moved).outputs(inputs_of("mixed")), expected)


def test_a_model_of_pictures_has_their_shape(runs: Runs):
    assert dp.load(runs["digits"].folder).image_shape == (8, 8)
    assert dp.load(runs["numbers"].folder).image_shape is None


def _paths(actual: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each entry of JSON data, including nested ones."""
    entries = actual.items() if isinstance(actual, dict) else enumerate(actual) if isinstance(actual, list) else ()
    return [path for key, value in entries for path in [(*before, key), *_paths(value, (*before, key))]]


def _changed(value: Any) -> list[Any]:
    """Return other values: similar, possible ones, and impossible ones."""
    others: list[Any] = [None, [], {}, "x", -1, 10**30, 10**400, True]
    if isinstance(value, bool | str | None):
        return [*others, f"{value}x"]
    if isinstance(value, int | float):
        return [*others, value + 1, 2.5 * value, str(value)]
    if isinstance(value, list):
        return [*others, value[::-1], value[:-1], [*value, *value[-1:]]]
    return others


# Other valid values of an entry.
VALID_VALUES: dict[Any, list[Any]] = {
    "activation": [["tanh"], ["gelu"]],
    "output_activation": ["tanh", "softmax"],
    "loss": ["cross-entropy", "binary-cross-entropy", "mse", "huber"],
    "task": ["classification", "regression"],
    "kind": ["numbers", "categories"],
    "missing": ["refuse", "mean", "drop"],
}

# The entries of config.json that determine what the network computes; the others concern training only.
NETWORK_ENTRIES = ("hidden", "activation", "output_activation", "one_logit", "loss", "missing", "dtype")
MODEL_ENTRIES = ("loss", "task", "sizes", "class_names", "image_shape", "columns", "input_scaling", "target_scaling")


def _predictions(folder: Path, kind: str) -> Any:
    """Return a model's predictions for complete rows and for one with missing cells, its probabilities and names."""
    model, data = dp.load(folder), inputs_of(kind, 20)
    probabilities = model.predict_proba(data).tolist() if model.objective.has_probabilities else None
    with_missing = None
    if kind in CATEGORICAL_KINDS:
        with_missing = model.outputs({**first(data, 1), "a": [None], "b": [None]}).tolist()
    return (model.predict(data).tolist(), probabilities, with_missing, [*model.class_names], [*model.target_names])


def _alterations(saved: dict[str, Any], paths: list[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any, str]]:
    """Yield each entry's path, a new value (``...`` if deleted), and the text of config.json with it."""
    for path in paths:
        if len(path) > 3 and isinstance(path[-1], int) and path[-1] > 2:  # three of 64 pixels suffice
            continue
        *before, last = path
        for new in (..., *_changed(_at(saved, path)), *VALID_VALUES.get(last, [])):
            changed = copy.deepcopy(saved)
            holder = _at(changed, before)
            if new is ...:
                del holder[last]
            else:
                holder[last] = new
            yield path, new, json.dumps(changed)


def _at(actual: Any, path: Sequence[Any]) -> Any:
    for key in path:
        actual = actual[key]
    return actual


def _outcome(call: Callable[[], Any]) -> Any:
    """Return the result, None for a UserError of one line, or the name of another exception."""
    try:
        return call()
    except UserError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "kind", ["mixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("two", "digits", "mse", "logit"))]
)
def test_every_change_of_config_json_is_refused_or_has_no_effect(runs: Runs, tmp_path: Path, kind: str):
    """Each entry, including nested ones, deleted or changed: refused in one line, or without effect."""
    run, folder = runs[kind], runs[kind].copy(tmp_path / "copy")
    expected, failures = _predictions(run.folder, kind), []
    resolved = {name: run.saved["resolved"][name] for name in MODEL_ENTRIES}
    paths = [("resolved", *path) for path in _paths(resolved)] + [(name,) for name in NETWORK_ENTRIES]
    for path, new, text in _alterations(run.saved, paths):
        (folder / "config.json").write_text(text)
        actual = _outcome(lambda: _predictions(folder, kind))
        if actual not in (None, expected):
            failures.append((path, repr(new)[:20], actual if isinstance(actual, str) else "other predictions"))
    assert failures == []


@pytest.mark.parametrize("kind", ["mixed", "digits"])
def test_a_damaged_run_without_a_checkpoint_gives_no_traceback(runs: Runs, tmp_path: Path, kind: str):
    """Without the checkpoint no digest detects the change; impossible values are still refused without a traceback."""
    run, folder = runs[kind], runs[kind].copy(tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    resolved = {name: run.saved["resolved"][name] for name in MODEL_ENTRIES}
    crashed = []
    for path, new, text in _alterations(run.saved, [("resolved", *path) for path in _paths(resolved)]):
        (folder / "config.json").write_text(text)
        actual = _outcome(lambda: dp.load(folder))
        if isinstance(actual, str):
            crashed.append((path, repr(new)[:20], actual))
    assert crashed == []


def test_a_negative_input_scale_is_refused(runs: Runs, tmp_path: Path):
    """Training never writes one; without the checkpoint no digest detects it."""
    folder = runs["numbers"].copy(
        tmp_path / "copy", lambda saved: saved["resolved"]["input_scaling"].update(scale=[-1.0, 2.0])
    )
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="damaged"):
        dp.load(folder)


def test_repeated_or_malformed_class_names_are_refused(runs: Runs, tmp_path: Path):
    for names in (["no", "no"], "no"):
        folder = runs["numbers"].copy(tmp_path / "copy", lambda saved, n=names: saved["resolved"].update(class_names=n))
        shutil.rmtree(folder / "checkpoints")
        with pytest.raises(UserError, match="damaged"):
            dp.load(folder)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40  # a bit of the exponent of the last weight
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        _flip,
    ],
    ids=["gone", "empty", "cut", "a bit"],
)
@pytest.mark.parametrize("kind", ARRAY_KINDS[:1])
def test_damaged_weights_are_refused_in_one_line(runs: Runs, tmp_path: Path, damage: Callable[[Path], Any], kind: str):
    folder = runs[kind].copy(tmp_path / "copy")
    damage(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: ") as error:
        dp.load(folder)
    assert "\n" not in str(error.value)


def test_an_unfinished_run_is_refused(runs: Runs, tmp_path: Path):
    folder = runs["numbers"].copy(tmp_path / "copy")
    for name in ("model", "best"):
        (folder / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match="the run has not ended yet"):
        dp.load(folder)


@pytest.mark.parametrize("run", ["none", "", "file"])
def test_a_missing_run_is_refused(tmp_path: Path, run: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"there is no such folder|there is no config\.json|Not a directory"):
        dp.load(tmp_path / run)


def test_predicting_builds_no_graph_and_changes_no_global_state(runs: Runs):
    """No graph is built; grad mode and the random state do not change."""
    run: Run = runs["numbers"]
    state = torch.random.get_rng_state()
    outputs = dp.load(run.folder).outputs(inputs_of("numbers"))
    assert not outputs.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("cell", [1.0, "x", np.float32(1), torch.tensor(1.0)], ids=repr)
def test_a_dict_of_one_row_needs_lists(runs: Runs, cell: Any):
    with pytest.raises(dp.UserError, match=r"column 'a' is .*: give a list for each column"):
        dp.load(runs["numbers"].folder).predict({"a": cell, "b": cell})


def test_the_repr_is_one_line(runs: Runs):
    for kind in ("numbers", "mse"):
        text = repr(dp.load(runs[kind].folder))
        assert text.startswith("<Model 2-")
        assert "trained on" in text
        assert "\n" not in text
