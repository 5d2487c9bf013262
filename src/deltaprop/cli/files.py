"""Files that a flag names: checked before any work is done, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from deltaprop.errors import UserError
from deltaprop.training.atomic_files import write_whole
from deltaprop.training.run_folder import is_own


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


def check_apart(flag: str, out: Path | None, run: Path, *data: str | Path) -> None:
    """Refuse to write over data, into a folder of data, or over what a run has written.

    Args:
        flag: That names the file, such as ``"--json"``.
        out: The file; None where the flag was not given.
        run: The folder of the run; a file that others have put there, such as a former export, may be written over.
        data: Files and folders of data; see also :func:`deltaprop.cli.runs.learnt_from`.

    Raises:
        UserError: If that is what would be done.
    """
    if out is None:
        return
    there = out.resolve()
    if is_own(run, there):
        raise UserError(f"{flag} {out}: this is a file of the run itself; name another file")
    for source in (Path(name).resolve() for name in data):
        if there == source or (source.is_dir() and there.parent == source):
            raise UserError(f"{flag} {out}: this is the data itself; name another file")


def is_stream(path: Path) -> bool:
    """Return whether this is a pipe, or the terminal: to be written to, not replaced."""
    return path.exists() and not path.is_file()


def write_file(flag: str, path: Path, content: str | bytes) -> None:
    """Write a file.

    Raises:
        UserError: If it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if is_stream(path):
            path.write_bytes(content)
        else:
            write_whole(path.resolve(), content)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror}") from error
