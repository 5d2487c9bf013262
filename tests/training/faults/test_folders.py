"""One run at a time per folder, and invalid folders: exit code 2 and one line."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.training import TrainingError, train
from deltaprop.training.report.reporter import Silent
from deltaprop.training.run_folder import RunFolder
from tests.training.faults.shim import forked, run_outputs, small


class StartsSecondRun(Silent):
    """A reporter that tries to start a second run in the folder during the first."""

    message: str = ""

    def epoch(self, setup: Any, metrics: dict[str, Any]) -> None:
        with pytest.raises(UserError) as error:
            train(small(setup.config.run_dir), resume=setup.config.run_dir)
        self.message = str(error.value)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path):
    reporter = StartsSecondRun()
    train(small(tmp_path / "run"), reporter)
    assert reporter.message == f"{tmp_path / 'run'}: another run is using this folder; name another, or wait"
    train(small(tmp_path / "run", epochs=3), resume=tmp_path / "run")  # the lock was released


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    train(small(tmp_path / "whole", epochs=80))
    folder = tmp_path / "run"
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        train(small(folder, epochs=80))
        os._exit(0)
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    assert forked(lambda: (_ for _ in ()).throw(SystemExit(main(["train", "--resume", str(folder)])))) == 2
    assert forked(lambda: (_ for _ in ()).throw(SystemExit(main(["train", "--run-dir", str(folder)])))) == 2
    assert os.waitpid(child, 0)[1] == 0
    assert run_outputs(folder) == run_outputs(tmp_path / "whole")
    first, second = capfd.readouterr().err.splitlines()
    assert "another run is using this folder" in first
    assert "the folder is not empty" in second


def test_the_lock_of_a_killed_run_is_released(tmp_path: Path):
    def work() -> None:
        with RunFolder(tmp_path).locked():
            os.kill(os.getpid(), 9)

    assert forked(work) == -9
    with RunFolder(tmp_path).locked():
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run-dir", "{file}"], "there is a file of this name"),
        (["--run-dir", "{file}/run"], "is a file, not a folder"),
        (["--resume", "{file}"], "there is no checkpoint of a run here"),
        (["--resume", "{empty}"], "there is no checkpoint of a run here"),
        (["--resume", "{gone}"], "there is no checkpoint of a run here"),
        (["--resume"], "there is no checkpoint of a run here: name the folder of a run, or give --run-dir"),
        (["--resume", "auto"], "--resume auto: give the folder of the run with --run-dir"),
        (["--resume", "auto", "--run-dir", "{file}"], "there is a file of this name"),
        (["--resume", "auto", "--run-dir", "{full}"], "the folder is not empty"),
        (["--override", "lr"], "--override is for --resume"),
        (["--run-dir", "/proc/run"], "--run-dir /proc/run"),
        (["--save-every", "0"], "--save-every must be epochs (a number above 0), or time such as 30s or 5m, got 0"),
        (["--save-every", "5h"], "--save-every must be"),
        (["--keep", "-1"], "--keep must be a whole number, at least 0"),
    ],
    ids=str,
)
def test_invalid_folders_and_flags_are_refused_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("not ours")
    folders = {name: str(tmp_path / name) for name in ("file", "empty", "gone", "full")}
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "--data", "moons", *[word.format(**folders) for word in words]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission"):
        train(small(tmp_path / "run"))


def test_out_of_memory_suggests_a_smaller_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A device runs out of memory in the second epoch; the run can be resumed from the last checkpoint."""
    from deltaprop.training import engines

    train(small(tmp_path / "whole"))
    real, calls = engines.train_epoch, []

    def out_of_memory_in_second_call(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "train_epoch", out_of_memory_in_second_call)
        with pytest.raises(TrainingError, match="out of memory on cpu with `batch_size=256`: try `batch_size=128`"):
            train(small(tmp_path / "run"))
    train(small(tmp_path / "run"), resume=tmp_path / "run")
    assert run_outputs(tmp_path / "run") == run_outputs(tmp_path / "whole")
