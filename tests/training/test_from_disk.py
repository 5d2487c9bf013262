"""Runs whose rows are streamed from disk: resume gives the same bits, and failures leave no files."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaprop.cli import main
from deltaprop.cli.console import ConsoleReporter
from deltaprop.data import StreamedSplit
from deltaprop.data.formats import csv as csv_format
from deltaprop.training import TrainConfig, data_loader, train
from deltaprop.training.evaluate import evaluate
from deltaprop.training.report.reporter import Silent
from deltaprop.training.setup import prepare
from deltaprop.training.signals import Terminated
from tests.training.faults.shim import forked
from tests.training.test_data_loader import BLOCK, CHUNK, ROW_BYTES
from tests.training.test_resume import StopAt, assert_same_run, interrupted_and_resumed


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use shards of 25 batches, each of ten blocks."""
    monkeypatch.setattr(data_loader, "CHUNK_BYTES", CHUNK * ROW_BYTES)
    monkeypatch.setattr(data_loader, "BLOCK_BYTES", BLOCK * ROW_BYTES)


# --- runs ---


def lines_of(rows: int, inputs: int = 2) -> list[str]:
    """Return the lines of a CSV table: numbers, a name, and a class that depends on them."""
    rng = np.random.default_rng(1)
    lines = [",".join([*(f"x{number}" for number in range(inputs)), "city", "class"])]
    for numbers in rng.normal(size=(rows, inputs)):
        city = ("Oslo", "Rome", "Bern")[rng.integers(3)]
        score = numbers.sum() + (city == "Rome")
        lines.append(",".join([*(f"{x:.6f}" for x in numbers), city, "high" if score > 0 else "low"]))
    return lines


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 700 rows: 504 training rows of 20 bytes, in shards of 10 steps and blocks of 8 rows."""
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines_of(700)) + "\n")
    return path


@pytest.fixture
def config(table: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a function that configures a run of 3 epochs from disk, of 32 steps each; settings may be replaced."""

    def make(name: str, **settings: Any) -> TrainConfig:
        plain = {
            "data": str(table), "cache": tmp_path / "cache", "memory": "1k", "hidden": (8,), "epochs": 3, "lr": 0.05,
            "log_every": 0, "seed": 0, "run_dir": tmp_path / name,
        }  # fmt: skip
        return TrainConfig(**{**plain, **settings})

    return make


Config = Callable[..., TrainConfig]


