"""``dp.load``: what a model predicts, on data of every kind, and what it refuses."""

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
    KINDS,
    OF_ARRAYS,
    OF_NUMBERS,
    OF_TABLES,
    TABLES,
    WITH_NAMES,
    N,
    Run,
    Runs,
    answers_by_hand,
    first,
    inputs_of,
    outputs_by_hand,
    probabilities_by_hand,
    without,
    write_csv,
)

ROUNDING = {"rtol": 1e-4, "atol": 2e-5}  # of float32, through two layers of inputs up to 5 deviations away


# --- what it predicts ---


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_formula(runs: Runs, kind: str):
    """By NumPy, from config.json and model.safetensors alone."""
    run, given = runs[kind], inputs_of(kind)
    assert_allclose(dp.load(run.folder).outputs(given), outputs_by_hand(run, given), **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_values_are_those_of_the_formula(runs: Runs, kind: str):
    run, given = runs[kind], inputs_of(kind)
    found, expected = dp.load(run.folder).predict(given), answers_by_hand(run, given)
    if kind in OF_NUMBERS:
        assert found.shape == ((N, 2) if kind == "two" else (N,))
        scale = np.array(run.saved["resolved"]["target_scaling"]["scale"])
        assert_allclose(found.reshape(N, -1) / scale, expected / scale, **ROUNDING)
    else:
        assert found.astype(str).tolist() == expected.tolist()
        assert len({*expected}) > 1  # else a model that says one thing would do


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*OF_NUMBERS, "mse")])
def test_probabilities_are_those_of_the_formula(runs: Runs, kind: str):
    run, given = runs[kind], inputs_of(kind)
    model = dp.load(run.folder)
    found = model.predict_proba(given)
    assert_allclose(found, probabilities_by_hand(run, given), **ROUNDING)
    assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert model.classes[found.argmax(axis=1)].tolist() == model.predict(given).tolist()


@pytest.mark.parametrize(("kind", "said"), [("value", "numbers"), ("mse", "by the loss mse")])
def test_where_there_are_no_probabilities_it_says_so(runs: Runs, kind: str, said: str):
    with pytest.raises(UserError, match=f"the model was trained on {said}: it has no probabilities"):
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
def test_classes_are_whole_numbers_where_they_were(runs: Runs, kind: str, classes: list[Any]):
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
def test_classes_that_only_look_like_whole_numbers_are_text(runs: Runs, names: tuple[str, ...], expected: list[Any]):
    """Two minus signs, more digits than int64 has, digits of another alphabet."""
    model = dataclasses.replace(dp.load(runs["numbers"].folder), class_names=names)
    assert model.classes.tolist() == expected


def test_the_best_weights_are_others_than_the_final_ones(runs: Runs):
    """At η = 3 the loss goes up and down."""
    run = runs.train("wild", runs["numbers"].data, lr=3.0, epochs=6)
    final, best = (dp.load(run.folder, weights).outputs(inputs_of("numbers")) for weights in ("final", "best"))
    assert not torch.equal(final, best)


