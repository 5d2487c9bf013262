"""The folder of one run: config.json, metrics.jsonl, weights, checkpoints and TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from deltaprop.errors import UserError, setting
from deltaprop.training.atomic_files import TEMPORARY, append, clear_temporaries, sync, sync_folder, write_whole
from deltaprop.training.checkpoint import Checkpoint, DamagedError, encode, load, read_state
from deltaprop.training.config import TrainConfig, from_json


def default_folder(data: str, root: Path = Path("runs")) -> Path:
    """Return a folder under ``root`` that does not exist yet: <data>-<date>-<time>, numbered where that is taken."""
    name = f"{Path(data).name or 'data'}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, count = root / name, 1
    while candidate.exists():
        count += 1
        candidate = root / f"{name}-{count}"
    return candidate


def check_folder(path: Path) -> None:
    """Refuse a folder that a run cannot have, before anything is loaded or written.

    Raises:
        UserError: If it is a file, holds something already, or cannot be made.
    """
    try:
        _check_folder(path)
    except (OSError, UserError) as error:
        raise (
            error if isinstance(error, UserError) else UserError(f"{setting('run_dir', path)}: {error.strerror}")
        ) from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"{setting('run_dir', str(path))}: {error}") from error


def _check_folder(path: Path) -> None:
    if path.is_dir():
        if any(path.iterdir()):
            raise UserError(f"{setting('run_dir', path)}: the folder is not empty; name a new one, runs are not mixed")
    elif path.exists():
        raise UserError(f"{setting('run_dir', path)}: there is a file of this name; name a folder")
    if len(os.fsencode(path.name)) > 255:
        raise UserError(f"{setting('run_dir', path)}: the name is longer than 255 bytes; name a shorter one")
    parent = path if path.is_dir() else next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UserError(f"{setting('run_dir', path)}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{setting('run_dir', path)}: no permission to write in {parent}")


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, path: Path | None, data: str) -> RunFolder:
        """Make the folder, with its parents: the one asked for, or a new one of the default name.

        Raises:
            UserError: If it cannot be made, or holds something by now.
        """
        while True:
            folder = path or default_folder(data)
            check_folder(folder)
            try:
                folder.mkdir(parents=True, exist_ok=path is not None)
            except FileExistsError:
                continue  # another run took the name in the same second: the next number is free
            except OSError as error:
                raise UserError(f"{setting('run_dir', folder)}: {error.strerror}") from error
            return cls(folder)

    @classmethod
    def of(cls, path: Path) -> RunFolder:
        """Return the folder of a run that is there already.

        Raises:
            UserError: If it is none, or nothing can be written into it.
        """
        if not path.is_dir():
            what = "this is a file, not the folder of a run" if path.exists() else "there is no such folder"
            raise UserError(f"{path}: {what}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UserError(f"{path}: no permission to write in it")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone, and clear away what writers that were killed have left.

        The lock is the operating system's: it ends with the process, however that ends.

        Raises:
            UserError: If another run is at work in the folder.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path}: another run is at work in this folder; name another, or wait") from error
        except OSError as error:
            raise UserError(f"{self.path}: it cannot be locked: {error.strerror}") from error
        try:
            clear_temporaries(self.path)
            clear_temporaries(self.checkpoints)
            yield
        finally:
            lock.release()

    def begin(self) -> None:
        """Make sure, under the lock, that no run has come to be here, and remove what a stillborn one has left.

        Raises:
            UserError: If another process was quicker.
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

    def keep_metrics(self, epochs: int, tell: Callable[[str], None]) -> None:
        """Leave the lines of so many epochs in metrics.jsonl: what follows them, or is torn, is written again.

        Args:
            epochs: That are done.
            tell: Called with a line where some are missing.
        """
        path = self.path / "metrics.jsonl"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        kept: list[bytes] = []
        numbers: list[int] = []
        for line in content.splitlines(keepends=True):
            try:
                number = json.loads(line)["epoch"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):  # torn
                continue
            if type(number) is int and max(numbers, default=0) < number <= epochs:
                numbers.append(number)
                kept.append(line)
        if b"".join(kept) != content:
            write_whole(path, b"".join(kept))
        missing = sorted({*range(1, epochs + 1)} - {*numbers})
        if missing:
            which = f"{len(missing)} of {epochs} epochs, the first of epoch {missing[0]}"
            tell(f"{path}: lines are gone or damaged: those of {which}")

    def save_weights(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Write a state_dict as safetensors: plain weights, loadable without deltaprop."""
        content = as_bytes(state)
        path = self.path / name
        if not (path.exists() and path.read_bytes() == content):
            write_whole(path, content)

    # --- checkpoints ---

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def save_checkpoint(self, found: Checkpoint, step: int, keep: int) -> None:
        """Write a checkpoint as the last, and as one of the newest few that are kept beside it.

        Args:
            found: The checkpoint.
            step: Of the run: the number in its name.
            keep: How many numbered ones there may be.
        """
        if not self.checkpoints.is_dir():
            self.checkpoints.mkdir()
            sync_folder(self.path)
            sync_folder(self.path.absolute().parent)  # which holds the run folder's own name
        sync(self.path / "metrics.jsonl")  # the checkpoint counts on its lines
        content = encode(found)
        if keep:
            write_whole(self.checkpoints / f"step-{step:09d}.safetensors", content)
        write_whole(self.checkpoints / LAST, content)
        # What has a higher number is of a future that was given up, by going on from before it.
        ours = [path for path in self.numbered() if path.name <= f"step-{step:09d}.safetensors"]
        for old in {*self.numbered()} - {*ours[:keep]}:
            old.unlink(missing_ok=True)

    def numbered(self) -> list[Path]:
        """Return the numbered checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)

    def sound_checkpoint(self, tell: Callable[[str], None], only: Path | None = None) -> tuple[Path, Checkpoint] | None:
        """Return the last checkpoint, or the newest sound one where that is damaged; None where there are none.

        Args:
            tell: Called with a line for each that is damaged.
            only: The one that was asked for, if one was.

        Raises:
            UserError: If there are some, and none is sound.
        """
        there = [path for path in (self.checkpoints / LAST, *self.numbered()) if path.exists()]
        there = [only] if only is not None else there
        errors: list[str] = []
        for path in there:
            try:
                return path, load_checkpoint(path)
            except DamagedError as error:
                errors.append(str(error))
                if len(there) > 1:
                    tell(f"{path}: {error}; a sound one before it is looked for")
        if len(there) == 1:
            raise UserError(f"{there[0]}: {errors[0]}")
        if there:
            raise UserError(f"{self.path}: none of its {len(there)} checkpoints is sound: {there[0].name}: {errors[0]}")
        return None


