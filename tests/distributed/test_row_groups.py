"""A large folder of Parquet parts is read by shares: the weights and metrics of one process, and each reads its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from deltaprop import UserError
from deltaprop.data.row_groups import RowGroup
from deltaprop.data.table import Batch
from deltaprop.distributed import World
from deltaprop.training import TrainConfig, group_loader, train
from deltaprop.training.report.reporter import Silent
from tests.data.test_row_groups import folder, write
from tests.distributed.processes import Processes
from tests.distributed.test_runs import assert_same_run
from tests.training.test_resume import StopAt

__all__ = ["folder"]  # the fixture

NUMBERS: dict[str, Any] = {"target": ("price",), "drop": ("y",), "lr": 0.01}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "explicit": (3, {"engine": "explicit"}),
    "numbers": (2, {"engine": "explicit", **NUMBERS}),
    "class weights": (4, {"engine": "explicit", "class_weight": "balanced"}),
    "batches smaller than processes": (3, {"engine": "explicit", "batch_size": 2, "epochs": 1}),
    "factors": (3, {"engine": "explicit", "exchange": "factors"}),
    "ddp": (3, {"engine": "autograd"}),
    "fsdp": (2, {"engine": "autograd", "parallel": "fsdp", **NUMBERS}),
}


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Return the configuration of a run of several shards an epoch."""
    monkeypatch.setattr(group_loader, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(group_loader, "MIXED_BYTES", 2000)
    return TrainConfig(
        data=str(folder), target=("y",), drop=("price",), memory="1k", cache=tmp_path / "cache", hidden=(6,),
        dtype="float64", epochs=2, batch_size=22, lr=0.05, log_every=0, threads="1",
    )  # fmt: skip


def at(config: TrainConfig, run_dir: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, run_dir=run_dir, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_metrics_are_those_of_one_process(
    kind: str, config: TrainConfig, tmp_path: Path, processes: Processes
):
    """And statistics and digest have the same bits."""
    count, options = KINDS[kind]
    train(at(config, tmp_path / "one", **options))
    processes(count, lambda world: train(at(config, tmp_path / "several", **options)) and None)
    assert_same_run(tmp_path / "several", tmp_path / "one")
    one, several = (
        json.loads((tmp_path / name / "config.json").read_text())["resolved"] for name in ("one", "several")
    )
    for name in ("data_sha256", "input_scaling", "target_scaling", "columns", "rows", "class_counts", "storage"):
        assert several[name] == one[name], name


def test_a_process_reads_no_row_group_but_its_own(config: TrainConfig, tmp_path: Path, processes: Processes):
    """Process 0 alone looks at others, to infer the columns and to take a sample."""

    def work(world: World) -> list[list[int]]:
        read = set()
        batches = RowGroup.batches

        def recorded(self: RowGroup, *args: Any) -> Iterator[Batch]:
            read.add(self.first)
            return batches(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RowGroup, "batches", recorded)
            train(at(config, tmp_path / "run"))
        return [sorted(read)]

    first, second, third = (set(read) for (read,) in processes(3, work))
    assert not second & third
    assert (len(second), len(third)) == (12, 11)  # of 35: streams 1, 4, …, 34 and 2, 5, …, 32
    assert len(first | second | third) == 35


def test_another_number_of_processes_goes_on(config: TrainConfig, tmp_path: Path, processes: Processes):
    """From 3 to 2 and to 1 to rounding, and with the same number to the same bytes."""
    whole = at(config, tmp_path / "whole", engine="explicit", epochs=3)
    processes(3, lambda world: train(whole) and None)

    def interrupted(config: TrainConfig, step: int, **options: Any) -> None:
        with pytest.raises(SystemExit):
            train(config, StopAt(step), **options)

    run = dataclasses.replace(whole, run_dir=tmp_path / "run")
    processes(3, lambda world: interrupted(run, 16))
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    same = dataclasses.replace(whole, run_dir=tmp_path / "same")
    processes(3, lambda world: train(same, resume=same.run_dir) and None)
    for name in ("model.safetensors", "best.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    processes(2, lambda world: interrupted(run, 70, resume=run.run_dir))
    train(run, resume=run.run_dir)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def refused(config: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        train(config)
    return str(error.value)


def test_other_data_in_one_process_are_refused(config: TrainConfig, folder: Path, tmp_path: Path, processes: Processes):
    """One row more, or another format: nothing is written, and all say the same."""
    other, table = tmp_path / "other", tmp_path / "t.csv"
    shutil.copytree(folder, other)
    path = other / "part-4.parquet"
    parquet.write_table(parquet.read_table(path).slice(1), path, row_group_size=64)
    parquet.read_table(folder / "part-0.parquet").to_pandas().to_csv(table, index=False)
    for data in (other, table):
        own = [config, dataclasses.replace(config, data=str(data))]
        said = processes(2, lambda world, own=own: refused(at(own[world.rank], tmp_path / "run")))
        for rank, line in enumerate(said):
            assert line == f"process 1 has other data in {own[rank].data} than process 0 (by the footers of its files)"
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_that_one_process_reads_is_told_by_all(
    config: TrainConfig, folder: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("deltaprop.data.first_look.FIRST_ROWS", 40)
    monkeypatch.setattr("deltaprop.data.first_look.FURTHER_GROUPS", 1)
    path = folder / "part-4.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # its first row group, of stream 28, which is that of process 1
    path.write_bytes(content)
    first, second, third = processes(3, lambda world: refused(at(config, tmp_path / "run")))
    assert second.startswith(f"{path}: damaged: ")
    assert first == third == f"process 1: {second}"


def test_processes_without_a_row_group_are_told(config: TrainConfig, tmp_path: Path, processes: Processes):
    def make(rows: int, part: int) -> dict[str, Any]:
        draw = np.random.default_rng(part)
        return {"a": draw.normal(size=rows), "y": draw.integers(0, 2, rows)}

    few = dataclasses.replace(config, data=str(write(tmp_path / "few", make, [(200, 100)])), drop=("id",))
    train(at(few, tmp_path / "one", engine="explicit"))

    class Heard(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def start(self, setup: Any, folder: Path) -> None:
            self.lines += setup.dataset.table.warnings

    def work(world: World) -> list[str]:
        heard = Heard()
        train(at(few, tmp_path / "three", engine="explicit"), heard)
        return heard.lines

    told, *others = processes(3, work)
    assert [line.partition(" has ")[2] for line in told] == [
        "2 row groups: 1 of the 3 processes have no rows; write it in smaller row groups"
    ]
    assert others == [[], []]
    assert_same_run(tmp_path / "three", tmp_path / "one")
