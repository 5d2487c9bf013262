"""A folder of Parquet parts that does not fit in memory: ``python -m benchmarks.row_groups``.

Memory of each process and time, by the number of rows and of processes, for a synthetic table of four columns: three
numbers and a class. Every process has one thread. The memory is the peak RSS (VmHWM) when the process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.report import Table, machine, versions, write

ROWS = (10**6, 10**7, 10**8)
PART, GROUP = 10**6, 2**18  # rows of a file, and of a row group
TRAIN = (
    "--target", "y", "--memory", "8m", "--epochs", "1", "--batch-size", "1024", "--hidden", "16", "--engine",
    "explicit", "--threads", "1", "--log-every", "0",
)  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.row_groups", description=__doc__)
    parser.add_argument("--rows", nargs="+", type=lambda text: int(float(text)), default=ROWS)
    parser.add_argument("--processes", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--folder", type=Path, help="folder for the tables; by default the temporary folder")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train(*arguments.worker)
        return
    console = Console(width=120)
    console.print(f"{machine()}, {versions()}", highlight=False)
    columns = ["rows, processes", "files, GB", "peak RSS of each process, MiB", "to the first step, s", "epoch, s"]
    table = Table("A folder of Parquet parts, 4 columns, read by its row groups", columns)
    table.notes.append(
        f"An epoch of 3-16-2 in batches of 1024 from row groups of {GROUP} rows. A process that has imported deltaprop "
        f"and its TensorBoard writer, and trained on 10 000 rows in memory, has a peak of {baseline():.0f} MiB."
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for rows in arguments.rows:
            data = Path(name, str(rows))
            write_parts(data, rows)
            size = sum(path.stat().st_size for path in data.iterdir()) / 1e9
            for count in arguments.processes:
                peaks, before, epoch = measure(Path(name), data, count)
                cells = [", ".join(f"{peak:.0f}" for peak in peaks), f"{before:.0f}", f"{epoch:.1f}"]
                table.rows.append([f"{rows:.0e}, {count}".replace("e+0", "e"), f"{size:.2f}", *cells])
            shutil.rmtree(data)
    console.print(table.rich(), highlight=False)
    if arguments.write:
        words = [word for word in sys.argv[1:] if word != "--write"]
        write([table], " ".join(["python -m benchmarks.row_groups", *words]))


def write_parts(folder: Path, rows: int) -> None:
    """Write the table."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for part, first in enumerate(range(0, rows, PART)):
        draw = np.random.default_rng(part)
        x = draw.normal(size=(min(PART, rows - first), 3)).astype(np.float32)
        y = (x.sum(axis=1) + 0.5 * draw.normal(size=len(x)) > 0).astype(np.int8)
        table = pyarrow.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y})
        parquet.write_table(table, folder / f"part-{part:05}.parquet", row_group_size=GROUP)


def baseline() -> float:
    """Return the peak of a process that trains on a small table of the same kind, in MiB."""
    with tempfile.TemporaryDirectory() as name:
        write_parts(Path(name, "data"), 10_000)
        return measure(Path(name), Path(name, "data"), 1)[0][0]


def measure(folder: Path, data: Path, count: int) -> tuple[list[float], float, float]:
    """Return the peak of each process in MiB, the seconds before the first step, and those of the epoch."""
    run, peaks = folder / "run", folder / "peaks"
    peaks.mkdir()
    command = [sys.executable, "-m"]
    if count > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    command += ["benchmarks.row_groups", "--worker", str(peaks), str(run), str(data), str(folder / "cache")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    found = [json.loads(path.read_text()) for path in sorted(peaks.iterdir())]
    epoch = json.loads((run / "metrics.jsonl").read_text())["seconds"]
    for path in (run, peaks):
        shutil.rmtree(path)
    return [each["peak"] for each in found], found[0]["before"], epoch


def train(peaks: str, run: str, data: str, cache: str) -> None:
    """Train an epoch, and write the peak of this process and the seconds before its first step."""
    from deltaprop.cli import main as deltaprop
    from deltaprop.training import loop

    began, before = time.perf_counter(), list[float]()
    train_run = loop.Run.train

    def timed(self: loop.Run) -> loop.Result:
        before.append(time.perf_counter() - began)
        return train_run(self)

    loop.Run.train = timed  # type: ignore[method-assign]
    code = deltaprop(["train", "--data", data, "--cache", cache, "--run-dir", run, *TRAIN])
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    found = {"peak": peak / 1024, "before": before[0]}
    Path(peaks, f"{int(os.environ.get('RANK', 0)):03}").write_text(json.dumps(found))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