def saved(folder: Path) -> dict[str, Any]:
    """Return the content of a run's config.json."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize(
    ("engine", "stops"),
    [("autograd", stops) for stops in [(1,), (9, 1, 1), (10,), (32,)]]
    + [("explicit", stops) for stops in [(9, 1, 1), (11, 40), (50,), (95,)]],
    ids=str,
)
def test_resume_of_a_streamed_run_gives_the_same_bits(engine: str, stops: tuple[int, ...], config: Config):
    """Interrupted within a shard, between two shards, between epochs, and repeatedly."""
    whole = train(config("whole", engine=engine))
    assert saved(whole.folder)["resolved"]["storage"] == "disk"
    assert_same_run(interrupted_and_resumed(config("interrupted", engine=engine), *stops), whole)


@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [("autograd", "1k", "1g"), ("explicit", "1g", "1k"), ("explicit", "20k", "1g"), ("autograd", "1k", "auto")],
)
def test_resume_with_another_memory_limit_gives_the_same_bits(before: str, after: str, engine: str, config: Config):
    """A resumed run streams its rows if it did so before, whatever ``memory`` is now."""
    whole = train(config("whole", engine=engine, memory=before))
    interrupt_and_resume(config("interrupted", engine=engine, memory=before), 40, memory=after)
    assert_same_run(config("interrupted").run_dir or Path(), whole)


def interrupt_and_resume(config: TrainConfig, stop: int, **changes: Any) -> None:
    """Train with one interruption, after which settings change."""
    with pytest.raises(Terminated):
        train(config, StopAt(stop))
    train(dataclasses.replace(config, **changes), resume=config.run_dir)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_resume_with_other_shard_and_block_sizes_gives_the_same_bits(
    engine: str, config: Config, monkeypatch: pytest.MonkeyPatch
):
    """A later version may use other sizes; a run that was begun before keeps its own."""
    whole = train(config("whole", engine=engine))
    interrupted_config = config("interrupted", engine=engine)
    with pytest.raises(Terminated):
        train(interrupted_config, StopAt(15))
    monkeypatch.setattr(data_loader, "CHUNK_BYTES", CHUNK * ROW_BYTES // 2)
    monkeypatch.setattr(data_loader, "BLOCK_BYTES", BLOCK * ROW_BYTES // 4)
    train(interrupted_config, resume=interrupted_config.run_dir)
    assert_same_run(interrupted_config.run_dir or Path(), whole)


@pytest.mark.parametrize("memory", ["1g", "20k"])
def test_a_cache_written_meanwhile_by_another_run_changes_no_bit(memory: str, config: Config):
    """A run in memory does not switch to the cache, whose numbers are rounded to float32."""
    numbers = {"dtype": "float64"}  # shows differences that float32 would round away
    whole = train(config("whole", memory=memory, **numbers))
    interrupted_config = config("interrupted", memory=memory, **numbers)
    with pytest.raises(Terminated):
        train(interrupted_config, StopAt(40))
    train(config("another", memory="1k"))
    train(interrupted_config, resume=interrupted_config.run_dir)
    assert_same_run(interrupted_config.run_dir or Path(), whole)


def test_an_existing_cache_changes_no_bit_of_a_run_in_memory(config: Config):
    whole = train(config("first", memory="1g"))
    train(config("streamed"))
    again = train(config("again", memory="1g"))
    assert saved(again.folder)["resolved"]["storage"] == "memory"
    assert_same_run(again.folder, whole)


@pytest.mark.parametrize(("train_rows", "test_rows"), [(700, 60), (60, 700)])
@pytest.mark.parametrize("memory", ["10k", "1g"])
def test_resume_with_a_separate_test_table_gives_the_same_bits(
    memory: str, train_rows: int, test_rows: int, config: Config, tmp_path: Path
):
    """Rows of 4 columns in float64: 700 take 22 kB, 60 take 2 kB. So one of the tables fits and the other does not."""
    settings: dict[str, Any] = {"memory": memory, "dtype": "float64"}
    for name, rows in (("data", train_rows), ("test", test_rows)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines_of(rows)) + "\n")
        settings[name] = str(path)
    whole = train(config("whole", **settings))
    interrupt_and_resume(config("interrupted", **settings), 5)
    assert_same_run(config("interrupted").run_dir or Path(), whole)


def test_a_large_test_table_is_streamed_though_the_training_table_fits(config: Config, tmp_path: Path):
    """The test table has 700 rows, 22 kB; the training table 60 rows, 2 kB."""
    path = tmp_path / "small.csv"
    path.write_text("\n".join(lines_of(60)) + "\n")
    test = tmp_path / "t.csv"
    setup = prepare(config("run", data=str(path), test=str(test), memory="10k"))
    assert isinstance(setup.dataset.test, StreamedSplit)


def test_rows_on_disk_and_in_memory_give_the_same_bits_in_float64(config: Config, tmp_path: Path):
    """For numbers that are exact in float32, eighths from 0 to 8. 30 names make the inputs larger than the raw rows.

    A raw row has 3 columns of 8 bytes, 24; its 31 inputs take 248 bytes; 600 rows take 14 kB and 149 kB. In float32
    rows on disk would be scaled in float32 (`Encoder` in data/encoding.py) and those in memory in float64.
    """
    rng = np.random.default_rng(2)
    rows = [f"{rng.integers(64) / 8},n{rng.integers(30)},{'ab'[rng.integers(2)]}" for _ in range(600)]
    path = tmp_path / "eighths.csv"
    path.write_text("\n".join(["x,name,class", *rows]) + "\n")
    runs = {
        memory: train(config(f"run{memory}", data=str(path), memory=memory, dtype="float64", run_dir=tmp_path / memory))
        for memory in ("1k", "20k", "1g")
    }
    storages = [saved(run.folder)["resolved"]["storage"] for run in runs.values()]
    assert storages == ["disk", "rows", "memory"]
    assert_same_run(runs["1k"].folder, runs["20k"])
    assert (runs["1k"].folder / "model.safetensors").read_bytes() != (
        runs["1g"].folder / "model.safetensors"
    ).read_bytes()  # in memory the order of rows differs


@pytest.mark.parametrize("target", ["class", "x1"])
def test_a_streamed_split_is_evaluated_as_in_memory(target: str, config: Config, monkeypatch: pytest.MonkeyPatch):
    """In several pieces; the remaining difference is the float32 of the cache."""
    monkeypatch.setattr("deltaprop.training.evaluate.CHUNK", 50)
    metrics = []
    for storage in ("memory", "disk"):
        setup = prepare(config("run", target=(target,)), storage=storage)  # type: ignore[arg-type]
        evaluation = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
        assert evaluation is not None
        assert len(evaluation.outputs) == 140  # a fifth of 700
        metrics.append((evaluation.loss, evaluation.accuracy or evaluation.rmse))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.parametrize(
    ("engine", "target", "drop"),
    [pytest.param("autograd", "class", "city", marks=pytest.mark.slow), ("explicit", "x1", "city class")],
)
def test_tensorboard_plots_work_for_rows_on_disk(engine: str, target: str, drop: str, config: Config):
    """Without a warning, and with the same tags as in memory: the decision boundary, or the fitted curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = []
    for memory in ("1g", "1k"):
        warnings: list[str] = []
        reporter = Silent()
        reporter.warn = warnings.append  # type: ignore[method-assign]
        settings: dict[str, Any] = {"engine": engine, "target": (target,), "drop": drop.split(), "log_every": 1}
        result = train(config(f"run{memory}", memory=memory, epochs=1, **settings), reporter)
        assert not warnings
        events = EventAccumulator(str(result.folder))
        events.Reload()
        tags.append(events.Tags())
    assert tags[0]["images"]
    assert tags[0] == tags[1]