# --- data of every kind ---


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
    """Text as pandas's Categorical arrives."""
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
def test_a_table_of_every_form_gives_the_same(runs: Runs, tmp_path: Path, kind: str, form: str):
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
def test_an_array_of_every_form_gives_the_same(runs: Runs, kind: str, form: str):
    """Of a table's numbers: columns in the order of the table."""
    model, given = dp.load(runs[kind].folder), inputs_of(kind)
    x = np.array([*without(given, "y").values()]).T if kind in OF_TABLES else given
    assert_allclose(model.outputs(ARRAYS[form](x)), model.outputs(given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["x.npy", "x.npz", "keras.npz"])
@pytest.mark.parametrize("kind", ["numbers", "images"])
def test_arrays_in_files_give_the_same(runs: Runs, tmp_path: Path, kind: str, form: str):
    model, given = dp.load(runs[kind].folder), inputs_of(kind)
    x = np.array([*without(given, "y").values()]).T if kind in OF_TABLES else given
    path = tmp_path / form
    if form == "x.npy":
        np.save(path, x)
    else:
        np.savez(path, **{"x" if form == "x.npz" else "x_train": x})
    assert_allclose(model.outputs(path), model.outputs(given), rtol=0, atol=1e-6)


def test_a_table_for_a_model_of_arrays_goes_by_the_order_of_its_columns(runs: Runs, tmp_path: Path):
    x = inputs_of("images").reshape(N, -1)
    path = write_csv(tmp_path / "t.csv", {f"p{at}": x[:, at].tolist() for at in range(x.shape[1])})
    model = dp.load(runs["images"].folder)
    assert_allclose(model.outputs(path), model.outputs(x), rtol=0, atol=1e-6)


def test_tensors_as_columns(runs: Runs):
    columns = without(inputs_of("numbers"), "y")
    model = dp.load(runs["numbers"].folder)
    tensors = {name: torch.tensor(cells, dtype=torch.float64) for name, cells in columns.items()}
    assert torch.equal(model.outputs(tensors), model.outputs(columns))


@pytest.mark.parametrize("kind", ["numbers", "mixed", "two"])
def test_columns_are_found_by_their_names(runs: Runs, tmp_path: Path, kind: str):
    """In any order, others beside them, the target not there."""
    columns = inputs_of(kind)
    targets = runs[kind].saved["resolved"]["columns"]["targets"]
    turned = {"id": [*range(N)], **dict(reversed(without(columns, *targets).items())), "note": ["x, y"] * N}
    model = dp.load(runs[kind].folder)
    for data in (turned, write_csv(tmp_path / "t.csv", turned)):
        assert_allclose(model.outputs(data), model.outputs(columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["csv", "parquet", "dict", "csv.gz"])
def test_a_model_of_one_input_needs_no_other_column(runs: Runs, tmp_path: Path, form: str):
    model, columns = dp.load(runs["single"].folder), without(inputs_of("single"), "v")
    data = FORMS[form](tmp_path, columns)
    assert_allclose(model.outputs(data), model.outputs(inputs_of("single")), rtol=0, atol=1e-6)


def test_truth_values_are_the_same_in_every_form(runs: Runs, tmp_path: Path):
    """As pandas writes them into a CSV: True and False."""
    columns = {"a": TABLES["numbers"]["a"], "f": [a > 0 for a in TABLES["numbers"]["a"]]}
    columns["y"] = ["p" if f else "q" for f in columns["f"]]
    model = dp.load(runs.train("truths", write_csv(tmp_path / "t.csv", columns)).folder)
    expected = model.outputs(tmp_path / "t.csv")
    for form in ("dict", "parquet"):
        assert_allclose(model.outputs(FORMS[form](tmp_path, columns)), expected, rtol=0, atol=1e-6)


def test_whole_numbers_as_categories_are_the_same_in_every_form(runs: Runs, tmp_path: Path):
    columns = {"a": TABLES["numbers"]["a"], "code": [at % 3 for at in range(N)], "y": [at % 2 for at in range(N)]}
    model = dp.load(runs.train("codes", write_csv(tmp_path / "t.csv", columns), categorical=("code",)).folder)
    expected = model.outputs(tmp_path / "t.csv")
    for kind in (int, float, str):
        given = {**columns, "code": [kind(code) if kind is not str else f" {code} " for code in columns["code"]]}
        assert_allclose(model.outputs(given), expected, rtol=0, atol=1e-6)


# --- what is missing, and what training has not seen ---


@pytest.mark.parametrize("kind", WITH_NAMES)
def test_a_category_that_training_has_not_seen_is_none_of_them(runs: Runs, tmp_path: Path, kind: str):
    """As a missing one is: 0 in each of its inputs; and it is told, each column once."""
    model, columns = dp.load(runs[kind].folder), first(inputs_of(kind), 4)
    columns["city"] = ["Bonn", "Paris", "Oslo", ""]
    blocks = model.blocks(write_csv(tmp_path / "t.csv", columns))
    found = torch.cat([*map(model.feed, blocks.inputs())])
    assert_allclose(found, outputs_by_hand(runs[kind], columns), **ROUNDING)
    assert torch.equal(found, model.outputs({**columns, "city": [None, "Paris", None, None]}))
    assert blocks.warnings == [
        f"{tmp_path}/t.csv: column 'city' has 2 names that no training row has, such as 'Bonn'",
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


@pytest.mark.parametrize("missing", ["refuse", "drop"])
@pytest.mark.parametrize(("cell", "shown"), [("", "the cell is empty"), ("NA", "'NA' means a missing value")])
def test_a_missing_cell_is_refused_by_its_row(runs: Runs, tmp_path: Path, missing: str, cell: str, shown: str):
    """Where training left such rows out, too: each row is to be answered."""
    run = runs["numbers"]
    if missing == "drop":
        name = f"dropped{len(shown)}"
        run = runs.train(name, write_csv(tmp_path / "train.csv", TABLES["filled"]), missing="drop")
    columns = first(inputs_of("numbers"), 9)
    columns["b"][6] = cell
    with pytest.raises(UserError, match=rf"t\.csv: row 7, column 'b': {shown}") as error:
        dp.load(run.folder).predict(write_csv(tmp_path / "t.csv", columns))
    assert "--missing" not in str(error.value)  # a flag of train: nothing that who predicts could do


# --- rows, in blocks ---


def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.parquet.BATCH_ROWS", 5)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)  # of CSV: about ten rows


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "parts", "pyarrow.Table", "in chunks"])
@pytest.mark.parametrize("kind", ["numbers", "mixed"])
def test_rows_keep_their_order_whatever_the_blocks(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: str
):
    """To rounding: products of other shapes add in another order."""
    model, columns = dp.load(runs[kind].folder), inputs_of(kind)
    expected = model.outputs(columns)
    _small_blocks(monkeypatch)
    data = FORMS[form](tmp_path, columns)
    sizes = [len(x) for x in model.blocks(data).inputs()]
    assert len(sizes) > 30
    assert sum(sizes) == N
    assert_allclose(model.outputs(FORMS["csv"](tmp_path, columns)), expected, rtol=0, atol=1e-6)


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
def test_no_rows_are_no_answers(runs: Runs, data: Any):
    model = dp.load(runs["numbers"].folder)
    assert model.predict(data).shape == (0,)
    assert model.predict_proba(data).shape == (0, 2)


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("numbers", np.zeros((2, 3)), r"the data must be \[N, 2\], got \[2, 3\]"),
        ("numbers", np.zeros(2), r"the data must be \[N, 2\], got \[2\]; one sample is \[1, n\]"),
        ("numbers", np.float64(2), "must be a file, an array or a table with columns, got float64"),
        ("numbers", [[1.0, 2.0], [3.0]], r"the data must be"),
        ("numbers", np.array([["1", "2"]]), "the data must be numbers, got an array of <U1"),
        ("numbers", np.array([[1 + 2j, 2]]), "the data must be numbers, got an array of complex128"),
        ("numbers", np.array([[1.0, 2.0], [1.0, np.nan]]), "row 2, column 2: nan is not a finite number"),
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
        ("numbers", {"a": [1.0], "b": [[1.0]]}, "column 'b' is of type list<.*>: neither numbers nor text"),
        ("numbers", pa.table([[1.0], [2.0], [3.0]], names=["a", "a", "b"]), "'a'"),
        ("numbers", None, "must be a file, an array or a table with columns, got NoneType"),
        ("numbers", 5, "must be a file, an array or a table with columns, got int"),
        ("mixed", np.zeros((2, 3)), r"columns of categories \(city\) need names"),
        ("images", np.zeros((2, 3, 3)), r"the data must be \[N, 12\], got \[2, 3, 3\]"),
        ("images", {"p": [1.0]}, "trained on arrays: 12 columns of inputs are needed, got 1"),
    ],
    ids=range(20),
)
def test_what_does_not_fit_is_told_in_one_line(runs: Runs, kind: str, data: Any, said: str):
    with pytest.raises(UserError, match=said) as error:
        dp.load(runs[kind].folder).predict(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [{"a": [1e300], "b": [1.0]}, np.array([[1e300, 1.0]])], ids=["table", "array"])
