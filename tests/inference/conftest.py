"""Small trained runs of every kind, and their predictions worked out without deltaprop."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from deltaprop.training import TrainConfig, train

Array = NDArray[Any]
Columns = dict[str, list[Any]]

N = 300  # rows of each set


def _columns() -> dict[str, Columns]:
    """Return the tables that runs are trained on, by name; a missing cell is None."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=N), rng.normal(5.0, 3.0, N)
    city = rng.choice(["Paris", "Rome", "São Paulo"], N)
    mixed = np.where(a + 2 * (city == "Rome") > 1, "hi", np.where(b > 5, "mid", "lo"))
    number = np.where(a > 0.3, 7, np.where(b > 5, 0, -1))
    when = 1.7e9 + rng.integers(-2_000_000, 2_000_000, N)  # seconds: float32 has steps of 128 there
    found = {
        "numbers": {"a": a, "b": b, "y": np.where(a + b > 5, "yes", "no")},
        "mixed": {"a": a, "city": city, "b": b, "y": mixed},
        "filled": {"a": a, "b": b, "y": np.where(a + b > 5, "yes", "no")},
        "value": {"a": a, "b": b, "v": 100 + 30 * np.sin(a) + b},
        "single": {"x": a, "v": np.sin(a)},
        "two": {"a": a, "u": a + b, "b": b, "v": 100 * a - b},
        "integers": {"a": a, "b": b, "y": number},
        "dates": {"when": when, "b": b, "y": np.where(when > 1.7e9, "late", "early")},
    }
    tables = {name: {column: values.tolist() for column, values in table.items()} for name, table in found.items()}
    for row in range(N):
        if row % 17 == 3:
            tables["mixed"]["a"][row] = tables["filled"]["a"][row] = None
        if row % 23 == 5:
            tables["mixed"]["city"][row] = None
    return tables


TABLES = _columns()
_RNG = np.random.default_rng(1)
IMAGES = _RNG.integers(0, 256, (N, 4, 3), dtype=np.uint8)
LABELS = np.digitize(IMAGES.mean(axis=(1, 2)), [120.0, 135.0]) * 10  # 0, 10, 20

