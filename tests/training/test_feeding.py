"""Rows that are streamed: each once an epoch, well mixed, and to the same bits however often a run is broken off."""

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

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.data import Split, StreamedSplit, csv_table
from deltaprop.data.store import InMemory
from deltaprop.training import TrainConfig, feeding, train
from deltaprop.training.console import ConsoleReporter, describe
from deltaprop.training.evaluate import evaluate
from deltaprop.training.feeding import BLOCK_BYTES, CHUNK_BYTES, Feed
from deltaprop.training.objective import choose_objective
from deltaprop.training.reporter import Silent
from deltaprop.training.setup import prepare
from deltaprop.training.signals import Terminated
from tests.training.faults.shim import forked
from tests.training.test_resume import StopAt, broken_off, same

ROWS, BATCH, BLOCK, CHUNK = 1003, 8, 20, 200  # rows: 1003 leaves 3 for the last batch
ROW_BYTES = 8  # of two inputs in float32


# --- the rows of an epoch ---


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 25 batches, each of ten blocks."""
    monkeypatch.setattr(feeding, "CHUNK_BYTES", CHUNK * ROW_BYTES)
    monkeypatch.setattr(feeding, "BLOCK_BYTES", BLOCK * ROW_BYTES)


def streamed(rows: int = ROWS, every: int = 3) -> StreamedSplit:
    """Return a part whose row i holds (i, −i), each third row of what is stored; labels are i modulo 2."""
    own = np.arange(rows)
    stored = np.repeat(np.stack([own, -own], axis=1).astype(np.float64), every, axis=0)
    return StreamedSplit(
        store=InMemory(stored), rows=own * every, width=2, y=torch.from_numpy(own % 2), dtype=torch.float32,
        encode=lambda store, rows, x: x.copy_(torch.from_numpy(store.take(rows))),
    )  # fmt: skip


def feed(rows: int = ROWS, batch_size: int = BATCH) -> Feed:
    """Return a feed of it."""
    return Feed(streamed(rows), choose_objective("auto", "classification", 2, "none"), batch_size)


def drawn(of: Feed, seed: int = 0) -> torch.Tensor:
    """Return the order of an epoch."""
    return of.draw(torch.Generator().manual_seed(seed))


def batches(of: Feed, order: torch.Tensor, done: int = 0) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Return the steps that are left of an epoch: the number of each, and its x and y as an engine takes them."""
    found = []
    for chunk in of.chunks(order, done):
        for number, rows in enumerate(chunk.order.split(of.batch_size)):
            found.append((chunk.first + number, chunk.x[rows], chunk.y[rows]))
    return found


@pytest.mark.parametrize("rows", [1, 7, 8, BLOCK, CHUNK - 1, CHUNK, CHUNK + 1, ROWS])
def test_an_epoch_takes_each_row_once(rows: int):
    of = feed(rows)
    order = drawn(of)
    assert order.sort().values.tolist() == [*range(rows)]
    x = torch.cat([x for _, x, _ in batches(of, order)])
    torch.testing.assert_close(x, torch.stack([order, -order], dim=1).float(), rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64, 199, 200, 201, 5000])
