"""The data loader: each row once per epoch, well shuffled, and the same bits however often a run is resumed."""

from __future__ import annotations

import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaprop import UserError
from deltaprop.cli.console import describe
from deltaprop.data import Split, StreamedSplit
from deltaprop.data.store import InMemory
from deltaprop.training import TrainConfig, data_loader, train
from deltaprop.training.data_loader import BLOCK_BYTES, CHUNK_BYTES, DataLoader, Order
from deltaprop.training.objective import choose_objective
from deltaprop.training.setup import prepare
from tests.training.faults.shim import forked
from tests.training.test_resume import assert_same_run, interrupted_and_resumed

ROWS, BATCH, BLOCK, CHUNK = 1003, 8, 20, 200  # rows; 1003 leave 3 for the last batch
ROW_BYTES = 8  # of two inputs in float32


# --- the rows of an epoch ---


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use shards of 25 batches, each of ten blocks."""
    monkeypatch.setattr(data_loader, "CHUNK_BYTES", CHUNK * ROW_BYTES)
    monkeypatch.setattr(data_loader, "BLOCK_BYTES", BLOCK * ROW_BYTES)


def streamed(rows: int = ROWS, every: int = 3) -> StreamedSplit:
    """Return a split whose row i holds (i, −i) and is every third stored row; labels are i modulo 2."""
    own = np.arange(rows)
    stored = np.repeat(np.stack([own, -own], axis=1).astype(np.float64), every, axis=0)
    return StreamedSplit(
        store=InMemory(stored), rows=own * every, width=2, y=torch.from_numpy(own % 2), dtype=torch.float32,
        encode=lambda store, rows, x: x.copy_(torch.from_numpy(store.take(rows))),
    )  # fmt: skip


def make_loader(rows: int = ROWS, batch_size: int = BATCH) -> DataLoader:
    """Return a loader of the streamed split."""
    return DataLoader(streamed(rows), choose_objective("auto", "classification", 2, "none"), batch_size)


def drawn(loader: DataLoader, seed: int = 0) -> Order:
    """Return the order of an epoch."""
    return loader.draw(torch.Generator().manual_seed(seed))


def batches(loader: DataLoader, order: Order, done: int = 0) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Return the remaining steps of an epoch: the number of each, and its x and y as an engine takes them."""
    steps = []
    for shard in loader.shards(order, done):
        for number, rows in enumerate(shard.order.split(loader.batch_size)):
            steps.append((shard.first + number, shard.x[rows], shard.y[rows]))
    return steps


@pytest.mark.parametrize("rows", [1, 7, 8, BLOCK, CHUNK - 1, CHUNK, CHUNK + 1, ROWS])
def test_an_epoch_takes_each_row_once(rows: int):
    loader = make_loader(rows)
    order = drawn(loader)
    assert order.rows.sort().values.tolist() == [*range(rows)]
    x = torch.cat([x for _, x, _ in batches(loader, order)])
    torch.testing.assert_close(x, torch.stack([order.rows, -order.rows], dim=1).float(), rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64, 199, 200, 201, 5000])
