"""How well a table is learnt beside scikit-learn: ``python -m benchmarks.quality [--write]``.

scikit-learn's own five tables, written to CSV, five folds, three seeds; each fold is trained by
``deltaprop train --data … --test …`` as it stands (128-64, batch 16, 30 epochs, --lr auto, momentum 0.9), on all of
the four others. Beside it scikit-learn's MLP of the same size, batch, epochs and seeds, on the same folds,
standardised likewise: ``solver="sgd"`` with its own η, with ours, and its default Adam.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import Table, write
from deltaprop.cli import main as deltaprop

NAMES = ("iris", "wine", "breast_cancer", "digits", "diabetes")
HIDDEN, BATCH, EPOCHS, FOLDS, SEEDS = (128, 64), 16, 30, 5, range(3)
LR = {"classification": 0.02, "regression": 0.001}  # what --lr auto is for tables


def main() -> None:
    """Train, compare, print, and with --write put the table into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    columns = [
        "table",
        "judged by",
        "deltaprop train",
        "sklearn sgd, its η 0.001",
        "sklearn sgd, our η",
        "sklearn Adam",
    ]
    table = Table("Tables: five folds, three seeds, 128-64, batch 16, 30 epochs", columns)
    table.notes.append(
        "Mean ± standard deviation over folds and seeds; accuracy in %, R² for diabetes, whose targets are numbers."
    )
    for name in NAMES:
        table.rows.append(row(name))
        Console().print(table.rows[-1])
    Console().print(table.rich())
    if arguments.write:
        write([table], "python -m benchmarks.quality")


def row(name: str) -> list[str]:
    """Return the row of a table of scikit-learn's."""
    from sklearn.model_selection import KFold, StratifiedKFold

    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    task = "regression" if name == "diabetes" else "classification"
    x, y = bunch.data, bunch.target
    folds = (KFold if task == "regression" else StratifiedKFold)(FOLDS, shuffle=True, random_state=0).split(x, y)
    judged: list[list[float]] = [[], [], [], []]
    peers = ({"solver": "sgd"}, {"solver": "sgd", "learning_rate_init": LR[task]}, {})
    for kept, held in folds:
        for seed in SEEDS:
            judged[0].append(ours(x, y, kept, held, task, list(map(str, bunch.feature_names)), seed))
            for scores, settings in zip(judged[1:], peers, strict=True):
                scores.append(theirs(x, y, kept, held, task, {**settings, "random_state": seed}))
    shown = [cell(scores, 1 if task == "regression" else 100) for scores in judged]
    return [name, "R²" if task == "regression" else "accuracy", *shown]


def cell(scores: list[float], unit: float) -> str:
    """Return mean and deviation."""
    digits = 3 if unit == 1 else 2
    return f"{unit * statistics.mean(scores):.{digits}f} ± {unit * statistics.stdev(scores):.{digits}f}"


def ours(x: Any, y: Any, kept: Any, held: Any, task: str, names: list[str], seed: int) -> float:
    """Return what ``deltaprop evaluate`` says of a fold."""
    with tempfile.TemporaryDirectory() as folder:
        for part, rows in (("train", kept), ("test", held)):
            with (Path(folder) / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([[*names, "y"], *([*x[at].tolist(), y[at]] for at in rows)])
        quiet(
            ["train", "--data", f"{folder}/train.csv", "--test", f"{folder}/test.csv", "--task", task,
             "--val-fraction", "0", "--log-every", "0", "--run-dir", f"{folder}/run", "--seed", str(seed)],
            ["evaluate", f"{folder}/run", "--data", f"{folder}/test.csv", "--json", f"{folder}/judged.json"],
        )  # fmt: skip
        found = json.loads((Path(folder) / "judged.json").read_text())
    return float(found["r2" if task == "regression" else "accuracy"])


def quiet(*commands: list[str]) -> None:
    """Run commands, and say nothing.

    Raises:
        RuntimeError: If one fails.
    """
    import contextlib
    import io

    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            if deltaprop(command):
                raise RuntimeError(f"deltaprop {' '.join(command)}")


def theirs(x: Any, y: Any, kept: Any, held: Any, task: str, settings: dict[str, Any]) -> float:
    """Return what scikit-learn's MLP reaches on a fold."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kind: Callable[..., Any] = MLPRegressor if task == "regression" else MLPClassifier
    net = kind(
        hidden_layer_sizes=HIDDEN,
        batch_size=BATCH,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        **settings,
    )
    if task == "regression":
        net = TransformedTargetRegressor(net, transformer=StandardScaler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return float(make_pipeline(StandardScaler(), net).fit(x[kept], y[kept]).score(x[held], y[held]))


if __name__ == "__main__":
    main()
