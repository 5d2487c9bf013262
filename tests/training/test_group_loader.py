"""Training on rows that stay in their row groups: each once an epoch, in random order, the same after a resume."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.data.row_groups import Division
from deltaprop.distributed import World
from deltaprop.training import TrainConfig, group_loader, train
from deltaprop.training.depths import VARIANTS, measure_depth
from deltaprop.training.evaluate import evaluate, evaluate_groups, outputs_of_groups
from deltaprop.training.folds import cross_validate
from deltaprop.training.group_loader import GroupLoader, Schedule
from deltaprop.training.loaders import make_loader
from deltaprop.training.run_folder import ROW_DIGESTS
from deltaprop.training.setup import prepare
from deltaprop.training.signals import Terminated
from tests.data.test_row_groups import columns, folder, rows_of, write
from tests.training.test_resume import StopAt, assert_same_run, interrupted_and_resumed

__all__ = ["folder"]  # the fixture


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Return the configuration of a run of some shards an epoch."""
    monkeypatch.setattr(group_loader, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(group_loader, "MIXED_BYTES", 2000)
    return TrainConfig(
        data=str(folder), target=("y",), drop=("price",), memory="1k", cache=tmp_path / "cache", hidden=(6,),
        engine="explicit", dtype="float64", epochs=3, batch_size=22, lr=0.05, log_every=0, run_dir=tmp_path / "run",
    )  # fmt: skip


NUMBERS: dict[str, Any] = {"target": ("price",), "drop": ("y",), "lr": 0.01}


def loader_of(config: TrainConfig, world: World | None = None) -> GroupLoader:
    loader = make_loader(prepare(config, world=None), world=world)
    assert isinstance(loader, GroupLoader)
    return loader


def epoch(loader: GroupLoader, seed: int, done: int = 0) -> list[tuple[torch.Tensor, list[int]]]:
    """Return x in order and the sizes of this process's batches, of each shard."""
    order = loader.draw(torch.Generator().manual_seed(seed))
    return [(shard.x[shard.order], [share.own for share in shard.shares or ()]) for shard in loader.shards(order, done)]


@pytest.mark.parametrize(
    "lengths", [[5], [3, 1, 2], [1000, 1, 30, 30], [0, 7, 0], [64] * 70, [10**9, 10**6 + 1]], ids=str
)
def test_streams_give_their_rows_evenly_and_end_together(lengths: list[int]):
    total = sum(lengths)
    for seed in range(3):
        schedule, before = Schedule(lengths, seed), np.zeros(len(lengths), dtype=np.int64)
        for rows in sorted({*np.linspace(0, total, 200).astype(int).tolist(), *range(min(total, 20) + 1)}):
            given = schedule.given(rows)
            assert given.sum() == rows
            assert (given >= before).all()
            assert (abs(given - np.array(lengths) * (rows / total)) <= 3).all()
            before = given
        assert before.tolist() == lengths


def test_an_epoch_has_every_training_row_once_in_an_order_of_its_own(config: TrainConfig):
    loader = loader_of(config)
    shards = epoch(loader, 0)
    assert len(shards) > 3
    x = torch.cat([x for x, _ in shards])
    rows, _ = rows_of(prepare(config).dataset, "train")
    assert sorted(x.tolist()) == sorted(rows.tolist())
    assert not torch.equal(x, torch.cat([x for x, _ in epoch(loader, 1)]))
    assert torch.equal(x, torch.cat([x for x, _ in epoch(loader, 0)]))
    sizes = [size for _, of_shard in shards for size in of_shard]
    assert sizes == [22] * (len(x) // 22) + [len(x) % 22] * (len(x) % 22 > 0)


@pytest.mark.parametrize("batch_size", [16, 100])
@pytest.mark.parametrize(
    "groups", [[(4096, 64)], [(4900, 70)], [(2000, 2000), (3000, 100)]], ids=["64", "70", "unequal"]
)
def test_batches_of_a_sorted_table_are_as_of_a_random_order(
    groups: list[tuple[int, int]], batch_size: int, tmp_path: Path, config: TrainConfig
):
    """The share of a batch that is of the lower half has the mean and at most the deviation of random draws."""
    first = [0]

    def make(rows: int, part: int) -> dict[str, Any]:
        first.append(first[-1] + rows)
        return {"a": np.arange(rows) + first[-2] + 0.5, "y": np.arange(rows) % 2}

    parts = write(tmp_path / "sorted", make, groups)
    loader = loader_of(dataclasses.replace(config, data=str(parts), drop=("id",), batch_size=batch_size))
    x = torch.cat([x for x, _ in epoch(loader, 0)])[:, 0]
    lower = (x < x.median()).double()
    shares = lower[: len(lower) // batch_size * batch_size].view(-1, batch_size).mean(dim=1)
    assert shares.std() < 1.3 * 0.5 / batch_size**0.5
    assert lower[-len(lower) // 20 :].mean() == pytest.approx(0.5, abs=0.12)  # at the end of the epoch too
    assert lower[: len(lower) // 20].mean() == pytest.approx(0.5, abs=0.12)


def test_row_groups_blocks_and_rows_of_a_stream_are_each_in_random_order(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """With one stream, of four row groups of 1000 rows; a block has 7 rows, and 16 blocks are shuffled together."""
    monkeypatch.setattr("deltaprop.data.row_groups.STREAMS", 1)

    def make(rows: int, part: int) -> dict[str, Any]:
        return {"a": np.arange(rows) + 0.5, "y": np.arange(rows) % 2}

    loader = loader_of(
        dataclasses.replace(config, drop=("id",), data=str(write(tmp_path / "one", make, [(4000, 1000)])))
    )
    assert loader.block == 7
    orders = []
    for seed in range(6):
        x = loader.rows.encode.scaling.invert(torch.cat([x for x, _ in epoch(loader, seed)]))[:, 0]
        group, row = (x // 1000).long(), (x % 1000).long()
        orders.append(tuple(group.unique_consecutive().tolist()))
        assert sorted(orders[-1]) == [0, 1, 2, 3]  # one after the other
        rows = row[group == 2]
        assert rows[:112].max() - rows[:112].min() > 500  # of 16 blocks from all over the row group
        assert (rows[1:] == rows[:-1] + 1).double().mean() < 0.1  # and not as in the file
    assert len({*orders}) > 2


@pytest.mark.parametrize("done", [0, 1, 12, 17, 40, 43])
def test_an_epoch_goes_on_from_any_step(done: int, config: TrainConfig):
    loader = loader_of(config)
    whole, rest = epoch(loader, 0), epoch(loader, 0, done)
    steps = loader.chunk // 22
    for (x, sizes), (expected, of_expected) in zip(rest, whole[done // steps :], strict=True):
        assert torch.equal(x, expected)
        assert sizes == of_expected


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_batches_of_several_processes_are_those_of_one(size: int, config: TrainConfig):
    """And each has read no row group but its own."""
    alone, loaders = loader_of(config), [loader_of(config, World(rank, size)) for rank in range(size)]
    own = [{at for stream in loader.own for at in loader.rows.streams[stream]} for loader in loaders]
    assert sum(map(len, own)) == len(set.union(*own)) == len(alone.rows.groups)
    assert [sorted(groups) for groups in own] == [alone.rows.own(rank, size) for rank in range(size)]
    parts = [epoch(loader, 0) for loader in loaders]
    for number, (x, sizes) in enumerate(epoch(alone, 0)):
        batches = x.split(sizes)
        shares = [shard[number][0].split(shard[number][1]) for shard in parts]
        for batch, *of_each in zip(batches, *shares, strict=True):
            assert sorted(torch.cat(of_each).tolist()) == sorted(batch.tolist())


@pytest.mark.parametrize("options", [{}, NUMBERS, {"class_weight": "balanced"}, {"loss": "mse"}], ids=str)
def test_metrics_are_those_of_all_rows_at_once(options: dict[str, Any], config: TrainConfig):
    setup = prepare(dataclasses.replace(config, **options))
    dataset, rows = setup.dataset, setup.dataset.grouped
    assert rows is not None
    found = evaluate_groups(setup.model, setup.objective, rows, dataset.target_scaling)
    for part in ("val", "test"):
        x, y = rows_of(dataset, part)
        raw = None if dataset.class_names else dataset.target_scaling.in_own_units(y)
        whole = evaluate(
            setup.model, setup.objective, dataclasses.replace(dataset.test, x=x, y=y, y_raw=raw), dataset.target_scaling
        )
        metrics = found[part]
        assert whole is not None
        assert metrics is not None
        for name in ("loss", "minimised", "accuracy", "rmse", "r2"):
            expected = getattr(whole, name)
            assert getattr(metrics, name) == (expected and pytest.approx(expected, rel=1e-10)), name
        outputs, targets = outputs_of_groups(setup.model, rows, part)
        torch.testing.assert_close(outputs, whole.outputs)
        torch.testing.assert_close(targets, y if raw is None else raw, check_dtype=False)


@pytest.mark.parametrize("engine", ["explicit", "autograd", "compiled"])
@pytest.mark.parametrize("stops", [(1,), (12, 1, 1), (41,), (60,), (110,)], ids=str)
def test_a_resumed_run_has_the_same_bits(engine: str, stops: tuple[int, ...], config: TrainConfig):
    config = dataclasses.replace(config, engine=engine)
    whole = train(dataclasses.replace(config, run_dir=config.run_dir and config.run_dir.with_name("whole")))
    resolved = json.loads((whole.folder / "config.json").read_text())["resolved"]
    assert resolved["storage"] == "groups"
    assert_same_run(interrupted_and_resumed(config, *stops), whole)


def test_a_resumed_run_stays_in_its_row_groups_whatever_the_memory_is(config: TrainConfig):
    whole = train(dataclasses.replace(config, run_dir=config.run_dir and config.run_dir.with_name("whole")))
    with pytest.raises(Terminated):
        train(config, StopAt(30))
    train(dataclasses.replace(config, memory="1g"), resume=config.run_dir)
    assert_same_run(config.run_dir or Path(), whole)


def test_other_data_are_not_gone_on_with(folder: Path, config: TrainConfig):
    with pytest.raises(Terminated):
        train(config, StopAt(30))
    table = parquet.read_table(folder / "part-1.parquet")
    parquet.write_table(table.take([1, 0, *range(2, len(table))]), folder / "part-1.parquet", row_group_size=25)
    with pytest.raises(UserError, match="are not those that the run was trained on"):
        train(config, resume=config.run_dir)


def test_nothing_is_left_in_the_cache_and_files_are_closed(config: TrainConfig):
    train(dataclasses.replace(config, epochs=1))
    assert [*(config.cache or Path()).iterdir()] == []
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and str(config.cache) in os.readlink(link)]


@pytest.mark.parametrize("fails", ["the folder", "a write"])
def test_a_full_disk_is_told(fails: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """In one line that names the folder; the checkpoint from before the first step stands."""
    if fails == "the folder":
        (config.cache or Path()).write_text("a file")
    else:

        class Full(io.BytesIO):
            def write(self, *_: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(group_loader.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(UserError, match=r"cannot be written here: .*; `cache` names another folder"):
        train(config)
    assert (config.run_dir or Path()).joinpath("checkpoints", "last.safetensors").exists()


@pytest.mark.parametrize("options", [{}, NUMBERS], ids=["classes", "numbers"])
def test_a_run_is_used_as_any_other(
    options: dict[str, Any], config: TrainConfig, folder: Path, capsys: pytest.CaptureFixture[str]
):
    """Its test part is evaluated, by all of its rows, and new rows are predicted."""
    config = dataclasses.replace(config, log_every=1, epochs=2, **options)
    result = train(config)
    capsys.readouterr()
    assert main(["evaluate", str(result.folder), "--json", str(folder.parent / "figures.json")]) == 0
    figures = json.loads((folder.parent / "figures.json").read_text())
    assert figures["rows"] == prepare(config).dataset.rows["test"]
    assert figures["loss"] == pytest.approx(result.model_metrics["test_loss"], rel=1e-6)
    table, predictions = folder / "part-0.parquet", folder.parent / "p.csv"
    assert main(["predict", str(result.folder), "--data", str(table), "--out", str(predictions)]) == 0
    assert len(predictions.read_text().splitlines()) == 501
    baseline = result.baseline
    assert baseline is not None
    of_run = baseline.to_json()
    assert figures["baseline"] == (of_run if "majority" in of_run else pytest.approx(of_run, rel=1e-6))


def test_evaluation_is_interrupted_between_blocks_of_rows(config: TrainConfig):
    setup = prepare(config)
    assert setup.dataset.grouped is not None
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_groups(setup.model, setup.objective, setup.dataset.grouped, setup.dataset.target_scaling, check)
    assert len(asked) == 3


def test_no_sample_is_taken_for_all_rows(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """δ by depth, metrics and the digests of rows: with a sample of 20 rows they are the same."""
    config = dataclasses.replace(config, epochs=1)
    measured = measure_depth(config, VARIANTS[0], 1, 4)
    of_run = train(config)
    monkeypatch.setattr("deltaprop.data.grouped.SAMPLE_ROWS", 20)
    again = measure_depth(config, VARIANTS[0], 1, 4)
    assert (again.loss, again.accuracy) == (measured.loss, measured.accuracy)
    smaller = train(dataclasses.replace(config, run_dir=of_run.folder.with_name("smaller")))
    assert smaller.model_metrics["test_loss"] == of_run.model_metrics["test_loss"]
    assert json.loads((smaller.folder / "config.json").read_text())["resolved"]["row_digests"] is None
    assert not (smaller.folder / ROW_DIGESTS).exists()


def test_cross_validation_takes_the_cache(config: TrainConfig):
    found = cross_validate(dataclasses.replace(config, folds=3, epochs=1))
    assert sum(fold.rows for fold in found.folds) == 1298


def test_r2_of_the_same_number_in_all_rows_of_a_part_is_not_told(tmp_path: Path, config: TrainConfig):
    """The test table has one price."""

    def make(rows: int, part: int) -> dict[str, Any]:
        return {**columns(rows, part), "price": np.full(rows, 7.25)}

    test = write(tmp_path / "test", make, [(90, 40)])
    setup = prepare(dataclasses.replace(config, test=str(test), **NUMBERS))
    assert setup.dataset.grouped is not None
    found = evaluate_groups(setup.model, setup.objective, setup.dataset.grouped, setup.dataset.target_scaling)
    assert found["test"] is not None
    assert found["val"] is not None
    assert found["test"].r2 is None
    assert found["val"].r2 is not None


def test_rows_that_lose_their_targets_meanwhile_are_told(config: TrainConfig, folder: Path):
    """The row group has as many rows as before, and fewer to train on."""
    loader = loader_of(config)
    table = parquet.read_table(folder / "part-1.parquet").to_pandas()
    table.loc[:100, "y"] = None
    parquet.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / "part-1.parquet", row_group_size=25)
    with pytest.raises(UserError, match=r"part-1.parquet: it has changed"):
        epoch(loader, 0)


def test_the_largest_number_decides_the_rate_of_numbers(folder: Path, tmp_path: Path, config: TrainConfig):
    """As in memory: 36 deviations from the mean, η is far lower."""

    def make(rows: int, part: int) -> dict[str, Any]:
        found = columns(rows, part)
        trained = np.flatnonzero(Division(0, 0.2, 0.1, "random", 1298).parts(np.arange(rows)) == 0)
        found["price"][trained[0]] += 1e6 * (part == 0)
        return found

    far = write(tmp_path / "far", make)
    rates = [prepare(dataclasses.replace(config, data=str(data), **{**NUMBERS, "lr": "auto"})).config.lr
             for data in (folder, far)]  # fmt: skip
    assert rates[0] == 0.01
    assert float(rates[1]) < 0.01
