"""``python -m benchmarks``: compare deltaprop with other libraries, each table in its own process."""

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

from benchmarks.epochs import EPOCHS
from benchmarks.limit import limits, measured_rates
from benchmarks.peers import PEERS
from benchmarks.report import Table, machine, versions, write
from deltaprop.training.devices import pick_threads

# Sizes of the layers, and rows of a batch.
SIZES = (
    "784-30-10/10", "784-30-10/1", "64-64-10/32", "30-64-2/16", "20-128-128-1/32", "784-128-10/64",
    "784-512-512-10/128", "1024-2048-2048-10/256",
)  # fmt: skip
EPOCH = "784-30-10/10"  # with as many training rows as MNIST, 10 000 of whose 60 000 images are for validation
EPOCH_ROWS = 50_000
MEMORY = "1024-2048-2048-10/256"
MEMORY_PEERS = (
    "compiled .epoch",
    "explicit .epoch",
    "explicit .step",
    "torch.nn, SGD loop",
    "torch.nn, SGD foreach",
    "torch.nn, SGD fused",
    "NumPy",
    "JAX jit",
)
TABLES = ("steps", "activations", "epochs", "memory")
ACTIVATIONS = ("relu", "sigmoid", "gelu")  # for the table of the engines; all others use relu
DRIVERS = ("compiled .epoch", "explicit .epoch", "autograd", "torch.nn, SGD loop")
DISTURBED = 0.1  # largest relative difference between two measurements of the same row


def main() -> None:
    """Run the requested tables."""
    arguments = parse(sys.argv[1:])
    wanted = arguments.tables
    console = Console()
    console.print(f"{machine()}, {versions()}", highlight=False)
    tables: list[Table] = []

    def show(table: Table) -> None:
        tables.append(table)
        console.print(table.rich(), highlight=False)

    for sizes, threads in _rows_of_steps(arguments.sizes, arguments.threads) if "steps" in wanted else ():
        show(steps(sizes, threads, arguments))
    if "activations" in wanted:
        show(activations(arguments))
    for threads in dict.fromkeys(_threads(t, EPOCH) for t in arguments.threads) if "epochs" in wanted else ():
        show(epochs(threads, arguments))
    if "memory" in wanted:
        show(memory(arguments))
    if arguments.write:
        write(tables, " ".join(["python -m benchmarks", *sys.argv[1:]]))


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the arguments; invalid ones end the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        usage="%(prog)s [steps] [activations] [epochs] [memory] [options]",
    )
    parser.add_argument(
        "tables", nargs="*", help="steps, activations, epochs, memory; all by default; before the options"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=list(SIZES),
        help=f"layer sizes and batch size for the table of steps: {', '.join(SIZES)}; all by default",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        default=["1", "auto"],
        help="numbers of threads, or auto, as for train.py --threads; 1 and auto by default",
    )
    parser.add_argument(
        "--rounds", type=int, default=40, help="measurements of each peer, a quarter of it for epochs; 40 by default"
    )
    peers = list(dict.fromkeys([*PEERS, *EPOCHS]))
    parser.add_argument("--peers", nargs="+", help=f"names or their beginnings: {', '.join(peers)}; all by default")
    parser.add_argument(
        "--limit",
        action="store_true",
        help="add the time that a step takes at least on this machine, by measured rates",
    )
    parser.add_argument(
        "--write", action="store_true", help="write the tables into docs/benchmarks.md, for this machine"
    )
    arguments = parser.parse_args(words)
    arguments.tables = arguments.tables or list(TABLES)
    for option, given, known in (("table", arguments.tables, TABLES), ("--sizes", arguments.sizes, SIZES)):
        for name in given:
            if name not in known:
                parser.error(f"{option}: unknown {name!r}; there are {', '.join(known)}")
    for name in arguments.peers or ():
        if not any(peer.startswith(name) for peer in peers):
            parser.error(f"--peers: no name begins with {name!r}; there are {', '.join(peers)}")
    for given in arguments.threads:
        if given != "auto" and not (given.isdecimal() and int(given) >= 1):
            parser.error(f"--threads: {given!r} is neither a number of threads nor auto (tables go before the options)")
    if arguments.rounds < 2:
        parser.error(f"--rounds: quartiles need at least 2, got {arguments.rounds}")
    return arguments


def _rows_of_steps(sizes: list[str], threads: list[str]) -> list[tuple[str, int]]:
    """Return the combinations of sizes and numbers of threads, without duplicates if ``auto`` gives 1."""
    return list(dict.fromkeys((size, _threads(given, size)) for given in threads for size in sizes))


def _threads(given: str, size: str) -> int:
    return min(pick_threads(given, *parsed(size)), len(os.sched_getaffinity(0)))


def parsed(size: str) -> tuple[list[int], int]:
    """Return the sizes of the layers, and the rows of a batch."""
    layers, _, batch_size = size.partition("/")
    return [int(n) for n in layers.split("-")], int(batch_size)


