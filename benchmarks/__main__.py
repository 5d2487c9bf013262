"""``python -m benchmarks``: deltaprop beside its peers, every table a process, ratios of medians within one run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from typing import Any

from rich.console import Console

from benchmarks.report import Table, machine, versions, write
from deltaprop.training.devices import pick_threads

SIZES = {
    "784-30-10": 10,
    "64-64-10": 32,
    "784-128-10": 64,
    "784-512-512-10": 128,
    "1024-2048-2048-10": 256,
}
EPOCH = "784-30-10"  # over as many rows as MNIST has for training, 10 000 of its 60 000 kept for validation
EPOCH_ROWS = 50_000
MEMORY = "1024-2048-2048-10"
MEMORY_PEERS = (
    "explicit .epoch",
    "explicit .step",
    "torch.nn, SGD loop",
    "torch.nn, SGD foreach",
    "torch.nn, SGD fused",
    "NumPy",
    "JAX jit",
)
COMPILED = ("torch.compile", "JAX")


def main() -> None:
    """Run the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", help="steps, epochs, memory; all by default")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="of the steps, such as 784-30-10")
    parser.add_argument(
        "--threads", nargs="*", default=["1", "auto"], help="numbers, or auto: the rule of train.py --threads auto"
    )
    parser.add_argument("--rounds", type=int, default=40, help="figures of each peer, a tenth of it for epochs")
    parser.add_argument("--peers", nargs="*", help="beginnings of their names; all by default")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md, for this machine")
    arguments = parser.parse_args()
    wanted = arguments.tables or ["steps", "epochs", "memory"]
    for given, known in ((wanted, ["steps", "epochs", "memory"]), (arguments.sizes, SIZES)):
        for name in given:
            if name not in known:
                parser.error(f"unknown {name!r}; there are {', '.join(known)}")
    console = Console()
    console.print(f"{machine()}, {versions()}", highlight=False)
    tables: list[Table] = []

    def show(table: Table) -> None:
        tables.append(table)
        console.print(table.rich(), highlight=False)

    for sizes, threads in _rows_of_steps(arguments.sizes, arguments.threads) if "steps" in wanted else ():
        show(steps(sizes, threads, arguments))
    for threads in dict.fromkeys(_threads(t, EPOCH) for t in arguments.threads) if "epochs" in wanted else ():
        show(epochs(threads, arguments))
    if "memory" in wanted:
        show(memory(arguments))
    if arguments.write:
        write(tables, " ".join(["python -m benchmarks", *sys.argv[1:]]))


def _rows_of_steps(sizes: list[str], threads: list[str]) -> list[tuple[str, int]]:
    """Return each size with each number of threads, once: where ``auto`` says 1, that has been measured."""
    return list(dict.fromkeys((size, _threads(given, size)) for given in threads for size in sizes))


def _threads(given: str, size: str) -> int:
    return min(pick_threads(given, [int(n) for n in size.split("-")], SIZES[size]), len(os.sched_getaffinity(0)))


def steps(size: str, threads: int, arguments: argparse.Namespace) -> Table:
    """Return the table of one size."""
    result = _measure("steps", size, threads, arguments.rounds, arguments.peers)
    return _timed(f"{size}, batch {SIZES[size]}, {_count(threads)}", "µs a step", result, lambda q: f"{q:.1f}")


def epochs(threads: int, arguments: argparse.Namespace) -> Table:
    """Return the table of whole epochs."""
    rounds = max(3, arguments.rounds // 10)
    result = _measure("epochs", EPOCH, threads, rounds, arguments.peers, "--rows", str(EPOCH_ROWS))
    title = f"A whole epoch: {EPOCH}, batch {SIZES[EPOCH]}, {EPOCH_ROWS} rows, {_count(threads)}"
    return _timed(title, "s", result, lambda q: f"{q:.3f}")


def _timed(title: str, unit: str, result: dict[str, Any], text: Any) -> Table:
    table = Table(title, ["", unit, "quartiles", "× explicit .epoch"])
    ours = result["figures"].get("explicit .epoch")
    for name, (low, median, high) in result["figures"].items():
        void = " (void: its weights part from ours)" if name in result["void"] else ""
        ratio = f"{median / ours[1]:.2f}" if ours else ""
        table.rows.append([name + void, text(median), f"{text(low)} to {text(high)}", ratio])
    compiling = [
        f"{name} {s:.1f} s" for name, s in result["first"].items() if name.startswith(("torch.compile", "JAX"))
    ]
    if compiling:
        table.notes.append(f"Compiling and the first pass, not counted above: {', '.join(compiling)}.")
    for name, reason in result["absent"].items():
        table.notes.append(f"{name}: {reason}.")
    return table


def memory(arguments: argparse.Namespace) -> Table:
    """Return the table of peak memory at the widest size, each peer in a process of its own."""
    sizes, rows = [int(n) for n in MEMORY.split("-")], SIZES[MEMORY]
    weights = sum(n_out * (n_in + 1) for n_in, n_out in pairwise(sizes))
    least = 4 * (weights + rows * (sizes[0] + 2 * sum(sizes[1:]))) / 2**20
    table = Table(f"Peak memory beyond the data: {MEMORY}, batch {rows}, 1 thread", ["", "MiB", "× the first row"])
    table.rows.append(["weights, the batch, a and δ of each layer", f"{least:.1f}", "1.00"])
    for name in MEMORY_PEERS:
        if arguments.peers and not any(name.startswith(p) for p in arguments.peers):
            continue
        result = _measure("memory", MEMORY, 1, 1, [name])
        peak = result["figures"][name]
        table.rows.append([name, f"{peak:.1f}", f"{peak / least:.2f}"])
    return table


def _measure(what: str, size: str, threads: int, rounds: int, peers: list[str] | None, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.worker", what, "--sizes", size, "--batch-size", str(SIZES[size])]
    command += ["--threads", str(threads), "--rounds", str(rounds), *more]
    command += ["--peers", *peers] if peers else []
    with tempfile.TemporaryDirectory() as cache:  # a compiler that has compiled it before would compile in no time
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


if __name__ == "__main__":
    main()