# --- the command ---


def words(config: TrainConfig, *more: str) -> list[str]:
    """Return the command-line arguments of a run."""
    return [
        "train", "--data", config.data, "--cache", str(config.cache), "--memory", config.memory, "--hidden", "8",
        "--epochs", "3", "--lr", "0.05", "--log-every", "0", "--seed", "0", "--run-dir", str(config.run_dir), *more,
    ]  # fmt: skip


def test_the_command_streams_a_table_that_does_not_fit(config: Config, capsys: pytest.CaptureFixture[str]):
    whole = train(config("whole"))
    assert main(words(config("run"))) == 0
    assert capsys.readouterr().err == ""
    assert saved(config("run").run_dir or Path())["resolved"]["storage"] == "disk"
    assert_same_run(config("run").run_dir or Path(), whole)


def test_threads_are_tuned_on_rows_from_disk(config: Config):
    assert main(words(config("run"), "--threads", "tune")) == 0
    assert saved(config("run").run_dir or Path())["resolved"]["threads_tuned"]


def test_a_deleted_cache_is_rebuilt_on_resume(config: Config, tmp_path: Path):
    whole = train(config("whole"))
    with pytest.raises(Terminated):
        train(config("interrupted"), StopAt(40))
    shutil.rmtree(tmp_path / "cache")
    assert main(["train", "--resume", str(tmp_path / "interrupted")]) == 0
    assert_same_run(tmp_path / "interrupted", whole)


def test_a_changed_table_is_refused_on_resume(config: Config, table: Path, capsys: Any):
    result = train(config("run"))
    table.write_text(table.read_text().replace(",Oslo,", ",Rome,", 1))
    assert main(["train", "--resume", str(result.folder), "--epochs", "4"]) == 2
    assert "are not those that the run was trained on" in capsys.readouterr().err


def interrupted(config: TrainConfig, number: int, moment: int) -> int:
    """Run the command in a child that sends itself a signal after ``moment`` blocks; return its exit code."""

    def work() -> None:
        remaining = [moment]

        def reading(self: ConsoleReporter, what: str, done: int, total: int) -> None:
            remaining[0] -= 1
            if remaining[0] == 0:
                os.kill(os.getpid(), number)

        ConsoleReporter.reading = reading  # type: ignore[method-assign]
        raise SystemExit(main(words(config)))

    return forked(work)


@pytest.mark.parametrize("moment", [1, 2, 20, 50])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_reading_leaves_no_files(
    number: int,
    code: int,
    moment: int,
    table: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
):
    """No cache, no run folder, at most one line; 4000 rows of some 28 bytes are over 50 blocks."""
    table.write_text("\n".join(lines_of(4000)) + "\n")
    monkeypatch.setattr(csv_format, "READ_BYTES", 2048)
    assert interrupted(config("run"), number, moment) == code
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").iterdir()]
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err in ("interrupted\n", "")


@pytest.mark.slow
def test_a_signal_at_any_moment_of_reading_leaves_no_files(table: Path, config: Config, tmp_path: Path):
    """From the creation of the cache's first file on; each child gets the signal a little later."""
    table.write_text("\n".join(lines_of(20_000)) + "\n")
    codes = []
    for number in range(12):
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(1)
                csv_format.READ_BYTES = 1 << 14
                code = main(words(config("run")))
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                os._exit(code)
        while not [*tmp_path.glob("cache/.*")]:  # no time limit here: the whole test run has one
            time.sleep(0.0005)
        time.sleep(0.004 * number)
        os.kill(child, signal.SIGINT)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert not [*tmp_path.glob("cache/.*")]
        if [*tmp_path.glob("cache/*")]:
            break  # the whole table was read by then
    assert {*codes} == {130}


def test_a_full_disk_is_reported_in_one_line(table: Path, config: Config, tmp_path: Path, capfd: Any):
    """RLIMIT_FSIZE of 4096 bytes against 700 rows of 12; no run folder is left either."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        raise SystemExit(main(words(config("run"))))

    assert forked(work) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'cache'}: the rows do not fit in memory, and cannot be written here: ")
    assert "File too large" in line
    assert not [*(tmp_path / "cache").iterdir()]
    assert not (tmp_path / "run").exists()