def as_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state_dict as safetensors has it."""
    return safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in state.items()})


OWN = ("config.json", "metrics.jsonl", "best.safetensors", "checkpoints", ".lock")


def has_checkpoint(path: Path) -> bool:
    """Return whether there is something to go on from; what was being written does not count."""
    return any((path / "checkpoints").glob("*.safetensors"))


def is_incomplete_run(path: Path) -> bool:
    """Return whether a folder holds nothing but what a run has left that did not live to see its first checkpoint."""
    if not path.is_dir() or has_checkpoint(path):
        return False
    names = [entry.name for entry in path.iterdir()]
    return bool(names) and all(name in OWN or "tfevents" in name or TEMPORARY in name for name in names)


def is_own(folder: Path, path: Path) -> bool:
    """Return whether a file is one that a run writes, there or not; what others put into its folder is none.

    Capitals do not count, as on some disks.
    """
    try:
        first = path.resolve().relative_to(folder.resolve()).parts[0].lower()
    except (ValueError, IndexError):  # elsewhere, or the folder itself
        return False
    return first in (*OWN, "model.safetensors") or "tfevents" in first


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, once its state is sound and its tensors are those of that net.

    Raises:
        DamagedError: If it is damaged, or none.
    """
    state = read_state(path)
    try:
        config = from_json("config", state["config"])
        sizes = state["resolved"]["sizes"]
        _check_state(state, config, sizes)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"damaged: its state ({type(error).__name__}: {error})") from error
    dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
    found = load(path, tensors_of(sizes, dtype), lambda names: complete(names, sizes))
    if ("best.0.weight" in found.tensors) != (state["best"] is not None):
        raise DamagedError("damaged: it has the best weights, or the line of the best epoch, and not both")
    if not all(bool(t.isfinite().all()) for t in found.tensors.values() if t.is_floating_point()):
        raise DamagedError("damaged: it holds numbers that are not finite")
    try:
        torch.Generator().set_state(found.tensors["generator"])
    except RuntimeError as error:
        raise DamagedError("damaged: its generator has no such state") from error
    return found