def test_the_steps_are_those_of_an_epoch_in_one_piece(batch_size: int):
    """No batch straddles a chunk: the n-th holds the n-th rows of the order, and all but the last are full."""
    of = feed(batch_size=batch_size)
    order = drawn(of)
    assert of.chunk % batch_size == 0
    found = batches(of, order)
    assert [number for number, _, _ in found] == [*range(-(-ROWS // batch_size))]
    for (_, x, y), rows in zip(found, order.split(batch_size), strict=True):
        torch.testing.assert_close(x[:, 0], rows.float(), rtol=0, atol=0)
        torch.testing.assert_close(y, rows % 2, rtol=0, atol=0)


@pytest.mark.parametrize("done", [0, 1, 24, 25, 26, 100, 124, 125, 126])
def test_what_is_left_of_an_epoch_begins_with_the_chunk_it_was_broken_off_in(done: int):
    """Chunks are of 25 steps; 126 steps in all: when all are done there is nothing left to learn."""
    of = feed()
    order = drawn(of)
    left = batches(of, order, done)
    whole = batches(of, order)[done // 25 * 25 :]
    assert [number for number, _, _ in left] == [number for number, _, _ in whole]
    for (_, x, _), (_, same_x, _) in zip(left, whole, strict=True):
        torch.testing.assert_close(x, same_x, rtol=0, atol=0)


def test_rows_are_read_in_the_order_of_the_file(monkeypatch: pytest.MonkeyPatch):
    """A disk goes forward."""
    asked: list[torch.Tensor] = []
    inputs = StreamedSplit.inputs
    monkeypatch.setattr(StreamedSplit, "inputs", lambda self, rows, out: asked.append(rows) or inputs(self, rows, out))
    of = feed()
    batches(of, drawn(of))
    assert [len(rows) for rows in asked] == [200, 200, 200, 200, 200, 3]
    assert all(bool((rows.diff() > 0).all()) for rows in asked)


def test_one_chunk_is_read_ahead_and_no_more():
    """Two are in memory at a time: the one that is learnt from, and the next."""
    of = feed()
    read: list[int] = []
    plain = of._read
    of._read = lambda first, *rows: read.append(first) or plain(first, *rows)  # type: ignore[method-assign,func-returns-value]
    for number, _ in enumerate(of.chunks(drawn(of), 0), start=1):
        time.sleep(0.01)
        assert len(read) <= number + 1
    assert read == [0, 25, 50, 75, 100, 125]


def test_the_disk_is_asked_for_each_chunk_before_the_one_before_it_is_read(monkeypatch: pytest.MonkeyPatch):
    """And for the first at once; so the disk never waits for the net, nor the net for more of the disk than it must."""
    told: list[tuple[str, list[int]]] = []
    expect, inputs = StreamedSplit.expect, StreamedSplit.inputs
    monkeypatch.setattr(
        StreamedSplit, "expect", lambda self, rows: told.append(("asked", sorted(rows))) or expect(self, rows)
    )
    monkeypatch.setattr(
        StreamedSplit, "inputs", lambda self, rows, out: told.append(("read", sorted(rows))) or inputs(self, rows, out)
    )
    of = feed(2 * CHUNK + 1)
    order = drawn(of)
    batches(of, order)
    first, second, last = (sorted(part) for part in order.split(CHUNK))
    assert told == [
        ("asked", first), ("asked", second), ("read", first), ("asked", last), ("read", second), ("read", last)
    ]  # fmt: skip


def test_two_pieces_of_memory_serve_all_chunks_of_all_epochs():
    """A chunk keeps its own until the next is asked for: what is read meanwhile goes to the other."""
    of, places = feed(), []
    for _ in range(2):
        order = drawn(of)
        for chunk, rows in zip(of.chunks(order, 0), order.split(CHUNK), strict=True):
            time.sleep(0.01)
            torch.testing.assert_close(chunk.x[chunk.order, 0], rows.float(), rtol=0, atol=0)
            places.append(chunk.x.data_ptr())
    assert len(places) == 12
    assert places[:2] * 6 == places
    assert len({*places}) == 2


def test_an_epoch_that_is_done_reads_nothing():
    of = feed(2 * CHUNK)
    assert batches(of, drawn(of), 50) == []


def test_a_chunk_that_cannot_be_read_ends_the_epoch(monkeypatch: pytest.MonkeyPatch):
    """What its thread raises is raised here, once what was read before is learnt from; the sixth chunk has 3 rows."""
    of, inputs = feed(), StreamedSplit.inputs

    def gone(self: StreamedSplit, rows: Any, out: Any) -> torch.Tensor:
        if len(rows) == 3:
            raise OSError("the disk is gone")
        return inputs(self, rows, out)

    monkeypatch.setattr(StreamedSplit, "inputs", gone)
    left = of.chunks(drawn(of), 0)
    assert [next(left).first for _ in range(5)] == [0, 25, 50, 75, 100]
    with pytest.raises(OSError, match="the disk is gone"):
        next(left)


# --- the order ---


def test_it_hangs_on_the_seed_alone():
    of = feed()
    first = drawn(of)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    batches(of, first)
    assert torch.equal(drawn(feed()), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(drawn(of, 1), first)


def test_no_two_epochs_have_the_same():
    of, generator = feed(), torch.Generator().manual_seed(0)
    assert not torch.equal(of.draw(generator), of.draw(generator))


@pytest.mark.parametrize("seed", range(5))
def test_each_chunk_mixes_blocks_from_all_over_the_file(seed: int):
    """Of a file that is sorted: the mean place of a chunk's rows is that of a fair draw of its blocks.

    A chunk holds m = 10 of B = 1000 blocks, drawn without replacement. The number of a block has variance
    (B² − 1)/12, a mean of m of them a deviation of √((B² − 1)/12 · (B − m)/(B − 1)/m), 91 blocks. Of 100 chunks none
    is off by more than 4.5 of them (probability 7e-4 for all 100 together, were they normal), and their root mean
    square is within a quarter of one (it scatters by 1/√200 = 7 %).
    """
    count, m = 1000, CHUNK // BLOCK
    order = drawn(feed(count * BLOCK), seed)
    means = (order // BLOCK).double().split(CHUNK)
    deviation = ((count**2 - 1) / 12 * (count - m) / (count - 1) / m) ** 0.5
    off = torch.stack([(chunk.mean() - (count - 1) / 2) / deviation for chunk in means])
    assert len(off) == 100
    assert off.abs().max() < 4.5
    assert 0.75 < float(off.square().mean().sqrt()) < 1.25


@pytest.mark.parametrize("seed", range(5))
def test_within_a_chunk_neighbours_are_parted(seed: int):
    """A row of a chunk of 200 is followed by the one that follows it in its block with probability 1/200 · 19/20.

    Of 20 000 rows 95 are (Poisson, deviation 9.7: below 95 + 5 deviations); blocks by themselves would leave 19 000.
    """
    order = drawn(feed(20_000), seed)
    assert int((order.diff() == 1).sum()) < 95 + 5 * 9.7


def test_a_chunk_has_64_blocks():
    """So of classes that lie one after the other each chunk has a share whose deviation is at most ½/√64 = 6 %."""
    assert CHUNK_BYTES // BLOCK_BYTES >= 64


@pytest.mark.slow
def test_an_order_of_many_rows_takes_memory_for_those_alone():
    """Of 20 million rows the row numbers take 160 MB; a few times as much is room enough to draw them."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30 + _address_space(), resource.RLIM_INFINITY))
        of = feed()
        of.part = range(20_000_000)  # type: ignore[assignment]
        of.block, of.chunk = 6000, 384_000
        drawn(of)

    assert forked(work) == 0


def test_an_order_is_drawn_without_a_copy_of_it_for_each_block(monkeypatch: pytest.MonkeyPatch):
    """Each row number is made once, however many blocks there are, and lies where the order has it."""
    made: list[torch.Tensor] = []
    arange = torch.arange

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        made.append(arange(*args, **options))
        return made[-1]

    monkeypatch.setattr(torch, "arange", watched)
    order = drawn(feed())
    assert sum(len(numbers) for numbers in made) == ROWS
    assert {numbers.untyped_storage().data_ptr() for numbers in made} == {order.untyped_storage().data_ptr()}


def _address_space() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmSize:")) << 10


# --- pictures that are deformed ---


class Marked:
    """Adds to each picture a number of its own generator: what is given can be told from what it was made of."""

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + torch.rand((), generator=generator)


def deformed(rows: int = 100) -> Feed:
    """Return a feed of pictures [i, i]: labels are i modulo 2; in chunks of 24 rows, 3 steps."""
    own = torch.arange(rows)
    part = Split(x=torch.stack([own, own], dim=1).double(), y=own % 2)
    objective = choose_objective("auto", "classification", 2, "none")
    return Feed(part, objective, BATCH, (rows, 3 * BATCH), Marked())  # type: ignore[arg-type]


def test_each_picture_keeps_its_label_and_its_place():
    of = deformed()
    order = drawn(of)
    found = batches(of, order)
    assert [number for number, _, _ in found] == [*range(13)]
    for (_, x, y), rows in zip(found, order.split(BATCH), strict=True):
        torch.testing.assert_close(x[:, 0].floor().long(), rows, rtol=0, atol=0)
        torch.testing.assert_close(y, rows % 2, rtol=0, atol=0)


def test_what_is_left_of_an_epoch_is_deformed_as_it_would_have_been():
    whole, broken = deformed(), deformed()
    order = drawn(whole)
    assert torch.equal(drawn(broken), order)
    for (_, x, _), (_, same_x, _) in zip(batches(broken, order, 7), batches(whole, order)[6:], strict=True):
        assert torch.equal(x, same_x)


def test_each_epoch_deforms_anew():
    of, generator = deformed(), torch.Generator().manual_seed(0)
    marks = []
    for _ in range(3):
        found = batches(of, of.draw(generator))
        marks += [float(x[0, 0] % 1) for _, x, _ in found[::3]]  # of each chunk
    assert len({*marks}) == 15


@pytest.mark.parametrize("stops", [(1,), (100,), (60, 30)], ids=str)
@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_broken_off_among_deformed_pictures_it_ends_with_the_same_bits(
    engine: str, stops: tuple[int, ...], tmp_path: Path
):
    def config(name: str) -> TrainConfig:
        return TrainConfig(
            augment="affine-elastic", engine=engine, epochs=2, hidden=(8,), log_every=0, seed=0,  # type: ignore[arg-type]
            run_dir=tmp_path / name,
        )  # fmt: skip

    whole = train(config("whole"))
    same(broken_off(config("broken"), *stops), whole)
    plain = train(dataclasses.replace(config("plain"), augment="none"))
    assert plain.metrics["train_loss"] != whole.metrics["train_loss"]


def test_the_header_says_that_pictures_are_deformed(tmp_path: Path):
    rows = dict.fromkeys(("elastic", "none"), "")
    for kind in rows:
        setup = prepare(TrainConfig(augment=kind, run_dir=tmp_path / "run"))  # type: ignore[arg-type]
        rows[kind] = " ".join(text for _, text in describe(setup))
    assert "deformed anew in every epoch: elastic" in rows["elastic"]
    assert "deformed" not in rows["none"]


def test_what_is_no_picture_is_not_deformed(tmp_path: Path):
    with pytest.raises(UserError, match="--augment elastic is for pictures, and moons has none"):
        train(TrainConfig(data="moons", augment="elastic", run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# --- runs ---


def lines_of(rows: int, inputs: int = 2) -> list[str]:
    """Return a table: numbers, a name, and a class that hangs on them."""
    rng = np.random.default_rng(1)
    found = [",".join([*(f"x{number}" for number in range(inputs)), "city", "class"])]
    for numbers in rng.normal(size=(rows, inputs)):
        city = ("Oslo", "Rome", "Bern")[rng.integers(3)]
        sure = numbers.sum() + (city == "Rome")
        found.append(",".join([*(f"{x:.6f}" for x in numbers), city, "high" if sure > 0 else "low"]))
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 700 rows: 504 to train on, of 20 bytes, in chunks of 10 steps and blocks of 8 rows."""
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines_of(700)) + "\n")
    return path


@pytest.fixture
def config(table: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a function that gives a run of 3 epochs from disk: 32 steps each; settings may be replaced."""

    def make(name: str, **settings: Any) -> TrainConfig:
        plain = {
            "data": str(table), "cache": tmp_path / "cache", "memory": "1k", "hidden": (8,), "epochs": 3, "lr": 0.05,
            "log_every": 0, "seed": 0, "run_dir": tmp_path / name,
        }  # fmt: skip
        return TrainConfig(**{**plain, **settings})

    return make


Config = Callable[..., TrainConfig]


def saved(folder: Path) -> dict[str, Any]:
    """Return what is said of a run in its config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("stops", [(1,), (9, 1, 1), (10,), (11, 40), (32,), (50,), (95,)], ids=str)
@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_broken_off_it_ends_with_the_same_bits(engine: str, stops: tuple[int, ...], config: Config):
    """In a chunk, between two, between epochs, again and again."""
    whole = train(config("whole", engine=engine))
    assert saved(whole.folder)["resolved"]["storage"] == "disk"
    same(broken_off(config("broken", engine=engine), *stops), whole)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
@pytest.mark.parametrize(("before", "after"), [("1k", "1g"), ("1g", "1k"), ("20k", "1g"), ("1k", "auto")])
def test_with_another_memory_it_goes_on_to_the_same_bits(before: str, after: str, engine: str, config: Config):
    """Whether rows are streamed is a matter of the run, not of who goes on with it."""
    whole = train(config("whole", engine=engine, memory=before))
    resumed(config("broken", engine=engine, memory=before), 40, memory=after)
    same(config("broken").run_dir or Path(), whole)


def resumed(config: TrainConfig, stop: int, **changes: Any) -> None:
    """Run to the end, broken off once, and going on with other settings."""
    with pytest.raises(Terminated):
        train(config, StopAt(stop))
    train(dataclasses.replace(config, **changes), resume=config.run_dir)


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_by_other_chunks_and_blocks_it_goes_on_to_the_same_bits(
    engine: str, config: Config, monkeypatch: pytest.MonkeyPatch
):
    """Those of a later version are no matter of a run that was begun before."""
    whole = train(config("whole", engine=engine))
    broken = config("broken", engine=engine)
    with pytest.raises(Terminated):
        train(broken, StopAt(15))
    monkeypatch.setattr(feeding, "CHUNK_BYTES", CHUNK * ROW_BYTES // 2)
    monkeypatch.setattr(feeding, "BLOCK_BYTES", BLOCK * ROW_BYTES // 4)
    train(broken, resume=broken.run_dir)
    same(broken.run_dir or Path(), whole)


@pytest.mark.parametrize("memory", ["1g", "20k"])
def test_another_run_that_made_a_cache_meanwhile_changes_no_bit(memory: str, config: Config):
    """From memory, or from rows in memory: those of a cache are rounded."""
    numbers = {"dtype": "float64"}  # shows what float32 may round away
    whole = train(config("whole", memory=memory, **numbers))
    broken = config("broken", memory=memory, **numbers)
    with pytest.raises(Terminated):
        train(broken, StopAt(40))
    train(config("another", memory="1k"))
    train(broken, resume=broken.run_dir)
    same(broken.run_dir or Path(), whole)


def test_a_cache_that_is_there_changes_no_bit_of_a_run_that_fits_in_memory(config: Config):
    whole = train(config("first", memory="1g"))
    train(config("streamed"))
    again = train(config("again", memory="1g"))
    assert saved(again.folder)["resolved"]["storage"] == "memory"
    same(again.folder, whole)


@pytest.mark.parametrize(("train_rows", "test_rows"), [(700, 60), (60, 700)])
@pytest.mark.parametrize("memory", ["10k", "1g"])
def test_with_a_test_table_of_its_own_it_goes_on_to_the_same_bits(
    memory: str, train_rows: int, test_rows: int, config: Config, tmp_path: Path
):
    """Rows of 4 columns in float64: 700 take 22 kB, 60 take 2. So one of the tables fits, and the other does not."""
    settings: dict[str, Any] = {"memory": memory, "dtype": "float64"}
    for name, rows in (("data", train_rows), ("test", test_rows)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines_of(rows)) + "\n")
        settings[name] = str(path)
    whole = train(config("whole", **settings))
    resumed(config("broken", **settings), 5)
    same(config("broken").run_dir or Path(), whole)


def test_a_test_table_that_does_not_fit_is_streamed_though_the_other_does(config: Config, tmp_path: Path):
    """Of 700 rows that take 22 kB, and of 60 that take 2."""
    path = tmp_path / "small.csv"
    path.write_text("\n".join(lines_of(60)) + "\n")
    test = tmp_path / "t.csv"
    setup = prepare(config("run", data=str(path), test=str(test), memory="10k"))
    assert isinstance(setup.dataset.test, StreamedSplit)


def test_from_disk_and_from_rows_in_memory_it_ends_with_the_same_bits_of_float64(config: Config, tmp_path: Path):
    """Of numbers that float32 has: eighths from 0 to 8. 30 names, so that inputs take more than the rows they are of.

    A row: 3 columns of 8 bytes, 24; 31 inputs of 8 bytes, 248; of 600 rows 14 kB and 149. In float32 the rows on disk
    are scaled in float32 (data/streaming.py), and those in memory in float64.
    """
    rng = np.random.default_rng(2)
    rows = [f"{rng.integers(64) / 8},n{rng.integers(30)},{'ab'[rng.integers(2)]}" for _ in range(600)]
    path = tmp_path / "eighths.csv"
    path.write_text("\n".join(["x,name,class", *rows]) + "\n")
    runs = {
        memory: train(config(f"run{memory}", data=str(path), memory=memory, dtype="float64", run_dir=tmp_path / memory))
        for memory in ("1k", "20k", "1g")
    }
    kept = [saved(run.folder)["resolved"]["storage"] for run in runs.values()]
    assert kept == ["disk", "rows", "memory"]
    same(runs["1k"].folder, runs["20k"])
    assert (runs["1k"].folder / "model.safetensors").read_bytes() != (
        runs["1g"].folder / "model.safetensors"
    ).read_bytes()  # in memory the order is another


@pytest.mark.parametrize("target", ["class", "x1"])
def test_a_part_that_is_streamed_is_judged_as_in_memory(target: str, config: Config, monkeypatch: pytest.MonkeyPatch):
    """In several pieces; what is left is the float32 of the cache."""
    monkeypatch.setattr("deltaprop.training.evaluate.CHUNK", 50)
    figures = []
    for storage in ("memory", "disk"):
        setup = prepare(config("run", target=(target,)), storage=storage)  # type: ignore[arg-type]
        found = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
        assert found is not None
        assert len(found.outputs) == 140  # a fifth of 700
        figures.append((found.loss, found.accuracy or found.rmse))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.parametrize(("target", "drop"), [("class", "city"), ("x1", "city class")])
@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_views_and_pictures_are_drawn_of_rows_on_disk(engine: str, target: str, drop: str, config: Config):
    """Without a warning; in the events there is a picture of each kind as from memory: of a plane, and of a curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = []
    for memory in ("1g", "1k"):
        warned: list[str] = []
        reporter = Silent()
        reporter.warn = warned.append  # type: ignore[method-assign]
        settings: dict[str, Any] = {"engine": engine, "target": (target,), "drop": drop.split(), "log_every": 1}
        result = train(config(f"run{memory}", memory=memory, epochs=1, **settings), reporter)
        assert not warned
        events = EventAccumulator(str(result.folder))
        events.Reload()
        tags.append(events.Tags())
    assert tags[0]["images"]
    assert tags[0] == tags[1]


# --- the command ---


def words(config: TrainConfig, *more: str) -> list[str]:
    """Return the command of a run."""
    return [
        "train", "--data", config.data, "--cache", str(config.cache), "--memory", config.memory, "--hidden", "8",
        "--epochs", "3", "--lr", "0.05", "--log-every", "0", "--seed", "0", "--run-dir", str(config.run_dir), *more,
    ]  # fmt: skip


def test_the_command_streams_what_does_not_fit(config: Config, capsys: pytest.CaptureFixture[str]):
    whole = train(config("whole"))
    assert main(words(config("run"))) == 0
    assert capsys.readouterr().err == ""
    assert saved(config("run").run_dir or Path())["resolved"]["storage"] == "disk"
    same(config("run").run_dir or Path(), whole)


def test_threads_are_tuned_on_rows_from_disk(config: Config):
    assert main(words(config("run"), "--threads", "tune")) == 0
    assert saved(config("run").run_dir or Path())["resolved"]["threads_tuned"]


def test_a_cache_that_is_gone_is_made_anew_on_resume(config: Config, tmp_path: Path):
    whole = train(config("whole"))
    with pytest.raises(Terminated):
        train(config("broken"), StopAt(40))
    shutil.rmtree(tmp_path / "cache")
    assert main(["train", "--resume", str(tmp_path / "broken")]) == 0
    same(tmp_path / "broken", whole)


def test_a_table_that_has_changed_is_refused_on_resume(config: Config, table: Path, capsys: Any):
    result = train(config("run"))
    table.write_text(table.read_text().replace(",Oslo,", ",Rome,", 1))
    assert main(["train", "--resume", str(result.folder), "--epochs", "4"]) == 2
    assert "are not those that the run learnt from" in capsys.readouterr().err


def interrupted(config: TrainConfig, number: int, moment: int) -> int:
    """Start the command in a child that has a signal sent to it when so much is read; return how it ended."""

    def work() -> None:
        left = [moment]

        def reading(self: ConsoleReporter, what: str, done: int, total: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

        ConsoleReporter.reading = reading  # type: ignore[method-assign]
        raise SystemExit(main(words(config)))

    return forked(work)


@pytest.mark.parametrize("moment", [1, 2, 20, 50])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_reads_ends_it_and_leaves_nothing(
    number: int,
    code: int,
    moment: int,
    table: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
):
    """No cache, no run folder, one line at most; of 4000 rows of some 28 bytes there are over 50 blocks."""
    table.write_text("\n".join(lines_of(4000)) + "\n")
    monkeypatch.setattr(csv_table, "BLOCK_BYTES", 2048)
    assert interrupted(config("run"), number, moment) == code
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").iterdir()]
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err in ("interrupted\n", "")


def test_a_signal_at_any_time_of_the_reading_leaves_nothing(table: Path, config: Config, tmp_path: Path):
    """From the moment on that the first file of the cache is there; each child lives a little longer."""
    table.write_text("\n".join(lines_of(20_000)) + "\n")
    codes = []
    for number in range(12):
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(1)
                csv_table.BLOCK_BYTES = 1 << 14
                code = main(words(config("run")))
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                os._exit(code)
        while not [*tmp_path.glob("cache/.*")]:  # the whole test has its time limit from whoever runs it
            time.sleep(0.0005)
        time.sleep(0.004 * number)
        os.kill(child, signal.SIGINT)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert not [*tmp_path.glob("cache/.*")]
        if [*tmp_path.glob("cache/*")]:
            break  # it was read by then
    assert {*codes} == {130}


def test_a_disk_without_room_is_one_line(table: Path, config: Config, tmp_path: Path, capfd: Any):
    """RLIMIT_FSIZE: 700 rows of 12 bytes against 4096; and no run folder."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        raise SystemExit(main(words(config("run"))))

    assert forked(work) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'cache'}: the rows do not fit in memory, and cannot be written here: ")
    assert "File too large" in line
    assert not [*(tmp_path / "cache").iterdir()]
    assert not (tmp_path / "run").exists()
