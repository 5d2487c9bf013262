"""The rows of a table once it has been read: in memory, or where they do not fit in a file on disk.

The file is a cache: float32 numbers [N, p], row by row, less a shift per column (the middle one of its first numbers)
and in a unit per column (a power of 2), so that a column of dates in seconds keeps its digits. It is written once,
beside a JSON file that says what it holds, and used again as long as the table's files are as they were: the same
sizes, times and first bytes, and the same columns asked for. Nothing is unpickled.

Rows come back in float64 whichever way they were kept.
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
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltaprop.data.columns import Column, Numbers, Reader, TableOptions
from deltaprop.data.splits import Rows
from deltaprop.errors import UserError

FORMAT = 2
HEAD = 1 << 20  # bytes of each file that its key looks at
ROWS_AT_ONCE = 8192  # that are brought to float64 together
AHEAD = 1 << 18  # bytes that the system is asked for at a time: of more than it wants to read at once it reads a part
UNLIMITED = 1 << 62  # bytes
FAR = 1.5  # times as much as may be in memory is what goes to the disk at once
SHARE = 8  # of the machine's memory, one part in so many is what a table may take


Storage: TypeAlias = Literal["memory", "rows", "disk"]
"""As inputs in memory; as rows in memory, encoded while the net trains; or as rows on disk, so too."""


class Store(Protocol):
    """Rows [N, p] as they were read."""

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> Numbers:
        """Return some rows, in the order given."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows in memory."""

    rows: Numbers

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def take(self, rows: Rows) -> Numbers:
        """Return some rows, in the order given."""
        return self.rows[rows]


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Rows in a file, float32: each column less its shift, in units of its own, a power of 2.

    The file is mapped for each call and let go after it: pages that stay mapped count as the process's own.

    Attributes:
        path: The file.
        count: N.
        shift: Of each column.
        unit: Of each column.
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
        taken: Numbers = self.kept(rows).astype(np.float64)
        taken *= self.unit
        taken += self.shift
        return taken

    def kept(self, rows: Rows) -> NDArray[np.float32]:
        """Return some rows as they lie in the file: (row − shift) / unit; a copy.

        Raises:
            UserError: If the file is not what it was.
        """
        try:  # mapped to be read alone: memory that could be written to would be counted, and refused where it is much
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.count, len(self.shift)))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: the cache was removed or cut short while it was in use: {error}") from error
        return np.asarray(mapped.take(rows, axis=0))

    def expect(self, rows: Rows) -> None:
        """Have the system bring some rows, and what lies about them, to its memory while other things are done."""
        if not hasattr(os, "posix_fadvise"):  # macOS and Windows: they are read when they are asked for
            return
        width = 4 * len(self.shift)
        wanted = np.zeros(self.count * width // AHEAD + 1, dtype=np.bool_)
        wanted[rows * width // AHEAD] = True
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            for stretch in np.flatnonzero(wanted).tolist():
                os.posix_fadvise(file.fileno(), stretch * AHEAD, AHEAD + width, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, eq=False)
class LoadedTable:
    """A table, read.

    Attributes:
        store: Its rows of inputs.
        targets: Its targets [N, k], in memory.
        inputs: What the columns of inputs hold, in the order of the table.
        target_columns: What those of the targets hold.
        dropped: How many rows were left out because something was missing in them.
        gaps: How many numbers or names are missing in the others.
        digest: SHA-256 of all of it, as hex: the same whether it is in memory or on disk.
    """

    store: Store
    targets: Numbers
    inputs: list[Column]
    target_columns: list[Column]
    dropped: int
    gaps: int
    digest: str


Progress = Callable[[str, int, int], None]
"""Told what is done, how many bytes of it are, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class CacheConfig:
    """Where rows may be kept.

    Attributes:
        memory: Bytes that a table may take in memory; more goes to the disk.
        cache: The folder of caches.
        progress: Told how far the reading is, where it takes long.
    """

    memory: int
    cache: Path
    progress: Progress = silent


def default_cache() -> Path:
    """Return ~/.cache/deltaprop, or the place that XDG_CACHE_HOME names."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltaprop"


def default_memory() -> int:
    """Return an eighth of the machine's memory, or of what the container has of it; of 8 GiB where nobody tells."""
    total = 8 * 2**30
    with contextlib.suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // SHARE


def read(
    reader: Reader,
    choices: TableOptions,
    room: CacheConfig,
    check_targets: Callable[[LoadedTable], object] = lambda found: None,
) -> LoadedTable:
    """Return the rows of a table: from its cache where there is one, else read, into memory as long as they fit.

    Args:
        reader: Of the columns that matter.
        choices: What the user says of them: part of the cache's key.
        room: Where rows may be kept.
        check_targets: Refuses targets that nothing can be learnt from, before a cache is kept; what it is given has no
            rows of inputs yet.

    Raises:
        UserError: If the table is at fault, or there is no room for the cache.
    """
    folder = room.cache / key(reader, choices)
    found = _cached(folder)
    if found is not None and _bytes(found) > room.memory:  # else in memory, as if there were no cache: the same bits
        return found
    files = reader.table.files
    total = sum(file.stat().st_size for file in files if file.is_file())
    width = len(reader.inputs)
    digest, blocks, targets = hashlib.sha256(), [], []
    spill: _Spill | None = None
    held = seen = 0

    def on_bytes(done: int) -> None:
        nonlocal seen
        seen = done
        room.progress(f"reading {reader.table.path.name}", done, total)

    try:
        for block in reader.blocks(on_bytes):
            digest.update(np.ascontiguousarray(block, dtype="<f8").data)
            targets.append(block[:, width:].copy())
            blocks.append(block[:, :width])
            held += block.nbytes
            # What is to be far too much need not be held first: by the bytes of the files that it was read from.
            likely = held * total // seen if seen else 0
            if spill is None and (held > room.memory or likely > FAR * room.memory):
                spill = _Spill(folder, width)
                spill.begin()
            if spill is not None:
                for waiting in blocks:
                    spill.add(waiting)
                blocks = []
        y = np.concatenate(targets) if targets else np.empty((0, len(reader.targets)))
        names = [[column.name, column.kind, [*column.names]] for column in [*reader.inputs, *reader.targets]]
        digest.update(json.dumps([names, width], ensure_ascii=True).encode())
        read_ = LoadedTable(
            InMemory(np.concatenate(blocks) if blocks else np.empty((0, width))),
            y, [*reader.inputs], [*reader.targets], reader.dropped, reader.gaps, digest.hexdigest(),
        )  # fmt: skip
        check_targets(read_)
        return read_ if spill is None else spill.end(read_)
    except BaseException:
        if spill is not None:
            spill.give_up()
        raise


def key(reader: Reader, choices: TableOptions) -> str:
    """Return the name of the cache of a table: it hangs on its files as they are now, and on what is asked of it."""
    sha = hashlib.sha256(f"{FORMAT};{sys.byteorder};{choices!r}".encode())
    sha.update(repr([(c.name, c.kind, c.forced, c.verbatim) for c in (*reader.inputs, *reader.targets)]).encode())
    for path in reader.table.files:
        with contextlib.suppress(OSError):
            stat = path.stat()
            sha.update(f"{path.resolve()};{stat.st_size};{stat.st_mtime_ns};".encode())
            if path.is_file():
                with path.open("rb") as file:
                    sha.update(file.read(HEAD))
    return sha.hexdigest()[:32]


def _bytes(read_: LoadedTable) -> int:
    """Return what the rows would take in memory, targets and all."""
    return 8 * len(read_.store) * (len(read_.inputs) + len(read_.target_columns))


ROWS, TARGETS, ABOUT = "rows.f32", "targets.f64", "about.json"


class _Spill:
    """Writes a cache: into a folder of its own, which takes its name when it is whole."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.count = folder, 0
        self.part = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
        self.shift, self.unit = np.full(width, np.nan), np.ones(width)
        self.file: BinaryIO | None = None

    def begin(self) -> None:
        """Make its folder; not at birth, so that whoever is broken off here knows what to give up."""
        with _telling(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _clear(self.folder.parent)
            self.part.mkdir()
            self.file = (self.part / ROWS).open("wb")

    def add(self, block: Numbers) -> None:
        """Append rows."""
        for column in np.flatnonzero(np.isnan(self.shift)):  # it has had no number until now
            there = block[~np.isnan(block[:, column]), column]
            if len(there):  # the one in the middle: less an outlier, or less 0 for "not known", others lose digits
                self.shift[column] = np.partition(there, len(there) // 2)[len(there) // 2]
                self.unit[column] = 2.0 ** np.frexp(np.abs(there - self.shift[column]).max())[1]
        with np.errstate(over="ignore"):
            small = ((block - np.nan_to_num(self.shift)) / self.unit).astype(np.float32)
        assert self.file is not None
        with _telling(self.folder):
            self.file.write(small.data)
        self.count += len(block)

    def end(self, read_: LoadedTable) -> LoadedTable:
        """Give the folder its name; return the table as it lies there."""
        about = {
            "format": FORMAT,
            "rows": self.count,
            "shift": np.nan_to_num(self.shift).tolist(),
            "unit": self.unit.tolist(),
            "inputs": [_column_to_json(column) for column in read_.inputs],
            "targets": [_column_to_json(column) for column in read_.target_columns],
            "dropped": read_.dropped,
            "gaps": read_.gaps,
            "digest": read_.digest,
        }
        assert self.file is not None
        with _telling(self.folder):
            _to_disk(self.file)
            targets = read_.targets.astype("<f8", copy=False)
            for name, content in ((TARGETS, targets.data), (ABOUT, json.dumps(about).encode())):
                with (self.part / name).open("wb") as file:
                    file.write(content)
                    _to_disk(file)
            found = None
            try:
                self.part.rename(self.folder)
            except OSError:  # another run was quicker, and may be reading there; or what stands there is damaged
                found = _cached(self.folder)
                if found is None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.part.rename(self.folder)
                else:
                    shutil.rmtree(self.part, ignore_errors=True)
        found = found or _cached(self.folder)
        assert found is not None, "a cache that was just written"
        return found

    def give_up(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # what it could not write before it cannot write now
            if self.file is not None:
                self.file.close()
        shutil.rmtree(self.part, ignore_errors=True)


def _to_disk(file: BinaryIO) -> None:
    """Close a file once its bytes are on the disk: a name is given to what is there after a power cut too."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _clear(folder: Path) -> None:
    """Remove what readers that were killed have left: parts whose process is gone."""
    for part in folder.glob(".*.*-*"):
        process = part.name.rpartition(".")[2].partition("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(part, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder.parent}: the rows do not fit in memory, and cannot be written here: {error.strerror}; "
            "`cache` names another folder, `memory` what may stay in memory"
        ) from error


def _cached(folder: Path) -> LoadedTable | None:
    """Return what a cache holds; None where there is none, or none that is whole."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        count = about["rows"]
        shift, unit = (np.array(about[name], dtype=np.float64) for name in ("shift", "unit"))
        inputs, targets = ([_column(entry) for entry in about[part]] for part in ("inputs", "targets"))
        if about["format"] != FORMAT or not len(shift) == len(unit) == len(inputs):
            return None
        if (folder / ROWS).stat().st_size != 4 * count * len(inputs):
            return None
        y = np.fromfile(folder / TARGETS, "<f8").reshape(count, len(targets))
        store = OnDisk(folder / ROWS, count, shift, unit)
        return LoadedTable(store, y, inputs, targets, about["dropped"], about["gaps"], about["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _column_to_json(column: Column) -> dict[str, Any]:
    return {**vars(column), "names": [*column.names]}


def _column(entry: dict[str, Any]) -> Column:
    names: Sequence[str] = entry["names"]
    numbered = {name: at for at, name in enumerate(names)}
    return Column(entry["name"], entry["kind"], entry["forced"], entry["verbatim"], numbered)
