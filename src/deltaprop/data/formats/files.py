"""Files as bytes: plain or compressed by gzip, and what can go wrong with them."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaprop.errors import UserError, setting

ENCODINGS = "auto, or the name of an encoding such as cp1252"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def unpacked(path: Path, raw: Any) -> Any:
    """Return the stream of a file's content, which is compressed if its name ends in .gz."""
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


def is_encoding(name: str) -> bool:
    """Return whether this is ``"auto"`` or an encoding of text that Python has."""
    try:
        return name == "auto" or bool("a".encode(name))
    except (LookupError, ValueError, TypeError):
        return False


class Recoded(io.RawIOBase):
    """A stream of text in some encoding, as UTF-8; reading raises a UnicodeError where it is not in that encoding."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at least one except at the end."""
        while not self._ready and not self._ended:
            piece = self._stream.read(size)
            self._ended = not piece
            self._ready = self._decoder.decode(piece, final=self._ended).encode()
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system or of gzip into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        shown = f"byte 0x{error.object[error.start]:02x}"
        raise UserError(f"{path}: this is not {error.encoding} ({shown}): try another {setting('encoding')}") from error
    except (OSError, EOFError, zlib.error) as error:
        if "Not a gzipped file" in str(error):
            raise UserError(f"{path}: this is not compressed by gzip: name it without .gz") from error
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
