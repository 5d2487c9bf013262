"""Predictions as columns of a table: content, order, and files that are written completely or not at all."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from numpy.testing import assert_allclose
from pyarrow import parquet

import deltaprop as dp
from deltaprop import UserError
from deltaprop.inference.predictions import check_keep, prediction_batches, write
from tests.inference.conftest import Runs, first, inputs_of, write_csv


def predicted_columns(model: dp.Model, data: Any, keep: tuple[str, ...] = (), **options: Any) -> dict[str, list[Any]]:
    """Return the predictions as columns."""
    return pa.Table.from_batches([*prediction_batches(model, model.blocks(data), keep, **options)]).to_pydict()


def test_a_classifier_has_columns_of_classes_and_probabilities(runs: Runs):
    model, columns = dp.load(runs["mixed"].folder), inputs_of("mixed")
    actual = predicted_columns(model, columns)
    assert [*actual] == ["prediction", "probability_hi", "probability_lo", "probability_mid"]
    assert actual["prediction"] == model.predict(columns).tolist()
    for at, name in enumerate(model.class_names):
        assert_allclose(actual[f"probability_{name}"], model.predict_proba(columns)[:, at], rtol=0, atol=1e-6)
    assert [*predicted_columns(model, columns, proba=False)] == ["prediction"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [("value", ["prediction"]), ("two", ["prediction_u", "prediction_v"]), ("mse", ["prediction"])],
)
def test_each_target_has_a_column(runs: Runs, kind: str, names: list[str]):
    model, columns = dp.load(runs[kind].folder), inputs_of(kind)
    actual, expected = predicted_columns(model, columns), model.predict(columns)
    assert [*actual] == names
    for at, name in enumerate(names):
        assert actual[name] == (expected if expected.ndim == 1 else expected[:, at]).tolist()


def test_kept_columns_come_first(runs: Runs):
    columns = {"id": [f"r{at}" for at in range(300)], **inputs_of("numbers")}
    actual = predicted_columns(dp.load(runs["numbers"].folder), columns, ("id", "b"))
    assert [*actual] == ["id", "b", "prediction", "probability_no", "probability_yes"]
    assert actual["id"] == columns["id"]
    assert actual["b"] == columns["b"]


def test_a_kept_column_with_the_name_of_a_prediction_is_refused(runs: Runs):
    columns = {**first(inputs_of("numbers"), 2), "prediction": ["mine", "too"]}
    model = dp.load(runs["numbers"].folder)
    with pytest.raises(UserError, match=r"`keep='prediction'`: .* rename the column"):
        check_keep(model.blocks(columns), ("prediction",))


def test_kept_columns_keep_their_rows_over_many_blocks(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    columns = {"id": [str(at) for at in range(300)], **inputs_of("mixed")}
    model = dp.load(runs["mixed"].folder)
    batches = [*prediction_batches(model, model.blocks(write_csv(tmp_path / "t.csv", columns)), ("id",))]
    assert len(batches) > 30
    assert pa.Table.from_batches(batches).column("id").to_pylist() == columns["id"]


def test_unknown_columns_and_columns_of_arrays_cannot_be_kept(runs: Runs):
    model = dp.load(runs["numbers"].folder)
    with pytest.raises(UserError, match="`keep='aa'`: there is no column 'aa': did you mean 'a'"):
        check_keep(model.blocks(inputs_of("numbers")), ("aa",))
    with pytest.raises(UserError, match="`keep='a'`: the data are arrays, whose columns have no names"):
        check_keep(model.blocks([[1.0, 2.0]]), ("a",))


# --- files ---


def read_back(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a file, read by Python's csv module or pyarrow."""
    if path.suffix.lower() == ".parquet":
        return parquet.read_table(path).to_pydict()
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode()
    header, *rows = csv.reader(io.StringIO(text))
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet", "O.PARQUET", "O.CSV.GZ"])
def test_the_file_format_follows_the_suffix(runs: Runs, tmp_path: Path, name: str):
    model, columns = dp.load(runs["mixed"].folder), inputs_of("mixed")
    assert write(prediction_batches(model, model.blocks(columns)), str(tmp_path / name)) == 300
    actual = read_back(tmp_path / name)
    assert actual["prediction"] == model.predict(columns).tolist()
    assert_allclose([float(p) for p in actual["probability_lo"]], model.predict_proba(columns)[:, 1], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


UNUSUAL = ["a,b", 'say "hi"', "two\nlines", " blanks ", "", "ünï", "=1+1"]


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_unusual_text_is_read_back_unchanged(tmp_path: Path, name: str):
    batch = pa.RecordBatch.from_pydict({'odd, "name"': UNUSUAL, "n": [*range(7)]})
    write(iter([batch]), str(tmp_path / name))
    actual = read_back(tmp_path / name)
    assert actual['odd, "name"'] == UNUSUAL
    assert [int(n) for n in actual["n"]] == [*range(7)]


def failing_batches(error: BaseException) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"prediction": [1, 2]})
    raise error