# What each kind is trained on, and the settings beside.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "numbers": ("numbers", {}),
    "mixed": ("mixed", {"missing": "mean"}),
    "filled": ("filled", {"missing": "mean"}),
    "value": ("value", {}),
    "single": ("single", {}),
    "two": ("two", {"target": ("u", "v")}),
    "logit": ("numbers", {"one_logit": True}),
    "mse": ("numbers", {"loss": "mse"}),
    "binary": ("mixed", {"missing": "mean", "loss": "binary-cross-entropy"}),
    "digits": ("digits", {}),
    "images": ("images", {}),
    "double": ("numbers", {"dtype": "float64"}),
    "integers": ("integers", {}),
    "dates": ("dates", {}),
}
OF_TABLES = [kind for kind, (data, _) in KINDS.items() if data in TABLES]
OF_ARRAYS = ["digits", "images"]
OF_NUMBERS = ["value", "single", "two"]  # which they predict
WITH_NAMES = ["mixed", "binary"]  # of categories


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]], delimiter: str = ",") -> Path:
    """Write columns as a CSV file: a missing cell is empty, a number has all its digits."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in zip(*columns.values(), strict=True)])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def first(columns: Mapping[str, Sequence[Any]], rows: int) -> Columns:
    """Return the first rows."""
    return {name: [*values[:rows]] for name, values in columns.items()}


def without(columns: Mapping[str, Sequence[Any]], *names: str) -> Columns:
    """Return the other columns."""
    return {name: [*values] for name, values in columns.items() if name not in names}


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        folder: Of the run.
        data: The file that it was trained on, or the name of a built-in set.
        metrics: Those of its end.
    """

    folder: Path
    data: str
    metrics: Mapping[str, Any]

    @property
    def saved(self) -> dict[str, Any]:
        """What config.json holds."""
        return json.loads((self.folder / "config.json").read_text())

    def copy(self, folder: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        """Return the folder of a copy, its config.json changed."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        if change is not None:
            found = self.saved
            change(found)
            (folder / "config.json").write_text(json.dumps(found))
        return folder


class Runs:
    """Runs by their kind, trained when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, dict[str, Run]()

    def __getitem__(self, kind: str) -> Run:
        if kind not in self.found:
            data, settings = KINDS[kind]
            path = data
            if data in TABLES:
                path = str(write_csv(self.folder / f"{kind}.csv", TABLES[data]))
            elif data == "images":
                path = str(self.folder / "images.npz")
                np.savez(path, x=IMAGES, y=LABELS)
            self.found[kind] = self.train(kind, path, **settings)
        return self.found[kind]

    def train(self, name: str, data: str | Path, **settings: Any) -> Run:
        """Return a new run; a name is not to be used twice."""
        small = {"hidden": (8,), "epochs": 4, "log_every": 0, "seed": 0, "device": "cpu"}
        config = TrainConfig(data=str(data), run_dir=self.folder / "runs" / name, **{**small, **settings})
        result = train(config)
        return Run(result.folder, str(data), result.metrics)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of every kind."""
    return Runs(tmp_path_factory.mktemp("runs"))


# --- by hand: NumPy, config.json and model.safetensors alone ---


@functools.cache
def _digits() -> Array:
    return np.asarray(load_digits().images.astype(np.uint8))


def inputs_of(kind: str, rows: int = N) -> Any:
    """Return rows as a model of this kind takes them: columns, targets and all, or an array."""
    data = KINDS[kind][0]
    if data in TABLES:
        return first(TABLES[data], rows)
    return (_digits() if data == "digits" else IMAGES)[:rows]


def encoded_by_hand(resolved: Mapping[str, Any], given: Any) -> Array:
    """Return inputs [N, n], not scaled: numbers, the mean where they are missing; then 0 and 1 for each name."""
    if resolved["columns"] is None:
        return np.asarray(given, dtype=np.float64).reshape(len(given), -1)
    numbers, names = [], []
    for column in resolved["columns"]["inputs"]:
        cells = given[column["name"]]
        if column["kind"] == "numbers":
            gap = [cell is None or math.isnan(cell) for cell in cells]
            numbers.append([column["fill"] if g else cell for cell, g in zip(cells, gap, strict=True)])
        else:
            names += [[float(cell == name) for cell in cells] for name in column["categories"]]
    return np.array([*numbers, *names], dtype=np.float64).T


def outputs_by_hand(run: Run, given: Any) -> Array:
    """Return z² = W² relu(W¹ (x − m)/s + b¹) + b², [N, n_2], in float64."""
    resolved, state = run.saved["resolved"], load_file(run.folder / "model.safetensors")
    scaling = resolved["input_scaling"]
    x = (encoded_by_hand(resolved, given) - np.array(scaling["mean"])) / np.array(scaling["scale"])
    hidden = np.maximum(x @ state["0.weight"].astype(np.float64).T + state["0.bias"], 0)
    return np.asarray(hidden @ state["2.weight"].astype(np.float64).T + state["2.bias"])


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def probabilities_by_hand(run: Run, given: Any) -> Array:
    """Return [N, C]: softmax z; σ(z), of one output beside 1 − σ(z), of several in proportion."""
    z = outputs_by_hand(run, given)
    if run.saved["resolved"]["loss"] == "cross-entropy":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    share = _sigmoid(z)
    if share.shape[1] == 1:
        return np.concatenate([1 - share, share], axis=1)
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def answers_by_hand(run: Run, given: Any) -> Array:
    """Return the classes [N], or the values [N, k] in their own units: z s + m."""
    resolved, z = run.saved["resolved"], outputs_by_hand(run, given)
    if resolved["task"] == "regression":
        scaling = resolved["target_scaling"]
        return np.asarray(z * np.array(scaling["scale"]) + np.array(scaling["mean"]))
    places = (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(axis=1)
    return np.array(resolved["class_names"])[places]
