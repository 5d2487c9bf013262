"""The rows of a table after it was read: in memory, or in a file on disk if they do not fit.

The file is a cache: float32 numbers [N, p], row by row, less a shift per column (the median of its first numbers) and
in a unit per column (a power of 2), so that a column of dates in seconds keeps its digits. It is written once, beside a
JSON file that describes it, and used again as long as the table's files are unchanged (the same sizes, times and first
bytes) and the same columns are selected. Nothing is unpickled.

Rows are returned in float64 from either place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.cells import Form
from deltaprop.data.columns import Column, Missing, Numbers, Progress, Reader, silent
from deltaprop.data.infer import TablePlan
from deltaprop.data.splits import Array, Rows
from deltaprop.data.table import Table
from deltaprop.errors import UserError

CACHE_FORMAT = 3
HEAD = 1 << 20  # bytes of each file that its cache key depends on
ROWS_AT_ONCE = 8192  # rows that are converted to float64 together
AHEAD = 1 << 18  # bytes per prefetch request: the system reads only a part of a request larger than its read-ahead
UNLIMITED = 1 << 62  # bytes
FAR = 1.5  # a table estimated at this many times the allowed memory goes to the disk at once
SHARE = 8  # a table may take one part in this many of the machine's memory

ROWS, TARGETS, ABOUT = "rows.f32", "targets.f64", "about.json"

Storage: TypeAlias = Literal["memory", "rows", "disk", "groups"]
"""As inputs in memory; or as rows in memory, on disk or in the table's own row groups, encoded while it trains."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows [N, p] in memory, as they were read."""

    rows: Array

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def take(self, rows: Rows) -> Array:
        """Return some rows, in the order given."""
        return self.rows[rows]


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Rows [N, p] in a file, float32: each column less its shift, in a unit of its own, a power of 2.

    The file is mapped for each call and unmapped after it: pages that stay mapped count as the process's own.

    Attributes:
        path: The file.
        count: N.
        shift: The shift of each column.
        unit: The unit of each column.
    """

    path: Path
    count: int
    shift: Numbers
    unit: Numbers

    def __len__(self) -> int:
        """Return N."""
        return self.count

    def take(self, rows: Rows) -> Numbers:
        """Return some rows, in the order given."""
        taken: Numbers = self.take_stored(rows).astype(np.float64)
        taken *= self.unit
        taken += self.shift
        return taken

    def take_stored(self, rows: Rows) -> NDArray[np.float32]:
        """Return a copy of some rows as they are in the file: (row − shift) / unit."""
        try:  # read-only: a writable mapping counts as memory of the process, and a large one is refused
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.count, len(self.shift)))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: the cache was removed or cut short while it was in use: {error}") from error
        return np.asarray(mapped.take(rows, axis=0))

    def expect(self, rows: Rows) -> None:
        """Let the system read some rows, and what lies about them, in the background: they will be taken next."""
        if not hasattr(os, "posix_fadvise"):  # macOS and Windows: they are read when they are taken
            return
        width = 4 * len(self.shift)
        wanted = np.zeros(self.count * width // AHEAD + 1, dtype=np.bool_)
        wanted[rows * width // AHEAD] = True
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            for block in np.flatnonzero(wanted).tolist():
                os.posix_fadvise(file.fileno(), block * AHEAD, AHEAD + width, os.POSIX_FADV_WILLNEED)


Store: TypeAlias = InMemory | OnDisk


@dataclass(frozen=True, eq=False)
class LoadedTable:
    """A table after it was read.

    Attributes:
        store: Its rows of inputs.
        targets: Its targets [N, k], in memory.
        plan: The columns of inputs and of targets, and what the user is told of them.
        dropped: The number of rows that were dropped for a missing input.
        unlabelled: The number of rows that were dropped for a missing target.
        gaps: The number of missing cells in the others.
        digest: SHA-256 of all of it, as hex: the same in memory and on disk.
    """

    store: Store
    targets: Numbers
    plan: TablePlan
    dropped: int
    unlabelled: int
    gaps: int
    digest: str

    @property
    def width(self) -> int:
        """The number of columns, inputs and targets."""
        return len(self.plan.inputs) + len(self.plan.targets)


@dataclass(frozen=True)
class CacheConfig:
    """Where the rows of a table may be stored.

    Attributes:
        memory: Bytes that a table may take in memory; a larger one goes to the disk.
        folder: The folder of caches.
        progress: Called while a table is read.
    """

    memory: int
    folder: Path
    progress: Progress = silent


def default_memory() -> int:
    """Return an eighth of the memory of the machine or of the container, or of 8 GiB if it is unknown."""
    total = 8 * 2**30
    with contextlib.suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // SHARE


def load_rows(
    table: Table,
    plan: Callable[[], TablePlan],
    key: str,
    missing: Missing,
    cache: CacheConfig,
    check: Callable[[LoadedTable], object] = lambda loaded: None,
) -> LoadedTable:
    """Return the rows of a table: from its cache if there is one, else read, into memory as long as they fit.

    Args:
        table: The table.
        plan: Returns the columns; not called if the cache has them.
        key: What the columns depend on besides the table's files.
        missing: What to do about missing cells.
        cache: Where rows may be stored.
        check: Called before a cache is kept, with a table whose store may be empty; refuses targets that nothing can
            be learned from.

    Raises:
        UserError: If the table is damaged or refused, or the cache cannot be written.
    """
    folder = cache.folder / cache_key(table, f"{key};{missing}")
    cached = _open_cache(folder)
    # A table that fits is read into memory even if there is a cache: the same run must give the same bits without one.
    if cached is not None and 8 * len(cached.store) * cached.width > cache.memory:
        return cached
    planned = plan()
    reader = Reader(table, planned.inputs, planned.targets, missing)
    width = len(reader.inputs)
    digest, blocks, targets = hashlib.sha256(), [], []
    writer = _CacheWriter(folder, width)
    held = 0
    try:
        for block, _, _ in reader.blocks(cache.progress):
            digest.update(np.ascontiguousarray(block, dtype="<f8").data)
            targets.append(block[:, width:].copy())
            blocks.append(block[:, :width])
            held += block.nbytes
            # A table that will be far too large is not held first, judging by the bytes of its files read so far.
            expected = held * reader.bytes_total // reader.bytes_read if reader.bytes_read else 0
            if writer.file is None and (held > cache.memory or expected > FAR * cache.memory):
                writer.open()
            if writer.file is not None:
                for waiting in blocks:
                    writer.add(waiting)
                blocks = []
        digest.update(described_columns(reader.inputs, reader.targets))
        loaded = LoadedTable(
            InMemory(np.concatenate(blocks) if blocks else np.empty((0, width))),
            np.concatenate(targets) if targets else np.empty((0, len(reader.targets))),
            planned, reader.dropped, reader.unlabelled, reader.gaps, digest.hexdigest(),
        )  # fmt: skip
        check(loaded)
        return loaded if writer.file is None else writer.finish(loaded)
    except BaseException:
        writer.discard()
        raise


def described_columns(inputs: Sequence[Column], targets: Sequence[Column]) -> bytes:
    """Return the columns of a table as its digest covers them, after the rows."""
    names = [[column.name, column.kind, [*column.names]] for column in [*inputs, *targets]]
    return json.dumps([names, len(inputs)], ensure_ascii=True).encode()


def cache_key(table: Table, key: str) -> str:
    """Return the name of a table's cache, which depends on the files as they are now and on how they are read."""
    sha = hashlib.sha256(f"{CACHE_FORMAT};{sys.byteorder};{key}".encode())
    for path in table.files:
        with contextlib.suppress(OSError):
            stat = path.stat()
            sha.update(f"{path.resolve()};{stat.st_size};{stat.st_mtime_ns};".encode())
            if path.is_file():
                with path.open("rb") as file:
                    sha.update(file.read(HEAD))
    return sha.hexdigest()[:32]