def test_sharded_steps_equal_those_of_an_unsharded_epoch(batch_size: int):
    """No batch spans two shards: the n-th holds the n-th rows of the order, and all but the last are full."""
    loader = make_loader(batch_size=batch_size)
    order = drawn(loader)
    assert loader.chunk % batch_size == 0
    steps = batches(loader, order)
    assert [number for number, _, _ in steps] == [*range(-(-ROWS // batch_size))]
    for (_, x, y), rows in zip(steps, order.rows.split(batch_size), strict=True):
        torch.testing.assert_close(x[:, 0], rows.float(), rtol=0, atol=0)
        torch.testing.assert_close(y, rows % 2, rtol=0, atol=0)


@pytest.mark.parametrize("done", [0, 1, 24, 25, 26, 100, 124, 125, 126])
def test_a_resumed_epoch_starts_with_the_interrupted_shard(done: int):
    """A shard has 25 steps and the epoch 126; when all are done, no shard remains."""
    loader = make_loader()
    order = drawn(loader)
    left = batches(loader, order, done)
    whole = batches(loader, order)[done // 25 * 25 :]
    assert [number for number, _, _ in left] == [number for number, _, _ in whole]
    for (_, x, _), (_, same_x, _) in zip(left, whole, strict=True):
        torch.testing.assert_close(x, same_x, rtol=0, atol=0)


def test_rows_are_read_in_file_order(monkeypatch: pytest.MonkeyPatch):
    """Disks are fastest at reading forward."""
    asked: list[torch.Tensor] = []
    inputs = StreamedSplit.inputs
    monkeypatch.setattr(StreamedSplit, "inputs", lambda self, rows, out: asked.append(rows) or inputs(self, rows, out))
    loader = make_loader()
    batches(loader, drawn(loader))
    assert [len(rows) for rows in asked] == [200, 200, 200, 200, 200, 3]
    assert all(bool((rows.diff() > 0).all()) for rows in asked)


def test_at_most_one_shard_is_read_ahead():
    """Two shards are in memory at a time: the one that is trained on, and the next."""
    loader = make_loader()
    read: list[int] = []
    plain = loader._read
    loader._read = lambda first, *rows: read.append(first) or plain(first, *rows)  # type: ignore[method-assign,func-returns-value]
    for number, _ in enumerate(loader.shards(drawn(loader), 0), start=1):
        time.sleep(0.01)
        assert len(read) <= number + 1
    assert read == [0, 25, 50, 75, 100, 125]


def test_each_shard_is_prefetched_before_the_previous_one_is_read(monkeypatch: pytest.MonkeyPatch):
    """The first is prefetched at once. So neither the disk nor the training waits longer than necessary."""
    calls: list[tuple[str, list[int]]] = []
    expect, inputs = StreamedSplit.expect, StreamedSplit.inputs
    monkeypatch.setattr(
        StreamedSplit, "expect", lambda self, rows: calls.append(("asked", sorted(rows))) or expect(self, rows)
    )
    monkeypatch.setattr(
        StreamedSplit, "inputs", lambda self, rows, out: calls.append(("read", sorted(rows))) or inputs(self, rows, out)
    )
    loader = make_loader(2 * CHUNK + 1)
    order = drawn(loader)
    batches(loader, order)
    first, second, last = (sorted(part) for part in order.rows.split(CHUNK))
    assert calls == [
        ("asked", first), ("asked", second), ("read", first), ("asked", last), ("read", second), ("read", last)
    ]  # fmt: skip


def test_two_buffers_serve_all_shards_of_all_epochs():
    """A shard keeps its buffer until the next one is requested; meanwhile the other buffer is filled."""
    loader, addresses = make_loader(), []
    for _ in range(2):
        order = drawn(loader)
        for shard, rows in zip(loader.shards(order, 0), order.rows.split(CHUNK), strict=True):
            time.sleep(0.01)
            torch.testing.assert_close(shard.x[shard.order, 0], rows.float(), rtol=0, atol=0)
            addresses.append(shard.x.data_ptr())
    assert len(addresses) == 12
    assert addresses[:2] * 6 == addresses
    assert len({*addresses}) == 2


def test_a_finished_epoch_reads_nothing():
    loader = make_loader(2 * CHUNK)
    assert batches(loader, drawn(loader), 50) == []


def test_a_shard_that_cannot_be_read_ends_the_epoch(monkeypatch: pytest.MonkeyPatch):
    """An exception of the reader thread is raised after the shards read before it; the sixth shard has 3 rows."""
    loader, inputs = make_loader(), StreamedSplit.inputs

    def gone(self: StreamedSplit, rows: Any, out: Any) -> torch.Tensor:
        if len(rows) == 3:
            raise OSError("the disk is gone")
        return inputs(self, rows, out)

    monkeypatch.setattr(StreamedSplit, "inputs", gone)
    left = loader.shards(drawn(loader), 0)
    assert [next(left).first for _ in range(5)] == [0, 25, 50, 75, 100]
    with pytest.raises(OSError, match="the disk is gone"):
        next(left)


# --- the order ---


def test_the_order_depends_only_on_the_seed():
    loader = make_loader()
    first = drawn(loader)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    batches(loader, first)
    assert torch.equal(drawn(make_loader()).rows, first.rows)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(drawn(loader, 1).rows, first.rows)


def test_two_epochs_have_different_orders():
    loader, generator = make_loader(), torch.Generator().manual_seed(0)
    assert not torch.equal(loader.draw(generator).rows, loader.draw(generator).rows)


@pytest.mark.parametrize("seed", range(5))
def test_each_shard_mixes_blocks_from_the_whole_file(seed: int):
    """For a sorted file: the mean block number of a shard is distributed as for random blocks.

    A shard holds m = 10 of B = 1000 blocks, drawn without replacement. The number of a block has the variance
    (B² − 1)/12, a mean of m of them the deviation √((B² − 1)/12 · (B − m)/(B − 1)/m), 91 blocks. Of 100 shards none
    is off by more than 4.5 deviations (probability 7e-4 for all 100 together, if they were normal), and their root
    mean square is within a quarter of one deviation (its own deviation is 1/√200 = 7 %).
    """
    count, m = 1000, CHUNK // BLOCK
    order = drawn(make_loader(count * BLOCK), seed)
    means = (order.rows // BLOCK).double().split(CHUNK)
    deviation = ((count**2 - 1) / 12 * (count - m) / (count - 1) / m) ** 0.5
    off = torch.stack([(shard.mean() - (count - 1) / 2) / deviation for shard in means])
    assert len(off) == 100
    assert off.abs().max() < 4.5
    assert 0.75 < float(off.square().mean().sqrt()) < 1.25


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_shuffled_within_a_shard(seed: int):
    """A row of a shard of 200 is followed by its successor in the file with probability 1/200 · 19/20.

    Of 20 000 rows 95 are (Poisson, deviation 9.7: below 95 + 5 deviations); without shuffling it would be 19 000.
    """
    order = drawn(make_loader(20_000), seed)
    assert int((order.rows.diff() == 1).sum()) < 95 + 5 * 9.7


def test_a_shard_has_at_least_64_blocks():
    """So in a file sorted by class the share of a class in a shard has a deviation of at most ½/√64 = 6 %."""
    assert CHUNK_BYTES // BLOCK_BYTES >= 64


@pytest.mark.slow
def test_drawing_an_order_takes_memory_for_its_rows_only():
    """The indices of 20 million rows take 160 MB; 1 GiB is enough to draw the order."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30 + _address_space(), resource.RLIM_INFINITY))
        loader = make_loader()
        loader.part = range(20_000_000)  # type: ignore[assignment]
        loader.block, loader.chunk = 6000, 384_000
        drawn(loader)

    assert forked(work) == 0


def test_drawing_an_order_copies_no_row_indices(monkeypatch: pytest.MonkeyPatch):
    """Each row index is written once, in the memory of the order, however many blocks there are."""
    made: list[torch.Tensor] = []
    arange = torch.arange

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        made.append(arange(*args, **options))
        return made[-1]

    monkeypatch.setattr(torch, "arange", watched)
    order = drawn(make_loader())
    assert sum(len(numbers) for numbers in made) == ROWS
    assert {numbers.untyped_storage().data_ptr() for numbers in made} == {order.rows.untyped_storage().data_ptr()}


def _address_space() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmSize:")) << 10


# --- augmentation ---


class AddsNoise:
    """A stand-in for an augmentation: adds a random number to each picture."""

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + torch.rand((), generator=generator)


def augmented(rows: int = 100) -> DataLoader:
    """Return a loader of pictures [i, i] with labels i modulo 2, in shards of 24 rows, 3 steps."""
    own = torch.arange(rows)
    part = Split(x=torch.stack([own, own], dim=1).double(), y=own % 2)
    objective = choose_objective("auto", "classification", 2, "none")
    return DataLoader(part, objective, BATCH, (rows, 3 * BATCH), AddsNoise())  # type: ignore[arg-type]


def test_each_augmented_picture_keeps_its_label_and_position():
    loader = augmented()
    order = drawn(loader)
    steps = batches(loader, order)
    assert [number for number, _, _ in steps] == [*range(13)]
    for (_, x, y), rows in zip(steps, order.rows.split(BATCH), strict=True):
        torch.testing.assert_close(x[:, 0].floor().long(), rows, rtol=0, atol=0)
        torch.testing.assert_close(y, rows % 2, rtol=0, atol=0)


def test_a_resumed_epoch_is_augmented_as_without_the_interruption():
    whole, interrupted = augmented(), augmented()
    order, order_again = drawn(whole), drawn(interrupted)
    assert torch.equal(order_again.rows, order.rows)
    assert order_again.seed == order.seed
    for (_, x, _), (_, same_x, _) in zip(batches(interrupted, order_again, 7), batches(whole, order)[6:], strict=True):
        assert torch.equal(x, same_x)


def test_each_epoch_is_augmented_differently():
    loader, generator = augmented(), torch.Generator().manual_seed(0)
    noise = []
    for _ in range(3):
        steps = batches(loader, loader.draw(generator))
        noise += [float(x[0, 0] % 1) for _, x, _ in steps[::3]]  # one step of each shard
    assert len({*noise}) == 15


@pytest.mark.parametrize(
    ("engine", "stops"),
    [
        ("autograd", (1,)),
        ("explicit", (100,)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("autograd", (60, 30)), ("explicit", (1,)))),
    ],
    ids=str,
)
def test_resume_of_an_augmented_run_gives_the_same_bits(engine: str, stops: tuple[int, ...], tmp_path: Path):
    def config(name: str) -> TrainConfig:
        return TrainConfig(
            augment="affine-elastic", engine=engine, epochs=2, hidden=(8,), log_every=0, seed=0,  # type: ignore[arg-type]
            run_dir=tmp_path / name,
        )  # fmt: skip

    whole = train(config("whole"))
    assert_same_run(interrupted_and_resumed(config("interrupted"), *stops), whole)
    plain = train(dataclasses.replace(config("plain"), augment="none"))
    assert plain.metrics["train_loss"] != whole.metrics["train_loss"]


def test_the_header_mentions_augmentation(tmp_path: Path):
    rows = dict.fromkeys(("elastic", "none"), "")
    for kind in rows:
        setup = prepare(TrainConfig(augment=kind, run_dir=tmp_path / "run"))  # type: ignore[arg-type]
        rows[kind] = " ".join(text for _, text in describe(setup))
    assert "deformed anew in every epoch: elastic" in rows["elastic"]
    assert "deformed" not in rows["none"]


def test_augmentation_is_refused_for_data_without_pictures(tmp_path: Path):
    with pytest.raises(UserError, match=r"`augment='elastic'` is for pictures .*, and moons has none"):
        train(TrainConfig(data="moons", augment="elastic", run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_augmentation_is_refused_for_pixels_scaled_separately(tmp_path: Path):
    """A pixel that is nearly constant has a deviation near 0, and a moved stroke would be divided by it."""
    with pytest.raises(
        UserError, match="`augment='affine'` needs the same scaling for all pixels: take `scaling='pixel'`"
    ):
        train(TrainConfig(augment="affine", scaling="standard", run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
