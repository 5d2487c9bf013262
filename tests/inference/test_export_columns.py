"""Exports of a model with all kinds of columns give its own predictions for missing and unknown cells."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

import deltaprop as dp
from deltaprop.inference import export
from deltaprop.inference.export import Exported
from tests.inference.conftest import Runs

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def table(rows: int = 60) -> str:
    """Return a CSV: numbers of which a tenth is missing, prices, dates, a city that may be missing, and shops.

    42 shops, of which p and q are frequent: the others share an input.
    """
    lines = ["x;price;when;city;shop;y"]
    for at in range(rows):
        x = "" if at % 10 == 3 else f"{math.sin(at):.3f}"
        city = "" if at % 7 == 2 else ("Bern", "Rome", "Oslo")[at % 3]
        shop = "pq"[at % 2] if at % 3 == 0 else f"s{at}"
        lines.append(
            f"{x};1.{at + 100},5 \u20ac;{1 + at % 28:02}.{1 + at % 3:02}.2020;{city};{shop};{'uv'[at // 2 % 2]}"
        )
    return "\n".join(lines) + "\n"


# The rows that are compared, as text: all known, all missing, all unknown.
CELLS = {
    "x": ["0.5", "", "-2"],
    "price": ["1.150,5 \u20ac", "", "2.000,0 \u20ac"],
    "when": ["03.02.2020", "", "31.12.2021"],
    "city": ["Rome", "", "Ulm"],
    "shop": ["q", "", "s1000"],
}
# The same as exports take them: numbers, indices or names. 2020-02-03 was a Monday, 18295 days after 1970-01-01, and
# 2021-12-31 a Friday, 18992.
NUMBERS = {
    "x": [0.5, math.nan, -2.0],
    "price": [1150.5, math.nan, 2000.0],
    "when": [18295.0, math.nan, 18992.0],
    "when (month)": [2.0, math.nan, 12.0],
    "when (weekday)": [0.0, math.nan, 4.0],
}
NAMES = {"city": ["Rome", "", "Ulm"], "shop": ["q", "", "s1000"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dp.Model:
    """A model of that table."""
    folder = tmp_path_factory.mktemp("columns")
    (folder / "t.csv").write_text(table())
    return dp.load(Runs(folder).train("columns", folder / "t.csv").folder)


@pytest.fixture(scope="module")
def expected(model: dp.Model, tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    """The model's own probabilities, from a CSV with these cells."""
    path = tmp_path_factory.mktemp("cells") / "cells.csv"
    path.write_text(";".join(CELLS) + "\n" + "".join(";".join(row) + "\n" for row in zip(*CELLS.values(), strict=True)))
    with pytest.warns(UserWarning, match="'city' has a name not seen in training, such as 'Ulm'"):
        return model.predict_proba(path)


def test_the_model_has_inputs_for_missing_and_other_cells(model: dp.Model):
    assert model.encoding is not None
    numbers = ["x", "price", "when", "when (month)", "when (weekday)"]
    flags = [
        "x=(missing)",
        "city=Bern",
        "city=Oslo",
        "city=Rome",
        "city=(missing)",
        "shop=p",
        "shop=q",
        "shop=(others)",
    ]
    assert model.encoding.names == numbers + flags


def by_torch_export(exported: Exported) -> NDArray[Any]:
    """Run the program on indices: \u22121 for an unknown category, NaN for a missing one."""
    extra = {"deltaprop.json": ""}
    program = torch.export.load(io.BytesIO(exported.content), extra_files=extra).module()
    columns = []
    for column in json.loads(extra["deltaprop.json"])["columns"]["inputs"]:
        known = {name: float(at) for at, name in enumerate(column.get("categories", []))} | {"": math.nan}
        name = column["name"]
        columns.append(NUMBERS[name] if name in NUMBERS else [known.get(cell, -1.0) for cell in NAMES[name]])
    outputs = program(torch.tensor(columns, dtype=getattr(torch, exported.dtype)).T)
    return np.asarray(outputs[1].detach().numpy())


def by_onnxruntime(exported: Exported) -> NDArray[Any]:
    """Run the graph on named columns: empty text for a missing category."""
    session = pytest.importorskip("onnxruntime").InferenceSession(exported.content, providers=["CPUExecutionProvider"])
    texts = {name: np.array(cells, dtype=object)[:, None] for name, cells in NAMES.items()}
    feeds = {name: np.array(cells, dtype=exported.dtype)[:, None] for name, cells in NUMBERS.items()} | texts
    return np.asarray(session.run(["probabilities"], feeds)[0])


def by_plain_weights(exported: Exported, tmp_path: Path) -> NDArray[Any]:
    """Run a plain network on inputs that the names in the metadata describe."""
    (tmp_path / "w.safetensors").write_bytes(exported.content)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        about = json.loads(file.metadata()["deltaprop"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fills = {column["name"]: column.get("fill") for column in about["columns"]["inputs"]}
    shares = {column["name"]: column["categories"] for column in about["columns"]["inputs"] if column.get("others")}
    x = []
    for entry in about["inputs"]:
        name, _, flag = entry.partition("=")
        if not flag:
            x.append([fills[name] if math.isnan(cell) else cell for cell in NUMBERS[name]])
        elif name in NUMBERS:
            x.append([float(math.isnan(cell)) for cell in NUMBERS[name]])
        elif flag == "(others)":
            x.append([float(bool(cell) and cell not in shares[name]) for cell in NAMES[name]])
        else:
            x.append([float(cell == flag.replace("(missing)", "")) for cell in NAMES[name]])
    net = nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 2))
    net.load_state_dict(state)
    return np.asarray(net(torch.tensor(x).T).softmax(dim=1).detach().numpy())


def test_torch_export_takes_missing_and_unknown_cells(model: dp.Model, expected: NDArray[Any]):
    assert_allclose(by_torch_export(export.export(model, "torch-export")), expected, **ROUNDING)


@pytest.mark.slow
def test_onnx_takes_missing_and_unknown_cells(model: dp.Model, expected: NDArray[Any]):
    pytest.importorskip("onnxscript")
    exported = export.export(model, "onnx")
    assert "NaN where missing, empty text where a category is" in exported.notes[0]
    assert_allclose(by_onnxruntime(exported), expected, **ROUNDING)


def test_the_metadata_of_plain_weights_describe_its_inputs(model: dp.Model, expected: NDArray[Any], tmp_path: Path):
    assert_allclose(by_plain_weights(export.export(model, "state-dict"), tmp_path), expected, **ROUNDING)


@pytest.mark.parametrize("cell", ["missing", "unknown"])
def test_an_export_that_treats_such_cells_otherwise_is_refused(
    model: dp.Model, monkeypatch: pytest.MonkeyPatch, cell: str
):
    """Which the comparison with 512 rows finds: the exported module has no input for a missing or another cell."""
    flags: Callable[..., Any] = export.DeploymentModule._flags

    def without(cells: torch.Tensor, column: Any) -> torch.Tensor:
        found = flags(cells, column).clone()
        if cell == "missing" and column.absent:
            found[:, -1] = 0.0
        if cell == "unknown" and column.others:
            found[:, len(column.categories)] = 0.0
        return found

    monkeypatch.setattr(export.DeploymentModule, "_flags", staticmethod(without))
    with pytest.raises(dp.UserError, match="predictions differ by"):
        export.export(model, "torch-export")