class _CacheWriter:
    """Writes a cache into a temporary folder, which is renamed when it is complete."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.count = folder, 0
        self.part = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
        self.shift, self.unit = np.full(width, np.nan), np.ones(width)
        self.file: BinaryIO | None = None

    def open(self) -> None:
        """Create the folder and the file of rows."""
        with disk_errors(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.folder.parent)
            self.part.mkdir()
            self.file = (self.part / ROWS).open("wb")

    def add(self, block: Numbers) -> None:
        """Append rows."""
        for column in np.flatnonzero(np.isnan(self.shift)):  # columns without a number until now
            present = block[~np.isnan(block[:, column]), column]
            if len(present):  # the median: less an outlier, or less 0 for "unknown", the others lose digits
                self.shift[column] = np.partition(present, len(present) // 2)[len(present) // 2]
                self.unit[column] = 2.0 ** np.frexp(np.abs(present - self.shift[column]).max())[1]
        with np.errstate(over="ignore"):
            stored = ((block - np.nan_to_num(self.shift)) / self.unit).astype(np.float32)
        assert self.file is not None
        with disk_errors(self.folder.parent):
            self.file.write(stored.data)
        self.count += len(block)

    def finish(self, loaded: LoadedTable) -> LoadedTable:
        """Rename the folder; return the table with its rows on disk."""
        about = {
            "format": CACHE_FORMAT, "rows": self.count, "shift": np.nan_to_num(self.shift).tolist(),
            "unit": self.unit.tolist(), **plan_to_json(loaded.plan), "dropped": loaded.dropped,
            "unlabelled": loaded.unlabelled, "gaps": loaded.gaps, "digest": loaded.digest,
        }  # fmt: skip
        assert self.file is not None
        with disk_errors(self.folder.parent):
            _close_synced(self.file)
            targets = loaded.targets.astype("<f8", copy=False)
            for name, content in ((TARGETS, targets.data), (ABOUT, json.dumps(about).encode())):
                with (self.part / name).open("wb") as file:
                    file.write(content)
                    _close_synced(file)
            try:
                self.part.rename(self.folder)
            except OSError:  # a concurrent run was first and may be reading its cache; or there is a damaged one
                if _open_cache(self.folder) is None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.part.rename(self.folder)
                else:
                    shutil.rmtree(self.part, ignore_errors=True)
        cached = _open_cache(self.folder)
        assert cached is not None, "a cache that was just written"
        return cached

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):  # what could not be written before cannot be written now
            if self.file is not None:
                self.file.close()
        shutil.rmtree(self.part, ignore_errors=True)


def _close_synced(file: BinaryIO) -> None:
    """Close a file once its bytes are on the disk, so that a cache that has its name is complete after a power cut."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of processes that no longer run."""
    for part in folder.glob(".*.*-*"):
        process = part.name.rpartition(".")[2].partition("-")[0]
        with contextlib.suppress(OSError):  # it runs, under another user
            try:
                if process.isdecimal():
                    os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the folder of caches into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the rows do not fit in memory, and cannot be written here: {error.strerror}; "
            "`cache` names another folder, `memory` what may stay in memory"
        ) from error


