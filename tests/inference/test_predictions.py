"""Answers as columns of a table: what stands in them, in which order, and a file that is whole or not there."""

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


def answered(model: dp.Model, data: Any, keep: tuple[str, ...] = (), **how: Any) -> dict[str, list[Any]]:
    """Return the answers as columns."""
    return pa.Table.from_batches([*prediction_batches(model, model.blocks(data), keep, **how)]).to_pydict()


def test_classes_have_a_column_and_one_for_each_probability(runs: Runs):
    model, columns = dp.load(runs["mixed"].folder), inputs_of("mixed")
    found = answered(model, columns)
    assert [*found] == ["prediction", "probability_hi", "probability_lo", "probability_mid"]
    assert found["prediction"] == model.predict(columns).tolist()
    for at, name in enumerate(model.class_names):
        assert_allclose(found[f"probability_{name}"], model.predict_proba(columns)[:, at], rtol=0, atol=1e-6)
    assert [*answered(model, columns, proba=False)] == ["prediction"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [("value", ["prediction"]), ("two", ["prediction_u", "prediction_v"]), ("mse", ["prediction"])],
)
def test_values_have_a_column_each(runs: Runs, kind: str, names: list[str]):
    model, columns = dp.load(runs[kind].folder), inputs_of(kind)
    found, expected = answered(model, columns), model.predict(columns)
    assert [*found] == names
    for at, name in enumerate(names):
        assert found[name] == (expected if expected.ndim == 1 else expected[:, at]).tolist()


def test_columns_that_are_kept_stand_before(runs: Runs):
    columns = {"id": [f"r{at}" for at in range(300)], **inputs_of("numbers")}
    found = answered(dp.load(runs["numbers"].folder), columns, ("id", "b"))
    assert [*found] == ["id", "b", "prediction", "probability_no", "probability_yes"]
    assert found["id"] == columns["id"]
    assert found["b"] == columns["b"]


def test_a_column_that_is_kept_is_not_replaced_by_an_answer(runs: Runs):
    """It is refused, or both are there."""
    columns = {**first(inputs_of("numbers"), 2), "prediction": ["mine", "too"]}
    try:
        model = dp.load(runs["numbers"].folder)
        check_keep(model.blocks(columns), ("prediction",))
        found = answered(model, columns, ("prediction",))
    except UserError:
        return
    assert ["mine", "too"] in found.values()


def test_kept_columns_keep_their_rows_over_many_blocks(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    columns = {"id": [str(at) for at in range(300)], **inputs_of("mixed")}
    model = dp.load(runs["mixed"].folder)
    batches = [*prediction_batches(model, model.blocks(write_csv(tmp_path / "t.csv", columns)), ("id",))]
    assert len(batches) > 30
    assert pa.Table.from_batches(batches).column("id").to_pylist() == columns["id"]


def test_what_cannot_be_kept(runs: Runs):
    model = dp.load(runs["numbers"].folder)
    with pytest.raises(UserError, match="`keep='aa'`: there is no column 'aa': did you mean 'a'"):
        check_keep(model.blocks(inputs_of("numbers")), ("aa",))
    with pytest.raises(UserError, match="`keep='a'`: the data are arrays, whose columns have no names"):
        check_keep(model.blocks([[1.0, 2.0]]), ("a",))


# --- files ---


def read_back(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a file, by Python's csv module or pyarrow."""
    if path.suffix.lower() == ".parquet":
        return parquet.read_table(path).to_pydict()
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode()
    header, *rows = csv.reader(io.StringIO(text))
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet", "O.PARQUET", "O.CSV.GZ"])
def test_a_file_is_what_its_name_says(runs: Runs, tmp_path: Path, name: str):
    model, columns = dp.load(runs["mixed"].folder), inputs_of("mixed")
    assert write(prediction_batches(model, model.blocks(columns)), str(tmp_path / name)) == 300
    found = read_back(tmp_path / name)
    assert found["prediction"] == model.predict(columns).tolist()
    assert_allclose([float(p) for p in found["probability_lo"]], model.predict_proba(columns)[:, 1], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


ODD = ["a,b", 'say "hi"', "two\nlines", " blanks ", "", "ünï", "=1+1"]


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_odd_text_comes_back_as_it_was(tmp_path: Path, name: str):
    batch = pa.RecordBatch.from_pydict({'odd, "name"': ODD, "n": [*range(7)]})
    write(iter([batch]), str(tmp_path / name))
    found = read_back(tmp_path / name)
    assert found['odd, "name"'] == ODD
    assert [int(n) for n in found["n"]] == [*range(7)]


def breaking(error: BaseException) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"prediction": [1, 2]})
    raise error


@pytest.mark.parametrize("error", [UserError("row 9"), KeyboardInterrupt(), ValueError("of our own")], ids=repr)
@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_after_an_error_at_the_last_row_there_is_no_file(tmp_path: Path, name: str, error: BaseException):
    with pytest.raises(type(error)):
        write(breaking(error), str(tmp_path / name))
    assert [*tmp_path.iterdir()] == []
    (tmp_path / name).write_text("the old one")
    with pytest.raises(type(error)):
        write(breaking(error), str(tmp_path / name))
    assert (tmp_path / name).read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.parquet"])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=rf"`out='.*{name}'`: cannot be written: "):
        write(iter([pa.RecordBatch.from_pydict({"a": [1]})]), str(tmp_path / "none" / name))


def test_a_link_is_written_through(tmp_path: Path):
    """As the other commands write: what it points to is replaced, not the link."""
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write(iter([pa.RecordBatch.from_pydict({"a": [1]})]), str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == '"a"\n1\n'


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_parts_with_numbers_of_other_widths_can_be_kept(runs: Runs, tmp_path: Path, name: str):
    """int32 in one part, int64 in another, as pandas writes them."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for at, kind in enumerate((pa.int32(), pa.int64())):
        columns = {"id": pa.array([at, at + 10], kind), "a": [0.1, 0.2], "b": [5.0, 6.0]}
        parquet.write_table(pa.table(columns), folder / f"p{at}.parquet")
    model = dp.load(runs["numbers"].folder)
    assert write(prediction_batches(model, model.blocks(folder), ("id",)), str(tmp_path / name)) == 4
    assert [int(cell) for cell in read_back(tmp_path / name)["id"]] == [0, 10, 1, 11]
