"""Files that a flag names: judged before any work is done, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from deltaprop.errors import UserError
from deltaprop.training.disk import write_whole


def check_file(flag: str, path: Path | None) -> None:
    """Refuse a file that cannot be written.

    Args:
        flag: That names it, such as ``"--json"``.
        path: The file; None where the flag was not given.

    Raises:
        UserError: If it is a folder, or lies where nothing can be written.
    """
    if path is None:
        return
    try:
        _check(flag, path)
    except (OSError, ValueError) as error:  # a name that no file can have
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flag} {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def _check(flag: str, path: Path) -> None:
    folder = path.resolve().parent
    if path.is_dir():
        raise UserError(f"{flag} {path}: this is a folder; name a file")
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: no permission to write in {folder}")


def write_file(flag: str, path: Path, content: str | bytes) -> None:
    """Write a file.

    Raises:
        UserError: If it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():  # a pipe, or the terminal: to be written to, not replaced
            path.write_bytes(content)
        else:
            write_whole(path.resolve(), content)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror}") from error
