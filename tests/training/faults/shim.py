"""Faults on demand: what a run does to its disk is counted, and at the n-th deed the process is killed.

A run is a child of the test, made by ``fork``: it has everything imported already, dies as processes die, and leaves
what it leaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deltaprop.cli.train import run_to_resume
from deltaprop.training import TrainConfig, train
from deltaprop.training.loop import Run

TIMES = ("seconds", "samples_per_second")


class Shim:
    """Stands between a run and its disk.

    Args:
        folder: Only what happens in it counts.
        fatal: The number of the deed at which the process dies, from 1; 0 for never.
        log: Called with each deed, its name and its arguments, after it is done.
    """

    def __init__(self, folder: Path, fatal: int = 0, log: Callable[[str, Any], None] | None = None) -> None:
        self.folder, self.fatal, self.log = folder, fatal, log
        self.count = 0
        self.handles: dict[int, str] = {}
        self.real = {
            name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "close", "unlink", "mkdir")
        }

    def install(self) -> None:
        """Take the place of the functions of ``os``, for as long as this process lives."""
        for name in self.real:
            setattr(os, name, getattr(self, f"_{name}"))

    def remove(self) -> None:
        """Put them back."""
        for name, function in self.real.items():
            setattr(os, name, function)

    def _ours(self, path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(str(self.folder))

    def _deed(self, name: str, *arguments: Any) -> None:
        if self.log is not None:
            self.log(name, arguments)

    def _dies(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def _open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        handle = int(self.real["open"](path, flags, *rest, **options))
        if self._ours(path):
            self.handles[handle] = str(path)
            if flags & os.O_CREAT:
                self._deed("create", str(path))
        return handle

    def _close(self, handle: int) -> None:
        self.handles.pop(handle, None)
        self.real["close"](handle)

    def _write(self, handle: int, content: Any) -> int:
        if handle not in self.handles:
            return int(self.real["write"](handle, content))
        if self._dies():
            self.real["write"](handle, bytes(content)[: len(content) // 2])  # a torn file
            os.kill(os.getpid(), signal.SIGKILL)
        written = int(self.real["write"](handle, content))
        self._deed("write", self.handles[handle], bytes(content)[:written])
        return written

    def _fsync(self, handle: int) -> None:
        if handle not in self.handles:
            return self.real["fsync"](handle)
        if self._dies():
            os.kill(os.getpid(), signal.SIGKILL)
        self.real["fsync"](handle)
        self._deed("fsync", self.handles[handle])
        return None

    def _two(self, name: str, *paths: Any) -> None:
        if not self._ours(paths[0]):
            return self.real[name](*paths)
        if self._dies():
            os.kill(os.getpid(), signal.SIGKILL)
        self.real[name](*paths)
        self._deed(name, *map(str, paths))
        return None

    def _replace(self, source: Any, target: Any) -> None:
        self._two("replace", source, target)

    def _unlink(self, path: Any, **options: Any) -> None:
        self._two("unlink", path)

    def _mkdir(self, path: Any, *rest: Any) -> None:
        self._two("mkdir", path, *rest)


def forked(work: Callable[[], object]) -> int:
    """Do some work in a child, and return how it ended: its exit code, or the negative number of a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def small(folder: Path, **settings: Any) -> TrainConfig:
    """Return a run of 2 epochs of 3 steps."""
    plain = {"data": "moons", "hidden": (4,), "epochs": 2, "batch_size": 256, "log_every": 0, "save_every": "1"}
    return TrainConfig(**{**plain, **settings}, run_dir=folder)


def save_always() -> None:
    """Save at every pause of this process: after every step or block."""
    TrainConfig.save_seconds = property(lambda self: 0.0)  # type: ignore[assignment]


def plan_resume(config: TrainConfig) -> None:
    """Do what ``--resume auto`` does: go on with the run if it has a checkpoint, else begin it."""
    assert config.run_dir is not None
    if run_to_resume("auto", config.run_dir):
        train(config, resume=config.run_dir)
    else:
        train(config, restart=True)


def left(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Return what two runs that are the same have in common: weights, best weights, and metrics but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return (folder / "model.safetensors").read_bytes(), (folder / "best.safetensors").read_bytes(), metrics


__all__ = ["Run", "Shim", "forked", "left", "plan_resume", "save_always", "small"]
