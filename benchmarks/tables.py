"""``python -m benchmarks.tables``: the time to read a table larger than memory, and to train from its cache.

The table is synthetic: numbers, two columns of categories, and a class that depends on three of the numbers. Each
measurement has its own process with one thread. An epoch from the cache is timed twice: after the pages of the cache
were dropped from the page cache (``posix_fadvise``), as for a file that does not fit in memory, which shows the speed
of the disk; and with the pages that the system has kept.
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

NUMBERS, DIGITS = 40, 6  # number of columns, and digits per number: 3.14159
CITIES, PETS, CLASSES = (b"Bern", b"Lima", b"Oslo", b"Riga", b"Rome"), (b"cats", b"dogs"), (b"a", b"b", b"c")
ROWS_AT_ONCE = 100_000
NETS = {"32": [32], "128 64 (the default)": [128, 64]}
ENGINES = ("explicit", "autograd")
FIT = 8  # 1/FIT of the table is compared with rows in memory
MEASURED = (
    "Peak RSS of the whole process, including imports: VmHWM, from /proc/self/status at its end, and ru_maxrss, from "
    "wait4. Mapped pages of the cache count, pages that the system keeps do not."
)


def main() -> None:
    """Write a table, read it, train from it, and print the measurements."""
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
    """Parse the arguments; invalid ones end the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--gib", type=float, default=6.0, help="size of the table in GiB; 6 by default")
    parser.add_argument("--folder", type=Path, help="folder for table and cache; by default the temporary folder")
    parser.add_argument("--memory", default="256m", help="memory limit for the rows; 256m by default")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[16, 256], help="batch sizes of the compared epochs"
    )
    parser.add_argument("--rounds", type=int, default=5, help="compared epochs of each kind; 5 by default")
    parser.add_argument(
        "--write", action="store_true", help="write the tables into docs/benchmarks.md, for this machine"
    )
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
    """Write a CSV file of about ``size`` bytes; return its number of rows."""
    names = [*(f"x{number}" for number in range(NUMBERS)), "city", "pet", "class"]
    rng = np.random.default_rng(0)
    rows = max(30, size // _rows(rng, 1).nbytes)
    with path.open("wb") as file:
        file.write(",".join(names).encode() + b"\n")
        for first in range(0, rows, ROWS_AT_ONCE):
            _rows(rng, min(ROWS_AT_ONCE, rows - first)).tofile(file)
    return rows


def _rows(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Return the bytes of ``count`` rows, [count, bytes per row]; all cells of a column have the same width."""
    digits = rng.integers(0, 10, (count, NUMBERS, DIGITS), dtype=np.uint8)
    cells = np.empty((count, NUMBERS, DIGITS + 2), dtype=np.uint8)  # with a point and a comma
    cells[:, :, 0], cells[:, :, 1], cells[:, :, -1] = digits[:, :, 0] + ord("0"), ord("."), ord(",")
    cells[:, :, 2:-1] = digits[:, :, 1:] + ord("0")
    total = digits[:, :3, 0].sum(
        axis=1
    )  # the sum of three digits has 28 values, 9, 10 and 9 of which belong to the classes
    parts = [
        cells.reshape(count, -1),
        *(_words(words, rng.integers(0, len(words), count), b",") for words in (CITIES, PETS)),
        _words(CLASSES, np.digitize(total, [11, 17]), b"\n"),
    ]
    return np.concatenate(parts, axis=1)


def _words(words: tuple[bytes, ...], which: NDArray[np.int64], end: bytes) -> NDArray[np.uint8]:
    """Return words of the same length as bytes [rows, length], with the separator."""
    return np.array([[*word, *end] for word in words], dtype=np.uint8)[which]


# --- the results ---


def larger_than_memory(folder: Path, arguments: argparse.Namespace) -> Table:
    """Measure the whole table: read into the cache and trained, then trained again."""
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
        "Reading: from the start of the process, including imports, until the cache is complete. An epoch: batch 256, "
        "training only; the whole process also reads and evaluates the validation and test rows."
    )
    common = [
        "--data", str(path), "--cache", str(folder / "cache"), "--memory", arguments.memory,
        "--epochs", "1", "--batch-size", "256", "--lr", "0.01", "--weight-decay", "0", "--log-every", "0",
        "--threads", "1",
    ]  # fmt: skip
    number = 0
    for net, hidden in NETS.items():
        for engine in ENGINES:
            run = folder / f"run{number}"
            words = [*common, "--engine", engine, "--hidden", *map(str, hidden), "--run-dir", str(run)]
            _drop_pages(folder)
            start = time.time()
            measured = _worker("train", *words)
            line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            if number == 0:
                if not (folder / "cache").is_dir():
                    raise SystemExit(f"--memory {arguments.memory}: the table of {arguments.gib} GiB fits: take less")
                (about,) = (folder / "cache").glob("*/about.json")
                seconds = about.stat().st_mtime - start
                table.rows.append(["reading", f"{seconds:.0f}", f"{size / 1e6 / seconds:.0f}", "", "", ""])
                cache_size = sum(file.stat().st_size for file in about.parent.iterdir())
                table.notes.append(f"The cache: {cache_size / 2**30:.2f} GiB, {cache_size / rows:.0f} bytes per row.")
            label = "reading and an epoch" if number == 0 else "an epoch"
            table.rows.append(
                [f"{label}, {engine}, --hidden {net}", f"{line['seconds']:.0f}", "",
                 f"{line['samples_per_second']:.0f}", f"{measured['hwm'] / 1024:.0f}", f"{measured['max'] / 1024:.0f}"]
            )  # fmt: skip
            number += 1
    path.unlink()
    shutil.rmtree(folder / "cache")
    return table


def beside_memory(folder: Path, arguments: argparse.Namespace) -> Table:
    """Measure epochs of the same rows from disk and from memory, in turn."""
    path = folder / "part.csv"
    rows = write_table(path, int(arguments.gib * 2**30 / FIT))
    table = Table(
        f"The same {rows} rows from disk and from memory, 1 thread",
        ["", "samples/s, disk", "pages kept", "memory", "times as long from disk", "pages kept"],
    )
    table.notes.append(
        f"Medians of {arguments.rounds} epochs from disk, from the pages that the system has kept, and from memory, in "
        "turn, after a warm-up epoch of each. Ratios are of the medians, in parentheses the range of the ratios within "
        "a round."
    )
    words = [str(path), str(folder / "cache"), str(arguments.rounds), *map(str, arguments.batch_size)]
    for name, (disk, kept, memory) in _worker("rates", *words)["seconds"].items():
        rates = [f"{_samples(rows) / statistics.median(seconds):.0f}" for seconds in (disk, kept, memory)]
        table.rows.append([name, *rates, _times(disk, memory), _times(kept, memory)])
    return table


def _times(slow: list[float], fast: list[float]) -> str:
    """Return the ratio of two lists of times as text."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    ratio = statistics.median(slow) / statistics.median(fast)
    return f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _samples(rows: int) -> int:
    """Return the number of training rows: without a fifth for the test, and a tenth of the rest for validation."""
    rest = rows - round(0.2 * rows)
    return rest - round(0.1 * rest)


# --- the worker processes ---


def _worker(*words: str) -> dict[str, Any]:
    """Run a worker; return its last line of output, and as ``max`` its peak RSS in KiB as reported by wait4."""
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
    """Run ``deltaprop train``, and print its peak memory."""
    from deltaprop.cli import main as deltaprop

    code = deltaprop(["train", *words])
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    print(json.dumps({"hwm": peak}))
    raise SystemExit(code)


def rates(words: list[str]) -> None:
    """Print the seconds of each epoch by the source of its rows, for each engine, network and batch size."""
    import torch

    from deltaprop.training.config import TrainConfig
    from deltaprop.training.data_loader import DataLoader
    from deltaprop.training.setup import prepare

    torch.set_num_threads(1)
    path, cache, rounds, *batch_sizes = words
    config = TrainConfig(data=path, cache=Path(cache), threads="1", lr=0.01, weight_decay=0.0)
    setups = {storage: prepare(config, storage=storage) for storage in ("memory", "disk")}
    result: dict[str, list[list[float]]] = {}
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
                result[f"{engine}, --hidden {net}, batch {batch_size}"] = seconds
    print(json.dumps({"seconds": result}))


def _epochs(loader: Any, engine: str, hidden: list[int], setup: Any) -> Iterator[None]:
    """Train one shuffled epoch at each ``next``."""
    import torch

    from deltaprop.epoch_state import EpochState
    from deltaprop.nn.modules import MLP
    from deltaprop.training.engines import ENGINES as ENGINE_FACTORIES
    from deltaprop.training.setup import make_optimizer

    generator = torch.Generator().manual_seed(0)
    model = MLP([setup.sizes[0], *hidden, setup.sizes[-1]], ["relu"] * len(hidden))
    make_engine: Callable[..., Any] = ENGINE_FACTORIES[engine]
    train_epoch = make_engine(model, setup.objective, make_optimizer(model, setup.config))
    while True:
        for shard in loader.shards(loader.draw(generator), 0):
            train_epoch(shard.x, shard.y, shard.order, loader.batch_size, EpochState(torch.zeros(())))
        yield


def _drop_pages(folder: Path) -> None:
    """Drop the pages of the files below a folder from the page cache, after they are written to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


WORKERS: dict[str, Callable[[list[str]], None]] = {"train": train, "rates": rates}


if __name__ == "__main__":
    main()
