"""``python -m benchmarks.tables``: a table larger than memory: how long it takes to read, and to train from its cache.

The table is made up: numbers, two columns of categories, a class that hangs on three of the numbers. Whatever is
measured has a process of its own, with one thread. An epoch from the cache is timed twice: after the pages of the cache
were dropped from the system's memory (``posix_fadvise``), as they would be of a file that does not fit there, so that
what is shown is what the disk gives; and with those pages that the system has kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.report import Table, machine, versions, write

NUMBERS, DIGITS = 40, 6  # columns, and digits of a number: 3.14159
CITIES, PETS, CLASSES = (b"Bern", b"Lima", b"Oslo", b"Riga", b"Rome"), (b"cats", b"dogs"), (b"a", b"b", b"c")
ROWS_AT_ONCE = 100_000
NETS = {"32": [32], "128 64 (the default)": [128, 64]}
ENGINES = ("explicit", "autograd")
FIT = 8  # one part in so many of the table is what is compared with rows in memory
MEASURED = (
    "Peak RSS: of the whole process, imports and all: VmHWM, which it reads in /proc/self/status at its end, and "
    "ru_maxrss, which wait4 tells of it; pages of the cache that are mapped count, those that the system keeps do not."
)


def main() -> None:
    """Write a table, read it, train from it, and show the figures."""
    arguments = parse(sys.argv[1:])
    if arguments.worker:
        what, *words = arguments.worker
        WORKERS[what](words)
        return
    console = Console()
    console.print(f"{machine()}, {versions()}", highlight=False)
    tables = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for make in (larger_than_memory, beside_memory):
            tables.append(make(Path(folder), arguments))
            console.print(tables[-1].rich(), highlight=False)
    if arguments.write:
        write(tables, " ".join(["python -m benchmarks.tables", *sys.argv[1:]]))


def parse(words: list[str]) -> argparse.Namespace:
    """Return what is asked for; what makes no sense ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--gib", type=float, default=6.0, help="size of the table; 6 by default")
    parser.add_argument("--folder", type=Path, help="where table and cache lie meanwhile; by default that of tempfile")
    parser.add_argument("--memory", default="256m", help="what it may take in memory; 256m by default")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 256], help="of the epochs that are compared")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind that are compared; 5 by default")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md, for this machine")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if not 0.01 <= arguments.gib <= 1e6:
        parser.error(f"--gib: must be from 0.01 to a million, got {arguments.gib}")
    if arguments.folder is not None and not arguments.folder.is_dir():
        parser.error(f"--folder: there is no folder {arguments.folder}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: must be at least 1, got {arguments.rounds}")
    return arguments


# --- the table ---


