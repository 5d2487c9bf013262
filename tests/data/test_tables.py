"""Reading tables: every format gives the same data."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from deltaprop import UserError
from deltaprop.data import CacheConfig, Dataset, Source, TableOptions, load
from deltaprop.data.formats import csv as csv_format
from deltaprop.data.formats import is_table, open_table
from deltaprop.data.table import ReadOptions

N = 50
NUMBERS = np.random.default_rng(0).normal(size=(N, 3)) * [
    1e-150,
    1.0,
    1e150,
]  # all digits must survive being written as text
CLASSES = [("no", "yes", "maybe")[i % 3] for i in range(N)]


def cells(path: Path, delimiter: str = "auto") -> list[list[Any]]:
    """Return the header and the rows of a table as they are read."""
    table = open_table(path, ReadOptions(delimiter=delimiter))
    rows = [row for batch in table.batches() for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)]
    return [list(table.names), *map(list, rows)]


def text_of(names: list[str], rows: list[list[Any]], **csv_options: Any) -> str:
    """Return the CSV that the csv module writes, numbers by their shortest repr that reads back exactly."""
    file = io.StringIO()
    csv.writer(file, **{"lineterminator": "\n", **csv_options}).writerows([names, *rows])
    return file.getvalue()


def read(path: Path, tmp_path: Path, *, scaling: str = "none", test: Path | None = None, **options: Any) -> Dataset:
    """Load a table in float64, without validation rows, split with seed 0."""
    source = Source(
        data=str(path),
        options=TableOptions(**options),
        test=test and str(test),
        cache=CacheConfig(1 << 40, tmp_path / "cache"),
    )
    return load(source, scaling=scaling, dtype=torch.float64, val_fraction=0.0)


def tensors(data: Dataset) -> list[torch.Tensor]:
    """Return the inputs and targets of all parts."""
    return [t for part in (data.train, data.val, data.test) for t in (part.inputs(slice(None)), part.y)]


ROWS = [[*(float(x) for x in row), name] for row, name in zip(NUMBERS, CLASSES, strict=True)]
HEADER = ["a", "b", "c", "y"]
COLUMNS = {name: [row[at] for row in ROWS] for at, name in enumerate(HEADER)}
TEXT = text_of(HEADER, ROWS)


def folder(path: Path) -> None:
    """Write the table as three part files; a file whose name begins with _ is not a part."""
    path.mkdir()
    for part, rows in enumerate((slice(0, 7), slice(7, 30), slice(30, None))):
        parquet.write_table(pa.table({k: v[rows] for k, v in COLUMNS.items()}), path / f"part-{part}.parquet")
    (path / "_SUCCESS.parquet").write_bytes(b"")


FORMATS = {
    "t.csv": lambda path: path.write_text(TEXT),
    "t.csv.gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "semicolons.csv": lambda path: path.write_text(text_of(HEADER, ROWS, delimiter=";")),
    "t.tsv": lambda path: path.write_text(text_of(HEADER, ROWS, delimiter="\t")),
    "bars.txt": lambda path: path.write_text(text_of(HEADER, ROWS, delimiter="|")),
    "quoted.csv": lambda path: path.write_text(text_of(HEADER, ROWS, quoting=csv.QUOTE_ALL)),
    "bom.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode()),
    "crlf.csv": lambda path: path.write_bytes(TEXT.replace("\n", "\r\n").encode()),
    "t.parquet": lambda path: parquet.write_table(pa.table(COLUMNS), path),
    "groups.parquet": lambda path: parquet.write_table(pa.table(COLUMNS), path, row_group_size=9),
    "folder": folder,
}


# Every format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "t.csv"])
def test_every_format_gives_the_same_bits_and_digest(tmp_path: Path, name: str):
    """The same as plain CSV: inputs, labels, splits and the digest, with numbers from 1e-150 to 1e150."""
    for file in ("t.csv", name):
        FORMATS[file](tmp_path / file)
    plain, other = read(tmp_path / "t.csv", tmp_path), read(tmp_path / name, tmp_path)
    assert all(map(torch.equal, tensors(plain), tensors(other)))
    assert plain.class_names == other.class_names == ("maybe", "no", "yes")
    assert plain.digest == other.digest


@pytest.mark.parametrize(
    ("task", "y"),
    [("classification", np.arange(N) % 3), ("regression", NUMBERS[:, 1])],
    ids=["classes", "numbers"],
)
def test_arrays_give_the_same_bits_as_a_table(tmp_path: Path, task: str, y: np.ndarray):
    """.npz, .npy and a pair of .npy give the rows and splits of CSV; to 1e-12 if scaled: sums differ in order."""
    x = NUMBERS[:, 1:2] * [1.0, 1e6]
    (tmp_path / "t.csv").write_text(text_of(["a", "b", "y"], [[*map(float, r)] for r in np.c_[x, y]]))
    np.savez(tmp_path / "t.npz", x=x, y=y)
    np.save(tmp_path / "one.npy", np.c_[x, y])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    files: dict[str, dict[str, Any]] = {"t.npz": {}, "one.npy": {}, "x.npy": {"target": (str(tmp_path / "y.npy"),)}}
    for name, options in files.items():
        for scaling in ("none", "standard"):
            table = read(tmp_path / "t.csv", tmp_path, scaling=scaling)
            array = read(tmp_path / name, tmp_path, scaling=scaling, **options)
            assert array.task == table.task == task
            assert array.class_names == table.class_names
            for expected, actual in zip(tensors(table), tensors(array), strict=True):
                if scaling == "none":
                    assert torch.equal(expected, actual)
                torch.testing.assert_close(expected, actual, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 2**63 - 1], ids=str)
def test_integers_that_float64_rounds_are_names_from_csv_and_parquet(tmp_path: Path, number: int):
    """2^53 + 1 is the first integer that float64 does not represent: it would be the same number as 2^53."""
    rows = [[number if i % 2 else number - number // abs(number), CLASSES[i]] for i in range(N)]
    (tmp_path / "t.csv").write_text(text_of(["a", "y"], rows))
    parquet.write_table(pa.table({"a": [r[0] for r in rows], "y": CLASSES}), tmp_path / "t.parquet")
    one, other = read(tmp_path / "t.csv", tmp_path), read(tmp_path / "t.parquet", tmp_path)
    assert all(map(torch.equal, tensors(one), tensors(other)))
    assert one.table is not None
    (column,) = one.table.encoding.inputs
    assert column.categories == tuple(sorted(map(str, {number, number - number // abs(number)})))


@pytest.mark.parametrize(
    "dtype", [pa.int8(), pa.uint16(), pa.int64(), pa.float16(), pa.float32(), pa.decimal128(22, 3)]
)
def test_every_numeric_type_is_read_exactly(tmp_path: Path, dtype: pa.DataType):
    """1, 2, 3, … in each type are 1.0, 2.0, 3.0, … in float64."""
    values = pa.array([i % 100 + 1 for i in range(N)]).cast(dtype)
    parquet.write_table(pa.table({"a": values, "y": CLASSES}), tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet", tmp_path)
    assert sorted(torch.cat(tensors(data)[::2]).flatten().tolist()) == [float(i + 1) for i in range(N)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_text_type_gives_the_same_data(tmp_path: Path, kind: pa.DataType):
    """Text as inputs and as classes: each of Arrow's text types gives the same inputs and names."""
    names = [("Oslo", "Rome")[i // 2 % 2] for i in range(N)]
    for file, type_ in (("plain.parquet", pa.string()), ("t.parquet", kind)):
        made = {"a": pa.array(names, pa.string()), "y": pa.array(CLASSES, pa.string())}
        columns = {
            k: v.dictionary_encode() if pa.types.is_dictionary(type_) else v.cast(type_) for k, v in made.items()
        }
        parquet.write_table(pa.table(columns), tmp_path / file)
    plain, other = read(tmp_path / "plain.parquet", tmp_path), read(tmp_path / "t.parquet", tmp_path)
    assert all(map(torch.equal, tensors(plain), tensors(other)))
    assert other.table.encoding.names == ["a=Oslo", "a=Rome"]
    assert other.digest == plain.digest


# Cells --------------------------------------------------------------------------------------------------------------

# Any text. Two columns, because CSV cannot distinguish an empty line from a row of one empty cell.
CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
AWKWARD = st.sampled_from(
    ['"', '""', ",", ";", "\n", "\r\n", "\r", "a,b", ' "x" ', "é", "🙂", "\u2028", "NA", "1e999", ""]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL | AWKWARD, CELL | AWKWARD), min_size=1, max_size=8),
       delimiter=st.sampled_from(",;\t|"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))  # fmt: skip
