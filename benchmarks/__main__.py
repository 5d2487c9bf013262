"""``python -m benchmarks``: every size of the table, one process each, ratios of medians within one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from deltaprop.training.devices import physical_cores, pick_threads

SIZES = {
    "784-30-10": 10,
    "64-64-10": 32,
    "784-128-10": 64,
    "784-512-512-10": 128,
    "1024-2048-2048-10": 256,
}


def main() -> None:
    """Run the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="of the table, such as 784-30-10")
    parser.add_argument("--threads", default="1", help="a number, or auto: the rule of train.py --threads auto")
    parser.add_argument("--rounds", type=int, default=40, help="figures of each peer")
    parser.add_argument("--peers", nargs="*", help="beginnings of their names; all by default")
    arguments = parser.parse_args()
    for name in arguments.sizes:
        if name not in SIZES:
            parser.error(f"--sizes: unknown {name!r}; the table has {', '.join(SIZES)}")
    console = Console()
    console.print(machine())
    for name in arguments.sizes:
        sizes, batch_size = [int(n) for n in name.split("-")], SIZES[name]
        threads = min(pick_threads(arguments.threads, sizes, batch_size), len(os.sched_getaffinity(0)))
        command = [sys.executable, "-m", "benchmarks.worker", "--sizes", name, "--batch-size", str(batch_size)]
        command += ["--threads", str(threads), "--rounds", str(arguments.rounds)]
        command += ["--peers", *arguments.peers] if arguments.peers else []
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        console.print(table(f"{name}, batch {batch_size}, threads {threads}", json.loads(result.stdout)))


def table(title: str, result: dict[str, dict[str, list[float]]]) -> Table:
    """Return the rows of one size."""
    shown = Table(title=title, title_justify="left")
    for column in ("", "µs a step", "quartiles", "× explicit .epoch"):
        shown.add_column(column, justify="left" if not column else "right")
    ours = result["steps"].get("explicit .epoch")
    for name, (low, median, high) in result["steps"].items():
        void = " (void: its weights part from ours)" if name in result["void"] else ""
        ratio = f"{median / ours[1]:.2f}" if ours else ""
        shown.add_row(name + void, f"{median:.1f}", f"{low:.1f} to {high:.1f}", ratio)
    return shown


def machine() -> str:
    """Return what the figures were measured on, in one line."""
    packages = []
    for name in ("torch", "numpy", "jax", "scikit-learn"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return f"{processor()}, {physical_cores()} cores, Python {platform.python_version()}, {', '.join(packages)}"


def processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