def _open_cache(folder: Path) -> LoadedTable | None:
    """Return the table of a cache; None if it does not exist or is damaged."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        count = about["rows"]
        shift, unit = (np.array(about[name], dtype=np.float64) for name in ("shift", "unit"))
        plan = plan_from_json(about)
        width = len(plan.inputs)
        if about["format"] != CACHE_FORMAT or not len(shift) == len(unit) == width:
            return None
        if (folder / ROWS).stat().st_size != 4 * count * width:
            return None
        y = np.fromfile(folder / TARGETS, "<f8").reshape(count, len(plan.targets))
        store = OnDisk(folder / ROWS, count, shift, unit)
        return LoadedTable(store, y, plan, about["dropped"], about["unlabelled"], about["gaps"], about["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plan_to_json(plan: TablePlan) -> dict[str, Any]:
    """Return how a table is read, for JSON."""
    inputs, targets = ([*map(_column_to_json, part)] for part in (plan.inputs, plan.targets))
    return {"inputs": inputs, "targets": targets, "left_out": plan.left_out, "notes": plan.notes}


def plan_from_json(found: dict[str, Any]) -> TablePlan:
    """Return what :func:`plan_to_json` gave."""
    inputs, targets = ([*map(_column_from_json, found[part])] for part in ("inputs", "targets"))
    left_out = tuple((name, reason) for name, reason in found["left_out"])
    return TablePlan(inputs, targets, left_out, tuple(found["notes"]))


def _column_to_json(column: Column) -> dict[str, Any]:
    return {**vars(column), "names": [*column.names], "form": column.form.to_json()}


def _column_from_json(entry: dict[str, Any]) -> Column:
    lists = {name: tuple(entry[name]) for name in ("absent", "present")}
    frequent = None if entry["frequent"] is None else tuple(entry["frequent"])
    names = {name: at for at, name in enumerate(entry["names"])}
    return Column(**{**entry, **lists, "frequent": frequent, "names": names, "form": Form.from_json(entry["form"])})
