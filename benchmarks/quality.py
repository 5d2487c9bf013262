"""Compare the accuracy on tables with scikit-learn: ``python -m benchmarks.quality [--write]``.

scikit-learn's five tables as CSV, five folds, three seeds. For each fold ``deltaprop train --data … --test …`` trains
with its default settings (128-64, batch 16, 30 epochs, --lr auto, momentum 0.9) on the four other folds. It is compared
with scikit-learn's MLP of the same size, batch, epochs and seeds, on the same folds, standardised too:
``solver="sgd"`` with its default η and with deltaprop's, and its default Adam.
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
LR = {"classification": 0.02, "regression": 0.001}  # the values of --lr auto for tables


def main() -> None:
    """Train, compare, print, and with --write write the table into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    columns = [
        "table",
        "metric",
        "deltaprop train",
        "sklearn sgd, its η 0.001",
        "sklearn sgd, our η",
        "sklearn Adam",
    ]
    table = Table("Tables: five folds, three seeds, 128-64, batch 16, 30 epochs", columns)
    table.notes.append("Mean ± standard deviation over folds and seeds; accuracy in %, R² for diabetes, a regression.")
    for name in NAMES:
        table.rows.append(row(name))
        Console().print(table.rows[-1])
    Console().print(table.rich())
    if arguments.write:
        write([table], "python -m benchmarks.quality")


def row(name: str) -> list[str]:
    """Return the results for one of scikit-learn's tables."""
    from sklearn.model_selection import KFold, StratifiedKFold

    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    task = "regression" if name == "diabetes" else "classification"
    x, y = bunch.data, bunch.target
    folds = (KFold if task == "regression" else StratifiedKFold)(FOLDS, shuffle=True, random_state=0).split(x, y)
    all_scores: list[list[float]] = [[], [], [], []]
    peers = ({"solver": "sgd"}, {"solver": "sgd", "learning_rate_init": LR[task]}, {})
    for train_rows, test_rows in folds:
        for seed in SEEDS:
            all_scores[0].append(ours(x, y, train_rows, test_rows, task, list(map(str, bunch.feature_names)), seed))
            for scores, settings in zip(all_scores[1:], peers, strict=True):
                scores.append(theirs(x, y, train_rows, test_rows, task, {**settings, "random_state": seed}))
    shown = [cell(scores, 1 if task == "regression" else 100) for scores in all_scores]
    return [name, "R²" if task == "regression" else "accuracy", *shown]


def cell(scores: list[float], unit: float) -> str:
    """Return mean and standard deviation as text."""
    digits = 3 if unit == 1 else 2
    return f"{unit * statistics.mean(scores):.{digits}f} ± {unit * statistics.stdev(scores):.{digits}f}"


def ours(x: Any, y: Any, train_rows: Any, test_rows: Any, task: str, names: list[str], seed: int) -> float:
    """Return the score that ``deltaprop evaluate`` gives for a fold."""
    with tempfile.TemporaryDirectory() as folder:
        for part, rows in (("train", train_rows), ("test", test_rows)):
            with (Path(folder) / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([[*names, "y"], *([*x[at].tolist(), y[at]] for at in rows)])
        quiet(
            ["train", "--data", f"{folder}/train.csv", "--test", f"{folder}/test.csv", "--task", task,
             "--val-fraction", "0", "--log-every", "0", "--run-dir", f"{folder}/run", "--seed", str(seed)],
            ["evaluate", f"{folder}/run", "--data", f"{folder}/test.csv", "--json", f"{folder}/evaluation.json"],
        )  # fmt: skip
        evaluation = json.loads((Path(folder) / "evaluation.json").read_text())
    return float(evaluation["r2" if task == "regression" else "accuracy"])


def quiet(*commands: list[str]) -> None:
    """Run commands without output.

    Raises:
        RuntimeError: If one fails.
    """
    import contextlib
    import io

    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            if deltaprop(command):
                raise RuntimeError(f"deltaprop {' '.join(command)}")


def theirs(x: Any, y: Any, train_rows: Any, test_rows: Any, task: str, settings: dict[str, Any]) -> float:
    """Return the score of scikit-learn's MLP for a fold."""
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
        warnings.simplefilter("ignore")  # about convergence
        return float(
            make_pipeline(StandardScaler(), net).fit(x[train_rows], y[train_rows]).score(x[test_rows], y[test_rows])
        )


if __name__ == "__main__":
    main()
