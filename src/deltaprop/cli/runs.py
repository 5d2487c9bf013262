"""The run that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from deltaprop.data import BUILTIN
from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig

RunArgument: TypeAlias = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")]


def named(run: Path | None) -> Path:
    """Return the run that was named.

    Raises:
        UserError: If none was, or a file.
    """
    if run is None:
        raise UserError("which run? name its folder, such as runs/iris-20261125-093000")
    if run.is_file():
        inside = run.parent.parent if run.parent.name == "checkpoints" else run.parent
        hint = f": name its folder, {inside}" if (inside / "config.json").is_file() else ""
        raise UserError(f"{run}: this is a file, not the folder of a run{hint}")
    return run


def learnt_from(config: TrainConfig) -> list[str]:
    """Return the files and folders of data that a run was trained and tested on; none for a built-in set."""
    return [name for name in (config.data, config.test) if name is not None and name not in BUILTIN]
