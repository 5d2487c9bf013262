"""Compare published results on MNIST with those of the recipes: ``python -m benchmarks.literature FOLDER``.

Each recipe in recipes/ is trained unchanged by ``deltaprop train --config`` with seeds 0, 1, …, each run in its own
process with one thread. Results are saved, so the command may be interrupted and repeated: runs with the same settings,
data, machine and number of jobs are not trained again (the page names the code version that trained them; delete the
file to train all again). For two recipes the published numbers are norms of gradients before training, so they are not
trained. ``--write`` writes tables and picture into docs/results.md.
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
    """Published results in one table.

    Attributes:
        title: The title of the table.
        unit: ``"right"`` or ``"wrong"``: whether percentages are accuracies or error rates.
        levels: Test accuracies in %; the table has the seconds of training to each.
    """

    title: str
    unit: str
    levels: tuple[float, ...]


BOOK = Group("Nielsen's book, and its recipes", "right", (95, 97))
MNIST = Group("The MNIST table, and its recipes", "wrong", (97, 98, 98.5, 99))


@dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        recipe: Name of the file in recipes/.
        net: Its layers and its loss.
        figure: Accuracy or error rate in %, as the group says.
        source: Where it is published.
        group: Its table.
        part: The images: ``"test"`` or ``"val"``.
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

# ‖∂C/∂b^l‖ of the hidden layers, from the first, before training, over ``IMAGES`` training images.
SPEEDS = {"nielsen-2-hidden": ("0.0657", "0.309"), "nielsen-4-hidden": ("0.0030", "0.0171", "0.0695", "0.285")}
IMAGES, DRAWS = 1000, 20


def main(words: Sequence[str] | None = None) -> int:
    """Train the missing runs, print the tables, and with --write write them into the page."""
    arguments = parse(words)
    chosen = [published for published in PUBLISHED if not arguments.recipes or published.recipe in arguments.recipes]
    speeds_of = [recipe for recipe in SPEEDS if not arguments.recipes or recipe in arguments.recipes]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    results = Results(arguments.results, digest(arguments.data), arguments.jobs)
    missing = [
        (published, seed)
        for seed in range(arguments.seeds)
        for published in chosen
        if results.key(published, seed) not in results.saved
    ]

    def job(published: Published, seed: int) -> None:
        run = _train(published, seed, arguments.data)
        results.save(published, seed, run)
        console.print(f"{published.recipe}, seed {seed}: {_figure(run, published):.2f} % {published.group.unit}")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for future in as_completed([pool.submit(job, published, seed) for published, seed in missing]):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # running jobs finish, and their results are saved
            raise
    runs = {
        published: [results.saved[results.key(published, seed)] for seed in range(arguments.seeds)]
        for published in chosen
    }
    tables = [shown(runs, group) for group in dict.fromkeys(published.group for published in chosen)]
    if speeds_of:
        tables.append(shown_speeds({recipe: speeds(recipe, arguments.data) for recipe in speeds_of}))
    for table in tables:
        console.print(table.rich())
    if arguments.write:
        how = f"path/to/mnist --seeds {arguments.seeds} --jobs {arguments.jobs} --write"
        _write(tables, runs, f"python -m benchmarks.literature {how}")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; invalid ones end the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.literature", description=__doc__)
    parser.add_argument("data", help="folder of MNIST's IDX files")
    names = [*(published.recipe for published in PUBLISHED), *SPEEDS]
    parser.add_argument("--recipes", nargs="+", choices=names, metavar="NAME", help="only these; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="runs per recipe; 5 by default")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; 1 by default, for which the seconds are right"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "literature.jsonl", help="file for the results")
    parser.add_argument("--write", action="store_true", help="write tables and picture into docs/results.md")
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
        UserError: If they are not MNIST.
    """
    check_source(folder)
    dataset = load(folder)
    counts = len(dataset.train) + len(dataset.val), len(dataset.test), dataset.n_inputs, len(dataset.class_names)
    if counts != (60_000, 10_000, 784, 10):
        raise UserError(f"{folder}: this is not MNIST: {counts[0]} + {counts[1]} rows of {counts[2]} inputs")
    return dataset.digest


# --- the runs ---


class Results:
    """Saves the results of runs, a line each, with a key of everything that they depend on.

    Args:
        path: The file.
        data: Digest of the data.
        jobs: Runs at a time.

    Attributes:
        saved: The result of each run, by key.
    """

    def __init__(self, path: Path, data: str, jobs: int) -> None:
        self.path, self._around, self._writing = path, [data, machine(), jobs], threading.Lock()
        self.saved: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # the last line, if a call was interrupted while writing
                run = json.loads(line)
                self.saved[run["key"]] = run

    def key(self, published: Published, seed: int) -> str:
        """Return the key of a run: its settings, its data and, for its seconds, the machine and the number of jobs."""
        settings = read_toml(RECIPES / f"{published.recipe}.toml")
        text = json.dumps([settings, self._around], sort_keys=True, default=str)
        return f"{published.recipe}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def save(self, published: Published, seed: int, run: dict[str, Any]) -> None:
        """Save the result of a run, and the version of the code."""
        key = self.key(published, seed)
        with self._writing:
            self.saved[key] = {"key": key, "versions": versions(), **run}
            is_truncated = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            with self.path.open("a") as file:
                file.write("\n" * is_truncated + json.dumps(self.saved[key]) + "\n")


