"""Run a function in several connected processes."""

from __future__ import annotations

import faulthandler
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deltaprop.distributed import World, join, leave

SECONDS = 20.0  # a process that waits longer fails


class Processes:
    """Runs functions in W connected processes, which are forked: imports need not be repeated."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self, count: int, work: Callable[[World], Any], *, seconds: float = SECONDS) -> list[Any]:
        """Return what the function returns in each process: tensors, numbers, text, and lists or dicts of them.

        A process that raises fails the test, with its traceback.
        """
        self.runs += 1
        base = self.folder / f"run-{self.runs}"
        pids = [self._fork(base, rank, count, work, seconds) for rank in range(count)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [Path(f"{base}-{rank}.txt") for rank in range(count)]
        if any(codes):
            pytest.fail("\n".join([f"exit codes {codes}", *[path.read_text() for path in said if path.exists()]]))
        return [torch.load(f"{base}-{rank}.pt", weights_only=True) for rank in range(count)]

    def _fork(self, base: Path, rank: int, count: int, work: Callable[[World], Any], seconds: float) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            faulthandler.dump_traceback_later(60 + seconds, exit=True)
            store = dist.FileStore(f"{base}.store", count)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=seconds)
            )
            dist.barrier()  # one that ended before the others are connected would break their connections
            torch.save(work(join(seconds)), f"{base}-{rank}.pt")
            leave()
            code = 0
        except BaseException:
            Path(f"{base}-{rank}.txt").write_text(f"process {rank}:\n{traceback.format_exc()}")
        finally:
            os._exit(code)


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    """Return a function that runs another one in several processes."""
    return Processes(tmp_path)
