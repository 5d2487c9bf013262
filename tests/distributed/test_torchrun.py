"""Runs that ``torchrun`` starts: killed, stopped, and waiting in vain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_runs import metrics_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("--data", "moons", "--engine", "explicit", "--hidden", "8", "--dtype", "float64", "--epochs", "150"),
    *("--log-every", "0", "--save-every", "1s"),
]


@contextlib.contextmanager
def torchrun(folder: Path, *words: str, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start ``train.py`` in two processes."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*starter, "--max-restarts", str(restarts), str(ROOT / "train.py"), *SETTINGS, *words]
    with subprocess.Popen(
        [*command, "--run-dir", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(folder: Path, *words: str) -> bytes:
    with torchrun(folder, *words) as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return (folder / "model.safetensors").read_bytes()


def workers(starter: int) -> list[int]:
    """Return the processes that torchrun has started, in the order of their ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            found += [int(path.parent.name)] if parent == starter else []
    return sorted(found)


def wait_for_epoch(folder: Path, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(metrics_of(folder)) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing interrupts."""
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_kill_all_are_restarted_and_end_with_the_same_bytes(rank: int, whole: bytes, tmp_path: Path):
    """And each epoch's line is there once."""
    folder = tmp_path / "run"
    with torchrun(folder, "--resume", "auto", "--timeout", "20", restarts=5) as process:
        wait_for_epoch(folder, 30)
        os.kill(workers(process.pid)[rank], signal.SIGKILL)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert (folder / "model.safetensors").read_bytes() == whole
    assert [line["epoch"] for line in metrics_of(folder)] == list(range(1, 151))


@pytest.mark.parametrize("to", ["torchrun", "a worker"])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bytes(to: str, whole: bytes, tmp_path: Path):
    folder = tmp_path / "run"
    with torchrun(folder) as process:
        wait_for_epoch(folder, 30)
        os.kill(process.pid if to == "torchrun" else workers(process.pid)[1], signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 1  # whatever the workers' codes are
    assert said.count("saved; resume with") == 1
    assert finished(folder, "--resume", "auto") == whole


def test_a_process_that_hangs_is_given_up(whole: bytes, tmp_path: Path):
    folder = tmp_path / "run"
    with torchrun(folder, "--timeout", "3") as process:
        wait_for_epoch(folder, 30)
        hanging = workers(process.pid)[1]
        os.kill(hanging, signal.SIGSTOP)
        began = time.monotonic()
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("error:"))
        assert time.monotonic() - began < 20
        os.kill(hanging, signal.SIGCONT)
    assert line == "error: process 1 has not answered for 3 s; process 0 of 2 cannot go on alone\n"
    assert finished(folder, "--resume", "auto") == whole
