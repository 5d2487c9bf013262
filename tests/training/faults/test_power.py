"""Power failures: unsynced data may be lost in part or whole, but a synced checkpoint is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaprop.training import train
from deltaprop.training.checkpoint import DamagedError
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import Shim, forked, resume_or_start, run_outputs, small

Log = list[tuple[str, tuple[Any, ...]]]


class Disk:
    """A simulated disk that keeps synced data and may lose unsynced data.

    Files are numbered like inodes; folders hold names. The content of a file is synced by an fsync of the file; a
    name that was created, removed or renamed is synced by an fsync of its folder.
    """

    def __init__(self, log: Log, rng: random.Random) -> None:
        self.current: dict[str, int] = {}
        self.synced: dict[str, int] = {}
        self.written: dict[int, bytes] = {}
        self.synced_content: dict[int, bytes] = {}
        for operation, arguments in log:
            getattr(self, f"_{operation}")(*arguments)
        self.rng = rng

    def _create(self, path: str) -> None:
        if path not in self.current:
            inode = len(self.written)
            self.current[path], self.written[inode] = inode, b""

    def _write(self, path: str, content: bytes) -> None:
        self.written[self.current[path]] += content

    def _fsync(self, path: str) -> None:
        if path in self.current:
            self.synced_content[self.current[path]] = self.written[self.current[path]]
            return
        for name in {*self.current, *self.synced}:  # a folder
            if str(Path(name).parent) == path:
                if name in self.current:
                    self.synced[name] = self.current[name]
                else:
                    self.synced.pop(name, None)

    def _replace(self, source: str, target: str) -> None:
        self.current[target] = self.current.pop(source)

    def _unlink(self, path: str) -> None:
        self.current.pop(path, None)

    def _mkdir(self, path: str, *_: Any) -> None:
        """Do nothing: a folder exists as soon as it holds a name."""

    def after_power_failure(self) -> dict[str, bytes]:
        """Return possible names and contents after the failure: unsynced data is kept or lost at random."""
        names = dict(self.synced)
        for name in {*self.current, *self.synced}:
            if self.current.get(name) != self.synced.get(name) and self.rng.random() < 0.5:
                names.pop(name, None)
                if name in self.current:
                    names[name] = self.current[name]
        return {name: self._content(inode) for name, inode in names.items()}

    def _content(self, inode: int) -> bytes:
        synced, written = self.synced_content.get(inode, b""), self.written[inode]
        unsynced = written[len(synced) :]
        case = self.rng.randrange(4)  # unsynced data is kept, lost, kept in part, or replaced by zeros
        return synced + (unsynced, b"", unsynced[: len(unsynced) // 2], bytes(len(unsynced)))[case]


@pytest.fixture(scope="module", params=[pytest.param("autograd", marks=pytest.mark.slow), "explicit"])
def recorded_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Log, dict[str, Any]]:
    """All disk operations of a run that saves at every pause: after every step, or after 16 steps."""
    folder = tmp_path_factory.mktemp("power") / "run"
    log: Log = []
    settings = {"engine": request.param, "batch_size": 128 if request.param == "autograd" else 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltaprop.training.TrainConfig.save_seconds", property(lambda self: 0.0))
        shim = Shim(folder, log=lambda operation, arguments: log.append((operation, arguments)))
        shim.install()
        try:
            train(small(folder, **settings))
        finally:
            shim.remove()
    return folder, log, settings


def power_failures(log: Log) -> Iterator[tuple[int, Disk]]:
    rng = random.Random(0)
    for number in range(len(log) + 1):
        for _ in range(4):
            yield number, Disk(log[:number], rng)


def is_checkpoint_saved(folder: Path, log: Log) -> bool:
    """Return whether a last checkpoint must exist: its folder was synced after the rename."""
    last = str(folder / "checkpoints" / LAST)
    renamed = next((i for i, (operation, args) in enumerate(log) if operation == "replace" and args[1] == last), None)
    return renamed is not None and ("fsync", (str(folder / "checkpoints"),)) in log[renamed:]


def test_after_every_operation_the_last_checkpoint_is_an_old_or_a_new_one(
    recorded_run: tuple[Path, Log, Any], tmp_path: Path
):
    folder, log, _ = recorded_run
    assert len(log) >= 100
    valid = 0
    for number, disk in power_failures(log):
        content = disk.after_power_failure().get(str(folder / "checkpoints" / LAST))
        if content is None:
            assert not is_checkpoint_saved(folder, log[:number])
            continue
        path = tmp_path / "last.safetensors"
        path.write_bytes(content)
        load_checkpoint(path)  # raises if it is not valid
        valid += 1
    assert valid > 200


def test_resume_after_a_power_failure_gives_the_same_bits(
    recorded_run: tuple[Path, Log, dict[str, Any]], tmp_path: Path
):
    """From random disk contents after a failure at every tenth operation."""
    folder, log, settings = recorded_run
    rng = random.Random(1)
    for number in range(0, len(log) + 1, 10):
        restored = tmp_path / f"failure{number}"
        for name, content in Disk(log[:number], rng).after_power_failure().items():
            path = restored / Path(name).relative_to(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        restored.mkdir(exist_ok=True)
        assert forked(lambda: resume_or_start(small(restored, **settings))) == 0, number  # noqa: B023  # called at once
        assert run_outputs(restored) == run_outputs(folder), number


def test_a_writer_without_fsync_is_detected(
    recorded_run: tuple[Path, Log, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The recorded run without its fsyncs of files: some failures leave a damaged last checkpoint."""
    folder, log, _ = recorded_run
    without_fsync = [
        (operation, args)
        for operation, args in log
        if operation != "fsync" or Path(args[0]).name in ("run", "checkpoints")
    ]
    damaged = 0
    for _, disk in power_failures(without_fsync):
        content = disk.after_power_failure().get(str(folder / "checkpoints" / LAST))
        if content is not None:
            path = tmp_path / "last.safetensors"
            path.write_bytes(content)
            try:
                load_checkpoint(path)
            except DamagedError:
                damaged += 1
    assert damaged > 20


def test_metrics_are_synced_before_each_checkpoint(recorded_run: tuple[Path, Log, Any]):
    folder, log, _ = recorded_run
    metrics, last = str(folder / "metrics.jsonl"), str(folder / "checkpoints" / LAST)
    unsynced_metrics = False
    for operation, arguments in log:
        if operation == "write" and arguments[0] == metrics:
            unsynced_metrics = True
        elif operation == "fsync" and arguments[0] == metrics:
            unsynced_metrics = False
        elif operation == "replace" and arguments[1] == last:
            assert not unsynced_metrics
