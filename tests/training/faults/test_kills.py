"""kill −9: whenever it comes, there is an old checkpoint or a new one, and the run ends as if nothing had been."""

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
from tests.training.faults.shim import Shim, forked, left, plan_resume, save_always, small

ENGINES = ["autograd", "explicit"]


def undisturbed(folder: Path, **settings: Any) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Return what a run leaves that nobody disturbs, and that saves but at the end of its epochs."""
    assert forked(lambda: train(small(folder, **settings))) == 0
    return left(folder)


def deeds(folder: Path, **settings: Any) -> int:
    """Return how many deeds on the disk a run takes that saves after every step."""
    note = folder.parent / "count"

    def work() -> None:
        save_always()
        shim = Shim(folder)
        shim.install()
        train(small(folder, **settings))
        shim.remove()
        note.write_text(str(shim.count))

    assert forked(work) == 0
    return int(note.read_text())


def killed_at(number: int, folder: Path, **settings: Any) -> int:
    """Let a run that saves after every step die at a deed; return how it ended."""

    def work() -> None:
        save_always()
        Shim(folder, fatal=number).install()
        plan_resume(small(folder, **settings))

    return forked(work)


def kill_at_each(tmp_path: Path, engine: str, step: int, first: int = 1) -> int:
    """Kill runs at every so manieth deed, and go on from what they leave; return how many kills there were."""
    expected = undisturbed(tmp_path / "whole", engine=engine)
    count = deeds(tmp_path / "counted", engine=engine)
    assert count > 60
    for number in range(first, count + 1, step):
        folder = tmp_path / f"killed{number}"
        assert killed_at(number, folder, engine=engine) == -signal.SIGKILL
        last = folder / "checkpoints" / LAST
        if last.exists():
            load_checkpoint(last)
        assert forked(lambda: plan_resume(small(folder, engine=engine))) == 0  # noqa: B023  # called at once
        assert left(folder) == expected, number
        assert not list(folder.rglob(".*.tmp-*")), "what the killed writer left is cleared away"
    return len(range(first, count + 1, step))


@pytest.mark.parametrize(("engine", "first"), [("autograd", 1), ("explicit", 5)])
def test_a_kill_at_every_eighth_write_fsync_or_rename_gives_the_same_bits(engine: str, first: int, tmp_path: Path):
    """Weights, best weights and metrics; and at no moment was there a last checkpoint that is not sound.

    Between them the two engines are killed at every fourth.
    """
    kill_at_each(tmp_path, engine, 8, first)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_kill_at_every_write_fsync_or_rename_gives_the_same_bits(engine: str, tmp_path: Path):
    kill_at_each(tmp_path, engine, 1)


def killed_after(seconds: float, folder: Path, **settings: Any) -> bool:
    """Kill a run that saves after every step when so much time has passed; return whether it was still at work."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            save_always()
            plan_resume(small(folder, **settings))
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def random_kills(tmp_path: Path, kills: int) -> tuple[int, int]:
    """Kill runs at random moments, again and again until each has ended; return how many kills and runs there were."""
    drawn = random.Random(0)
    settings = [
        {"engine": engine, "data": data, "epochs": 6, "batch_size": 64}
        for engine in ENGINES
        for data in ("moons", "sine")
    ]
    expected = [undisturbed(tmp_path / f"whole{i}", **these) for i, these in enumerate(settings)]
    done = runs = 0
    while done < kills or runs < 2 * len(settings):
        which, folder = runs % len(settings), tmp_path / f"run{runs}"
        runs += 1
        while killed_after(drawn.uniform(0, 0.3), folder, **settings[which]):
            done += 1
        assert left(folder) == expected[which]
    return done, runs


@pytest.mark.slow
def test_kills_at_200_random_moments_give_the_same_bits(tmp_path: Path):
    random_kills(tmp_path, 200)