def test_cells_written_by_the_csv_module_are_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, quoting: int
):
    """Quotes, line breaks, delimiters, other scripts: each cell is unchanged."""
    # With this lineterminator the csv module quotes a single \r.
    csv_options = {"delimiter": delimiter, "quoting": quoting, "lineterminator": "\r\n"}
    text = text_of(["a", "b"], [list(row) for row in rows], **csv_options)
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert cells(tmp_path / "t.csv") == [["a", "b"], *map(list, rows)]


NAME = CELL.map(str.strip).filter(bool)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAME | st.sampled_from(["a,b", 'say "a"', "a\nb", "a;b", "é"]), min_size=2, max_size=4, unique=True)
)
def test_column_names_are_read_back(tmp_path: Path, names: list[str]):
    """Except for spaces around them; a header of numbers is tested with malformed tables."""
    names = [f"x{name}" for name in names]
    (tmp_path / "t.csv").write_bytes(text_of(names, [["u"] * len(names)], quoting=csv.QUOTE_ALL).encode())
    assert open_table(tmp_path / "t.csv", ReadOptions(delimiter=",")).names == names


@pytest.mark.parametrize("header", ["code,flag,when", " code, flag , when ", '\ufeffcode, flag,"when"'])
def test_cells_are_read_as_text_whatever_is_around_the_names(tmp_path: Path, header: str):
    """01 and 1 stay different, true is not a boolean and a date not a date: types are inferred later, for columns."""
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n01,true,2020-01-01\n1,false,2020-01-02\n", encoding="utf-8")
    assert cells(path) == [["code", "flag", "when"], ["01", "true", "2020-01-01"], ["1", "false", "2020-01-02"]]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_pipe_is_refused_without_blocking(tmp_path: Path, name: str):
    """Tables are opened twice, for the header and for the rows: the second read of a pipe would block forever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: a pipe or a device is read once"):
        open_table(tmp_path / name)


@pytest.mark.parametrize("block", [6, 8, 1 << 22])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n1\n\n\n2\n", ["1", "", "", "2"]),  # a blank line is an empty cell
        ("a\n\n1\n\n\n", ["", "1"]),  # except at the end
        ("a\r\n1\r\n\r\n2", ["1", "", "2"]),
        ("a\n1\n", ["1"]),
        ("a\n\n\n", []),
        ("\n\na\n1\n2\n", ["1", "2"]),
        ("\ufeffa\n\n2\n", ["", "2"]),
    ],
)
def test_a_blank_line_of_one_column_is_a_row(
    text: str, expected: list[str], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(csv_format, "READ_BYTES", block)
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    assert [
        cell for batch in open_table(path, ReadOptions(least=1)).batches() for cell in batch.column(0).to_pylist()
    ] == expected


def test_the_index_columns_that_pandas_writes_are_ignored(tmp_path: Path):
    path = tmp_path / "t.parquet"
    columns = {"__index_level_0__": [5, 7], "x": [1.0, 2.0], "__index_level_1__": [1, 2], "y": ["a", "b"]}
    parquet.write_table(pa.table(columns), path)
    table = open_table(path)
    assert table.names == ["x", "y"]
    assert [batch.to_pydict() for batch in table.batches()] == [{"x": [1.0, 2.0], "y": ["a", "b"]}]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(-1e150, 1e150), min_size=10, max_size=20))
def test_a_number_has_the_same_bits_as_pythons_float(tmp_path: Path, values: list[float]):
    """The repr of each number gives the same 64 bits; from 1e-140 to 1e150, whose squares float64 holds."""
    values = [v if abs(v) > 1e-140 else 0.0 for v in values]
    assume(values != [*range(len(values))] and values != [*range(1, len(values) + 1)])
    (tmp_path / "t.csv").write_text(text_of(["a", "y"], [[v, i % 2] for i, v in enumerate(values)]))
    data = read(tmp_path / "t.csv", tmp_path)
    assert sorted(torch.cat(tensors(data)[::2]).flatten().tolist()) == sorted(values)


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_the_block_size_does_not_change_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    """Blocks of about one row, of a few, or of all rows: the same bits and digest."""
    (tmp_path / "t.csv").write_text(TEXT)
    parquet.write_table(pa.table(COLUMNS), tmp_path / "t.parquet")
    before = [read(tmp_path / name, tmp_path) for name in ("t.csv", "t.parquet")]
    monkeypatch.setattr(
        "deltaprop.data.formats.csv.READ_BYTES", max(block, 90)
    )  # the longest row has fewer than 90 bytes
    monkeypatch.setattr("deltaprop.data.formats.parquet.BATCH_ROWS", block // 50)
    for name, one in zip(("t.csv", "t.parquet"), before, strict=True):
        other = read(tmp_path / name, tmp_path)
        assert all(map(torch.equal, tensors(one), tensors(other)))
        assert other.digest == one.digest


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ("oops", ": column 'a': row 41 is 'oops'"),
        ("inf", ": column 'a': row 41 is infinite"),
        ("", ": row 41, column 'a'"),
    ],
    ids=["text", "infinity", "nothing"],
)
def test_an_error_in_a_late_block_gives_the_row_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, problem: str
):
    """Row 41 of 41, counted from 1 after the header, for any block size and with blank lines."""
    text = "a,y\n" + "".join(f"{i},{i % 2}\n\n" for i in range(40)) + f"{last},0\n"
    (tmp_path / "t.csv").write_text(text)
    for block in (40, 1 << 20):
        monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", block)
        with pytest.raises(UserError, match=rf"t\.csv{problem}"):
            read(tmp_path / "t.csv", tmp_path, missing="refuse")


# The digest ---------------------------------------------------------------------------------------------------------


def test_the_digest_depends_on_the_data_only(tmp_path: Path):
    """It depends on each value and name, their order and the used columns, not on how the file is formatted."""
    texts = {
        "original": "a,b,y\n1,u,0\n2,v,1\n" * 1 + "1,u,0\n2,v,1\n" * 9,
        "a number": "a,b,y\n1,u,0\n2,v,1\n" + "1,u,0\n2,v,1\n" * 8 + "1,u,0\n3,v,1\n",
        "a category": "a,b,y\n1,u,0\n2,w,1\n" + "1,u,0\n2,w,1\n" * 9,
        "a label": "a,b,y\n1,u,0\n2,v,1\n" + "1,u,0\n2,v,1\n" * 8 + "1,u,0\n2,v,0\n",
        "a column's name": "a,c,y\n1,u,0\n2,v,1\n" + "1,u,0\n2,v,1\n" * 9,
        "the order of rows": "a,b,y\n2,v,1\n1,u,0\n" + "1,u,0\n2,v,1\n" * 9,
        "a row less": "a,b,y\n1,u,0\n2,v,1\n" + "1,u,0\n2,v,1\n" * 8,
    }
    digests = {}
    for name, text in texts.items():
        (tmp_path / "t.csv").write_text(text)
        digests[name] = read(tmp_path / "t.csv", tmp_path).digest
    digests["a column dropped"] = read(tmp_path / "t.csv", tmp_path, drop=("b",)).digest
    assert all(one != other for one, other in itertools.combinations(digests.values(), 2))
    (tmp_path / "t.csv").write_text(texts["original"].replace("1,", " 1.0 ,").replace("\n", "\r\n"))
    assert read(tmp_path / "t.csv", tmp_path).digest == digests["original"]


def test_the_digest_includes_the_test_data(tmp_path: Path):
    (tmp_path / "t.csv").write_text("a,y\n" + "1,0\n2,1\n" * 10)
    digests = []
    for cell in "12":
        (tmp_path / "u.csv").write_text(f"a,y\n{cell},0\n")
        digests.append(read(tmp_path / "t.csv", tmp_path, test=tmp_path / "u.csv").digest)
    assert digests[0] != digests[1]


# Names of files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["t.csv", "T.CSV", "t.tsv", "t.tab", "t.txt", "t.csv.gz", "t.tsv.gz", "t.parquet", "t.pq"]
)
def test_tables_are_recognised_by_their_suffix(name: str):
    assert is_table(name)


@pytest.mark.parametrize("name", ["t.npz", "t.npy", "t", "csv", "t.csv.zip", "t.gz", "x" * 5000, "a\0b.xls"])
def test_other_names_are_not_tables(name: str):
    assert not is_table(name)


def test_signals_reach_the_programs_own_handler_while_a_csv_is_read(tmp_path: Path):
    """pyarrow.csv.read_csv would take SIGTERM for itself, and raise ArrowCancelled."""
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{n / 7},{n % 13},{'pq'[n % 2]}\n" for n in range(60_000)))
    sent, received, done = [0], [0], threading.Event()

    def send() -> None:
        while not done.wait(0.001):
            sent[0] += 1
            os.kill(os.getpid(), signal.SIGTERM)

    def count(*_: object) -> None:
        received[0] += 1

    before = signal.signal(signal.SIGTERM, count)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        loaded = load(str(path))
    finally:
        done.set()
        sender.join()
        signal.signal(signal.SIGTERM, before)
    assert len(loaded.train) == 43_200  # 60 000 · 0.8 · 0.9
    assert 0 < received[0] <= sent[0]
