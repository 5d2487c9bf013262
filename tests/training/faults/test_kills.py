"""kill −9 at any moment: the last checkpoint is the old or the new one, and resume gives the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop.training import train
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults.shim import Shim, forked, resume_or_start, run_outputs, save_always, small

ENGINES = ["autograd", "explicit"]


def uninterrupted(folder: Path, **settings: Any) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Return the outputs of a run that is not interrupted and saves only at the end of each epoch."""
    assert forked(lambda: train(small(folder, **settings))) == 0
    return run_outputs(folder)


def count_operations(folder: Path, **settings: Any) -> int:
    """Return the number of disk operations of a run that saves after every step."""
    count_file = folder.parent / "count"

    def work() -> None:
        save_always()
        shim = Shim(folder)
        shim.install()
        train(small(folder, **settings))
        shim.remove()
        count_file.write_text(str(shim.count))

    assert forked(work) == 0
    return int(count_file.read_text())


def killed_at(number: int, folder: Path, **settings: Any) -> int:
    """Kill a run that saves after every step at a disk operation; return its exit status."""

    def work() -> None:
        save_always()
        Shim(folder, fatal=number).install()
        resume_or_start(small(folder, **settings))

    return forked(work)


def kill_at_each(tmp_path: Path, engine: str, step: int, first: int = 1) -> int:
    """Kill runs at every ``step``-th disk operation and resume each; return the number of kills."""
    expected = uninterrupted(tmp_path / "whole", engine=engine)
    count = count_operations(tmp_path / "counted", engine=engine)
    assert count > 60
    for number in range(first, count + 1, step):
        folder = tmp_path / f"killed{number}"
        assert killed_at(number, folder, engine=engine) == -signal.SIGKILL
        last = folder / "checkpoints" / LAST
        if last.exists():
            load_checkpoint(last)
        assert forked(lambda: resume_or_start(small(folder, engine=engine))) == 0  # noqa: B023  # called at once
        assert run_outputs(folder) == expected, number
        assert not list(folder.rglob(".*.tmp-*")), "temporary files of the killed process are removed"
    return len(range(first, count + 1, step))


@pytest.mark.parametrize(("engine", "first"), [("autograd", 1), ("explicit", 5)])
def test_a_kill_at_every_eighth_write_fsync_or_rename_gives_the_same_bits(engine: str, first: int, tmp_path: Path):
    """The bits of weights, best weights and metrics; the last checkpoint is valid after every kill.

    The two engines together are killed at every fourth operation.
    """
    kill_at_each(tmp_path, engine, 8, first)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_kill_at_every_write_fsync_or_rename_gives_the_same_bits(engine: str, tmp_path: Path):
    kill_at_each(tmp_path, engine, 1)


def killed_after(seconds: float, folder: Path, **settings: Any) -> bool:
    """Kill a run that saves after every step after some time; return whether it was still running."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            save_always()
            resume_or_start(small(folder, **settings))
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def random_kills(tmp_path: Path, kills: int) -> tuple[int, int]:
    """Kill runs at random moments, repeatedly until each has ended; return the numbers of kills and runs."""
    rng = random.Random(0)
    settings = [
        {"engine": engine, "data": data, "epochs": 6, "batch_size": 64}
        for engine in ENGINES
        for data in ("moons", "sine")
    ]
    expected = [uninterrupted(tmp_path / f"whole{i}", **these) for i, these in enumerate(settings)]
    done = runs = 0
    while done < kills or runs < 2 * len(settings):
        index, folder = runs % len(settings), tmp_path / f"run{runs}"
        runs += 1
        while killed_after(rng.uniform(0, 0.3), folder, **settings[index]):
            done += 1
        assert run_outputs(folder) == expected[index]
    return done, runs


@pytest.mark.slow
def test_kills_at_200_random_moments_give_the_same_bits(tmp_path: Path):
    random_kills(tmp_path, 200)