def steps(size: str, threads: int, arguments: argparse.Namespace) -> Table:
    """Return the table of steps for one size."""
    result = _measure("steps", size, threads, arguments.rounds, arguments.peers)
    table = _timed(f"{_words(size)}, {_count(threads)}", "µs a step", result, lambda q: f"{q:.1f}")
    if arguments.limit and threads == 1:
        ours = result["figures"].get("explicit .epoch")
        for name, seconds in limits(*parsed(size), measured_rates()).items():
            table.rows.append([name, f"{1e6 * seconds:.1f}", "", f"{1e6 * seconds / ours[1]:.2f}" if ours else ""])
    return table


def _words(size: str) -> str:
    layers, _, batch_size = size.partition("/")
    return f"{layers}, batch {batch_size}"


def activations(arguments: argparse.Namespace) -> Table:
    """Return the table of the engines and torch.nn, by activation and size, with one thread."""
    columns = ["", "activation", "torch.nn, µs", "compiled, µs", "explicit, µs", "autograd, µs"]
    ratios = ["torch.nn / compiled", "torch.nn / explicit", "torch.nn / autograd"]
    table = Table("The engines beside torch.nn, 1 thread", [*columns, *ratios])
    for size in arguments.sizes:
        for activation in ACTIVATIONS:
            result = _measure("steps", size, 1, arguments.rounds, list(DRIVERS), "--activation", activation)
            *ours, theirs = (result["figures"][name][1] for name in DRIVERS)
            times = [f"{time:.1f}" for time in (theirs, *ours)]
            table.rows.append([_words(size), activation, *times, *(f"{theirs / time:.2f}" for time in ours)])
    table.notes.append(f"Medians of {arguments.rounds} rounds; in each row the four are measured in turn.")
    return table


def epochs(threads: int, arguments: argparse.Namespace) -> Table:
    """Return the table of whole epochs."""
    rounds = max(2, arguments.rounds // 4)
    result = _measure("epochs", EPOCH, threads, rounds, arguments.peers, "--rows", str(EPOCH_ROWS))
    title = f"A whole epoch: {_words(EPOCH)}, {EPOCH_ROWS} rows, {_count(threads)}"
    return _timed(title, "s", result, lambda q: f"{q:.3f}")


def _timed(title: str, unit: str, result: dict[str, Any], text: Any) -> Table:
    table = Table(title, ["", unit, "quartiles", "× explicit .epoch"])
    ours, again = (result["figures"].get(name) for name in ("explicit .epoch", "explicit .epoch again (A/A)"))
    if ours and again and abs(again[1] / ours[1] - 1) > DISTURBED:
        table.notes.append(
            "Other work disturbed the machine: the row measured twice differs, so the ratios are not valid."
        )
    table.notes.append(f"Medians of {result['rounds']} rounds.")
    for name, (low, median, high) in result["figures"].items():
        void = " (void: its weights part from ours)" if name in result["void"] else ""
        ratio = f"{median / ours[1]:.2f}" if ours else ""
        table.rows.append([name + void, text(median), f"{text(low)} to {text(high)}", ratio])
    compiling = [
        f"{name} {s:.1f} s" for name, s in result["first"].items() if name.startswith(("torch.compile", "JAX"))
    ]
    if compiling:
        table.notes.append(f"Compilation and the first pass, not included above: {', '.join(compiling)}.")
    for name, reason in result["absent"].items():
        table.notes.append(f"{name}: {reason}.")
    return table


def memory(arguments: argparse.Namespace) -> Table:
    """Return the table of peak memory for the widest size, each peer in its own process."""
    sizes, rows = parsed(MEMORY)
    weights = sum(n_out * (n_in + 1) for n_in, n_out in pairwise(sizes))
    least = 4 * (weights + rows * (sizes[0] + 2 * sum(sizes[1:]))) / 2**20
    table = Table(f"Peak memory beyond the data: {_words(MEMORY)}, 1 thread", ["", "MiB", "× the first row"])
    table.rows.append(["weights, the batch, a and δ of each layer", f"{least:.1f}", "1.00"])
    for name in MEMORY_PEERS:
        if arguments.peers and not any(name.startswith(p) for p in arguments.peers):
            continue
        result = _measure("memory", MEMORY, 1, 1, [name])
        for peak in result["figures"].values():
            table.rows.append([name, f"{peak:.1f}", f"{peak / least:.2f}"])
        table.notes += [f"{name}: {reason}." for reason in result["absent"].values()]
    return table


def _measure(what: str, size: str, threads: int, rounds: int, peers: list[str] | None, *more: str) -> dict[str, Any]:
    layers, _, batch_size = size.partition("/")
    command = [sys.executable, "-m", "benchmarks.worker", what, "--sizes", layers, "--batch-size", batch_size]
    command += ["--threads", str(threads), "--rounds", str(rounds), *more]
    command += ["--peers", *peers] if peers else []
    with tempfile.TemporaryDirectory() as cache:  # an empty cache, so that the compilation time is measured
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


if __name__ == "__main__":
    main()
