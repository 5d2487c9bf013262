"""Rows that do not fit in memory: the same as in memory, cached once, and never a cache that is not whole."""

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
from deltaprop.data.columns import Reader, select_columns
from deltaprop.data.formats import open_table
from deltaprop.data.store import ABOUT, ROWS, TARGETS, InMemory, LoadedTable, OnDisk
from tests.training.faults.shim import forked

PLENTY = 1 << 40  # bytes
NAMES = ("Oslo", "Rome", "Bern")
COLUMNS = 5  # of the table below: three of inputs that are numbers, one of names, the target


def rows_of(count: int) -> list[str]:
    """Return lines of a table: a time in seconds, a small number that is now and then missing, a large one, a name."""
    rng = np.random.default_rng(0)
    found = []
    for at in range(count):
        gap = "" if at % 7 == 3 else f"{rng.normal():.6f}"
        found.append(f"{1_700_000_000 + at},{gap},{1e6 * rng.normal():.3f},{NAMES[at % 3]},{at % 4 / 2}")
    return found


def write(path: Path, rows: list[str]) -> Path:
    """Write a table with these lines."""
    path.write_text("\n".join(["time,small,large,city,y", *rows]) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of 400 rows, which is read in some ten blocks."""
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 2048)
    return write(tmp_path / "t.csv", rows_of(400))


BYTES = 400 * COLUMNS * 8  # that its rows take in memory: float64


def read(
    path: Path, cache: Path, memory: int = 0, progress: store.Progress = store.silent, **choices: Any
) -> LoadedTable:
    """Read a table as training does."""
    said = TableOptions(**{"missing": "mean", **choices})
    opened = open_table(path)
    return store.load_rows(
        Reader(opened, *select_columns(opened, said), said.missing), said, CacheConfig(memory, cache, progress)
    )


def taken(found: LoadedTable) -> np.ndarray:
    """Return all rows."""
    return found.store.take(np.arange(len(found.store)))


def on_disk(cache: Path) -> Path:
    """Return the one folder that a cache holds, hidden ones counted."""
    (folder,) = cache.iterdir()
    return folder


def same(one: LoadedTable, other: LoadedTable) -> None:
    """Hold two readings to be of the same table, to float32 of each column less its first number."""
    x, y = taken(one), taken(other)
    first = np.array([column[~np.isnan(column)][0] for column in x.T])
    largest = np.nanmax(np.abs(x - first), axis=0)
    # float32 rounds to 24 bits: an error of at most 2^-24 of what is rounded; twice that where both were.
    assert (np.isnan(x) == np.isnan(y)).all()
    assert (np.nan_to_num(np.abs(x - y)) <= 2.0**-23 * largest).all()
    np.testing.assert_array_equal(one.targets, other.targets)
    for ours, theirs in ((one.inputs, other.inputs), (one.target_columns, other.target_columns)):
        assert [(c.name, c.kind, c.names) for c in ours] == [(c.name, c.kind, c.names) for c in theirs]
    assert (one.dropped, one.gaps, one.digest) == (other.dropped, other.gaps, other.digest)


# --- the same rows ---


@pytest.mark.parametrize("memory", [0, 1024, BYTES // 2, BYTES - 1])
@pytest.mark.parametrize("missing", ["mean", "drop"])
def test_from_disk_as_from_memory(missing: str, memory: int, table: Path, tmp_path: Path):
    in_memory = read(table, tmp_path / "none", PLENTY, missing=missing)
    memory = min(memory, in_memory.targets.size * COLUMNS * 8 - 1)
    spilt = read(table, tmp_path / "cache", memory, missing=missing)
    assert isinstance(in_memory.store, InMemory)
    assert isinstance(spilt.store, OnDisk)
    same(in_memory, spilt)
    assert len(spilt.store) == (400 if missing == "mean" else 343)  # 57 of 400 have a gap: 3, 10, …, 395
    assert (spilt.dropped, spilt.gaps) == ((0, 57) if missing == "mean" else (57, 0))


def test_what_is_kept_is_float32_less_a_number_of_the_column(tmp_path: Path):
    """1.7e9 + 1/8 and + 1 are 7/8 apart, which float32 has; by itself it has every 128th number there."""
    path = write(tmp_path / "t.csv", ["1700000000.125,0.1,3,Oslo,1", "1700000001,0.2,5,Rome,2"])
    found = taken(read(path, tmp_path / "cache"))
    np.testing.assert_array_equal(found[:, 0], [1700000000.125, 1700000001.0])
    np.testing.assert_allclose(found[:, 1], [0.1, 0.2], rtol=0, atol=0.1 * 2.0**-24)
    np.testing.assert_array_equal(found[:, 2:], [[3, 0], [5, 1]])


def test_rows_come_in_the_order_that_they_are_asked_for(table: Path, tmp_path: Path):
    found = read(table, tmp_path / "cache")
    rows = np.array([399, 0, 7, 7, 250])
    np.testing.assert_array_equal(found.store.take(rows), taken(found)[rows])
    assert found.store.take(rows).dtype == np.float64


def test_the_system_is_told_of_rows_that_will_be_wanted(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In stretches of 256 bytes here, of rows of 16: each with a wanted row, and the whole of its last row."""
    kept = read(table, tmp_path / "cache").store
    assert isinstance(kept, OnDisk)
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(store, "AHEAD", 256)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *words: told.append(words))
    kept.expect(np.array([0, 399, 15, 16, 33]))
    assert told == [(at, 256 + 16, os.POSIX_FADV_WILLNEED) for at in (0, 256, 512, 399 * 16 // 256 * 256)]
    kept.expect(np.array([], dtype=np.intp))
    assert len(told) == 4


def test_a_system_that_cannot_be_told_is_not(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There is no posix_fadvise on macOS; and what has gone wrong with the file is told when it is read."""
    kept = read(table, tmp_path / "cache").store
    assert isinstance(kept, OnDisk)
    with monkeypatch.context() as patch:
        patch.delattr(os, "posix_fadvise")
        kept.expect(np.arange(400))
    kept.path.unlink()
    kept.expect(np.arange(400))


def test_a_cache_that_is_cut_short_while_it_is_in_use_is_told(table: Path, tmp_path: Path):
    kept = read(table, tmp_path / "cache").store
    assert isinstance(kept, OnDisk)
    os.truncate(kept.path, 100)
    with pytest.raises(UserError, match=r"rows\.f32: the cache was removed or cut short while it was in use"):
        kept.take(np.arange(400))
    kept.path.unlink()
    with pytest.raises(UserError, match="the cache was removed or cut short"):
        kept.take(np.arange(400))


def test_a_cache_larger_than_the_machines_memory_can_be_read(tmp_path: Path):
    """It is mapped to be read alone. What could be written to would be counted as the process's, and refused."""
    rows = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    with (tmp_path / "rows.f32").open("wb") as file:
        file.truncate(4 * rows)  # with a hole in it: it takes no room on the disk
    kept = OnDisk(tmp_path / "rows.f32", rows, np.zeros(1), np.ones(1))
    assert kept.take(np.array([0, rows - 1])).tolist() == [[0.0], [0.0]]
    with pytest.MonkeyPatch.context() as patch:
        modes: list[str] = []
        memmap = np.memmap
        patch.setattr(
            np,
            "memmap",
            lambda path, dtype, mode, **options: modes.append(mode) or memmap(path, dtype, mode, **options),
        )
        kept.take(np.array([0]))
    assert modes == ["r"]


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_labels_are_not_kept_twice(memory: int, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was read of them is let go before the training rows are gone through: 8 bytes of each row."""
    kept: list[Any] = []
    plain, fit = from_table.load_rows, from_table.fit_encoding

    def watched(*args: Any) -> LoadedTable:
        found = plain(*args)
        y = found.targets
        kept.append(weakref.ref(y if y.base is None else y.base))
        return found

    monkeypatch.setattr(from_table, "load_rows", watched)
    monkeypatch.setattr(from_table, "fit_encoding", lambda *args, **how: kept.append(kept[0]()) or fit(*args, **how))
    choices = TableOptions(missing="mean", target=("city",))
    load(Source(data=str(table), options=choices, cache=CacheConfig(memory, tmp_path / "cache")))
    assert len(kept) == 2
    assert kept[1] is None


def test_what_takes_as_much_as_there_is_stays_in_memory(table: Path, tmp_path: Path):
    """400 rows of 5 columns in float64."""
    assert isinstance(read(table, tmp_path / "cache", BYTES).store, InMemory)
    assert not (tmp_path / "cache").exists()
    assert isinstance(read(table, tmp_path / "cache", BYTES - 1).store, OnDisk)


def test_times_keep_their_digits(table: Path, tmp_path: Path):
    """Seconds of 2023, one by one: float32 by itself keeps every 128th."""
    seconds = taken(read(table, tmp_path / "cache"))[:, 0]
    np.testing.assert_array_equal(seconds, 1_700_000_000 + np.arange(400))


@pytest.mark.parametrize("empty", [1, 200])
def test_times_keep_their_digits_though_the_first_are_missing(empty: int, table: Path, tmp_path: Path):
    """Those of one block, or of the first five."""
    rows = [line if at >= empty else "," + line.partition(",")[2] for at, line in enumerate(rows_of(400))]
    seconds = taken(read(write(table, rows), tmp_path / "cache"))[:, 0]
    assert np.isnan(seconds[:empty]).all()
    np.testing.assert_array_equal(seconds[empty:], 1_700_000_000 + np.arange(empty, 400))


@pytest.mark.parametrize("first", ["0", "-1", "1e12"])
def test_times_keep_their_digits_though_the_first_is_none(first: str, table: Path, tmp_path: Path):
    """0 or −1 stands for a time that is not known, or one is mistyped: the others are still seconds apart."""
    rows = rows_of(400)
    rows[0] = f"{first},{rows[0].partition(',')[2]}"
    seconds = taken(read(write(table, rows), tmp_path / "cache"))[:, 0]
    np.testing.assert_array_equal(seconds[1:], 1_700_000_000 + np.arange(1, 400))


@pytest.mark.parametrize("unit", [1e-46, 1e40])
def test_numbers_beyond_float32_are_kept(unit: float, table: Path, tmp_path: Path):
    """Standardised they fit, and in memory they train; they must not come back as 0 or as infinity."""
    rows = [f"{at * unit!r},{line.partition(',')[2]}" for at, line in enumerate(rows_of(400))]
    found = taken(read(write(table, rows), tmp_path / "cache"))[:, 0]
    np.testing.assert_allclose(found, unit * np.arange(400), rtol=0, atol=400 * unit * 2.0**-23)


@pytest.mark.parametrize("target", ["city", "y"])
@pytest.mark.parametrize("storage", ["rows", "disk"])
def test_a_data_set_is_the_same_however_it_is_kept(storage: Any, target: str, table: Path, tmp_path: Path):
    """Rows to the bit; from disk to float32, whose error standardising leaves at 2^-24 of the range, some 4 σ."""
    choices = TableOptions(target=(target,), missing="mean")
    room = CacheConfig(PLENTY, tmp_path / "cache")
    memory, other = (
        load(Source(data=str(table), options=choices, cache=room, storage=kept), seed=3) for kept in ("memory", storage)
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
        ours, theirs = getattr(memory, name), getattr(other, name)
        assert len(ours) == len(theirs)
        torch.testing.assert_close(theirs.y, ours.y, rtol=0, atol=0)
        torch.testing.assert_close(theirs.inputs(slice(None)), ours.x, rtol=0, atol=tolerance)
        some = torch.tensor([5, 2, 2, 9])
        torch.testing.assert_close(theirs.inputs(some), ours.x[some], rtol=0, atol=tolerance)


# --- once read, read no more ---


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that a number is added to for each reading of rows."""
    counted: list[int] = []
    blocks = Reader.blocks

    def counting(self: Reader, *arguments: Any) -> Any:
        counted.append(1)
        return blocks(self, *arguments)

    monkeypatch.setattr(Reader, "blocks", counting)
    return counted


def test_a_cache_is_used_again(table: Path, tmp_path: Path, reads: list[int]):
    first = read(table, tmp_path / "cache")
    again = read(table, tmp_path / "cache")
    assert len(reads) == 1
    np.testing.assert_array_equal(taken(again), taken(first))
    same(first, again)


def test_a_table_that_fits_is_not_taken_from_a_cache(table: Path, tmp_path: Path):
    """Whether another run has read it in less memory must not show: the same command gives the same bits."""
    before = read(table, tmp_path / "cache", PLENTY)
    read(table, tmp_path / "cache", 0)
    after = read(table, tmp_path / "cache", PLENTY)
    assert isinstance(after.store, InMemory)
    np.testing.assert_array_equal(taken(after), taken(before))


def longer(path: Path) -> None:
    """Another size, the same time."""
    stat = path.stat()
    with path.open("a") as file:
        file.write(rows_of(1)[0] + "\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def later(path: Path) -> None:
    """Another time, by the smallest step; the same bytes."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def headed(path: Path) -> None:
    """Another digit, the same size and time."""
    stat = path.stat()
    text = path.read_text()
    path.write_text(text.replace("1700000001", "1700000002", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize("change", [longer, later, headed])
def test_of_a_table_that_has_changed_it_is_not(
    change: Callable[[Path], None], table: Path, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Of 16 kB the first one is looked at."""
    monkeypatch.setattr(store, "HEAD", 1024)
    read(table, tmp_path / "cache")
    change(table)
    same(read(table, tmp_path / "other", PLENTY), read(table, tmp_path / "cache"))
    assert len(reads) == 3


@pytest.mark.parametrize(
    "choices",
    [{"drop": ("large",)}, {"categorical": ("small",)}, {"target": ("small", "large"), "missing": "drop"},
     {"target": ("city",)}, {"missing": "drop"}],
    ids=str,
)  # fmt: skip
def test_nor_where_something_else_is_asked_of_it(
    choices: dict[str, Any], table: Path, tmp_path: Path, reads: list[int]
):
    read(table, tmp_path / "cache")
    same(read(table, tmp_path / "other", PLENTY, **choices), read(table, tmp_path / "cache", **choices))
    assert len(reads) == 3
    read(table, tmp_path / "cache")
    read(table, tmp_path / "cache", **choices)
    assert len(reads) == 3


def test_parts_of_parquet_are_told_apart_each(tmp_path: Path, reads: list[int]):
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


# --- what is not whole does not count ---


def cut(name: str, left: float) -> Callable[[Path], None]:
    """Return what leaves so much of a file."""

    def damage(folder: Path) -> None:
        os.truncate(folder / name, int(left * (folder / name).stat().st_size))

    return damage


def without(name: str) -> Callable[[Path], None]:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


def about(text: str) -> Callable[[Path], None]:
    """Return what puts another text in the place of what is said of the cache."""
    return lambda folder: (folder / ABOUT).write_text(text, errors="surrogateescape")


def altered(**changes: Any) -> Callable[[Path], None]:
    """Return what changes some of what is said of the cache."""

    def damage(folder: Path) -> None:
        said = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps({**said, **changes}))

    return damage


def a_folder_for(name: str) -> Callable[[Path], None]:
    """Return what puts a folder in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def appended(name: str) -> Callable[[Path], None]:
    """Return what adds a row of zeros to a file."""

    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(bytes(4 * (COLUMNS - 1) if name == ROWS else 8))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"{name} cut to {left}": cut(name, left) for name in (ROWS, TARGETS, ABOUT) for left in (0.0, 0.5, 0.99)},
    **{f"no {name}": without(name) for name in (ROWS, TARGETS, ABOUT)},
    **{f"{name} longer": appended(name) for name in (ROWS, TARGETS)},
    "no JSON": about("{"),
    **{f"JSON {text}": about(text) for text in ("null", "[]", "7", '"rows"', "{}", "NaN")},
    "no UTF-8": about('{"rows": "\udcff"}'),
    "another format": altered(format=0),
    "fewer rows": altered(rows=399),
    "rows in words": altered(rows="400"),
    "minus one row": altered(rows=-1),
    "a shift less": altered(shift=[0.0] * (COLUMNS - 2)),
    "no columns": altered(inputs=[]),
    "columns that are none": altered(inputs=[None] * (COLUMNS - 1)),
    "columns without a name": altered(inputs=[{"kind": "numbers"}] * (COLUMNS - 1)),
    **{f"a folder for {name}": a_folder_for(name) for name in (ROWS, TARGETS, ABOUT)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(damage: Callable[[Path], None], table: Path, tmp_path: Path, reads: list[int]):
    first = read(table, tmp_path / "cache")
    folder = on_disk(tmp_path / "cache")
    damage(folder)
    again = read(table, tmp_path / "cache")
    assert len(reads) == 2
    same(first, again)
    assert on_disk(tmp_path / "cache") == folder
    read(table, tmp_path / "cache")
    assert len(reads) == 2


def test_its_bytes_are_on_the_disk_before_its_name_is(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut after the rename must not leave a cache that is said to be whole, with rows of zeros in it."""
    deeds: list[str] = []
    fsync, fdatasync, rename = os.fsync, os.fdatasync, os.rename

    def synced(real: Callable[[int], None]) -> Callable[[Any], None]:
        def sync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            deeds.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
            real(file)

        return sync

    def renamed(source: Any, target: Any, **options: Any) -> None:
        deeds.append("rename")
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced(fsync))
    monkeypatch.setattr(os, "fdatasync", synced(fdatasync))
    monkeypatch.setattr(os, "rename", renamed)
    read(table, tmp_path / "cache")
    assert {ROWS, TARGETS, ABOUT} <= {*deeds[: deeds.index("rename")]}


def die(*_: Any, **__: Any) -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {
    "the folder is made": ("_CacheWriter.add", 1),
    "some rows are written": ("_CacheWriter.add", 4),
    "all rows are written": ("_CacheWriter.finish", 1),
    "all is written": ("Path.rename", 1),
}


@pytest.mark.parametrize(("name", "times"), MOMENTS.values(), ids=MOMENTS)
def test_killed_while_it_writes_it_leaves_nothing_that_counts(
    name: str, times: int, table: Path, tmp_path: Path, reads: list[int]
):
    def work() -> None:
        kind, _, method = name.partition(".")
        real, left = getattr(getattr(store, kind), method), [times]

        def fatal(*arguments: Any) -> Any:
            left[0] -= 1
            return real(*arguments) if left[0] else die()

        setattr(getattr(store, kind), method, fatal)
        read(table, tmp_path / "cache")

    assert forked(work) == -signal.SIGKILL
    part = on_disk(tmp_path / "cache")
    assert part.name.startswith(".")
    same(read(table, tmp_path / "none", PLENTY), read(table, tmp_path / "cache"))
    assert len(reads) == 2
    assert on_disk(tmp_path / "cache") != part  # what was left is gone


def test_parts_of_processes_that_are_gone_are_cleared_and_others_are_left(table: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    gone = subprocess.Popen(["true"])
    gone.wait()
    parts = {number: cache / f".{'0' * 32}.{number}-abcdef01" for number in (gone.pid, os.getpid(), os.getppid())}
    strange = cache / ".no-part"
    for part in (*parts.values(), strange):
        part.mkdir(parents=True)
        (part / ROWS).write_bytes(b"rows")
    read(table, cache)
    assert {path.name for path in cache.iterdir() if path.name[0] == "."} == {
        parts[os.getpid()].name, parts[os.getppid()].name, strange.name,
    }  # fmt: skip


def fail_at(moment: int) -> store.Progress:
    """Return what fails when it is told of the progress for the n-th time."""
    left = [moment]

    def progress(what: str, done: int, total: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("failed")

    return progress


@pytest.mark.parametrize("moment", [1, 3, 8])
def test_a_reading_that_fails_leaves_nothing(moment: int, table: Path, tmp_path: Path):
    with pytest.raises((RuntimeError, UserError)):
        read(table, tmp_path / "cache", 1024, fail_at(moment))
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").iterdir()]


def test_a_bad_cell_far_down_leaves_nothing(table: Path, tmp_path: Path):
    rows = rows_of(400)
    rows[380] = rows[380].replace("17000", "seventeen", 1)
    with pytest.raises(UserError, match="row 381"):
        read(write(table, rows), tmp_path / "cache")
    assert not [*(tmp_path / "cache").iterdir()]


# --- several at once ---


def test_who_comes_second_leaves_what_stands_there(table: Path, tmp_path: Path):
    """The first trains from it already: for no moment may it be away."""
    first: list[LoadedTable] = []
    numbers: list[int] = []

    def overtaken(what: str, done: int, total: int) -> None:
        if not first:
            first.append(read(table, tmp_path / "cache"))
            numbers.append((on_disk(tmp_path / "cache") / ROWS).stat().st_ino)

    second = read(table, tmp_path / "cache", 0, overtaken)
    same(first[0], second)
    assert (on_disk(tmp_path / "cache") / ROWS).stat().st_ino == numbers[0]


def test_two_at_once_read_the_same(table: Path, tmp_path: Path):
    """Each takes rows again and again while the other may just be done."""
    expected = read(table, tmp_path / "none", PLENTY)
    start = time.time() + 0.3

    def work() -> None:
        time.sleep(max(0.0, start - time.time()))
        found = read(table, tmp_path / "cache")
        while time.time() < start + 0.6:
            same(expected, found)

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
    assert not on_disk(tmp_path / "cache").name.startswith(".")
    same(expected, read(table, tmp_path / "cache"))


# --- no room, no permission ---


def told(error: str, cache: Path) -> None:
    """Hold what is said to one line that names the folder, the reason and what to do, and the cache to be empty."""
    assert str(cache) in error
    assert "\n" not in error
    assert "None" not in error
    assert "`cache`" in error
    assert not [*cache.iterdir()]


def test_a_file_that_may_not_grow_is_told_and_nothing_is_left(table: Path, tmp_path: Path, capfd: Any):
    """RLIMIT_FSIZE: the kernel itself refuses to write on; 400 rows of 16 bytes against 4096."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            read(table, tmp_path / "cache")
        except UserError as error:
            print(error)
            raise SystemExit(2) from None

    assert forked(work) == 2
    said = capfd.readouterr().out.strip()
    told(said, tmp_path / "cache")
    assert "File too large" in said


@pytest.fixture
def tmpfs(tmp_path: Path) -> Any:
    """A file system of 8 kB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=8k tmpfs {place} 2>/dev/null"):
        pytest.skip("no permission to mount a small file system")
    yield place
    os.system(f"umount {place}")


@pytest.mark.parametrize("rows", [300, 400, 510, 1500])
def test_a_disk_that_is_full_is_told_and_nothing_is_left(rows: int, table: Path, tmpfs: Path):
    """Of 8 kB: 16 bytes a row and 8 its target. The rows fill it, or the targets do, or what is said of them."""
    write(table, rows_of(rows))
    with pytest.raises(UserError) as error:
        read(table, tmpfs)
    told(str(error.value), tmpfs)
    assert "No space left on device" in str(error.value)


def test_a_folder_that_is_none_is_told(table: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache: .*cannot be written here: (Not a directory|File exists); `cache`"):
        read(table, tmp_path / "cache")
