"""What the literature reports of MNIST beside what the recipes give: ``python -m benchmarks.literature FOLDER``.

Each recipe of recipes/ is trained by ``deltaprop train --config`` as it stands, with seeds 0, 1, …, each run in a
process of its own with one thread. What a run gave is kept beside the others, so that the command may be broken off and
go on: what is there of the same settings, data, machine and number of jobs is not trained again (the page tells what
code it was trained by; without the file all is). Of two recipes the literature reports what there is before training,
how fast each layer would learn; so they are not trained here.
``--write`` puts tables and picture into docs/results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import Table, machine, versions
from deltaprop.data import check_source, load
from deltaprop.errors import UserError
from deltaprop.tracing.capture import capture_layers
from deltaprop.training.config import TrainConfig, read_toml
from deltaprop.training.data_loader import DataLoader
from deltaprop.training.setup import prepare

ROOT = Path(__file__).parent.parent
RECIPES, PAGE, PICTURE = ROOT / "recipes", ROOT / "docs" / "results.md", ROOT / "docs" / "pictures" / "results.png"


@dataclass(frozen=True)
class Group:
    """Figures that are reported alike.

    Attributes:
        title: Above their table.
        unit: ``"right"`` or ``"wrong"``: what the % are of.
        levels: % of the test images right: the seconds to each are told.
    """

    title: str
    unit: str
    levels: tuple[float, ...]


BOOK = Group("Nielsen's book, and its recipes", "right", (95, 97))
MNIST = Group("The MNIST table, and its recipes", "wrong", (97, 98, 98.5, 99))


@dataclass(frozen=True)
class Published:
    """A figure of the literature.

    Attributes:
        recipe: Name of the file in recipes/.
        net: Its layers and its loss.
        figure: %, of what the group says.
        source: Where it is published.
        group: Which others it stands beside.
        part: Of which images: ``"test"`` or ``"val"``.
    """

    recipe: str
    net: str
    figure: float
    source: str
    group: Group
    part: str = "test"


PUBLISHED = (
    Published("nielsen-quadratic", "784-30-10, quadratic", 95.42, "chapter 1, best epoch of the best of three", BOOK),
    Published("nielsen-quadratic-100", "784-100-10, quadratic", 96.59, "chapter 1", BOOK),
    Published("nielsen-cross-entropy", "784-30-10, cross-entropy", 95.49, "chapter 3", BOOK),
    Published("nielsen-weight-decay", "784-100-10, cross-entropy, λ 5", 98.04, "chapter 3", BOOK, "val"),
    Published("mse-300", "784-300-10, squared error", 4.7, "LeCun 1998", MNIST),
    Published("mse-1000", "784-1000-10, squared error", 4.5, "LeCun 1998", MNIST),
    Published("mse-300-100", "784-300-100-10, squared error", 3.05, "LeCun 1998", MNIST),
    Published("mse-500-150", "784-500-150-10, squared error", 2.95, "LeCun 1998", MNIST),
    Published("cross-entropy-800", "784-800-10, cross-entropy", 1.6, "Simard 2003", MNIST),
    Published("weight-decay-500-300", "784-500-300-10, weight decay", 1.53, "Hinton 2005", MNIST),
    Published("elastic-800", "784-800-10, elastic deformations", 0.7, "Simard 2003", MNIST),
)

# Before training, of the hidden layers from the first: ‖∂C/∂b^l‖ over so many training images.
SPEEDS = {"nielsen-2-hidden": ("0.0657", "0.309"), "nielsen-4-hidden": ("0.0030", "0.0171", "0.0695", "0.285")}
IMAGES, DRAWS = 1000, 20


def main(words: Sequence[str] | None = None) -> int:
    """Train what has not been trained yet, show the table, and with --write put it into the page."""
    arguments = parse(words)
    chosen = [found for found in PUBLISHED if not arguments.recipes or found.recipe in arguments.recipes]
    speeds_of = [recipe for recipe in SPEEDS if not arguments.recipes or recipe in arguments.recipes]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    keeper = Keeper(arguments.results, digest(arguments.data), arguments.jobs)
    missing = [
        (found, seed)
        for seed in range(arguments.seeds)
        for found in chosen
        if keeper.key(found, seed) not in keeper.kept
    ]

    def job(found: Published, seed: int) -> None:
        run = _train(found, seed, arguments.data)
        keeper.keep(found, seed, run)
        console.print(f"{found.recipe}, seed {seed}: {_figure(run, found):.2f} % {found.group.unit}")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for future in as_completed([pool.submit(job, found, seed) for found, seed in missing]):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that run come to their end, and are kept
            raise
    runs = {found: [keeper.kept[keeper.key(found, seed)] for seed in range(arguments.seeds)] for found in chosen}
    tables = [shown(runs, group) for group in dict.fromkeys(found.group for found in chosen)]
    if speeds_of:
        tables.append(shown_speeds({recipe: speeds(recipe, arguments.data) for recipe in speeds_of}))
    for table in tables:
        console.print(table.rich())
    if arguments.write:
        how = f"path/to/mnist --seeds {arguments.seeds} --jobs {arguments.jobs} --write"
        _write(tables, runs, f"python -m benchmarks.literature {how}")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return what is asked for; what makes no sense ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.literature", description=__doc__)
    parser.add_argument("data", help="folder of MNIST's IDX files")
    names = [*(found.recipe for found in PUBLISHED), *SPEEDS]
    parser.add_argument("--recipes", nargs="+", choices=names, metavar="NAME", help="some of them")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each; 5 by default")
    parser.add_argument("--jobs", type=int, default=1, help="at a time; 1 by default, which the seconds are true for")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "literature.jsonl", help="where runs are kept")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/results.md")
    arguments = parser.parse_args(words)
    if arguments.write and arguments.recipes:
        parser.error("--write is for all recipes: leave --recipes out")
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    try:
        digest(arguments.data)
    except UserError as error:
        parser.error(str(error))
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def digest(folder: str) -> str:
    """Return the digest of the data.

    Raises:
        UserError: If they are not MNIST, whose figures these are.
    """
    check_source(folder)
    found = load(folder)
    counts = len(found.train) + len(found.val), len(found.test), found.n_inputs, len(found.class_names)
    if counts != (60_000, 10_000, 784, 10):
        raise UserError(f"{folder}: this is not MNIST: {counts[0]} + {counts[1]} rows of {counts[2]} inputs")
    return found.digest


# --- the runs ---


class Keeper:
    """Keeps what runs gave, a line each, under all that it hangs on.

    Args:
        path: The file.
        data: Digest of the data.
        jobs: Runs at a time.

    Attributes:
        kept: What each run gave, by key.
    """

    def __init__(self, path: Path, data: str, jobs: int) -> None:
        self.path, self._around, self._writing = path, [data, machine(), jobs], threading.Lock()
        self.kept: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # the last, of a call that was broken off as it wrote
                run = json.loads(line)
                self.kept[run["key"]] = run

    def key(self, found: Published, seed: int) -> str:
        """Return what a run hangs on: settings, data, and for its seconds the machine and how many run at a time."""
        settings = read_toml(RECIPES / f"{found.recipe}.toml")
        all_of_it = json.dumps([settings, self._around], sort_keys=True, default=str)
        return f"{found.recipe}-{seed}-{hashlib.sha256(all_of_it.encode()).hexdigest()[:12]}"

    def keep(self, found: Published, seed: int, run: dict[str, Any]) -> None:
        """Keep what a run gave, and by what code."""
        key = self.key(found, seed)
        with self._writing:
            self.kept[key] = {"key": key, "versions": versions(), **run}
            torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            with self.path.open("a") as file:
                file.write("\n" * torn + json.dumps(self.kept[key]) + "\n")


def _train(found: Published, seed: int, data: str) -> dict[str, Any]:
    """Train a recipe; return its figures, epoch by epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "deltaprop", "train", "--config", str(RECIPES / f"{found.recipe}.toml"),
            "--data", data, "--seed", str(seed), "--threads", "1", "--run-dir", str(run),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{found.recipe}, seed {seed}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("val_accuracy", "test_accuracy", "seconds")
    return {name: [line[name] for line in lines] for name in names}


