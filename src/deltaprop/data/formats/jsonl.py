"""JSON lines, plain or .gz: an object a line, whose keys are the columns; or one list of such objects.

A file is read twice, block by block: once for its columns and their types, which a later line may change, and then for
its rows. A key that a line does not have is a missing cell there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.data.formats.dialect import BOM
from deltaprop.data.formats.files import read_errors, unpacked
from deltaprop.data.formats.values import SeenValues, as_array
from deltaprop.data.table import BATCH_ROWS, Batch, ReadOptions, check_names
from deltaprop.errors import UserError

JSONL_NAMES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
GZIP_MAGIC = b"\x1f\x8b"
LONGEST_LINE = 1 << 26  # bytes, also of a list
MOST_KEYS = 1 << 16


@dataclass(frozen=True)
class JsonLinesTable:
    """A file of JSON lines.

    Attributes:
        path: The file.
        names: The names of the columns, in the order in which keys appear first.
        files: The file.
        columns: The key and the Arrow type of each column.
    """

    path: Path
    names: list[str]
    files: tuple[Path, ...]
    columns: tuple[tuple[str, Any], ...]

    def place(self, row: int) -> str:
        """Return the file and the number of a row."""
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, options: ReadOptions) -> JsonLinesTable:
        """Return the table of a file, all of whose lines are checked; see :func:`open_table`."""
        with read_errors(path):
            about = path.stat()
        columns = _scan(path, about.st_size, about.st_mtime_ns)
        names = [key.strip() for key, _ in columns]
        check_names(path, names)
        if len(names) < options.least:
            raise UserError(f"{path}: the only key is {names[0]!r}: inputs and a target need two")
        return cls(path, names, (path,), columns)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block; each column has one type in all of them."""
        import pyarrow

        rows: list[dict[str, Any]] = []

        def batch() -> Batch:
            columns = [as_array([row.get(key) for row in rows], arrow_type) for key, arrow_type in self.columns]
            return pyarrow.RecordBatch.from_arrays(columns, self.names)

        for _, row in _objects(self.path, on_bytes):
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield batch()
                rows = []
        if rows:
            yield batch()


@functools.lru_cache(maxsize=4)  # the commands open a table more than once
def _scan(path: Path, size: int, modified: int) -> tuple[tuple[str, Any], ...]:
    """Return the key and the type of each column; ``size`` and ``modified`` say which state of the file it is."""
    seen: dict[str, SeenValues] = {}
    for number, row in _objects(path):
        for key, value in row.items():
            if key not in seen:
                if len(seen) == MOST_KEYS:
                    raise UserError(f"{path}: line {number}: more than {MOST_KEYS} different keys: they are columns")
                _check_text(path, number, key)
                seen[key] = SeenValues()
            seen[key].add(value)
            if value.__class__ is str and not value.isascii():
                _check_text(path, number, value)
    if not seen:
        raise UserError(f"{path}: the file is empty: lines of JSON objects are needed")
    return tuple((key, values.arrow_type()) for key, values in seen.items())


def _check_text(path: Path, number: int, text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: line {number}: {text[:40]!a} is not Unicode text: half a surrogate pair") from error


def _objects(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object, with the number of its line, or of itself in a list."""
    with read_errors(path), path.open("rb") as raw:
        stream, number, is_first = unpacked(path, raw), 0, True
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)
            if number % 1000 == 1:
                on_bytes(raw.tell())
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB")
            if line.lstrip().startswith(b"[") and is_first:
                yield from _of_list(path, line + stream.read(LONGEST_LINE + 1))
                return
            if line.strip():
                is_first = False
                yield number, _row(f"{path}: line {number}", _parsed(path, f"{path}: line {number}", line))


def _of_list(path: Path, text: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a list, numbered from 1."""
    if len(text) > LONGEST_LINE:
        raise UserError(f"{path}: a JSON list longer than {LONGEST_LINE >> 20} MiB: write an object a line")
    found = _parsed(path, str(path), text)
    for number, item in enumerate(found, start=1):
        yield number, _row(f"{path}: item {number}", item)


def _parsed(path: Path, where: str, line: bytes) -> Any:
    """Return what a line says."""
    try:
        return json.loads(line.decode(), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        if line.startswith(GZIP_MAGIC):
            raise UserError(f"{path}: this is gzip, not JSON lines: name it .jsonl.gz") from error
        raise UserError(f"{where} is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start})") from error
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        shown = line[:40].decode(errors="replace").strip()
        whole = ": is this one JSON document? JSON lines have an object a line" if shown in ("[", "{") else ""
        raise UserError(f"{where} is not JSON: {what} ({shown!r}){whole}") from error


def _row(where: str, found: Any) -> dict[str, Any]:
    """Return an object as a row."""
    if not isinstance(found, _Pairs):
        what = "a list" if isinstance(found, list) else "text" if isinstance(found, str) else "no object"
        raise UserError(f"{where} is {what}: JSON lines have an object a line, whose keys are columns")
    row = dict(found)
    if len(row) < len(found):
        keys = [key for key, _ in found]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise UserError(f"{where} has the key {twice!r} twice: rename one")
    for key, value in row.items():
        if value.__class__ is _Pairs:
            row[key] = {}  # an object in an object, of which only the type is used
    return row


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, before one that occurs twice is lost."""
