"""The run that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from deltaprop.errors import UserError

RunArgument: TypeAlias = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")]


def named(run: Path | None) -> Path:
    """Return the run that was named.

    Raises:
        UserError: If none was.
    """
    if run is None:
        raise UserError("which run? name its folder, such as runs/iris-20261125-093000")
    return run
