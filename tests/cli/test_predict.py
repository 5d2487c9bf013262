"""``deltaprop predict``: files and pipes in, files and pipes out, and refused input that writes nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose
from pyarrow import parquet

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.table import ReadOptions
from tests.inference.conftest import TABLES, Runs, first, inputs_of, without, write_csv


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict(run: Path, data: str, out: str, *args: str) -> int:
    return main(["predict", str(run), "--data", data, "--out", out, *args])


def read_csv(text: str) -> dict[str, list[str]]:
    header, *rows = csv.reader(io.StringIO(text))
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


# --- files ---


@pytest.mark.parametrize("out", ["o.csv", "o.parquet"])
def test_each_input_row_has_a_prediction_in_order(runs: Runs, capsys: pytest.CaptureFixture[str], out: str):
    run = runs["mixed"]
    write_csv(Path("t.csv"), {"id": [*range(300)], **without(inputs_of("mixed"), "y")})
    assert predict(run.folder, "t.csv", out, "--keep", "id") == 0
    assert capsys.readouterr() == (f"31 missing cells filled\n300 rows: {out} (final weights)\n", "")
    predictions = read_csv(Path(out).read_text()) if out == "o.csv" else parquet.read_table(out).to_pydict()
    model = dp.load(run.folder)
    assert [*predictions] == ["id", "prediction", "probability_hi", "probability_lo", "probability_mid"]
    assert [int(cell) for cell in predictions["id"]] == [*range(300)]
    assert predictions["prediction"] == model.predict(inputs_of("mixed")).tolist()
    assert_allclose(
        np.array(predictions["probability_mid"], float), model.predict_proba(inputs_of("mixed"))[:, 2], atol=1e-6
    )


def test_predicted_values_are_in_the_targets_units(runs: Runs):
    write_csv(Path("t.csv"), without(inputs_of("two"), "u", "v"))
    assert predict(runs["two"].folder, "t.csv", "o.csv") == 0
    predictions = read_csv(Path("o.csv").read_text())
    expected = dp.load(runs["two"].folder).predict(inputs_of("two"))
    for at, name in enumerate(("prediction_u", "prediction_v")):
        assert_allclose(np.array(predictions[name], float), expected[:, at], rtol=1e-12)


def test_the_best_weights_can_be_used(runs: Runs):
    run = runs.train("wild", runs["numbers"].data, lr=3.0, lr_schedule="constant", epochs=6)
    written = []
    for weights in ("final", "best"):
        assert predict(run.folder, run.data, "o.csv", "--weights", weights) == 0
        written.append(Path("o.csv").read_text())
        shares = dp.load(run.folder, weights).predict_proba(inputs_of("numbers"))[:, 1]
        assert_allclose(np.array(read_csv(written[-1])["probability_yes"], float), shares, atol=1e-6)
    assert written[0] != written[1]


def test_arrays_can_be_predicted(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """From a file of float64, whose array is read-only: no warning about that."""
    model = dp.load(runs["images"].folder)
    np.savez("t.npz", x=inputs_of("images").astype(np.float64))
    assert predict(runs["images"].folder, "t.npz", "o.csv") == 0
    assert capsys.readouterr().err == ""
    assert read_csv(Path("o.csv").read_text())["prediction"] == model.predict(inputs_of("images")).astype(str).tolist()


def test_an_unseen_category_is_reported(runs: Runs, capsys: pytest.CaptureFixture[str]):
    columns = first(inputs_of("mixed"), 3)
    columns["city"][1] = "Bonn"
    write_csv(Path("t.csv"), columns)
    assert predict(runs["mixed"].folder, "t.csv", "o.csv") == 0
    message = "warning: t.csv: column 'city' has a name not seen in training, such as 'Bonn'\n"
    assert capsys.readouterr().err == message


# --- refused input: one line, exit code 2, nothing written ---


def _bad_last_row(name: str, cell: Any) -> Callable[[], Any]:
    columns = inputs_of("numbers")
    columns[name][-1] = cell
    return lambda: write_csv(Path("t.csv"), columns)


write_table = lambda: write_csv(Path("t.csv"), TABLES["numbers"])  # noqa: E731  # a row of the table below

REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "text at the last row": (_bad_last_row("b", "x"), (), "t.csv: row 300, column 'b': 'x' is text"),
    "text beside a gap": (
        lambda: Path("t.csv").write_text("a,b\n1,2\n1,x\n,3\n"), (), "t.csv: row 2, column 'b': 'x' is text"
    ),
    "text in the last row": (_bad_last_row("b", "x"), (), "t.csv: row 300, column 'b': 'x' is text"),
    "infinite": (_bad_last_row("b", "inf"), (), "t.csv: row 300, column 'b': inf is not a finite number"),
    "too large": (_bad_last_row("b", "1e300"), (), "1e+300"),
    "a cell too few": (lambda: Path("t.csv").write_text("a,b\n1,2\n1\n"), (), "t.csv: row 2: 1 cell, too few"),
    "no column": (lambda: write_csv(Path("t.csv"), {"a": [1], "bb": [2]}), (), "needs: did you mean 'bb'?"),
    "empty": (lambda: Path("t.csv").write_text(""), (), "t.csv: the file is empty"),
    "no row": (lambda: Path("t.csv").write_text("a,b\n"), (), "t.csv: there is a header, and no row below it"),
    "no data": (lambda: None, (), "t.csv: there is no such file"),
    "kept but not there": (write_table, ("--keep", "id"), "--keep id: there is no column 'id'"),
    "a long delimiter": (write_table, ("--delimiter", ";;"), "--delimiter"),
    "unknown weights": (write_table, ("--weights", "last"), "unknown weights 'last'"),
    "unknown flag": (write_table, ("--dat", "t.csv"), "--dat"),
    "another suffix": (write_table, ("--out", "o.txt"), "--out o.txt: the name must end in .csv, .csv.gz or .parquet"),
    "a folder": (lambda: (write_table(), Path("o.csv").mkdir()), (), "--out o.csv: this is a folder"),
    "no folder": (write_table, ("--out", "none/o.csv"), "--out none/o.csv: there is no folder"),
    "the data": (write_table, ("--out", "t.csv"), "--out t.csv: this is the data itself"),
    "the data by another name": (
        lambda: (write_table(), Path("l.csv").symlink_to("t.csv")), ("--out", "l.csv"), "this is the data itself"
    ),
    "no row on stdin": (write_table, ("--data", "-"), "stdin: there is a header, and no row below it"),
    "no rows in an array": (
        lambda: np.save("t.npy", np.empty((0, 2))), ("--data", "t.npy"), "no row"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_one_line_and_exit_code_2(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
):
    """In small blocks: rows before the bad one have been predicted already."""
    make, args, message = REFUSED[case]
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    folder = runs["numbers"].folder
    make()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n")))
    before = {path.name: path.read_bytes() if path.is_file() else None for path in Path().iterdir()}
    assert predict(folder, "t.csv", "o.csv", *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path.name: path.read_bytes() if path.is_file() else None for path in Path().iterdir()} == before


def test_an_old_file_is_kept_if_the_last_row_is_invalid(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    _bad_last_row("b", "x")()
    Path("o.csv").write_text("the old one")
    assert predict(runs["numbers"].folder, "t.csv", "o.csv") == 2
    assert Path("o.csv").read_text() == "the old one"
    assert sorted(path.name for path in Path().iterdir()) == ["o.csv", "t.csv"]


def test_a_file_of_the_data_is_not_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str]):
    Path("parts").mkdir()
    parquet.write_table(pa.table(TABLES["numbers"]), "parts/p1.parquet")
    before = Path("parts/p1.parquet").read_bytes()
    assert predict(runs["numbers"].folder, "parts", "parts/p1.parquet") == 2
    assert "this is the data itself" in capsys.readouterr().err
    assert Path("parts/p1.parquet").read_bytes() == before


@pytest.mark.parametrize("part", ["data", "test"])
def test_the_training_and_test_data_are_not_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str], part: str):
    """Also if the rows to predict come from another file."""
    for name in ("data.csv", "test.csv", "t.csv"):
        write_csv(Path(name), TABLES["numbers"])
    folder = runs.train(f"parts, {part}", "data.csv", test="test.csv", epochs=1).folder
    before = Path(f"{part}.csv").read_bytes()
    assert predict(folder, "t.csv", f"{part}.csv") == 2
    assert f"--out {part}.csv: this is the data itself; name another file" in capsys.readouterr().err
    assert Path(f"{part}.csv").read_bytes() == before


def test_kept_numbers_are_numeric_in_parquet_and_unchanged_text_in_csv(runs: Runs):
    """Columns a and b are inputs, y holds integer classes, and the model does not use n."""
    Path("t.csv").write_text("a,b,n,y\n0.10,2,007,-1\n1e0,3,8,NA\n")
    run, keep = runs["integers"].folder, ("--keep", "a", "b", "n", "y")
    assert predict(run, "t.csv", "o.parquet", *keep) == 0
    predictions = parquet.read_table("o.parquet").select(["a", "b", "n", "y"])
    assert predictions.to_pydict() == {"a": [0.1, 1.0], "b": [2.0, 3.0], "n": ["007", "8"], "y": [-1, None]}
    assert [str(field.type) for field in predictions.schema] == ["double", "double", "string", "int64"]
    assert predict(run, "t.csv", "o.csv", *keep) == 0
    expected = {"a": ["0.10", "1e0"], "b": ["2", "3"], "n": ["007", "8"], "y": ["-1", "NA"]}
    assert read_csv(Path("o.csv").read_text()).items() >= expected.items()


def test_bytes_cannot_be_kept_in_csv(runs: Runs, capsys: pytest.CaptureFixture[str]):
    parquet.write_table(pa.table({"l": [b"\xff", b"1"], "a": [1.0, 2.0], "b": [1.0, 2.0]}), "t.parquet")
    assert predict(runs["numbers"].folder, "t.parquet", "o.csv", "--keep", "l") == 2
    assert "--keep l: the column is of type binary, which a plain table cannot hold" in capsys.readouterr().err
    assert predict(runs["numbers"].folder, "t.parquet", "o.parquet", "--keep", "l") == 0
    assert parquet.read_table("o.parquet")["l"].to_pylist() == [b"\xff", b"1"]


def test_a_list_cannot_be_kept_in_csv(runs: Runs, capsys: pytest.CaptureFixture[str]):
    parquet.write_table(pa.table({"l": [[1], [2]], "a": [1.0, 2.0], "b": [1.0, 2.0]}), "t.parquet")
    assert predict(runs["numbers"].folder, "t.parquet", "o.csv", "--keep", "l") == 2
    assert "--keep l" in capsys.readouterr().err
    assert not Path("o.csv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which run? name its folder"),
        (["none"], "none: there is no such folder"),
        (["."], "this is not a run: there is no config.json in it"),
        (["RUN"], "--data is needed"),
        (["RUN", "--data", "t.csv"], "--out is needed"),
    ],
    ids=range(5),
)
def test_a_missing_or_invalid_argument_is_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str], args: list[str], message: str
):
    args = [str(runs["numbers"].folder) if word == "RUN" else word for word in args]
    if args in (["none"], ["."]):
        args += ["--data", "t.csv", "--out", "o.csv"]
    assert main(["predict", *args]) == 2
    assert message in capsys.readouterr().err
    assert [*Path().iterdir()] == []


# --- pipes ---


def piped(stdin: bytes | None, *args: str, head: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command with these bytes on stdin; with ``head``, close its stdout after that many lines."""
    command = [sys.executable, "-m", "deltaprop", "predict", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if head is None:
        return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    lines = b"".join(process.stdout.readline() for _ in range(head))
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    return subprocess.CompletedProcess(command, process.wait(timeout=120), lines, error)


def test_from_stdin_to_stdout(runs: Runs):
    run = runs["mixed"]
    done = piped(Path(run.data).read_bytes(), str(run.folder), "--data", "-", "--out", "-", "--keep", "b")
    assert (done.returncode, done.stderr) == (0, b"31 missing cells filled\n")
    predictions = read_csv(done.stdout.decode())
    assert [*predictions] == ["b", "prediction", "probability_hi", "probability_lo", "probability_mid"]
    assert predictions["prediction"] == dp.load(run.folder).predict(inputs_of("mixed")).tolist()
    assert [float(cell) for cell in predictions["b"]] == TABLES["mixed"]["b"]


def test_a_reader_that_closes_the_pipe_early_causes_no_error(runs: Runs):
    """As ``| head`` does: no traceback and no error message."""
    write_csv(Path("t.csv"), {name: cells * 400 for name, cells in inputs_of("numbers").items()})
    done = piped(None, str(runs["numbers"].folder), "--data", "t.csv", "--out", "-", head=2)
    assert done.stdout.count(b"\n") == 2
    assert done.stderr == b""


@pytest.mark.slow
def test_wide_rows_in_several_writes(runs: Runs):
    """Rows of 9 kB in writes of 4096 bytes, as C's stdio makes them: a piece may have no line break."""
    columns = {**first(inputs_of("numbers"), 20), "note": ["x" * 9000] * 20}
    content = write_csv(Path("t.csv"), columns).read_bytes()
    script = (
        "import sys, time\n"
        "content = open('t.csv', 'rb').read()\n"
        "for at in range(0, len(content), 4096):\n"
        "    sys.stdout.buffer.write(content[at : at + 4096])\n"
        "    sys.stdout.buffer.flush()\n"
        "    time.sleep(0.02)\n"
    )
    assert len(content) > 20 * 9000
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(4)\n{script}"], stdout=-1) as source:
        args = [str(runs["numbers"].folder), "--data", "-", "--out", "-"]
        command = [sys.executable, "-m", "deltaprop", "predict", *args]
        done = subprocess.run(command, stdin=source.stdout, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 21


class SlowStream(io.RawIOBase):
    """A stream that returns at most ``few`` bytes a read."""

    def __init__(self, content: bytes, few: int) -> None:
        self.content, self.few = content, few

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next few bytes."""
        count = self.few if size < 0 else min(size, self.few)
        predictions, self.content = self.content[:count], self.content[count:]
        return predictions


@pytest.mark.parametrize(
    ("few", "wide"), [(1, 0), (2, 0), (7, 0), (64, 0), (4096, 0), (4096, 9000)], ids=lambda value: str(value)
)
def test_a_stream_gives_the_same_predictions_for_any_read_size(runs: Runs, few: int, wide: int):
    """Also rows of 9 kB in pieces of 4096 bytes, as C's stdio writes them: a piece may have no line break."""
    model, columns = dp.load(runs["numbers"].folder), first(inputs_of("numbers"), 40)
    columns |= {"note": ["x" * wide] * 40} if wide else {}
    stream = SlowStream(write_csv(Path("t.csv"), columns).read_bytes(), few)
    table = CsvTable.of_stream(Path("stdin"), stream, ReadOptions())
    predictions = np.concatenate([model.feed(x).numpy() for x in model.blocks(table).inputs()])
    assert_allclose(predictions, model.outputs(columns), atol=1e-6)


def test_a_byte_that_is_not_utf8_is_reported_with_its_line(runs: Runs):
    """Late in a stream that cannot be read twice."""
    rows = [b"1,2"] * 100_000
    rows[90_000] = b"1,\xff"
    model = dp.load(runs["numbers"].folder)
    stream = io.BufferedReader(io.BytesIO(b"a,b\n" + b"\n".join(rows)))  # type: ignore[arg-type]
    table = CsvTable.of_stream(Path("stdin"), stream, ReadOptions())
    with pytest.raises(dp.UserError, match=r"stdin: line 90002 is not UTF-8"):
        [*model.blocks(table).inputs()]


def test_empty_stdin_is_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["predict", str(runs["numbers"].folder), "--data", "-", "--out", "-"]) == 2
    assert capsys.readouterr() == ("", "error: stdin: the file is empty: a header and rows are needed\n")


def test_an_error_while_stdin_is_open_ends_the_command(runs: Runs):
    """One line and exit code 2, although another thread waits for stdin."""
    command = [sys.executable, "-m", "deltaprop", "predict", str(runs["numbers"].folder), "--data", "-", "--out", "-"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            for piece in [b"a,b\n1,2\n1,x\n", *[b"1,2\n"] * 100]:
                process.stdin.write(piece)
                process.stdin.flush()
                time.sleep(0.05)
                if process.poll() is not None:
                    break
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        error = process.stderr.read()
    assert error.startswith(b"error: stdin: row 2, column 'b': 'x' is text")
    assert (process.returncode, error.count(b"\n")) == (2, 1)


@pytest.mark.parametrize(
    "stalled", [pytest.param(True, id="stalled", marks=pytest.mark.slow), pytest.param(False, id="busy")]
)
def test_sigterm_leaves_no_partial_file(runs: Runs, stalled: bool):
    """Exit code 143, whether pyarrow waits for stdin or rows arrive."""
    args = [str(runs["numbers"].folder), "--data", "-", "--out", "o.csv"]
    command = [sys.executable, "-m", "deltaprop", "predict", *args]
    with subprocess.Popen(command, stdin=-1, stderr=-1) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a,b\n1,2\n")
        process.stdin.flush()
        began = time.monotonic()
        while not [*Path().glob(".o.csv*")] and time.monotonic() - began < 60:
            time.sleep(0.05)
        time.sleep(0.3)
        status = Path(f"/proc/{process.pid}/status")
        signals = re.findall("Sig.*", status.read_text()) if status.exists() else []  # blocked, ignored and caught ones
        process.terminate()
        with contextlib.suppress(BrokenPipeError):
            while not stalled and process.poll() is None and time.monotonic() - began < 90:
                process.stdin.write(b"1,2\n" * 100)
                process.stdin.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        if process.returncode is None:
            process.kill()
        said = process.stderr.read()
        assert (process.returncode, said) == (143, b""), signals
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    assert [*Path().iterdir()] == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on prices with a decimal comma, dates, a word for a missing value, and the classes +1 and -1."""
    folder = tmp_path_factory.mktemp("written")
    rows = [
        f"{at},{at % 5};2020-01-{1 + at % 9:02};{'unknown' if at == 3 else at % 4};{'+1' if at % 2 else '-1'}"
        for at in range(40)
    ]
    (folder / "t.csv").write_text("price;when;size;y\n" + "\n".join(rows) + "\n")
    config = dp.TrainConfig(
        data=str(folder / "t.csv"), run_dir=folder / "run", epochs=1, hidden=(4,), log_every=0, na_values=("unknown",)
    )
    dp.train(config)
    return folder


def test_columns_that_are_kept_are_numbers_in_parquet_as_the_model_reads_them(written: Path):
    keep = ["--keep", "price", "when", "size", "y"]
    assert predict(written / "run", str(written / "t.csv"), "o.parquet", *keep) == 0
    kept = parquet.read_table("o.parquet").slice(2, 2).select(keep[1:]).to_pylist()
    assert kept == [
        {"price": 2.2, "when": "2020-01-03", "size": 2.0, "y": -1},
        {"price": 3.3, "when": "2020-01-04", "size": None, "y": 1},
    ]


def test_a_table_with_the_classes_plus_and_minus_1_is_evaluated(written: Path, capsys):
    """Its class is called 1, and its cells +1."""
    assert main(["evaluate", str(written / "run"), "--data", str(written / "t.csv")]) == 0
    assert "32 of 40 rows are equal to rows of training" in capsys.readouterr().out


# --- memory ---


def _peak(run: Path, data: str) -> int:
    """Return the command's peak memory in megabytes."""
    script = (
        "import resource, sys\nfrom deltaprop.cli import main\n"
        f"assert main(['predict', {str(run)!r}, '--data', {data!r}, '--out', 'o.csv']) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _rows(megabytes: int) -> Iterator[str]:
    block = "".join(f"{at % 7}.123456789,{at % 11}.987654321,{'n' * 30}\n" for at in range(10_000))
    yield "a,b,note\n"
    for _ in range(megabytes * 2**20 // len(block)):
        yield block


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(runs: Runs):
    """Predicting 200 MB takes at most 60 MB more memory than 10 MB."""
    for megabytes in (10, 200):
        with Path(f"{megabytes}.csv").open("w") as file:
            file.writelines(_rows(megabytes))
    run = runs["numbers"].folder
    assert _peak(run, "200.csv") < _peak(run, "10.csv") + 60
