"""The folder of one run: config.json, metrics.jsonl, weights, checkpoints and TensorBoard events."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from deltaprop.errors import UserError, setting
from deltaprop.training.atomic_files import TEMPORARY, append, clear_temporaries, sync, sync_folder, write_whole
from deltaprop.training.checkpoint import Checkpoint, DamagedError, encode, encode_tensors, load_checkpoint

BEST, FINAL, LAST = "best.safetensors", "model.safetensors", "last.safetensors"
ROW_DIGESTS = "rows.u64"  # see `seen_rows`
VALIDATION = "validation.safetensors"  # see `validation_outputs`
# What a run writes before it has ended.
BEFORE_END = ("config.json", "metrics.jsonl", BEST, "checkpoints", ".lock", ROW_DIGESTS)


def default_folder(data: str) -> Path:
    """Return a folder that does not exist yet: runs/<data>-<date>-<time>, numbered if that is taken."""
    first = Path("runs") / f"{Path(data).name or 'data'}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], numbered) if not path.exists())


def check_folder(path: Path, restart: bool = False) -> None:
    """Check that a new run can have this folder, before anything is loaded or written.

    Args:
        path: The folder, which need not exist.
        restart: Whether it may hold the files of a run that ended before its first checkpoint.

    Raises:
        UserError: If it is a file, is not empty, or cannot be made.
    """
    try:
        problem = None if restart and is_incomplete_run(path) else _folder_problem(path)
    except OSError as error:
        problem = error.strerror
    except ValueError as error:  # a name that no file can have
        problem = str(error)
    if problem is not None:
        raise UserError(f"{setting('run_dir', path)}: {problem}")


def _folder_problem(path: Path) -> str | None:
    if path.is_dir():
        if any(path.iterdir()):
            return "the folder is not empty; name a new or an empty one"
    elif path.exists():
        return "there is a file of this name; name a folder"
    if len(os.fsencode(path.name)) > 255:
        return "the name is longer than 255 bytes; name a shorter one"
    parent = path if path.is_dir() else next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        return f"{parent} is a file, not a folder"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"no permission to write in {parent}"


class RunFolder:
    """Writes and reads the files of a run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"

    @classmethod
    def make(cls, path: Path | None, data: str, restart: bool = False) -> RunFolder:
        """Make the folder, with its parents: the one named, or a new one with the default name.

        See :func:`check_folder` for ``restart``.

        Raises:
            UserError: If it cannot be made, or is not empty.
        """
        while True:
            folder = path or default_folder(data)
            check_folder(folder, restart)
            try:
                folder.mkdir(parents=True, exist_ok=path is not None)
            except FileExistsError:
                continue  # another run took the name in the same second: the next number is free
            except OSError as error:
                raise UserError(f"{setting('run_dir', folder)}: {error.strerror}") from error
            return cls(folder)

    @classmethod
    def of(cls, path: Path) -> RunFolder:
        """Return the folder of an existing run.

        Raises:
            UserError: If it is not a folder, or nothing can be written into it.
        """
        if not path.is_dir():
            what = "this is a file, not the folder of a run" if path.exists() else "there is no such folder"
            raise UserError(f"{path}: {what}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UserError(f"{path}: no permission to write in it")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process, and remove the temporary files of processes that were killed.

        The operating system releases the lock when the process ends, in whatever way.

        Raises:
            UserError: If another run holds the lock.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path}: another run is using this folder; name another, or wait") from error
        except OSError as error:
            raise UserError(f"{self.path}: it cannot be locked: {error.strerror}") from error
        try:
            clear_temporaries(self.path)
            clear_temporaries(self.checkpoints)
            yield
        finally:
            lock.release()

    def begin(self) -> None:
        """Prepare the locked folder for a new run: remove the files of one that ended before its first checkpoint.

        Raises:
            UserError: If another process has begun a run here.
        """
        if has_checkpoint(self.path):
            raise UserError(f"{self.path}: another run has begun in this folder by now; name a new one, or `resume` it")
        if is_incomplete_run(self.path):
            for entry in self.path.iterdir():
                if entry.is_file() and entry.name != ".lock":
                    entry.unlink()

    # --- what a run writes ---

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json: everything that defines the run."""
        write_whole(self.path / "config.json", (json.dumps(config, indent=2) + "\n").encode())

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append(self.path / "metrics.jsonl", (json.dumps(metrics, allow_nan=False) + "\n").encode())

    def truncate_metrics(self, epochs: int, warn: Callable[[str], None]) -> None:
        """Remove damaged lines and those of later epochs from metrics.jsonl.

        Args:
            epochs: The number of epochs done.
            warn: Called with one line of text if lines of these epochs are missing.
        """
        path = self.path / "metrics.jsonl"
        content = path.read_bytes() if path.exists() else b""
        lines: dict[int, bytes] = {}
        for line in content.splitlines(keepends=True):
            try:
                epoch = json.loads(line)["epoch"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):  # cut off
                continue
            if type(epoch) is int and max(lines, default=0) < epoch <= epochs:
                lines[epoch] = line
        if b"".join(lines.values()) != content:
            write_whole(path, b"".join(lines.values()))
        missing = [epoch for epoch in range(1, epochs + 1) if epoch not in lines]
        if missing:
            which = f"{len(missing)} of {epochs} epochs, the first of epoch {missing[0]}"
            warn(f"{path}: lines are missing or damaged: those of {which}")

    def save_weights(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Write a state_dict as safetensors: plain weights, loadable without deltaprop."""
        if not self.has_weights(name, state):
            write_whole(self.path / name, encode_tensors(state))

    def has_weights(self, name: str, state: Mapping[str, Tensor]) -> bool:
        """Return whether a file already contains exactly this state_dict."""
        path = self.path / name
        return path.exists() and path.read_bytes() == encode_tensors(state)

    # --- checkpoints ---

    def save_checkpoint(self, checkpoint: Checkpoint, step: int, keep: int) -> None:
        """Write a checkpoint as the last one, and as a numbered one; remove numbered ones that are too many.

        Args:
            checkpoint: The checkpoint.
            step: Steps of the run so far, the number in the file's name.
            keep: The most numbered checkpoints to keep.
        """
        if not self.checkpoints.is_dir():
            self.checkpoints.mkdir()
            sync_folder(self.path)
            sync_folder(self.path.absolute().parent)  # which holds the run folder's own name
        sync(self.path / "metrics.jsonl")  # the checkpoint relies on its lines
        content, numbered = encode(checkpoint), self.checkpoints / f"step-{step:09d}.safetensors"
        if keep:
            write_whole(numbered, content)
        write_whole(self.checkpoints / LAST, content)
        # Higher numbers belong to epochs that were given up when the run was resumed from an older checkpoint.
        kept = [path for path in self.numbered() if path.name <= numbered.name][:keep]
        for old in {*self.numbered()} - {*kept}:
            old.unlink(missing_ok=True)

    def numbered(self) -> list[Path]:
        """Return the numbered checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def latest_checkpoint(self, warn: Callable[[str], None], only: Path | None = None) -> tuple[Path, Checkpoint]:
        """Return the last checkpoint, or the newest numbered one that is valid where the last is damaged.

        Args:
            warn: Called with one line of text for each damaged one.
            only: The one checkpoint to consider; by default all of the folder.

        Raises:
            UserError: If no checkpoint is valid.
        """
        paths = [path for path in (self.checkpoints / LAST, *self.numbered()) if path.exists()]
        paths = paths if only is None else [only]
        errors: list[str] = []
        for path in paths:
            try:
                return path, load_checkpoint(path)
            except DamagedError as error:
                errors.append(str(error))
                if len(paths) > 1:
                    warn(f"{path}: {error}; trying the one before it")
        if not paths:
            raise UserError(f"{self.path}: there is no checkpoint to resume from")
        if len(paths) == 1:
            raise UserError(f"{paths[0]}: {errors[0]}")
        raise UserError(f"{self.path}: none of its {len(paths)} checkpoints is valid: {paths[0].name}: {errors[0]}")


class FollowedFolder(RunFolder):
    """The folder of a run in the processes that do not write."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock nothing."""
        yield

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    begin = write_config = append_metrics = truncate_metrics = save_weights = save_checkpoint = _nothing


def has_checkpoint(path: Path) -> bool:
    """Return whether a folder has a checkpoint to resume from; temporary files do not count."""
    return any((path / "checkpoints").glob("*.safetensors"))


def is_incomplete_run(path: Path) -> bool:
    """Return whether a folder holds only files of a run that ended before its first checkpoint."""
    if not path.is_dir() or has_checkpoint(path):
        return False
    names = [entry.name for entry in path.iterdir()]
    return bool(names) and all(name in BEFORE_END or "tfevents" in name or TEMPORARY in name for name in names)


def is_own(folder: Path, path: Path) -> bool:
    """Return whether a path, existing or not, is one that a run writes in its folder; upper and lower case are one."""
    try:
        first = path.resolve().relative_to(folder.resolve()).parts[0].lower()
    except (ValueError, IndexError):  # elsewhere, or the folder itself
        return False
    return first in (*BEFORE_END, FINAL, VALIDATION) or "tfevents" in first
