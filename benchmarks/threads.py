"""Compare the rule of ``--threads auto`` with measured times: ``python -m benchmarks.threads``.

Networks with two equally wide hidden layers over a grid of widths and batch sizes; each is timed with 1, 2, 4, …
threads, as ``--threads tune`` does, with one of the engines; with ``--busy 1`` while another program uses a core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console

import deltaprop as dp
from benchmarks.report import Table, machine, versions, write
from deltaprop import functional as F
from deltaprop.training.devices import fastest, physical_cores, pick_threads, tune_threads

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (16, 64, 256)
STEPS = 4


def main() -> None:
    """Print the grid; mark where the rule is more than a tenth slower than the best."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__)
    parser.add_argument("--engine", default="explicit", choices=["compiled", "explicit", "autograd"])
    parser.add_argument("--busy", type=int, default=0, help="number of other programs that each use a core")
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md, for this machine"
    )
    arguments = parser.parse_args()
    console = Console()
    console.print(f"{machine()}, {versions()}", highlight=False)
    counts = sorted(tune_threads(lambda: None, physical_cores(), seconds=0))
    columns = ["width, batch", *(f"µs at {count}" for count in counts), "fastest", "rule", "rule ÷ best"]
    beside = f", beside {arguments.busy} busy" if arguments.busy else ""
    table = Table(f"Threads, {arguments.engine} engine: a step of width-width-width-10{beside}", columns)
    with busy(arguments.busy):
        for width in WIDTHS:
            for batch in BATCHES:
                sizes = [width, width, width, 10]
                timed = tune_threads(_steps(sizes, batch, arguments.engine), physical_cores(), seconds=1.0)
                chosen = min(pick_threads("auto", sizes, batch, arguments.engine), physical_cores())
                loss = timed[chosen] / min(timed.values())
                figures = [f"{1e6 * timed[count] / STEPS:.0f}" for count in counts]
                marked = f"{loss:.2f}" + (" !" if loss > 1.1 else "")
                table.rows.append([f"{width}, {batch}", *figures, str(fastest(timed)), str(chosen), marked])
    console.print(table.rich(), highlight=False)
    if arguments.write:
        options = f" --busy {arguments.busy}" if arguments.busy else ""
        write([table], f"python -m benchmarks.threads --engine {arguments.engine}{options}")


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run this number of programs that each use a core."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def _steps(sizes: list[int], batch: int, engine: str) -> Callable[[], object]:
    """Return a function that takes a few steps of a network."""
    model = dp.MLP(sizes, "sigmoid")
    optimizer = dp.SGD(model.parameters(), lr=0.01)
    x, y = torch.rand(STEPS * batch, sizes[0]), torch.randint(10, (STEPS * batch,))
    if engine != "autograd":
        make = dp.CompiledTrainer if engine == "compiled" else dp.ExplicitTrainer
        trainer = make(model, "cross_entropy", optimizer)
        return lambda: trainer.epoch(x, y, batch)

    def with_autograd() -> None:
        for batch_x, batch_y in zip(x.split(batch), y.split(batch), strict=True):
            loss = F.cross_entropy(model(batch_x), batch_y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return with_autograd


if __name__ == "__main__":
    main()