KINDS: dict[str, Any] = {
    "epoch": int, "done": int, "split_seed": int, "threads": int, "seconds": (int, float), "data_sha256": str,
    "model_sha256": str, "storage": str, "block": int, "chunk": int,
    "device": str, "overrides": list, "versions": dict, "last": (dict, NoneType), "best": (dict, NoneType),
}  # fmt: skip


def _check_state(state: Mapping[str, Any], config: TrainConfig, sizes: Any) -> None:
    """Refuse a state that no run can have been in.

    Raises:
        KeyError, TypeError, ValueError: If it is one.
    """
    for name, kind in KINDS.items():
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise TypeError(f"{name} is {state[name]!r:.80}")
    if not isinstance(sizes, list) or not all(type(size) is int and 1 <= size < 2**31 for size in sizes):
        raise ValueError("sizes")
    if [*config.hidden] != sizes[1:-1] or not 1 <= state["epoch"] < 2**62 or not 0 <= state["done"] < 2**62:
        raise ValueError("sizes, epoch or steps")
    if not 1 <= state["threads"] <= 1024 or not 0 <= state["split_seed"] < 2**32:
        raise ValueError("threads or seed")
    if state["storage"] not in ("memory", "rows", "disk") or state["block"] < 1 or state["chunk"] < 1:
        raise ValueError("storage")
    if not all(isinstance(record, dict) for record in state["overrides"]):
        raise TypeError("overrides")
    for line in (state["last"], state["best"]):
        if line is not None and not {"epoch", "val_loss", "test_loss"} <= set(line):
            raise ValueError("a line of metrics")
        if line is not None and not all(value is None or isinstance(value, int | float) for value in line.values()):
            raise TypeError("a line of metrics")
    done, last, best = state["epoch"] - 1, state["last"], state["best"]
    if (last is None) != (done == 0) or (last is not None and last["epoch"] != done):
        raise ValueError("the last epoch's line")
    if best is not None and (best["val_loss"] is None or not 1 <= best["epoch"] <= done):
        raise ValueError("the best epoch's line")


def complete(names: Collection[str], sizes: Sequence[int]) -> bool:
    """Return whether tensors are all that a checkpoint needs; of momentum and of the best weights all or none."""
    own = {name.partition(".")[2] for name in names if name.startswith("model.")}
    weights = {f"{2 * at}.weight" for at in range(len(sizes) - 1)}
    kinds = [{name.partition(".")[2] for name in names if name.startswith(f"{kind}.")} for kind in ("momentum", "best")]
    return weights <= own and {"generator", "total"} <= set(names) and all(kind in (set(), own) for kind in kinds)


def tensors_of(sizes: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor of a checkpoint of a net of these sizes."""
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "generator": (torch.uint8, tuple(torch.Generator().get_state().shape)),
        "total": (dtype, ()),
    }
    for at, (below, above) in enumerate(pairwise(sizes)):
        for kind in ("model", "momentum", "best"):
            found[f"{kind}.{2 * at}.weight"] = (dtype, (above, below))
            found[f"{kind}.{2 * at}.bias"] = (dtype, (above,))
    return found


LAST = "last.safetensors"
