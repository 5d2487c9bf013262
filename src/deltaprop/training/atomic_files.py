"""Bytes on disk: a file is there whole or not at all, and what was said to be safe outlives a power cut.

A new content goes to a temporary file in the same folder, is forced to the disk (fsync), takes the name of the old one
in one step (rename), and the folder, which holds the name, is forced to the disk too. Whoever is killed between any two
of these leaves the old file or the new one. Everything here goes through ``os.open``, ``os.write``, ``os.fsync`` and
``os.replace``, so that ``tests/training/faults`` can break off at each of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"  # in the name of a file that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and stays.

    Raises:
        OSError: If it cannot be written; the old file is as it was.
    """
    temporary = path.parent / f".{path.name}{TEMPORARY}{secrets.token_hex(4)}"
    with _naming(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                with contextlib.suppress(OSError):  # a file that was its owner's alone stays so
                    os.chmod(temporary, os.stat(path).st_mode & 0o777)
                _write(handle, content)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; it is not forced to the disk, see :func:`sync`.

    Raises:
        OSError: If it cannot be written whole; what was written of it is taken back.
    """
    with _naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(handle).st_size
            try:
                _write(handle, content)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)


def sync(path: Path) -> None:
    """Force what a file holds to the disk, and its name; without the file do nothing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk, where folders can be."""
    if os.name == "nt":  # a folder has no handle there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_temporaries(folder: Path) -> None:
    """Remove what writers that were killed have left behind. Only whoever has the folder's lock may do so."""
    if folder.is_dir():
        for path in folder.glob(f".*{TEMPORARY}*"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let a failure name the file: that of a write names none, and that of a temporary one that nobody knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(handle: int, content: bytes) -> None:
    """Write all of it: one call may take a part."""
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
