"""A power cut: what was not forced to the disk may be lost, in part or whole; a checkpoint that was, is there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaprop.training import train
from deltaprop.training.checkpoint import DamagedError
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import Shim, forked, left, plan_resume, small

Log = list[tuple[str, tuple[Any, ...]]]


class Disk:
    """A disk that holds what was forced to it, and loses of the rest what it likes.

    Files are numbered like inodes; names are what folders hold. What was written to a file is safe after an fsync of
    it; a name that came, went or moved is safe after an fsync of its folder.
    """

    def __init__(self, log: Log, drawn: random.Random) -> None:
        self.now: dict[str, int] = {}
        self.safe: dict[str, int] = {}
        self.written: dict[int, bytes] = {}
        self.forced: dict[int, bytes] = {}
        for deed, arguments in log:
            getattr(self, f"_{deed}")(*arguments)
        self.drawn = drawn

    def _create(self, path: str) -> None:
        if path not in self.now:
            inode = len(self.written)
            self.now[path], self.written[inode] = inode, b""

    def _write(self, path: str, content: bytes) -> None:
        self.written[self.now[path]] += content

    def _fsync(self, path: str) -> None:
        if path in self.now:
            self.forced[self.now[path]] = self.written[self.now[path]]
            return
        for name in {*self.now, *self.safe}:  # a folder
            if str(Path(name).parent) == path:
                if name in self.now:
                    self.safe[name] = self.now[name]
                else:
                    self.safe.pop(name, None)

    def _replace(self, source: str, target: str) -> None:
        self.now[target] = self.now.pop(source)

    def _unlink(self, path: str) -> None:
        self.now.pop(path, None)

    def _mkdir(self, path: str, *_: Any) -> None:
        """A folder is there with the first name in it."""

    def after_the_cut(self) -> dict[str, bytes]:
        """Return names and contents as the disk may have them: each unsafe thing kept or lost by a draw."""
        names = dict(self.safe)
        for name in {*self.now, *self.safe}:
            if self.now.get(name) != self.safe.get(name) and self.drawn.random() < 0.5:
                names.pop(name, None)
                if name in self.now:
                    names[name] = self.now[name]
        return {name: self._content(inode) for name, inode in names.items()}

    def _content(self, inode: int) -> bytes:
        forced, written = self.forced.get(inode, b""), self.written[inode]
        lost = written[len(forced) :]
        how = self.drawn.randrange(4)  # all is there, nothing is, a part is, or the length is and the bytes are zeros
        return forced + (lost, b"", lost[: len(lost) // 2], bytes(len(lost)))[how]


@pytest.fixture(scope="module", params=["autograd", "explicit"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log, dict[str, Any]]:
    """All deeds of a run that saves whenever it may: after every step, or after 16 of them."""
    folder = tmp_path_factory.mktemp("power") / "run"
    log: Log = []
    settings = {"engine": request.param, "batch_size": 128 if request.param == "autograd" else 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltaprop.training.TrainConfig.save_seconds", property(lambda self: 0.0))
        shim = Shim(folder, log=lambda deed, arguments: log.append((deed, arguments)))
        shim.install()
        try:
            train(small(folder, **settings))
        finally:
            shim.remove()
    return folder, log, settings


def cuts(log: Log) -> Iterator[tuple[int, Disk]]:
    drawn = random.Random(0)
    for number in range(len(log) + 1):
        for _ in range(4):
            yield number, Disk(log[:number], drawn)


def saved_by(folder: Path, log: Log) -> bool:
    """Return whether a last checkpoint was promised: its folder was forced to the disk after its rename."""
    last = str(folder / "checkpoints" / LAST)
    renamed = next((i for i, (deed, args) in enumerate(log) if deed == "replace" and args[1] == last), None)
    return renamed is not None and ("fsync", (str(folder / "checkpoints"),)) in log[renamed:]


def test_after_every_operation_the_last_checkpoint_is_an_old_or_a_new_one(story: tuple[Path, Log, Any], tmp_path: Path):
    folder, log, _ = story
    assert len(log) >= 100
    sound = 0
    for number, disk in cuts(log):
        found = disk.after_the_cut().get(str(folder / "checkpoints" / LAST))
        if found is None:
            assert not saved_by(folder, log[:number])
            continue
        path = tmp_path / "last.safetensors"
        path.write_bytes(found)
        load_checkpoint(path)  # sound, or it would raise
        sound += 1
    assert sound > 200


def test_resume_after_a_power_failure_gives_the_same_bits(story: tuple[Path, Log, dict[str, Any]], tmp_path: Path):
    """From a draw of what may be left after the cut, at every tenth deed."""
    folder, log, settings = story
    drawn = random.Random(1)
    for number in range(0, len(log) + 1, 10):
        again = tmp_path / f"cut{number}"
        for name, content in Disk(log[:number], drawn).after_the_cut().items():
            path = again / Path(name).relative_to(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        again.mkdir(exist_ok=True)
        assert forked(lambda: plan_resume(small(again, **settings))) == 0, number  # noqa: B023  # called at once
        assert left(again) == left(folder), number


def test_a_writer_without_fsync_is_detected(
    story: tuple[Path, Log, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same story less its fsyncs of files: some cut leaves a last checkpoint that is not sound."""
    folder, log, _ = story
    careless = [(deed, args) for deed, args in log if deed != "fsync" or Path(args[0]).name in ("run", "checkpoints")]
    broken = 0
    for _, disk in cuts(careless):
        found = disk.after_the_cut().get(str(folder / "checkpoints" / LAST))
        if found is not None:
            path = tmp_path / "last.safetensors"
            path.write_bytes(found)
            try:
                load_checkpoint(path)
            except DamagedError:
                broken += 1
    assert broken > 20


def test_metrics_are_synced_before_each_checkpoint(story: tuple[Path, Log, Any]):
    folder, log, _ = story
    metrics, last = str(folder / "metrics.jsonl"), str(folder / "checkpoints" / LAST)
    unsafe = False
    for deed, arguments in log:
        if deed == "write" and arguments[0] == metrics:
            unsafe = True
        elif deed == "fsync" and arguments[0] == metrics:
            unsafe = False
        elif deed == "replace" and arguments[1] == last:
            assert not unsafe
