"""Full and failing disks: the last checkpoint is unchanged, and the error is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.training import TrainingError, atomic_files, train
from deltaprop.training.report.reporter import Silent
from deltaprop.training.report.tensorboard import SummaryWriter
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import forked, resume_or_start, run_outputs, save_always, small


def full_after(writes: int, folder: Path) -> Callable[..., int]:
    """Return an ``os.write`` that accepts ``writes`` − 1 calls on files of a folder, then half of one, then fails."""
    real, remaining = os.write, [writes]

    def write(handle: int, content: Any) -> int:
        if str(folder) not in os.readlink(f"/proc/self/fd/{handle}"):
            return real(handle, content)
        remaining[0] -= 1
        if remaining[0] > 0:
            return real(handle, content)
        if remaining[0] == 0:
            return real(handle, bytes(content)[: max(1, len(content) // 2)])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


@pytest.mark.parametrize("writes", range(1, 22, 2))
def test_a_full_disk_is_reported_in_one_line_and_the_run_can_resume(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The line has path and errno; when there is space again, the resumed run gives the same bits."""
    train(small(tmp_path / "whole"))
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("deltaprop.training.TrainConfig.save_seconds", property(lambda self: 0.0))
        patch.setattr(atomic_files.os, "write", full_after(writes, folder))
        with pytest.raises(TrainingError, match=rf"{folder}/\S+: No space left on device \(errno 28\)") as error:
            train(small(folder))
    assert "\n" not in str(error.value)
    if (folder / "checkpoints" / LAST).exists():
        load_checkpoint(folder / "checkpoints" / LAST)
    resume_or_start(small(folder))
    assert run_outputs(folder) == run_outputs(tmp_path / "whole")


def test_a_file_size_limit_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """RLIMIT_FSIZE of 8 kB against a network of 20 kB: the kernel refuses the write."""
    folder = tmp_path / "run"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        words = ["train", "--data", "moons", "--hidden", "1000", "--epochs", "2", "--log-every", "0"]
        raise SystemExit(main([*words, "--run-dir", str(folder)]))

    assert forked(work) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"error: {folder}/checkpoints/" in line
    assert "File too large (errno 27)" in line
    assert not (folder / "checkpoints" / LAST).exists()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Any:
    """A file system of 300 kB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=300k tmpfs {place} 2>/dev/null"):
        pytest.skip("no permission to mount a small file system")
    yield place
    os.system(f"umount {place}")


def test_a_full_file_system_is_reported_in_one_line(tmpfs: Path, capfd: pytest.CaptureFixture[str]):
    folder = tmpfs / "run"
    words = ["--data", "moons", "--hidden", "1000", "--log-every", "0", "--save-every", "1", "--run-dir", str(folder)]
    assert forked(lambda: (_ for _ in ()).throw(SystemExit(main(["train", *words, "--epochs", "500"])))) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "No space left on device (errno 28)" in line
    load_checkpoint(folder / "checkpoints" / LAST)


def test_a_run_without_tensorboard_events_continues_and_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here each scalar fails, as on a disk that is full for the events alone."""
    train(small(tmp_path / "whole"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    warnings: list[str] = []
    reporter = Silent()
    monkeypatch.setattr(reporter, "warn", warnings.append)
    train(small(tmp_path / "run"), reporter)
    assert run_outputs(tmp_path / "run") == run_outputs(tmp_path / "whole")
    (line,) = warnings
    assert line.startswith("events for TensorBoard cannot be written, the run continues without: ")


def test_events_on_a_full_device_do_not_stop_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """/dev/full in place of the event file: the error occurs in the writer's own thread."""
    train(small(tmp_path / "whole"))

    def work() -> None:
        import tensorboard.summary.writer.event_file_writer as writer

        real = writer.tf.io.gfile.GFile
        writer.tf.io.gfile.GFile = lambda name, mode: real("/dev/full", mode)
        words = ["train", "--data", "moons", "--hidden", "4", "--epochs", "2", "--batch-size", "256"]
        raise SystemExit(main([*words, "--log-every", "0", "--run-dir", str(tmp_path / "run")]))

    assert forked(work) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("warning: events for TensorBoard cannot be written")] == lines[:1]
    assert run_outputs(tmp_path / "run") == run_outputs(tmp_path / "whole")


class FolderDeleter(Silent):
    """A reporter that deletes the run folder after the first epoch."""

    def epoch(self, setup: Any, metrics: dict[str, Any]) -> None:
        while setup.config.run_dir.exists():  # TensorBoard's own thread may be writing into it
            shutil.rmtree(setup.config.run_dir, ignore_errors=True)


def test_a_deleted_run_folder_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"run/\S+: No such file or directory \(errno 2\)"):
        train(small(tmp_path / "run"), FolderDeleter())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    atomic_files.write_whole(path, b"old")
    monkeypatch.setattr(atomic_files.os, "write", full_after(1, tmp_path))
    with pytest.raises(OSError, match="No space left"):
        atomic_files.write_whole(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_partially_written_line_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "lines"
    atomic_files.append(path, b"first\n")
    monkeypatch.setattr(atomic_files.os, "write", full_after(1, tmp_path))
    with contextlib.suppress(OSError):
        atomic_files.append(path, b"second\n")
    assert path.read_bytes() == b"first\n"


def test_save_always_saves_at_every_pause(tmp_path: Path):
    """The child processes of these tests save after every step."""

    def work() -> None:
        save_always()
        assert small(tmp_path).save_seconds == 0

    assert forked(work) == 0
