"""Ctrl-C and SIGTERM during any phase of a run: it saves and exits within 2 s; a second Ctrl-C exits at once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop.cli import main
from deltaprop.training import evaluate, train
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import resume_or_start, run_outputs, small

WITHIN = 2.0  # seconds


class Child:
    """A run in a child process.

    Args:
        work: The function that it runs.
        output: The file for its stdout and stderr.
    """

    def __init__(self, work: Callable[[], Any], output: Path) -> None:
        self.output = output
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115  # stays open until the process exits
            torch.set_num_threads(1)
            code = int(work())
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return its exit code, or the negative number of a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def words(folder: Path, *more: str) -> list[str]:
    plain = ["--data", "moons", "--hidden", "4", "--batch-size", "8", "--log-every", "0", "--save-every", "1000"]
    return ["train", *plain, "--run-dir", str(folder), *more]


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_training_saves_and_exits(number: int, code: int, engine: str, tmp_path: Path):
    folder = tmp_path / "run"
    child = Child(lambda: main(words(folder, "--epochs", "100000", "--engine", engine)), tmp_path / "output")
    child.wait_for(lambda: (folder / "metrics.jsonl").exists())
    began = time.monotonic()
    child.send(number)
    assert child.wait() == code
    assert time.monotonic() - began < WITHIN
    output = (tmp_path / "output").read_text()
    assert f"saved; resume with: deltaprop train --resume {folder}" in output
    assert "Traceback" not in output
    assert load_checkpoint(folder / "checkpoints" / LAST).state["epoch"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_repeated_stops_give_the_same_bits(engine: str, tmp_path: Path):
    settings: dict[str, Any] = {"engine": engine, "epochs": 40, "batch_size": 8, "save_every": "1000"}
    train(small(tmp_path / "whole", **settings))
    folder = tmp_path / "run"
    stops = 0
    while True:
        child = Child(lambda: resume_or_start(small(folder, **settings)) or 0, tmp_path / "output")
        child.wait_for(lambda: (folder / "checkpoints" / LAST).exists())
        time.sleep(0.05 + 0.02 * stops)
        child.send(signal.SIGTERM)
        code = child.wait()
        if code == 0:
            break
        assert code == 143, (tmp_path / "output").read_text()
        stops += 1
    assert run_outputs(folder) == run_outputs(tmp_path / "whole")
    assert stops > 0


def slow(real: Callable[..., Any], started: Path, seconds: float) -> Callable[..., Any]:
    """Return a slow version of a function, which touches a file first and can be interrupted between chunks."""

    def work(*arguments: Any, **options: Any) -> Any:
        started.touch()
        check = arguments[4] if len(arguments) > 4 else options.get("check", lambda: None)
        for _ in range(int(seconds / 0.05)):
            check()
            time.sleep(0.05)
        return real(*arguments, **options)

    return work


def test_a_signal_during_evaluation_keeps_the_trained_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The evaluation would take a minute: the checkpoint is after the last step, and resume evaluates the epoch."""
    train(small(tmp_path / "whole"))
    folder, started = tmp_path / "run", tmp_path / "started"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", slow(evaluate.evaluate, started, 60))
        child = Child(lambda: train(small(folder)), tmp_path / "output")
    child.wait_for(started.exists)
    began = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    assert time.monotonic() - began < WITHIN
    state = load_checkpoint(folder / "checkpoints" / LAST).state
    assert (state["epoch"], state["done"]) == (1, 3)
    train(small(folder), resume=folder)
    assert run_outputs(folder) == run_outputs(tmp_path / "whole")


def test_a_signal_during_data_loading_exits_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loading would take a minute, and does not check for signals."""
    folder, started = tmp_path / "run", tmp_path / "started"

    def load(*_: Any, **__: Any) -> None:
        started.touch()
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr("deltaprop.training.setup.load", load)
        child = Child(lambda: main(words(folder)), tmp_path / "output")
    child.wait_for(started.exists)
    began = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    assert time.monotonic() - began < WITHIN
    assert not folder.exists()


def test_a_signal_during_thread_tuning_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, started = tmp_path / "run", tmp_path / "started"

    def timed(run: Callable[[], object], cores: int, seconds: float = 2.0) -> dict[int, float]:
        started.touch()
        while True:  # tuning would never end
            run()

    with monkeypatch.context() as patch:
        patch.setattr("deltaprop.training.setup.tune_threads", timed)
        child = Child(lambda: main(words(folder, "--threads", "tune")), tmp_path / "output")
    child.wait_for(started.exists)
    began = time.monotonic()
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - began < WITHIN
    assert not folder.exists()
    assert (tmp_path / "output").read_text() == "interrupted\n"


def test_a_signal_during_a_save_finishes_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each write takes a fifth of a second."""
    from deltaprop.training import atomic_files

    train(small(tmp_path / "whole", epochs=6, save_every="1"))
    folder = tmp_path / "run"
    real = os.write

    def write(handle: int, content: Any) -> int:
        if "checkpoints" in os.readlink(f"/proc/self/fd/{handle}"):
            time.sleep(0.2)
        return real(handle, content)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "write", write)
        child = Child(lambda: train(small(folder, epochs=6, save_every="1")), tmp_path / "output")
    child.wait_for(lambda: bool(list(folder.glob("checkpoints/.*.tmp-*"))))
    began = time.monotonic()
    child.send(signal.SIGINT)
    code = child.wait()
    assert code in (1, 130)  # 1: an exception in this child, which the command line would turn into 130
    assert time.monotonic() - began < WITHIN
    load_checkpoint(folder / "checkpoints" / LAST)
    assert not list(folder.rglob(".*.tmp-*"))
    train(small(folder, epochs=6, save_every="1"), resume=folder)
    assert run_outputs(folder) == run_outputs(tmp_path / "whole")


def test_a_second_ctrl_c_exits_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Although the current step takes a minute."""
    folder, started = tmp_path / "run", tmp_path / "started"

    def stuck(*_: Any, **options: Any) -> None:
        started.touch()
        for _ in range(1200):
            time.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr("deltaprop.training.engines.train_epoch", stuck)
        child = Child(lambda: main(words(folder)), tmp_path / "output")
    child.wait_for(started.exists)
    child.send(signal.SIGINT)
    time.sleep(0.3)
    assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)  # after the first one the run waits for the step
    began = time.monotonic()
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - began < 0.5


def test_signal_handlers_are_restored(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(small(tmp_path / "run"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_outside_the_main_thread_works_without_handlers(tmp_path: Path):
    import threading

    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(train(small(tmp_path / "run"))))
    thread.start()
    thread.join()
    assert done[0].metrics["epoch"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number: int, tmp_path: Path):
    """As SIGHUP by nohup, and SIGINT in the background of a script."""

    def ignore_and_train() -> int:
        signal.signal(number, signal.SIG_IGN)
        return main(words(tmp_path / "run", "--epochs", "40"))

    child = Child(ignore_and_train, tmp_path / "output")
    child.wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    child.send(number)
    assert child.wait() == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 40
