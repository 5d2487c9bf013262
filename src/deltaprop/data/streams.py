"""Streams of bytes on their way to pyarrow: counted, watched, or put together from the pieces of a pipe."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

HEAD_BYTES = 1 << 16  # of a file, by which its delimiter and its header are told; of its end, by which its last cell is


class CountedFile(io.RawIOBase):
    """A file that tells how many bytes of it were read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self.file, self.on_bytes, self.count = file, on_bytes, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return how many bytes."""
        view = memoryview(buffer)
        data = self.file.read(len(view))
        view[: len(data)] = data
        self.count += len(data)
        self.on_bytes(self.count)
        return len(data)


def some(stream: BinaryIO, size: int, stopped: Callable[[], bool] = lambda: False) -> bytes:
    """Return what there is to read, up to so many bytes, as soon as there is some; nothing at the end or if stopped."""
    try:
        handle = stream.fileno()
    except (OSError, ValueError):  # it is in memory
        return stream.read(size)
    while not stopped():
        if os.name == "nt" or select.select([handle], [], [], 0.1)[0]:
            return os.read(handle, size)
    return b""


class ReplayedStream(io.RawIOBase):
    """What was read of a stream, and then the rest of it; closing it leaves that open.

    A pipe gives its rows in pieces, and pyarrow wants a whole row at a time: pieces are put together until there is
    one. pyarrow reads in a thread of its own, which must not be left waiting when the process ends: it can be stopped.
    """

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream
        self.reading, self.stopped = threading.Lock(), False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to so many bytes: a whole row at least, where there is one to come."""
        with self.reading:
            size = HEAD_BYTES if size < 0 else size
            found, self.head = self.head[:size], self.head[size:]
            while len(found) < size and not _has_row(found):
                piece = some(self.stream, size - len(found), lambda: self.stopped)
                if not piece:
                    break
                found += piece
            return found

    def stop(self) -> None:
        """End the reading, and wait until nobody reads any more."""
        self.stopped = True
        with self.reading:
            pass


def _has_row(text: bytes) -> bool:
    """Return whether a line ends outside quotes."""
    return any(b"\n" in part for part in text.split(b'"')[::2])


class CheckedStream(io.RawIOBase):
    """A stream that keeps its end, by which a quote is seen that is never closed, and looks out for what is no text.

    pyarrow reads it in a thread of its own, which lets go of it and of its pieces when it likes. A thread that does so
    while Python ends would abort the process: :meth:`has_all_back` and :meth:`holders` tell whether it has.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.end, self.has_zeros = stream, b"", False
        self.pieces: list[bytearray] = []  # that were given away and may still be held
        self._alone = 0  # holders of one that nobody else holds

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> Any:
        """Return up to so many bytes, in an object of their own, be there none: how many hold it can be told."""
        data = self.stream.read(size)
        self.end = (self.end + data)[-HEAD_BYTES:]
        self.has_zeros |= b"\x00" in data
        self.pieces = [self.pieces[at] for at in range(len(self.pieces)) if self._holders(at) > self._alone]
        self.pieces.append(bytearray(data))
        self._alone = self._holders(-1)
        return self.pieces[-1]

    def _holders(self, at: int) -> int:
        return sys.getrefcount(self.pieces[at])

    def holders(self) -> int:
        """Return how many hold on to it."""
        return sys.getrefcount(self)

    def has_all_back(self) -> bool:
        """Return whether nobody holds a piece of it any more."""
        return all(self._holders(at) <= self._alone for at in range(len(self.pieces)))

    def ends_within(self, cell: str) -> bool:
        """Return whether the stream has ended within quotes, its last cell being this."""
        quoted = b'"' + cell.replace('"', '""').encode()
        if len(quoted) > len(self.end):
            return not self.end.rstrip(b"\r\n").endswith(b'"')
        return self.end.endswith(quoted) and not self.end.rstrip(b"\r\n").endswith(quoted + b'"')


def wait_until(done: Callable[[], bool], patience: float = 2.0) -> None:
    """Wait for what another thread is about to do.

    Args:
        done: Whether the waiting is over.
        patience: Seconds, after which it is over in any case.
    """
    began = time.monotonic()
    while not done() and time.monotonic() - began < patience:
        time.sleep(0.001)