@pytest.mark.parametrize("error", [UserError("row 9"), KeyboardInterrupt(), ValueError("of our own")], ids=repr)
@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_an_error_in_a_late_row_leaves_no_new_file(tmp_path: Path, name: str, error: BaseException):
    with pytest.raises(type(error)):
        write(failing_batches(error), str(tmp_path / name))
    assert [*tmp_path.iterdir()] == []
    (tmp_path / name).write_text("the old one")
    with pytest.raises(type(error)):
        write(failing_batches(error), str(tmp_path / name))
    assert (tmp_path / name).read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=rf"`out='.*{name}'`: cannot be written: "):
        write(iter([pa.RecordBatch.from_pydict({"a": [1]})]), str(tmp_path / "none" / name))


def test_a_link_is_written_through(tmp_path: Path):
    """As for the other commands, the link's target is replaced, not the link."""
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write(iter([pa.RecordBatch.from_pydict({"a": [1]})]), str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == '"a"\n1\n'


def test_kept_numbers_are_exact(runs: Runs, tmp_path: Path):
    """From a CSV to Parquet: classes beyond 2^53, `30 %` as 30, and a date as it is written."""
    columns = {
        "when": [f"2024-01-{1 + at % 28:02}" for at in range(60)],
        "share": [f"{at % 30} %" for at in range(60)],
        "y": [str(2**53 + at % 2) for at in range(60)],
    }
    path = write_csv(tmp_path / "t.csv", columns)
    model = dp.load(runs.train("exact", path, epochs=1).folder)
    kept = predicted_columns(model, path, ("when", "share", "y"), as_csv=False)
    assert kept["y"] == [2**53 + at % 2 for at in range(60)]
    assert kept["share"] == [at % 30 for at in range(60)]
    assert kept["when"] == columns["when"]


def test_a_kept_number_that_float64_would_change_is_refused(runs: Runs, tmp_path: Path):
    model = dp.load(runs["numbers"].folder)
    columns = {name: [*map(str, values)] for name, values in inputs_of("numbers").items()}
    columns["a"][3] = "9007199254740993"
    path = write_csv(tmp_path / "t.csv", columns)
    with pytest.raises(UserError, match=r"row 4, column 'a': float64 would change 9007199254740993: write a \.csv"):
        predicted_columns(model, path, ("a",), as_csv=False)


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_columns_of_different_integer_widths_can_be_kept(runs: Runs, tmp_path: Path, name: str):
    """One part has int32, another int64, as pandas writes them."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for at, kind in enumerate((pa.int32(), pa.int64())):
        columns = {"id": pa.array([at, at + 10], kind), "a": [0.1, 0.2], "b": [5.0, 6.0]}
        parquet.write_table(pa.table(columns), folder / f"p{at}.parquet")
    model = dp.load(runs["numbers"].folder)
    assert write(prediction_batches(model, model.blocks(folder), ("id",)), str(tmp_path / name)) == 4
    assert [int(cell) for cell in read_back(tmp_path / name)["id"]] == [0, 10, 1, 11]
