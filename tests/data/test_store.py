"""Rows larger than memory: the same data as in memory, cached once, and an incomplete cache is never used."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltaprop import UserError
from deltaprop.data import CacheConfig, Source, TableOptions, from_table, load, store
from deltaprop.data.columns import Reader
from deltaprop.data.formats import open_table
from deltaprop.data.infer import TablePlan, infer
from deltaprop.data.profile import profile
from deltaprop.data.store import ABOUT, ROWS, TARGETS, InMemory, LoadedTable, OnDisk
from tests.training.faults.shim import forked

PLENTY = 1 << 40  # bytes
NAMES = ("Oslo", "Rome", "Bern")
COLUMNS = 5  # of the table below: three inputs of numbers, one of categories, the target


def rows_of(count: int) -> list[str]:
    """Return lines of a table: a time in seconds, a small number (sometimes missing), a large one, a city, a target."""
    rng = np.random.default_rng(0)
    lines = []
    for at in range(count):
        gap = "" if at % 7 == 3 else f"{rng.normal():.6f}"
        lines.append(f"{1_700_000_000 + at},{gap},{1e6 * rng.normal():.3f},{NAMES[at % 3]},{at % 4 / 2}")
    return lines


def write(path: Path, rows: list[str]) -> Path:
    """Write a table with these lines."""
    path.write_text("\n".join(["time,small,large,city,y", *rows]) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of 400 rows, read in about ten blocks."""
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 2048)
    return write(tmp_path / "t.csv", rows_of(400))


BYTES = 400 * COLUMNS * 8  # of these rows in memory, float64


def read(
    path: Path, cache: Path, memory: int = 0, progress: store.Progress = store.silent, **options: Any
) -> LoadedTable:
    """Read a table as training does."""
    table, table_options = open_table(path), TableOptions(**{"missing": "mean", **options})

    def plan() -> TablePlan:
        return infer(table, table_options, profile(table, table.names, table_options.na_values, lambda done: None))

    return store.load_rows(
        table, plan, repr(table_options), table_options.missing, CacheConfig(memory, cache, progress)
    )


def all_rows(loaded: LoadedTable) -> np.ndarray:
    """Return all rows of a loaded table."""
    return loaded.store.take(np.arange(len(loaded.store)))


def only_entry(cache: Path) -> Path:
    """Return the only entry of a cache folder, hidden or not."""
    (folder,) = cache.iterdir()
    return folder


def assert_same(one: LoadedTable, other: LoadedTable) -> None:
    """Check that two loaded tables are equal, to the float32 rounding of each column less its first number."""
    x, y = all_rows(one), all_rows(other)
    first = np.array([column[~np.isnan(column)][0] for column in x.T])
    largest = np.nanmax(np.abs(x - first), axis=0)
    # float32 rounds with a relative error of at most 2^-24; twice that if both tables were rounded.
    assert (np.isnan(x) == np.isnan(y)).all()
    assert (np.nan_to_num(np.abs(x - y)) <= 2.0**-23 * largest).all()
    np.testing.assert_array_equal(one.targets, other.targets)
    for columns, others in ((one.plan.inputs, other.plan.inputs), (one.plan.targets, other.plan.targets)):
        assert [(c.name, c.kind, c.names) for c in columns] == [(c.name, c.kind, c.names) for c in others]
    assert (one.dropped, one.gaps, one.digest) == (other.dropped, other.gaps, other.digest)


# --- the same rows from disk and from memory ---