# --- what is shown ---


def _figure(run: dict[str, Any], found: Published) -> float:
    """Return % right, or wrong, after the last epoch."""
    right = 100 * float(run[f"{found.part}_accuracy"][-1])
    return right if found.group.unit == "right" else 100 - right


def _seconds(run: dict[str, Any], level: float) -> float | None:
    """Return the seconds of training to a level of % of the test images; None where it is never there."""
    gone = 0.0
    for right, seconds in zip(run["test_accuracy"], run["seconds"], strict=True):
        gone += seconds
        if 100 * right >= level:
            return gone
    return None


def _told(figures: Sequence[float], digits: str) -> str:
    """Return mean and range."""
    mean, least, most = (f"{figure:{digits}}" for figure in (statistics.mean(figures), min(figures), max(figures)))
    return f"{mean} ({least} to {most})"


def shown(runs: dict[Published, list[dict[str, Any]]], group: Group) -> Table:
    """Return the table of a group."""
    table = Table(
        group.title,
        ["recipe", "net", f"published, % {group.unit}", f"ours, mean (least to largest), % {group.unit}", "runs",
         *(f"s to {level:g} % right" for level in group.levels), "s in all"],
    )  # fmt: skip
    for found, of in runs.items():
        if found.group is not group:
            continue
        part = " (validation)" if found.part == "val" else ""
        cells = []
        for level in group.levels:
            times = [_seconds(run, level) for run in of]
            reached = [seconds for seconds in times if seconds is not None]
            share = "" if len(reached) == len(times) else f" ({len(reached)} of {len(times)})"
            cells.append(f"{statistics.median(reached):.1f}{share}" if reached else "never")
        table.rows.append(
            [found.recipe, found.net, f"{found.figure:g}{part}, {found.source}",
             _told([_figure(run, found) for run in of], ".2f"), str(len(of)), *cells,
             f"{statistics.median(sum(run['seconds']) for run in of):.1f}"]
        )  # fmt: skip
    table.notes.append(
        "After the last epoch, no epoch picked out. Seconds of training alone, median of the runs; one thread, "
        "and one more that deforms."
    )
    return table


