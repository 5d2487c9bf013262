"""Fault injection: counts the disk operations of a run, and kills the process at the n-th.

A run is a child process of the test, made by ``fork``: everything is imported already, and it can be killed.
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
    """Wraps the disk operations of a run.

    Args:
        folder: Only operations in this folder count.
        fatal: The number of the operation at which the process is killed, from 1; 0 for never.
        log: Called after each operation with its name and arguments.
    """

    def __init__(self, folder: Path, fatal: int = 0, log: Callable[[str, Any], None] | None = None) -> None:
        self.folder, self.fatal, self.log = folder, fatal, log
        self.count = 0
        self.handles: dict[int, str] = {}
        self.real = {
            name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "close", "unlink", "mkdir")
        }

    def install(self) -> None:
        """Replace the functions of ``os`` in this process."""
        for name in self.real:
            setattr(os, name, getattr(self, f"_{name}"))

    def remove(self) -> None:
        """Restore the functions of ``os``."""
        for name, function in self.real.items():
            setattr(os, name, function)

    def _is_counted(self, path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(str(self.folder))

    def _record(self, name: str, *arguments: Any) -> None:
        if self.log is not None:
            self.log(name, arguments)

    def _is_fatal(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def _open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        handle = int(self.real["open"](path, flags, *rest, **options))
        if self._is_counted(path):
            self.handles[handle] = str(path)
            if flags & os.O_CREAT:
                self._record("create", str(path))
        return handle

    def _close(self, handle: int) -> None:
        self.handles.pop(handle, None)
        self.real["close"](handle)

    def _write(self, handle: int, content: Any) -> int:
        if handle not in self.handles:
            return int(self.real["write"](handle, content))
        if self._is_fatal():
            self.real["write"](handle, bytes(content)[: len(content) // 2])  # a partially written file
            os.kill(os.getpid(), signal.SIGKILL)
        written = int(self.real["write"](handle, content))
        self._record("write", self.handles[handle], bytes(content)[:written])
        return written

    def _fsync(self, handle: int) -> None:
        if handle not in self.handles:
            return self.real["fsync"](handle)
        if self._is_fatal():
            os.kill(os.getpid(), signal.SIGKILL)
        self.real["fsync"](handle)
        self._record("fsync", self.handles[handle])
        return None

    def _counted_call(self, name: str, *paths: Any) -> None:
        if not self._is_counted(paths[0]):
            return self.real[name](*paths)
        if self._is_fatal():
            os.kill(os.getpid(), signal.SIGKILL)
        self.real[name](*paths)
        self._record(name, *map(str, paths))
        return None

    def _replace(self, source: Any, target: Any) -> None:
        self._counted_call("replace", source, target)

    def _unlink(self, path: Any, **options: Any) -> None:
        self._counted_call("unlink", path)

    def _mkdir(self, path: Any, *rest: Any) -> None:
        self._counted_call("mkdir", path, *rest)


def forked(work: Callable[[], object]) -> int:
    """Run a function in a child process; return its exit code, or the negative number of a signal."""
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
    """Return the configuration of a run of 2 epochs of 3 steps."""
    plain = {"data": "moons", "hidden": (4,), "epochs": 2, "batch_size": 256, "log_every": 0, "save_every": "1"}
    return TrainConfig(**{**plain, **settings}, run_dir=folder)


def save_always() -> None:
    """Make this process save at every pause: after every step or block."""
    TrainConfig.save_seconds = property(lambda self: 0.0)  # type: ignore[assignment]


def resume_or_start(config: TrainConfig) -> None:
    """Do what ``--resume auto`` does: resume the run if it has a checkpoint, else start it."""
    assert config.run_dir is not None
    if run_to_resume("auto", config.run_dir):
        train(config, resume=config.run_dir)
    else:
        train(config, restart=True)


def run_outputs(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Return the reproducible outputs of a run: weights, best weights, and metrics without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return (folder / "model.safetensors").read_bytes(), (folder / "best.safetensors").read_bytes(), metrics


__all__ = ["Run", "Shim", "forked", "resume_or_start", "run_outputs", "save_always", "small"]