def test_a_number_too_large_for_the_net_is_refused(runs: Runs, data: Any):
    """Float32 ends at 3e38: it would be infinite, and the answer no number."""
    with pytest.raises(UserError, match=r"1e\+300|does not fit in"):
        dp.load(runs["numbers"].folder).predict(data)


# --- the folder of a run ---


def test_unknown_weights(runs: Runs):
    with pytest.raises(UserError, match="unknown weights 'bset': did you mean 'best'"):
        dp.load(runs["numbers"].folder, "bset")


def test_a_run_without_its_data_in_another_folder(runs: Runs, tmp_path: Path):
    """What it was trained on is gone, and it has moved."""
    path = write_csv(tmp_path / "t.csv", TABLES["mixed"])
    run = runs.train("moving", path, missing="mean")
    expected = dp.load(run.folder).outputs(inputs_of("mixed"))
    path.unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(run.folder, moved)
    assert torch.equal(dp.load(moved).outputs(inputs_of("mixed")), expected)


def test_a_model_on_arrays_has_the_shape_of_its_pictures(runs: Runs):
    assert dp.load(runs["digits"].folder).image_shape == (8, 8)
    assert dp.load(runs["numbers"].folder).image_shape is None


def _paths(found: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each entry of JSON, the inner ones too."""
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [way for key, value in entries for way in [(*before, key), *_paths(value, (*before, key))]]


def _changed(value: Any) -> list[Any]:
    """Return other values: near ones, that could be, and some that could not."""
    near: list[Any] = [None, [], {}, "x", -1, 10**30, 10**400, True]
    if isinstance(value, bool | str | None):
        return [*near, f"{value}x"]
    if isinstance(value, int | float):
        return [*near, value + 1, 2.5 * value, str(value)]
    if isinstance(value, list):
        return [*near, value[::-1], value[:-1], [*value, *value[-1:]]]
    return near


# Values that an entry could well have.
LIKELY: dict[Any, list[Any]] = {
    "activation": [["tanh"], ["gelu"]],
    "output_activation": ["tanh", "softmax"],
    "loss": ["cross-entropy", "binary-cross-entropy", "mse", "huber"],
    "task": ["classification", "regression"],
    "kind": ["numbers", "categories"],
    "missing": ["refuse", "mean", "drop"],
}

# What says how the net computes; the other entries of config.json say how it was trained.
OF_THE_NET = ("hidden", "activation", "output_activation", "one_logit", "loss", "missing", "dtype")
OF_THE_MODEL = ("loss", "task", "sizes", "class_names", "image_shape", "columns", "input_scaling", "target_scaling")


def _answers(folder: Path, kind: str) -> Any:
    """Return all that people read of a model: answers to whole rows and to one with holes, probabilities, names."""
    model, given = dp.load(folder), inputs_of(kind, 20)
    probabilities = model.predict_proba(given).tolist() if model.objective.has_probabilities else None
    holes = None
    if kind in WITH_NAMES:
        holes = model.outputs({**first(given, 1), "a": [None], "b": [None]}).tolist()
    return (model.predict(given).tolist(), probabilities, holes, [*model.class_names], [*model.target_names])


def _alterations(saved: dict[str, Any], ways: list[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any, str]]:
    """Give each entry's way, a new value, and config.json with it in its place; ``...`` for an entry deleted."""
    for way in ways:
        if len(way) > 3 and isinstance(way[-1], int) and way[-1] > 2:  # three of 64 pixels will do
            continue
        *before, last = way
        for new in (..., *_changed(_at(saved, way)), *LIKELY.get(last, [])):
            changed = copy.deepcopy(saved)
            holder = _at(changed, before)
            if new is ...:
                del holder[last]
            else:
                holder[last] = new
            yield way, new, json.dumps(changed)


def _at(found: Any, way: Sequence[Any]) -> Any:
    for key in way:
        found = found[key]
    return found


def _outcome(ask: Callable[[], Any]) -> Any:
    """Return what is answered, None for one line that refuses to, or what the user would see a traceback of."""
    try:
        return ask()
    except UserError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("kind", ["mixed", "two", "digits", pytest.param("mse", marks=pytest.mark.slow), "logit"])
def test_no_entry_of_config_json_can_be_changed_unseen(runs: Runs, tmp_path: Path, kind: str):
    """Each entry, the inner ones too, deleted and put at other values: refused in one line, or of no effect."""
    run, folder = runs[kind], runs[kind].copy(tmp_path / "copy")
    expected, wrong = _answers(run.folder, kind), []
    resolved = {name: run.saved["resolved"][name] for name in OF_THE_MODEL}
    ways = [("resolved", *way) for way in _paths(resolved)] + [(name,) for name in OF_THE_NET]
    for way, new, text in _alterations(run.saved, ways):
        (folder / "config.json").write_text(text)
        found = _outcome(lambda: _answers(folder, kind))
        if found not in (None, expected):
            wrong.append((way, repr(new)[:20], found if isinstance(found, str) else "other answers"))
    assert wrong == []


@pytest.mark.parametrize("kind", ["mixed", "digits"])
def test_without_its_checkpoint_a_damaged_run_is_still_told_in_one_line(runs: Runs, tmp_path: Path, kind: str):
    """There is no digest then that would tell; what cannot be is refused all the same, without a traceback."""
    run, folder = runs[kind], runs[kind].copy(tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    resolved = {name: run.saved["resolved"][name] for name in OF_THE_MODEL}
    crashed = []
    for way, new, text in _alterations(run.saved, [("resolved", *way) for way in _paths(resolved)]):
        (folder / "config.json").write_text(text)
        found = _outcome(lambda: dp.load(folder))
        if isinstance(found, str):
            crashed.append((way, repr(new)[:20], found))
    assert crashed == []


def test_a_scaling_by_a_negative_number_is_no_deviation(runs: Runs, tmp_path: Path):
    """Nothing that training writes; without the checkpoint nothing else would tell."""
    copied = runs["numbers"].copy(
        tmp_path / "copy", lambda saved: saved["resolved"]["input_scaling"].update(scale=[-1.0, 2.0])
    )
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="damaged"):
        dp.load(copied)


def test_names_of_classes_are_names_each_its_own(runs: Runs, tmp_path: Path):
    for names in (["no", "no"], "no"):
        copied = runs["numbers"].copy(tmp_path / "copy", lambda saved, n=names: saved["resolved"].update(class_names=n))
        shutil.rmtree(copied / "checkpoints")
        with pytest.raises(UserError, match="damaged"):
            dp.load(copied)


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
@pytest.mark.parametrize("kind", OF_ARRAYS[:1])
def test_damaged_weights_are_told(runs: Runs, tmp_path: Path, damage: Callable[[Path], Any], kind: str):
    copied = runs[kind].copy(tmp_path / "copy")
    damage(copied / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: ") as error:
        dp.load(copied)
    assert "\n" not in str(error.value)


def test_a_run_that_has_not_ended(runs: Runs, tmp_path: Path):
    copied = runs["numbers"].copy(tmp_path / "copy")
    for name in ("model", "best"):
        (copied / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match="the run has not ended yet"):
        dp.load(copied)


@pytest.mark.parametrize("run", ["none", "", "file"])
def test_no_run(tmp_path: Path, run: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"there is no such folder|there is no config\.json|Not a directory"):
        dp.load(tmp_path / run)


def test_answers_do_not_follow_the_callers_thread_count_or_grad_mode(runs: Runs):
    """No graph is kept, and nothing is moved that is the caller's."""
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