def write_table(path: Path, size: int) -> int:
    """Write a CSV file of about so many bytes; return its rows."""
    names = [*(f"x{number}" for number in range(NUMBERS)), "city", "pet", "class"]
    rng = np.random.default_rng(0)
    rows = max(30, size // _rows(rng, 1).nbytes)
    with path.open("wb") as file:
        file.write(",".join(names).encode() + b"\n")
        for first in range(0, rows, ROWS_AT_ONCE):
            _rows(rng, min(ROWS_AT_ONCE, rows - first)).tofile(file)
    return rows


def _rows(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Return the bytes of so many rows, [count, bytes of a row]: every cell of a column is as wide as the others."""
    digits = rng.integers(0, 10, (count, NUMBERS, DIGITS), dtype=np.uint8)
    cells = np.empty((count, NUMBERS, DIGITS + 2), dtype=np.uint8)  # with a point and a comma
    cells[:, :, 0], cells[:, :, 1], cells[:, :, -1] = digits[:, :, 0] + ord("0"), ord("."), ord(",")
    cells[:, :, 2:-1] = digits[:, :, 1:] + ord("0")
    total = digits[:, :3, 0].sum(axis=1)  # of three digits: 9, 10 and 9 of its 28 values are each class's
    parts = [
        cells.reshape(count, -1),
        *(_words(words, rng.integers(0, len(words), count), b",") for words in (CITIES, PETS)),
        _words(CLASSES, np.digitize(total, [11, 17]), b"\n"),
    ]
    return np.concatenate(parts, axis=1)


def _words(words: tuple[bytes, ...], which: NDArray[np.int64], end: bytes) -> NDArray[np.uint8]:
    """Return words of one length as bytes [rows, length], with what ends the cell."""
    return np.array([[*word, *end] for word in words], dtype=np.uint8)[which]


# --- what is shown ---


def larger_than_memory(folder: Path, arguments: argparse.Namespace) -> Table:
    """Return the table of a whole table: read into the cache and trained from, then trained from again."""
    path = folder / "table.csv"
    began = time.perf_counter()
    rows = write_table(path, int(arguments.gib * 2**30))
    size = path.stat().st_size
    table = Table(
        f"A table of {size / 2**30:.2f} GiB, {rows} rows, --memory {arguments.memory}, 1 thread",
        ["", "s", "MB/s", "samples/s", "peak RSS, VmHWM, MiB", "ru_maxrss, MiB"],
    )
    table.notes.append(f"Written in {time.perf_counter() - began:.0f} s. {MEASURED}")
    table.notes.append(
        "Reading: from the start of the process, imports and all, until the cache is whole. An epoch: batch 256, its "
        "training alone; the whole process also reads and judges the validation and test rows."
    )
    common = [
        "--data", str(path), "--cache", str(folder / "cache"), "--memory", arguments.memory,
        "--epochs", "1", "--batch-size", "256", "--lr", "0.01", "--log-every", "0", "--threads", "1",
    ]  # fmt: skip
    number = 0
    for net, hidden in NETS.items():
        for engine in ENGINES:
            run = folder / f"run{number}"
            words = [*common, "--engine", engine, "--hidden", *map(str, hidden), "--run-dir", str(run)]
            _drop_pages(folder)
            begun = time.time()
            measured = _worker("train", *words)
            line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            if number == 0:
                if not (folder / "cache").is_dir():
                    raise SystemExit(f"--memory {arguments.memory}: the table of {arguments.gib} GiB fits: take less")
                (about,) = (folder / "cache").glob("*/about.json")
                seconds = about.stat().st_mtime - begun
                table.rows.append(["reading", f"{seconds:.0f}", f"{size / 1e6 / seconds:.0f}", "", "", ""])
                kept = sum(file.stat().st_size for file in about.parent.iterdir())
                table.notes.append(f"The cache: {kept / 2**30:.2f} GiB, {kept / rows:.0f} bytes a row.")
            what = "reading and an epoch" if number == 0 else "an epoch"
            table.rows.append(
                [f"{what}, {engine}, --hidden {net}", f"{line['seconds']:.0f}", "",
                 f"{line['samples_per_second']:.0f}", f"{measured['hwm'] / 1024:.0f}", f"{measured['max'] / 1024:.0f}"]
            )  # fmt: skip
            number += 1
    path.unlink()
    shutil.rmtree(folder / "cache")
    return table


def beside_memory(folder: Path, arguments: argparse.Namespace) -> Table:
    """Return the table of the same rows trained from the disk and from memory, epochs in turn."""
    path = folder / "part.csv"
    rows = write_table(path, int(arguments.gib * 2**30 / FIT))
    table = Table(
        f"The same {rows} rows from disk and from memory, 1 thread",
        ["", "samples/s, disk", "pages kept", "memory", "times as long from disk", "pages kept"],
    )
    table.notes.append(
        f"Medians of {arguments.rounds} epochs each, from disk, from the pages that the system has kept of it, and "
        "from memory, in turn after one of each that is not counted; the ratio is of the medians, in parentheses from "
        "the least to the largest of a round."
    )
    words = [str(path), str(folder / "cache"), str(arguments.rounds), *map(str, arguments.batch_size)]
    for name, (disk, kept, memory) in _worker("rates", *words)["seconds"].items():
        rates = [f"{_samples(rows) / statistics.median(seconds):.0f}" for seconds in (disk, kept, memory)]
        table.rows.append([name, *rates, _times(disk, memory), _times(kept, memory)])
    return table


def _times(slow: list[float], fast: list[float]) -> str:
    """Return how many times as long one takes as the other."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    ratio = statistics.median(slow) / statistics.median(fast)
    return f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _samples(rows: int) -> int:
    """Return how many rows are trained on: less a fifth for the test, and a tenth of the rest for validation."""
    rest = rows - round(0.2 * rows)
    return rest - round(0.1 * rest)


# --- a process of its own ---


def _worker(*words: str) -> dict[str, Any]:
    """Run a worker; return what it prints last, with ``max``: its peak RSS in KiB as the system tells its parent."""
    command = [sys.executable, "-m", "benchmarks.tables", "--worker", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
    measured: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {**measured, "max": usage.ru_maxrss}


def train(words: list[str]) -> None:
    """Do what ``deltaprop train`` does; print the peak of its memory."""
    from deltaprop.cli import main as deltaprop

    code = deltaprop(["train", *words])
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    print(json.dumps({"hwm": peak}))
    raise SystemExit(code)


def rates(words: list[str]) -> None:
    """Print the seconds of each epoch, by where its rows come from, of each engine, net and batch size."""
    import torch

    from deltaprop.training.config import TrainConfig
    from deltaprop.training.data_loader import DataLoader
    from deltaprop.training.setup import prepare

    torch.set_num_threads(1)
    path, cache, rounds, *batch_sizes = words
    config = TrainConfig(data=path, cache=Path(cache), threads="1", lr=0.01)
    setups = {storage: prepare(config, storage=storage) for storage in ("memory", "disk")}
    found: dict[str, list[list[float]]] = {}
    for batch_size in map(int, batch_sizes):
        for net, hidden in NETS.items():
            for engine in ENGINES:
                epochs = [
                    _epochs(DataLoader(setup.dataset.train, setup.objective, batch_size), engine, hidden, setup)
                    for setup in (setups["disk"], setups["disk"], setups["memory"])
                ]
                seconds: list[list[float]] = [[], [], []]
                for number in range(int(rounds) + 1):
                    for at, kind in enumerate(epochs):
                        if at == 0:
                            _drop_pages(Path(cache))
                        start = time.perf_counter()
                        next(kind)
                        if number:  # the first warms up
                            seconds[at].append(time.perf_counter() - start)
                found[f"{engine}, --hidden {net}, batch {batch_size}"] = seconds
    print(json.dumps({"seconds": found}))


def _epochs(feed: Any, engine: str, hidden: list[int], setup: Any) -> Iterator[None]:
    """Train an epoch, shuffled, each time that the next is asked for."""
    import torch

    from deltaprop.epoch_state import EpochState
    from deltaprop.nn.modules import MLP
    from deltaprop.training.engines import ENGINES as MADE
    from deltaprop.training.setup import make_optimizer

    generator = torch.Generator().manual_seed(0)
    model = MLP([setup.sizes[0], *hidden, setup.sizes[-1]], ["relu"] * len(hidden))
    made: Callable[..., Any] = MADE[engine]
    trained = made(model, setup.objective, make_optimizer(model, setup.config))
    while True:
        for chunk in feed.shards(feed.draw(generator), 0):
            trained(chunk.x, chunk.y, chunk.order, feed.batch_size, EpochState(torch.zeros(())))
        yield


def _drop_pages(folder: Path) -> None:
    """Have the system forget the pages of the files below a folder, once they are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


WORKERS: dict[str, Callable[[list[str]], None]] = {"train": train, "rates": rates}


if __name__ == "__main__":
    main()
