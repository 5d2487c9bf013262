"""Malformed ``.npz`` and ``.npy`` are refused by the command line, without allocating what their headers promise."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from deltaprop import UserError
from deltaprop.data import CacheConfig, Source, TableOptions, load
from deltaprop.data.columns import TaskChoice
from tests.data.cases import GOOD, Case, Command, N, columns, cut, ids, npz


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``deltaprop train`` in a separate folder."""
    return Command(tmp_path, monkeypatch, capsys)


X, Y = np.arange(80.0).reshape(N, 2), np.arange(N) % 2  # x[3, 1] = 7
OBJECTS = np.array([[1, None]] * N, dtype=object)
SEVEN_IS_NAN = np.where(X == 7, np.nan, X)


def header(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    """Return a .npy of version 1.0 as numpy.lib.format documents it: 10 bytes, a dict, the data."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(x: bytes, method: int = zipfile.ZIP_STORED) -> Callable[[Path], object]:
    """Return a function that writes a .npz with these bytes as x.npy, and a valid y.npy."""

    def write(path: Path) -> None:
        y = io.BytesIO()
        np.save(y, Y)
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("x.npy", x)
            file.writestr("y.npy", y.getvalue())

    return write


def changed(write: Callable[[Path], object], at: int, to: bytes) -> Callable[[Path], object]:
    """Return a function that writes a file with other bytes at one offset."""

    def write_changed(path: Path) -> None:
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + to + whole[at + len(to) :])

    return write_changed


def overstated(shape: str) -> Callable[[Path], object]:
    """Return a function that writes a .npz whose zip directory states almost 4 GiB for x.npy, as the header does."""

    def write(path: Path) -> None:
        archive(header(shape))(path)
        whole = bytearray(path.read_bytes())
        for at in (22, whole.find(b"PK\x01\x02") + 24):  # the size, in the local header and in the directory
            whole[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
        path.write_bytes(bytes(whole))

    return write


def arrays(name: str, expected: str, *flags: str, **values: object) -> Case:
    """Return a case of a .npz file of arrays."""
    return Case(f"npz: {name}", npz(**values), rf"t\.npz: {expected}", flags, "t.npz")


def raw_npz(name: str, content: bytes | Callable[[Path], object], expected: str) -> Case:
    """Return a case of a .npz file with this content."""
    return Case(f"npz: {name}", content, rf"t\.npz: {expected}", (), "t.npz")


def raw_npy(name: str, content: bytes | Callable[[Path], object], expected: str, *flags: str, **beside: bytes) -> Case:
    """Return a case of a .npy file with this content; ``y`` becomes y.npy."""
    others = {f"{key}.npy": value for key, value in beside.items()}
    return Case(f"npy: {name}", content, expected, flags, "t.npy", others)


def saved(array: np.ndarray) -> bytes:
    """Return the .npy of an array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


DATA = X.tobytes()
PROMISE = r".*declares 1000000000000000 bytes of float64 \[1000000, 125000000\], the file has \d+"
PICKLED = r".*it holds Python objects, which would have to be unpickled: save .*"
PROMISES = [
    raw_npy("10^15 bytes", header("(1000000, 125000000)"), r"t\.npy: " + PROMISE),
    raw_npz("10^15 bytes", archive(header("(1000000, 125000000)")), r"x\.npy: " + PROMISE),
    raw_npz("10^15 bytes, and the zip agrees to 4 GiB", overstated("(1000000, 125000000)"), r"x\.npy: " + PROMISE),
    raw_npz("4 GB, and the zip agrees", overstated("(500000000,)"), r"x\.npy: .*4000000000 bytes.*"),
    raw_npy("a row less than the header says", header("(40, 2)", data=DATA[:-16]), r"t\.npy: .* 640 bytes .*has 624"),
    raw_npy("a negative number of rows", header("(-1, 4)", data=DATA), r"t\.npy: .*"),
    raw_npy("cells of no bytes", header("(1000000000000,)", "'|S0'"), r"t\.npy: .*"),
    raw_npy(
        "a header of 2 GiB", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{" * 99, r"t\.npy: not a sound .*"
    ),
]

REFUSED = [
    raw_npz("not a zip file", b"hello", r"not a sound \.npz: .*"),
    raw_npz("empty", b"", r"not a sound \.npz: .*"),
    raw_npz("cut short", cut(npz(x=X, y=Y)), r"not a sound \.npz: .*"),
    raw_npz("a wrong CRC", changed(archive(header("(40, 2)", data=DATA)), 300, b"?"), r"not a sound \.npz: .*x\.npy.*"),
    raw_npz("damaged where it is compressed",
            changed(archive(header("(40, 2)", data=DATA), zipfile.ZIP_DEFLATED), 60, b"\xff\xff"), r".*"),
    raw_npz("a password", changed(archive(b""), 6, b"\x01"), r".*"),
    arrays("pickled x", r"x\.npy: " + PICKLED, x=OBJECTS, y=Y),
    arrays("pickled y", r"y\.npy: " + PICKLED, x=X, y=OBJECTS[:, 0]),
    arrays("no x", r"there is no array 'x' \(arrays: a, y\)", a=X, y=Y),
    arrays("no y", r"there is no array 'y' \(arrays: x, z\)", x=X, z=Y),
    arrays("no such y", r".*no array 'labels': did you mean 'label'\?.*", "--target", "labels", x=X, label=Y),
    arrays("two targets", r"--target names one array, got y, z", "--target", "y", "z", x=X, y=Y, z=Y),
    arrays("lengths that differ", r"x and y have 40 and 30 rows: .*", x=X, y=Y[:30]),
    arrays("no rows", r"x and y have no rows", x=X[:0], y=Y[:0]),
    arrays("no columns in x", r".*x .*", x=X[:, :0], y=Y),
    arrays("no columns in y", r".*y .*", x=X, y=X[:, :0]),
    arrays("x [N]", r"x must be \[N, …\], got \[40\].*", x=X[:, 0], y=Y),
    arrays("x of one number", r"x must be \[N, …\], got \[\].*", x=np.float64(3), y=Y),
    arrays("y of one number", r".*y \[N\], got \[\]", x=X, y=np.float64(3)),
    arrays("y [N, 2, 2]", r"y is of float64 \[40, 2, 2\]: labels \[N\], or numbers .*", x=X, y=np.ones((N, 2, 2))),
    arrays("NaN in x", r"x has nan in row 4, column 2: .*", x=SEVEN_IS_NAN, y=Y),
    arrays("infinity in y", r"y has inf in row 1: .*", x=X, y=np.where(Y, 1.0, np.inf)),
    arrays("NaN in x_test", r"x_test has nan in row 4, column 2: .*", x=X, y=Y, x_test=SEVEN_IS_NAN, y_test=Y),
    arrays("complex x", r"x is of complex128: numbers are needed", x=X + 1j, y=Y),
    arrays("complex y", r"y is of complex128 .*needed", x=X, y=Y + 1j),
    arrays("dates in y", r"y is of datetime64\[D\] .*needed", x=X, y=np.array(["2020-01-01"] * N, "M8[D]")),
    arrays("text in x", r"x is of <U32: numbers are needed", x=X.astype(str), y=Y),
    arrays("long doubles too large", r".*x.*", x=X.astype(np.longdouble) * np.longdouble("1e400"), y=Y),
    arrays("a single class", r"the target 'y' is '0' in every row: .*", x=X, y=Y * 0),
    arrays("a number that never changes", r"the target 'y' is 0\.5 in every row: .*", x=X, y=Y * 0 + 0.5),
    arrays("text for regression", r"--task regression: the target 'y' has text such as 'u'", "--task", "regression",
           x=X, y=np.array(["u", "v"])[Y]),
    arrays("several numbers for classes", r"--task classification is for a single target, got y1, y2",
           "--task", "classification", x=X, y=X),
    arrays("a class unseen in training", r"row 2, column 'y_test': class '2' .*training row \(classes: 0, 1\)",
           x=X, y=Y, x_test=X[:4], y_test=Y[:4] + 1),
    arrays("x_test of another shape", r".*x_test.*", x=X, y=Y, x_test=X[:4, :1], y_test=Y[:4]),
    arrays("y_test of two columns for classes", r".*y_test.*", x=X, y=Y, x_test=X[:4], y_test=X[:4]),
    arrays("y_test of two columns for numbers", r".*y_test.*", x=X, y=X[:, 0] + 0.5, x_test=X[:4], y_test=X[:4]),
    arrays("y_test of text for numbers", r"the target 'y_test' has text .*",
           x=X, y=X[:, 0] + 0.5, x_test=X[:2], y_test=["u", "v"]),
    Case("npz: a flag of tables", npz(x=X, y=Y), r"--drop a: t\.npz is not a table.*", ("--drop", "a"), "t.npz"),
    Case("npz: missing cells", npz(x=X, y=Y), r"--missing mean: .*t\.npz is not one", ("--missing", "mean"), "t.npz"),
    Case("npz: a table to test on", npz(x=X, y=Y), r"--test u\.csv: .*\.npz or \.npy", ("--test", "u.csv"), "t.npz",
         {"u.csv": GOOD}),
    Case("npz: a test of another shape", npz(x=X, y=Y), r"u\.npz: x is \[40, 1\], unlike x of t\.npz, \[40, 2\]: .*",
         ("--test", "u.npz"), "t.npz", {"u.npz": npz(x=X[:, :1], y=Y)}),
    Case("npz: a test with a class unseen", npz(x=X, y=Y), r"u\.npz: row 2, column 'y': class '2' .*",
         ("--test", "u.npz"), "t.npz", {"u.npz": npz(x=X, y=Y + 1)}),
    raw_npy("no magic", b"hello there", r"t\.npy: not a sound \.npy: .*"),
    raw_npy("empty", b"", r"t\.npy: not a sound \.npy: .*"),
    raw_npy("half a header", b"\x93NUMPY\x01\x00\x0a\x00{'descr':\n", r"t\.npy: not a sound \.npy: .*"),
    raw_npy("code in the header", header("__import__('os').mkdir('z')"), r"t\.npy: not a sound \.npy: .*"),
    raw_npy("unclosed brackets", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9999) + b"(" * 9999, r"t\.npy: not .*"),
    raw_npy("pickled", saved(OBJECTS), r"t\.npy: " + PICKLED),
    raw_npy("x [N] alone", saved(X[:, 0]), r"t\.npy: x has shape \[40\]: --target FILE\.npy says where y is"),
    raw_npy("a pair of two lengths", saved(X), r"t\.npy: .*40 and 30 rows.*", "--target", "y.npy", y=saved(Y[:30])),
    raw_npy("a pair of one", saved(X), r"y\.npy: No such file.*", "--target", "y.npy"),
    raw_npy("NaN", saved(np.c_[SEVEN_IS_NAN, Y]), r"t\.npy: x has nan in row 4, column 2: .*"),
    raw_npy("NaN in y", saved(SEVEN_IS_NAN), r"t\.npy: y has nan in row 4: .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", ids(PROMISES + REFUSED))
def test_refused_in_one_line_with_nothing_written(command: Command, case: Case):
    """The line names the file, the array, and the row and the column if there are any."""
    command.refuses(case)


@pytest.mark.parametrize("case", ids(PROMISES))
def test_no_memory_is_allocated_for_data_that_only_the_header_declares(tmp_path: Path, case: Case):
    """Refused in 0.2 s of CPU time and with 1 MiB at most, although the header declares gigabytes."""
    case.write(tmp_path)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UserError):
        load(str(tmp_path / case.file))
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert seconds < 0.2


VALID = {
    "t.csv": GOOD.encode(),
    "t.csv.gz": gzip.compress(GOOD.encode()),
    "t.npy": saved(np.c_[X, Y]),
    "t.npz": npz(x=X, y=Y),
    "compressed.npz": lambda path: np.savez_compressed(path, x=X, y=Y),
    "t.parquet": columns(a=range(N), b=[0.5, 1.5] * 20),
    "packed.parquet": lambda path: parquet.write_table(
        pa.table({"a": range(N), "y": ["u", "v"] * 20}), path, compression="gzip"
    ),
    "t.jsonl": "".join(json.dumps({"a": i, "b": i / 2, "y": "uv"[i % 2]}) + "\n" for i in range(N)),
    "t.feather": lambda path: feather.write_feather(pa.table({"a": range(N), "y": ["u", "v"] * 20}), path),
}


def damaged(whole: bytes, seed: int) -> bytes:
    """Return the file's bytes with a few random changes, insertions, deletions or cuts."""
    draw, data = random.Random(seed), bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(data))
        match draw.randrange(5):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice(b'\0"\n\r,;\xff\x80 9-.')
            case 2:
                del data[max(at, 1) :]
            case 3:
                data[at:at] = draw.choice([b'"', b",", b"\n", b"\r", b"\0", b"\xe9", b"nan", b"1e999"])
            case 4:
                del data[at : min(at + draw.randrange(1, 20), len(data) - 1)]
    return bytes(data)