def _train(published: Published, seed: int, data: str) -> dict[str, Any]:
    """Train a recipe; return accuracies and seconds of each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "deltaprop", "train", "--config", str(RECIPES / f"{published.recipe}.toml"),
            "--data", data, "--seed", str(seed), "--threads", "1", "--run-dir", str(run),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{published.recipe}, seed {seed}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("val_accuracy", "test_accuracy", "seconds")
    return {name: [line[name] for line in lines] for name in names}


# --- output ---


def _figure(run: dict[str, Any], published: Published) -> float:
    """Return the accuracy or error rate in % after the last epoch."""
    right = 100 * float(run[f"{published.part}_accuracy"][-1])
    return right if published.group.unit == "right" else 100 - right


def _seconds(run: dict[str, Any], level: float) -> float | None:
    """Return the seconds of training to a test accuracy in %; None if it is not reached."""
    elapsed = 0.0
    for right, seconds in zip(run["test_accuracy"], run["seconds"], strict=True):
        elapsed += seconds
        if 100 * right >= level:
            return elapsed
    return None


def _mean_and_range(figures: Sequence[float], digits: str) -> str:
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
    for published, results in runs.items():
        if published.group is not group:
            continue
        part = " (validation)" if published.part == "val" else ""
        cells = []
        for level in group.levels:
            times = [_seconds(run, level) for run in results]
            reached = [seconds for seconds in times if seconds is not None]
            share = "" if len(reached) == len(times) else f" ({len(reached)} of {len(times)})"
            cells.append(f"{statistics.median(reached):.1f}{share}" if reached else "never")
        table.rows.append(
            [published.recipe, published.net, f"{published.figure:g}{part}, {published.source}",
             _mean_and_range([_figure(run, published) for run in results], ".2f"), str(len(results)), *cells,
             f"{statistics.median(sum(run['seconds']) for run in results):.1f}"]
        )  # fmt: skip
    table.notes.append(
        "After the last epoch, not the best one. Seconds of training only, median of the runs; one thread, "
        "and one more for augmentation."
    )
    return table


def speeds(recipe: str, data: str) -> list[list[float]]:
    """Return ‖∂C/∂b^l‖ of the hidden layers before training, from the first, for each draw of the weights."""
    settings = {**read_toml(RECIPES / f"{recipe}.toml"), "data": data, "device": "cpu"}
    norms = []
    for seed in range(DRAWS):
        setup = prepare(TrainConfig(**settings, seed=seed))
        batch = DataLoader(setup.dataset.train, setup.objective, setup.config.batch_size).first_rows(IMAGES)
        hidden = capture_layers(setup.model, setup.objective.call, *batch)[:-1]
        norms.append([float(layer.grad_bias.norm()) for layer in hidden if layer.grad_bias is not None])
    return norms


def shown_speeds(drawn: dict[str, list[list[float]]]) -> Table:
    """Return the table of ‖∂C/∂b^l‖ of each hidden layer before training."""
    table = Table(
        "Nielsen's book, chapter 5: ‖∂C/∂b‖ of each hidden layer before training",
        ["recipe", "hidden layer", "published", "ours, mean (least to largest)", "draws"],
    )
    for recipe, results in drawn.items():
        for number, (theirs, ours) in enumerate(zip(SPEEDS[recipe], zip(*results, strict=True), strict=True), start=1):
            table.rows.append([recipe, str(number), theirs, _mean_and_range(ours, ".2g"), str(len(results))])
    table.notes.append(
        f"Over the first {IMAGES} training images; weights N(0, 1/n), biases N(0, 1), one draw per seed."
    )
    return table


def _write(tables: Sequence[Table], runs: dict[Published, list[dict[str, Any]]], command: str) -> None:
    """Write the tables into the page, between its marks, and draw the curves."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
    head, tail = page.split(begin)[0], page.split(end)[1]
    by = " and ".join(dict.fromkeys(run["versions"] for results in runs.values() for run in results))
    source = f"`{command}`: {machine()}, {by}."
    parts = "\n".join(table.markdown() for table in tables).strip()
    PAGE.write_text(f"{head}{begin}\n{parts}\n\n{source}\n\n{end}{tail}", encoding="utf-8")
    draw(runs, PICTURE)


def draw(runs: dict[Published, list[dict[str, Any]]], path: Path) -> None:
    """Draw the test error over the epochs, the mean of the runs, one curve per recipe."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (published, results) in enumerate(runs.items()):
        errors = [
            100 - 100 * statistics.mean(rights)
            for rights in zip(*(run["test_accuracy"] for run in results), strict=True)
        ]
        colour = f"C{number}" if number < 10 else "black"
        axes.semilogy(range(1, len(errors) + 1), errors, color=colour, lw=1.4, label=published.recipe)
    axes.set(xlabel="epoch", ylabel="test error, %", title="MNIST's test images: the mean of the runs of each recipe")
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 3, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, color="0.92")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