@pytest.mark.parametrize("memory", [0, 1024, BYTES // 2, BYTES - 1])
@pytest.mark.parametrize("missing", ["mean", "drop"])
def test_rows_from_disk_equal_rows_from_memory(missing: str, memory: int, table: Path, tmp_path: Path):
    in_memory = read(table, tmp_path / "none", PLENTY, missing=missing)
    memory = min(memory, in_memory.targets.size * COLUMNS * 8 - 1)
    from_disk = read(table, tmp_path / "cache", memory, missing=missing)
    assert isinstance(in_memory.store, InMemory)
    assert isinstance(from_disk.store, OnDisk)
    assert_same(in_memory, from_disk)
    assert len(from_disk.store) == (
        400 if missing == "mean" else 343
    )  # 57 of 400 have a missing cell: rows 3, 10, …, 395
    assert (from_disk.dropped, from_disk.gaps) == ((0, 57) if missing == "mean" else (57, 0))


def test_the_cache_holds_float32_differences_from_a_number_of_the_column(tmp_path: Path):
    """1.7e9 + 1/8 and 1.7e9 + 1 differ by 7/8, exact in float32, whose own spacing there is 128."""
    path = write(tmp_path / "t.csv", ["1700000000.125,0.1,3,Oslo,1", "1700000001,0.2,5,Rome,2"])
    loaded = all_rows(read(path, tmp_path / "cache"))
    np.testing.assert_array_equal(loaded[:, 0], [1700000000.125, 1700000001.0])
    np.testing.assert_allclose(loaded[:, 1], [0.1, 0.2], rtol=0, atol=0.1 * 2.0**-24)
    np.testing.assert_array_equal(loaded[:, 2:], [[3, 0], [5, 1]])


def test_rows_are_returned_in_the_requested_order(table: Path, tmp_path: Path):
    loaded = read(table, tmp_path / "cache")
    rows = np.array([399, 0, 7, 7, 250])
    np.testing.assert_array_equal(loaded.store.take(rows), all_rows(loaded)[rows])
    assert loaded.store.take(rows).dtype == np.float64


def test_expected_rows_are_announced_to_the_operating_system(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here in ranges of 256 bytes with rows of 16 bytes: each range with a requested row, plus the last row's end."""
    on_disk_rows = read(table, tmp_path / "cache").store
    assert isinstance(on_disk_rows, OnDisk)
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(store, "AHEAD", 256)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *args: calls.append(args))
    on_disk_rows.expect(np.array([0, 399, 15, 16, 33]))
    assert calls == [(at, 256 + 16, os.POSIX_FADV_WILLNEED) for at in (0, 256, 512, 399 * 16 // 256 * 256)]
    on_disk_rows.expect(np.array([], dtype=np.intp))
    assert len(calls) == 4


def test_expecting_rows_works_without_posix_fadvise_and_without_the_file(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On macOS there is no posix_fadvise; an error with the file is reported when it is read."""
    on_disk_rows = read(table, tmp_path / "cache").store
    assert isinstance(on_disk_rows, OnDisk)
    with monkeypatch.context() as patch:
        patch.delattr(os, "posix_fadvise")
        on_disk_rows.expect(np.arange(400))
    on_disk_rows.path.unlink()
    on_disk_rows.expect(np.arange(400))


def test_a_cache_truncated_while_in_use_is_reported(table: Path, tmp_path: Path):
    on_disk_rows = read(table, tmp_path / "cache").store
    assert isinstance(on_disk_rows, OnDisk)
    os.truncate(on_disk_rows.path, 100)
    with pytest.raises(UserError, match=r"rows\.f32: the cache was removed or cut short while it was in use"):
        on_disk_rows.take(np.arange(400))
    on_disk_rows.path.unlink()
    with pytest.raises(UserError, match="the cache was removed or cut short"):
        on_disk_rows.take(np.arange(400))


def test_a_cache_larger_than_the_machines_memory_can_be_read(tmp_path: Path):
    """It is mapped read-only; a writable mapping would count as the process's memory and be refused."""
    rows = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    with (tmp_path / "rows.f32").open("wb") as file:
        file.truncate(4 * rows)  # a sparse file: it takes no disk space
    on_disk_rows = OnDisk(tmp_path / "rows.f32", rows, np.zeros(1), np.ones(1))
    assert on_disk_rows.take(np.array([0, rows - 1])).tolist() == [[0.0], [0.0]]
    with pytest.MonkeyPatch.context() as patch:
        modes: list[str] = []
        memmap = np.memmap
        patch.setattr(
            np,
            "memmap",
            lambda path, dtype, mode, **options: modes.append(mode) or memmap(path, dtype, mode, **options),
        )
        on_disk_rows.take(np.array([0]))
    assert modes == ["r"]


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_labels_are_not_held_in_memory_twice(memory: int, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The labels as read (8 bytes a row) are freed before the training rows are processed."""
    references: list[Any] = []
    plain, fit = from_table.load_rows, from_table.fit_encoding

    def load_and_watch(*args: Any) -> LoadedTable:
        loaded = plain(*args)
        y = loaded.targets
        references.append(weakref.ref(y if y.base is None else y.base))
        return loaded

    def fit_and_watch(*args: Any, **kwargs: Any) -> Any:
        references.append(references[0]())
        return fit(*args, **kwargs)

    monkeypatch.setattr(from_table, "load_rows", load_and_watch)
    monkeypatch.setattr(from_table, "fit_encoding", fit_and_watch)
    options = TableOptions(missing="mean", target=("city",))
    load(Source(data=str(table), options=options, cache=CacheConfig(memory, tmp_path / "cache")))
    assert len(references) == 2
    assert references[1] is None


def test_a_table_that_just_fits_stays_in_memory(table: Path, tmp_path: Path):
    """400 rows of 5 columns in float64."""
    assert isinstance(read(table, tmp_path / "cache", BYTES).store, InMemory)
    assert not (tmp_path / "cache").exists()
    assert isinstance(read(table, tmp_path / "cache", BYTES - 1).store, OnDisk)


def test_times_keep_a_resolution_of_seconds(table: Path, tmp_path: Path):
    """Consecutive seconds of 2023, where plain float32 has a spacing of 128."""
    seconds = all_rows(read(table, tmp_path / "cache"))[:, 0]
    np.testing.assert_array_equal(seconds, 1_700_000_000 + np.arange(400))


@pytest.mark.parametrize("empty", [1, 200])
def test_times_keep_a_resolution_of_seconds_if_the_first_are_missing(empty: int, table: Path, tmp_path: Path):
    """The first cell is missing, or those of the first five blocks."""
    rows = [line if at >= empty else "," + line.partition(",")[2] for at, line in enumerate(rows_of(400))]
    seconds = all_rows(read(write(table, rows), tmp_path / "cache"))[:, 0]
    assert np.isnan(seconds[:empty]).all()
    np.testing.assert_array_equal(seconds[empty:], 1_700_000_000 + np.arange(empty, 400))


@pytest.mark.parametrize("first", ["0", "-1", "1e12"])
def test_times_keep_a_resolution_of_seconds_if_the_first_is_an_outlier(first: str, table: Path, tmp_path: Path):
    """0 or −1 marks an unknown time, or one is mistyped: the others keep a resolution of seconds."""
    rows = rows_of(400)
    rows[0] = f"{first},{rows[0].partition(',')[2]}"
    seconds = all_rows(read(write(table, rows), tmp_path / "cache"))[:, 0]
    np.testing.assert_array_equal(seconds[1:], 1_700_000_000 + np.arange(1, 400))


@pytest.mark.parametrize("unit", [1e-46, 1e40])
def test_numbers_beyond_the_range_of_float32_are_kept(unit: float, table: Path, tmp_path: Path):
    """After standardising they fit into float32; on disk they must not become 0 or infinity."""
    rows = [f"{at * unit!r},{line.partition(',')[2]}" for at, line in enumerate(rows_of(400))]
    loaded = all_rows(read(write(table, rows), tmp_path / "cache"))[:, 0]
    np.testing.assert_allclose(loaded, unit * np.arange(400), rtol=0, atol=400 * unit * 2.0**-23)


@pytest.mark.parametrize("target", ["city", "y"])
@pytest.mark.parametrize("storage", ["rows", "disk"])
def test_a_data_set_is_the_same_for_every_storage(storage: Any, target: str, table: Path, tmp_path: Path):
    """From rows to the bit; from disk to the rounding of float32, 2^-24 of the range, which is about 4 σ."""
    options = TableOptions(target=(target,), missing="mean")
    cache = CacheConfig(PLENTY, tmp_path / "cache")
    memory, other = (
        load(Source(data=str(table), options=options, cache=cache, storage=value), seed=3)
        for value in ("memory", storage)
    )
    assert (other.digest, other.class_names, other.task) == (memory.digest, memory.class_names, memory.task)
    assert memory.table is not None
    assert other.table is not None
    assert other.table.storage == storage
    assert (memory.table.gaps, memory.table.warnings) == (other.table.gaps, other.table.warnings)
    assert isinstance(other.train.store, OnDisk if storage == "disk" else InMemory)
    tolerance = 0.0 if storage == "rows" else 1e-5
    torch.testing.assert_close(other.input_scaling.mean, memory.input_scaling.mean, rtol=1e-7, atol=tolerance)
    for name in ("train", "val", "test"):
        expected, actual = getattr(memory, name), getattr(other, name)
        assert len(expected) == len(actual)
        torch.testing.assert_close(actual.y, expected.y, rtol=0, atol=0)
        torch.testing.assert_close(actual.inputs(slice(None)), expected.x, rtol=0, atol=tolerance)
        some = torch.tensor([5, 2, 2, 9])
        torch.testing.assert_close(actual.inputs(some), expected.x[some], rtol=0, atol=tolerance)


# --- a cached table is not read again ---


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one entry for each time that rows are read from the table."""
    entries: list[int] = []
    blocks = Reader.blocks

    def counting(self: Reader, *arguments: Any) -> Any:
        entries.append(1)
        return blocks(self, *arguments)

    monkeypatch.setattr(Reader, "blocks", counting)
    return entries


def test_a_cache_is_used_again(table: Path, tmp_path: Path, reads: list[int]):
    first = read(table, tmp_path / "cache")
    again = read(table, tmp_path / "cache")
    assert len(reads) == 1
    np.testing.assert_array_equal(all_rows(again), all_rows(first))
    assert_same(first, again)


def test_a_table_that_fits_in_memory_is_not_read_from_a_cache(table: Path, tmp_path: Path):
    """The same command gives the same bits, whether or not another run has cached the table."""
    before = read(table, tmp_path / "cache", PLENTY)
    read(table, tmp_path / "cache", 0)
    after = read(table, tmp_path / "cache", PLENTY)
    assert isinstance(after.store, InMemory)
    np.testing.assert_array_equal(all_rows(after), all_rows(before))


def longer(path: Path) -> None:
    """Change the size, keep the modification time."""
    stat = path.stat()
    with path.open("a") as file:
        file.write(rows_of(1)[0] + "\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def later(path: Path) -> None:
    """Change the modification time by the smallest step, keep the bytes."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def edited(path: Path) -> None:
    """Change a digit, keep the size and the modification time."""
    stat = path.stat()
    text = path.read_text()
    path.write_text(text.replace("1700000001", "1700000002", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize("change", [longer, later, edited])
def test_the_cache_of_a_changed_table_is_not_used(
    change: Callable[[Path], None], table: Path, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
):
    """The first 1024 bytes (HEAD) of 16 kB are compared."""
    monkeypatch.setattr(store, "HEAD", 1024)
    read(table, tmp_path / "cache")
    change(table)
    assert_same(read(table, tmp_path / "other", PLENTY), read(table, tmp_path / "cache"))
    assert len(reads) == 3


@pytest.mark.parametrize(
    "options",
    [{"drop": ("large",)}, {"categorical": ("small",)}, {"target": ("small", "large"), "missing": "drop"},
     {"target": ("city",)}, {"missing": "drop"}],
    ids=str,
)  # fmt: skip
def test_other_table_options_have_their_own_cache(
    options: dict[str, Any], table: Path, tmp_path: Path, reads: list[int]
):
    read(table, tmp_path / "cache")
    assert_same(read(table, tmp_path / "other", PLENTY, **options), read(table, tmp_path / "cache", **options))
    assert len(reads) == 3
    read(table, tmp_path / "cache")
    read(table, tmp_path / "cache", **options)
    assert len(reads) == 3


def test_a_changed_or_missing_parquet_part_is_noticed(tmp_path: Path, reads: list[int]):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        columns = {"a": np.arange(50.0) + number, "b": np.arange(50) % 3}
        parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet")
    read(folder, tmp_path / "cache")
    read(folder, tmp_path / "cache")
    assert len(reads) == 1
    later(folder / "1.parquet")
    read(folder, tmp_path / "cache")
    (folder / "1.parquet").unlink()
    assert len(read(folder, tmp_path / "cache").store) == 50
    assert len(reads) == 3


# --- a damaged or incomplete cache is not used ---


def cut(name: str, left: float) -> Callable[[Path], None]:
    """Return a function that truncates a file to this share."""

    def damage(folder: Path) -> None:
        os.truncate(folder / name, int(left * (folder / name).stat().st_size))

    return damage


def without(name: str) -> Callable[[Path], None]:
    """Return a function that removes a file."""
    return lambda folder: (folder / name).unlink()


def about(text: str) -> Callable[[Path], None]:
    """Return a function that replaces the text of the cache's metadata."""
    return lambda folder: (folder / ABOUT).write_text(text, errors="surrogateescape")


def altered(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes entries of the cache's metadata."""

    def damage(folder: Path) -> None:
        metadata = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps({**metadata, **changes}))

    return damage


def a_folder_for(name: str) -> Callable[[Path], None]:
    """Return a function that replaces a file by a folder."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def appended(name: str) -> Callable[[Path], None]:
    """Return a function that appends a row of zeros to a file."""

    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(bytes(4 * (COLUMNS - 1) if name == ROWS else 8))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"{name} cut to {left}": cut(name, left) for name in (ROWS, TARGETS, ABOUT) for left in (0.0, 0.5, 0.99)},
    **{f"no {name}": without(name) for name in (ROWS, TARGETS, ABOUT)},
    **{f"{name} longer": appended(name) for name in (ROWS, TARGETS)},
    "invalid JSON": about("{"),
    **{f"JSON {text}": about(text) for text in ("null", "[]", "7", '"rows"', "{}", "NaN")},
    "invalid UTF-8": about('{"rows": "\udcff"}'),
    "another format": altered(format=0),
    "fewer rows": altered(rows=399),
    "rows as text": altered(rows="400"),
    "minus one row": altered(rows=-1),
    "a shift less": altered(shift=[0.0] * (COLUMNS - 2)),
    "no columns": altered(inputs=[]),
    "columns of null": altered(inputs=[None] * (COLUMNS - 1)),
    "columns without a name": altered(inputs=[{"kind": "numbers"}] * (COLUMNS - 1)),
    **{f"a folder for {name}": a_folder_for(name) for name in (ROWS, TARGETS, ABOUT)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_rebuilt(damage: Callable[[Path], None], table: Path, tmp_path: Path, reads: list[int]):
    first = read(table, tmp_path / "cache")
    folder = only_entry(tmp_path / "cache")
    damage(folder)
    again = read(table, tmp_path / "cache")
    assert len(reads) == 2
    assert_same(first, again)
    assert only_entry(tmp_path / "cache") == folder
    read(table, tmp_path / "cache")
    assert len(reads) == 2


def test_the_cache_is_synced_to_disk_before_it_is_renamed(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut after the rename must not leave a cache that looks complete but has rows of zeros."""
    calls: list[str] = []
    fsync, fdatasync, rename = os.fsync, os.fdatasync, os.rename

    def synced(real: Callable[[int], None]) -> Callable[[Any], None]:
        def sync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            calls.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
            real(file)

        return sync

    def renamed(source: Any, target: Any, **options: Any) -> None:
        calls.append("rename")
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced(fsync))
    monkeypatch.setattr(os, "fdatasync", synced(fdatasync))
    monkeypatch.setattr(os, "rename", renamed)
    read(table, tmp_path / "cache")
    assert {ROWS, TARGETS, ABOUT} <= {*calls[: calls.index("rename")]}


def kill_self(*_: Any, **__: Any) -> None:
    """End this process with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


STAGES = {
    "the folder is made": ("_CacheWriter.add", 1),
    "some rows are written": ("_CacheWriter.add", 4),
    "all rows are written": ("_CacheWriter.finish", 1),
    "all is written": ("Path.rename", 1),
}


@pytest.mark.parametrize(("name", "times"), STAGES.values(), ids=STAGES)
def test_a_cache_whose_writer_was_killed_is_not_used(
    name: str, times: int, table: Path, tmp_path: Path, reads: list[int]
):
    def work() -> None:
        kind, _, method = name.partition(".")
        real, left = getattr(getattr(store, kind), method), [times]

        def fatal(*arguments: Any) -> Any:
            left[0] -= 1
            return real(*arguments) if left[0] else kill_self()

        setattr(getattr(store, kind), method, fatal)
        read(table, tmp_path / "cache")

    assert forked(work) == -signal.SIGKILL
    part = only_entry(tmp_path / "cache")
    assert part.name.startswith(".")
    assert_same(read(table, tmp_path / "none", PLENTY), read(table, tmp_path / "cache"))
    assert len(reads) == 2
    assert only_entry(tmp_path / "cache") != part  # the incomplete folder was removed


def test_incomplete_caches_of_ended_processes_are_removed_and_others_kept(table: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    ended = subprocess.Popen(["true"])
    ended.wait()
    parts = {number: cache / f".{'0' * 32}.{number}-abcdef01" for number in (ended.pid, os.getpid(), os.getppid())}
    unrelated = cache / ".no-part"
    for part in (*parts.values(), unrelated):
        part.mkdir(parents=True)
        (part / ROWS).write_bytes(b"rows")
    read(table, cache)
    assert {path.name for path in cache.iterdir() if path.name[0] == "."} == {
        parts[os.getpid()].name, parts[os.getppid()].name, unrelated.name,
    }  # fmt: skip


def fail_at(moment: int) -> store.Progress:
    """Return a progress function that fails at the n-th call."""
    left = [moment]

    def progress(what: str, done: int, total: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("failed")

    return progress


@pytest.mark.parametrize("moment", [1, 3, 8])
def test_a_failed_read_leaves_no_cache(moment: int, table: Path, tmp_path: Path):
    with pytest.raises((RuntimeError, UserError)):
        read(table, tmp_path / "cache", 1024, fail_at(moment))
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").iterdir()]


def test_an_invalid_cell_in_a_late_row_leaves_no_cache(table: Path, tmp_path: Path):
    rows = rows_of(400)
    rows[380] = rows[380].replace("17000", "seventeen", 1)
    with pytest.raises(UserError, match="row 381"):
        read(write(table, rows), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_missing_cell_that_is_refused_in_a_late_row_leaves_no_cache(table: Path, tmp_path: Path):
    rows = [f"{at},1.5,2.5,{NAMES[at % 3]},{at % 4}" for at in range(400)]
    rows[380] = rows[380].replace("1.5", "", 1)
    with pytest.raises(UserError, match=r"row 381, column 'small': the cell is empty"):
        read(write(table, rows), tmp_path / "cache", missing="refuse")
    assert not [*(tmp_path / "cache").iterdir()]


# --- several processes at once ---


def test_the_second_writer_keeps_an_existing_cache(table: Path, tmp_path: Path):
    """The first process may be training from the cache already: it must not be replaced."""
    first: list[LoadedTable] = []
    inodes: list[int] = []

    def read_first(what: str, done: int, total: int) -> None:
        if not first:
            first.append(read(table, tmp_path / "cache"))
            inodes.append((only_entry(tmp_path / "cache") / ROWS).stat().st_ino)

    second = read(table, tmp_path / "cache", 0, read_first)
    assert_same(first[0], second)
    assert (only_entry(tmp_path / "cache") / ROWS).stat().st_ino == inodes[0]


def test_concurrent_processes_read_the_same_rows(table: Path, tmp_path: Path):
    """Three processes take rows repeatedly, while another one may just be finishing the cache."""
    expected = read(table, tmp_path / "none", PLENTY)
    start = time.time() + 0.3

    def work() -> None:
        time.sleep(max(0.0, start - time.time()))
        loaded = read(table, tmp_path / "cache")
        while time.time() < start + 0.6:
            assert_same(expected, loaded)

    children = []
    for _ in range(3):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert not only_entry(tmp_path / "cache").name.startswith(".")
    assert_same(expected, read(table, tmp_path / "cache"))


# --- no disk space, no permission ---


def check_error(error: str, cache: Path) -> None:
    """Check that the error is one line with the folder and the setting to change, and that the cache is empty."""
    assert str(cache) in error
    assert "\n" not in error
    assert "None" not in error
    assert "`cache`" in error
    assert not [*cache.iterdir()]


def test_a_file_size_limit_is_reported_and_leaves_no_cache(table: Path, tmp_path: Path, capfd: Any):
    """RLIMIT_FSIZE of 4096 bytes, which 400 rows of 16 bytes exceed: the kernel refuses further writes."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            read(table, tmp_path / "cache")
        except UserError as error:
            print(error)
            raise SystemExit(2) from None

    assert forked(work) == 2
    message = capfd.readouterr().out.strip()
    check_error(message, tmp_path / "cache")
    assert "File too large" in message


@pytest.fixture
def tmpfs(tmp_path: Path) -> Any:
    """The mount point of a file system of 8 kB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=8k tmpfs {mount_point} 2>/dev/null"):
        pytest.skip("no permission to mount a small file system")
    yield mount_point
    os.system(f"umount {mount_point}")


@pytest.mark.parametrize("rows", [300, 400, 510, 1500])
def test_a_full_disk_is_reported_and_leaves_no_cache(rows: int, table: Path, tmpfs: Path):
    """8 kB, with 16 bytes a row and 8 for its target: the rows exceed it, or the targets do, or the metadata does."""
    write(table, rows_of(rows))
    with pytest.raises(UserError) as error:
        read(table, tmpfs)
    check_error(str(error.value), tmpfs)
    assert "No space left on device" in str(error.value)


def test_a_file_in_place_of_the_cache_folder_is_reported(table: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache: .*cannot be written here: (Not a directory|File exists); `cache`"):
        read(table, tmp_path / "cache")