def speeds(recipe: str, data: str) -> list[list[float]]:
    """Return ‖∂C/∂b^l‖ of the hidden layers, from the first, before training: a list for each draw of the weights."""
    settings = {**read_toml(RECIPES / f"{recipe}.toml"), "data": data, "device": "cpu"}
    found = []
    for seed in range(DRAWS):
        setup = prepare(TrainConfig(**settings, seed=seed))
        batch = DataLoader(setup.dataset.train, setup.objective, setup.config.batch_size).first_rows(IMAGES)
        hidden = capture_layers(setup.model, setup.objective.call, *batch)[:-1]
        found.append([float(layer.grad_bias.norm()) for layer in hidden if layer.grad_bias is not None])
    return found


def shown_speeds(drawn: dict[str, list[list[float]]]) -> Table:
    """Return the table of how fast each hidden layer would learn before training."""
    table = Table(
        "Nielsen's book, chapter 5: ‖∂C/∂b‖ of each hidden layer before training",
        ["recipe", "hidden layer", "published", "ours, mean (least to largest)", "draws"],
    )
    for recipe, of in drawn.items():
        for number, (theirs, ours) in enumerate(zip(SPEEDS[recipe], zip(*of, strict=True), strict=True), start=1):
            table.rows.append([recipe, str(number), theirs, _told(ours, ".2g"), str(len(of))])
    table.notes.append(f"Over the first {IMAGES} training images; weights N(0, 1/n), biases N(0, 1), a draw a seed.")
    return table


def _write(tables: Sequence[Table], runs: dict[Published, list[dict[str, Any]]], command: str) -> None:
    """Put the tables into the page, between its marks, and draw the curves."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
    head, tail = page.split(begin)[0], page.split(end)[1]
    by = " and ".join(dict.fromkeys(run["versions"] for of in runs.values() for run in of))
    told = f"`{command}`: {machine()}, {by}."
    parts = "\n".join(table.markdown() for table in tables).strip()
    PAGE.write_text(f"{head}{begin}\n{parts}\n\n{told}\n\n{end}{tail}", encoding="utf-8")
    draw(runs, PICTURE)


def draw(runs: dict[Published, list[dict[str, Any]]], path: Path) -> None:
    """Draw the error on the test images over the epochs, the mean of the runs, each recipe a curve."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (found, of) in enumerate(runs.items()):
        errors = [
            100 - 100 * statistics.mean(rights) for rights in zip(*(run["test_accuracy"] for run in of), strict=True)
        ]
        colour = f"C{number}" if number < 10 else "black"
        axes.semilogy(range(1, len(errors) + 1), errors, color=colour, lw=1.4, label=found.recipe)
    axes.set(xlabel="epoch", ylabel="test error, %", title="MNIST's test images: the mean of the runs of each recipe")
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, color="0.92")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
