"""The folder of one run: config.json, metrics.jsonl, weights and TensorBoard events."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from deltaprop.errors import UserError


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
        raise error if isinstance(error, UserError) else UserError(f"--run-dir {path}: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"--run-dir {str(path)!r}: {error}") from error


def _check_folder(path: Path) -> None:
    if path.is_dir():
        if any(path.iterdir()):
            raise UserError(f"--run-dir {path}: the folder is not empty; name a new one, runs are not mixed")
    elif path.exists():
        raise UserError(f"--run-dir {path}: there is a file of this name; name a folder")
    if len(os.fsencode(path.name)) > 255:
        raise UserError(f"--run-dir {path}: the name is longer than 255 bytes; name a shorter one")
    parent = path if path.is_dir() else next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UserError(f"--run-dir {path}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {path}: no permission to write in {parent}")


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
                raise UserError(f"--run-dir {folder}: {error.strerror}") from error
            return cls(folder)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json: everything that defines the run."""
        write_whole(self.path / "config.json", (json.dumps(config, indent=2) + "\n").encode())

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")

    def save_weights(self, name: str, model: nn.Module) -> None:
        """Write the model's state_dict as safetensors: plain weights, loadable without deltaprop."""
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        write_whole(self.path / name, safetensors.torch.save(state))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it the owner's alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
