"""Files as bytes: plain or compressed by gzip, and what can go wrong with them."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaprop.errors import UserError


def unpacked(path: Path, raw: Any) -> Any:
    """Return the stream of a file's content, which is compressed if its name ends in .gz."""
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an error of the system or of gzip into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        if "Not a gzipped file" in str(error):
            raise UserError(f"{path}: this is not compressed by gzip: name it without .gz") from error
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
