"""Small trained runs of each kind, and their predictions computed without deltaprop."""

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

N = 300  # rows of each data set


def _columns() -> dict[str, Columns]:
    """Return the tables that runs are trained on, by name; a missing cell is None."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=N), rng.normal(5.0, 3.0, N)
    city = rng.choice(["Paris", "Rome", "São Paulo"], N)
    mixed = np.where(a + 2 * (city == "Rome") > 1, "hi", np.where(b > 5, "mid", "lo"))
    number = np.where(a > 0.3, 7, np.where(b > 5, 0, -1))
    when = 1.7e9 + rng.integers(-2_000_000, 2_000_000, N)  # seconds: float32 has steps of 128 there
    arrays = {
        "numbers": {"a": a, "b": b, "y": np.where(a + b > 5, "yes", "no")},
        "mixed": {"a": a, "city": city, "b": b, "y": mixed},
        "filled": {"a": a, "b": b, "y": np.where(a + b > 5, "yes", "no")},
        "value": {"a": a, "b": b, "v": 100 + 30 * np.sin(a) + b},
        "single": {"x": a, "v": np.sin(a)},
        "two": {"a": a, "u": a + b, "b": b, "v": 100 * a - b},
        "integers": {"a": a, "b": b, "y": number},
        "dates": {"when": when, "b": b, "y": np.where(when > 1.7e9, "late", "early")},
    }
    tables = {name: {column: values.tolist() for column, values in table.items()} for name, table in arrays.items()}
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

# Kind of run → (data set, other settings).
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
TABLE_KINDS = [kind for kind, (data, _) in KINDS.items() if data in TABLES]
ARRAY_KINDS = ["digits", "images"]
REGRESSION_KINDS = ["value", "single", "two"]
CATEGORICAL_KINDS = ["mixed", "binary"]  # with a categorical input


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]], delimiter: str = ",") -> Path:
    """Write columns as a CSV file: a missing cell is empty, numbers have all their digits."""
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
    """Return the columns except the named ones."""
    return {name: [*values] for name, values in columns.items() if name not in names}


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        folder: The run's folder.
        data: The file that it was trained on, or the name of a built-in data set.
        metrics: The metrics at the end of training.
    """

    folder: Path
    data: str
    metrics: Mapping[str, Any]

    @property
    def saved(self) -> dict[str, Any]:
        """The content of config.json."""
        return json.loads((self.folder / "config.json").read_text())

    def copy(self, folder: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        """Copy the run to a folder, apply a change to config.json, and return the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        if change is not None:
            saved = self.saved
            change(saved)
            (folder / "config.json").write_text(json.dumps(saved))
        return folder


class Runs:
    """Runs by kind, each trained at first use."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trained = folder, dict[str, Run]()

    def __getitem__(self, kind: str) -> Run:
        if kind not in self.trained:
            data, settings = KINDS[kind]
            path = data
            if data in TABLES:
                path = str(write_csv(self.folder / f"{kind}.csv", TABLES[data]))
            elif data == "images":
                path = str(self.folder / "images.npz")
                np.savez(path, x=IMAGES, y=LABELS)
            self.trained[kind] = self.train(kind, path, **settings)
        return self.trained[kind]

    def train(self, name: str, data: str | Path, **settings: Any) -> Run:
        """Train and return a new run; each name may be used once."""
        small = {"hidden": (8,), "epochs": 4, "log_every": 0, "seed": 0, "device": "cpu", "weights": "final"}
        config = TrainConfig(data=str(data), run_dir=self.folder / "runs" / name, **{**small, **settings})
        result = train(config)
        return Run(result.folder, str(data), result.metrics)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


# --- by hand: from config.json and model.safetensors with NumPy only ---


@functools.cache
def _digits() -> Array:
    return np.asarray(load_digits().images.astype(np.uint8))


def inputs_of(kind: str, rows: int = N) -> Any:
    """Return rows of the data of a kind: columns, including the targets, or an array."""
    data = KINDS[kind][0]
    if data in TABLES:
        return first(TABLES[data], rows)
    return (_digits() if data == "digits" else IMAGES)[:rows]


def encoded_by_hand(resolved: Mapping[str, Any], data: Any) -> Array:
    """Return unscaled inputs [N, n]: numbers, with the mean for missing ones; then the one-hot categories."""
    if resolved["columns"] is None:
        return np.asarray(data, dtype=np.float64).reshape(len(data), -1)
    numbers, names = [], []
    for column in resolved["columns"]["inputs"]:
        cells = data[column["name"]]
        if column["kind"] == "numbers":
            missing = [cell is None or math.isnan(cell) for cell in cells]
            numbers.append([column["fill"] if m else cell for cell, m in zip(cells, missing, strict=True)])
        else:
            names += [[float(cell == name) for cell in cells] for name in column["categories"]]
    return np.array([*numbers, *names], dtype=np.float64).T


def outputs_by_hand(run: Run, data: Any) -> Array:
    """Return z² = W² relu(W¹ (x − m)/s + b¹) + b², [N, n_2], in float64."""
    resolved, state = run.saved["resolved"], load_file(run.folder / "model.safetensors")
    scaling = resolved["input_scaling"]
    x = (encoded_by_hand(resolved, data) - np.array(scaling["mean"])) / np.array(scaling["scale"])
    hidden = np.maximum(x @ state["0.weight"].astype(np.float64).T + state["0.bias"], 0)
    return np.asarray(hidden @ state["2.weight"].astype(np.float64).T + state["2.bias"])


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def probabilities_by_hand(run: Run, data: Any) -> Array:
    """Return [N, C]: softmax z; or (1 − σ(z), σ(z)) for one output; or σ(z)/Σ σ(z) for several."""
    z = outputs_by_hand(run, data)
    if run.saved["resolved"]["loss"] == "cross-entropy":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    sigmoid = _sigmoid(z)
    if sigmoid.shape[1] == 1:
        return np.concatenate([1 - sigmoid, sigmoid], axis=1)
    return np.asarray(sigmoid / sigmoid.sum(axis=1, keepdims=True))


def predictions_by_hand(run: Run, data: Any) -> Array:
    """Return the classes [N], or the values [N, k] in the targets' units: z s + m."""
    resolved, z = run.saved["resolved"], outputs_by_hand(run, data)
    if resolved["task"] == "regression":
        scaling = resolved["target_scaling"]
        return np.asarray(z * np.array(scaling["scale"]) + np.array(scaling["mean"]))
    labels = (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(axis=1)
    return np.array(resolved["class_names"])[labels]
