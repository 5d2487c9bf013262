"""Atomic writes: a file is written completely or not at all, and is safe from a power cut once written.

The content goes to a temporary file in the same folder, is forced to the disk (fsync), replaces the old file (rename),
and the folder, which holds the name, is forced to the disk too. A process killed between any two of these steps leaves
the old file or the new one. Everything goes through ``os.open``, ``os.write``, ``os.fsync`` and ``os.replace``, so that
``tests/training/faults`` can interrupt each of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"  # in the name of a file that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, and force it to the disk.

    Raises:
        OSError: If it cannot be written; the old file is unchanged.
    """
    temporary = path.parent / f".{path.name}{TEMPORARY}{secrets.token_hex(4)}"
    with _naming(path):
        try:
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
                with contextlib.suppress(OSError):  # keep the permissions of the old file
                    os.chmod(temporary, os.stat(path).st_mode & 0o777)
                _write(handle, content)
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Append to a file; it is not forced to the disk, see :func:`sync`.

    Raises:
        OSError: If it cannot be written completely; the file is truncated to its old length.
    """
    with _naming(path), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as handle:
        before = os.fstat(handle).st_size
        try:
            _write(handle, content)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, before)
            raise


def sync(path: Path) -> None:
    """Force the content of a file and its name to the disk, if it exists."""
    if path.exists():
        with _opened(path, os.O_RDONLY) as handle:
            os.fsync(handle)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk."""
    if os.name != "nt":  # Windows has no handles of folders
        with _opened(path, os.O_RDONLY) as handle:
            os.fsync(handle)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def clear_temporaries(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; only for a process that has locked the folder."""
    if folder.is_dir():
        for path in folder.glob(f".*{TEMPORARY}*"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error: that of a write names none, and others name the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(handle: int, content: bytes) -> None:
    """Write the whole content: one call may write a part."""
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