@pytest.mark.parametrize("name", VALID)
def test_a_randomly_damaged_file_is_read_or_refused(tmp_path: Path, name: str):
    """150 random damages of a valid file: each is read, or raises a UserError of one line."""
    path = tmp_path / name
    Case("", VALID[name], "", file=name).write(tmp_path)
    whole, room = path.read_bytes(), CacheConfig(1 << 40, tmp_path / "cache")
    failures: dict[int, str] = {}
    for seed in range(150):
        path.write_bytes(damaged(whole, seed))
        try:
            load(Source(data=str(path), cache=room))
        except UserError as error:
            if "\n" in str(error):
                failures[seed] = str(error)
        except Exception as error:
            failures[seed] = f"{type(error).__name__}: {error}"
    assert failures == {}


@pytest.mark.parametrize("task", ["auto", "classification"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64], ids=str)
def test_integer_classes_that_float64_would_merge_stay_apart(task: TaskChoice, dtype: type[np.generic], tmp_path: Path):
    """2^53 and 2^53 + 1 are the same float64."""
    labels = np.array([2**53, 2**53 + 1] * 20, dtype=dtype)
    path = tmp_path / "a.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(40, 2)), y=labels, x_test=np.ones((2, 2)), y_test=labels[:2])
    loaded = load(Source(data=str(path), options=TableOptions(task=task)))
    assert loaded.class_names == ("9007199254740992", "9007199254740993")
    assert loaded.test.y.tolist() == [0, 1]


def test_byte_labels_that_are_not_utf8_stay_apart(tmp_path: Path):
    """Latin-1 names: both would be called M�ller."""
    labels = np.array([b"M\xfcller", b"M\xf6ller"] * 20)
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(40, 2)), y=labels)
    assert load(str(tmp_path / "a.npz")).class_names == ("M\\xf6ller", "M\\xfcller")


@pytest.mark.parametrize("swapped", [False, True])
def test_boolean_and_0_1_labels_are_the_same_classes(swapped: bool, tmp_path: Path):
    x, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    np.savez(tmp_path / "train.npz", x=x, y=y.astype(int if swapped else bool))
    np.savez(tmp_path / "test.npz", x=x, y=y.astype(bool if swapped else int))
    loaded = load(Source(data=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz")))
    assert loaded.test.y.tolist() == y.tolist()
