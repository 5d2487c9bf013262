"""Exported files, run by onnxruntime, torch.export and plain torch.nn, give the model's own predictions."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import nn

import deltaprop as dp
from deltaprop import UserError, core
from deltaprop.inference import export
from deltaprop.inference.export import DeploymentModule, Exported, deployment, onnx_graph, state_dict
from tests.inference.conftest import (
    CATEGORICAL_KINDS,
    KINDS,
    TABLES,
    Runs,
    encoded_by_hand,
    inputs_of,
    write_csv,
)

Array = NDArray[Any]
ROUNDING = {
    "rtol": 1e-5,
    "atol": 1e-5,
}  # of float32 sums in another order; values are compared in units of the target's deviation


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module", autouse=True)
def _network_graphs_once() -> Iterator[None]:
    """Cache PyTorch's ONNX export, which takes seconds, by weights, scalings and module."""
    build, graphs = onnx_graph._network_graph, dict[Any, bytes]()

    def once(model: dp.Model, x: str) -> Any:
        tensors = [*model.net.state_dict().values(), model.input_scaling.mean, model.input_scaling.scale]
        key = (x, model.objective.name, DeploymentModule.__init__, *[t.numpy().tobytes() for t in tensors])
        if key not in graphs:
            graphs[key] = build(model, x).SerializeToString()
        return importlib.import_module("onnx").load_from_string(graphs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_network_graph", once)
        yield


@pytest.fixture(scope="module")
def exported_once(runs: Runs) -> Callable[[str, str], Exported]:
    """A cached function: kind of run, format → its export, since an ONNX graph takes seconds."""
    return functools.cache(lambda kind, to: export.export(dp.load(runs[kind].folder), to))


# --- predictions of the exported files ---


def columns_of(model: dp.Model, data: Any) -> Any:
    """Return the model's input columns; an array unchanged."""
    return data if model.encoding is None else {c.name: data[c.name] for c in model.encoding.inputs}


def raw_of(model: dp.Model, data: Any) -> Array:
    """Return rows [N, p] as torch-export takes them: a category as its index, −1 for missing or unseen ones."""
    if model.encoding is None:
        return np.asarray(data, dtype=np.float64).reshape(len(data), -1)
    columns = []
    for column in model.encoding.inputs:
        cells = data[column.name]
        if column.kind == "numbers":
            columns.append([math.nan if cell is None else float(cell) for cell in cells])
        else:
            columns.append([column.categories.index(c) if c in column.categories else -1.0 for c in cells])
    return np.array(columns).T


@functools.cache
def session_of(content: bytes) -> Any:
    """Return an onnxruntime session of a graph."""
    return pytest.importorskip("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])


def by_onnxruntime(exported: Exported, model: dp.Model, data: Any) -> dict[str, Array]:
    """Run the ONNX graph on named columns; categories and classes are strings."""
    session = session_of(exported.content)
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(string)": object}
    session_inputs = session.get_inputs()
    if len(session_inputs) == 1 and session_inputs[0].name == "x" and session_inputs[0].shape[1] != 1:
        feeds = {"x": raw_of(model, data).astype(dtypes[session_inputs[0].type])}
    elif model.encoding is None or not model.encoding.categories:
        feeds = {session_inputs[0].name: raw_of(model, data).astype(dtypes[session_inputs[0].type])}
    else:
        assert len(session_inputs) == len(model.encoding.inputs)
        feeds = {}
        for node, column in zip(session_inputs, model.encoding.inputs, strict=True):
            assert node.name.rstrip("_") == column.name.rstrip("_")
            empty: Any = "" if column.kind == "categories" else math.nan
            cells = [empty if cell is None else cell for cell in data[column.name]]
            feeds[node.name] = np.array(cells, dtype=dtypes[node.type])[:, None]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def by_torch_export(exported: Exported, model: dp.Model, data: Any) -> dict[str, Array]:
    """Run the exported program; the metadata in the file says how."""
    extra = {"deltaprop.json": ""}
    program = torch.export.load(io.BytesIO(exported.content), extra_files=extra).module()
    metadata = json.loads(extra["deltaprop.json"])
    dtype = torch.float64 if "of float64" in exported.notes[0] else torch.float32
    outputs = program(torch.from_numpy(raw_of(model, data)).to(dtype))
    if metadata["task"] == "regression":
        return {"values": outputs.detach().numpy()}
    label = np.array(metadata["classes"])[outputs[0].numpy()]
    return {"label": label, "probabilities": outputs[1].detach().numpy()}


TORCH = {
    "identity": nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU,
    "silu": nn.SiLU, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(dim=-1), "log_softmax": lambda: nn.LogSoftmax(dim=-1),
}  # fmt: skip


class Step(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return 1 where z is positive, else 0."""
        return (z > 0).to(z.dtype)


def by_torch_nn(exported: Exported, model: dp.Model, data: Any) -> dict[str, Array]:
    """Run torch.nn layers with the weights of the file on unscaled inputs."""
    state = load_tensors(exported.content)
    metadata = metadata_of("state-dict", exported)
    layers: list[nn.Module] = []
    sizes = metadata["sizes"]
    for above, below, name in zip(sizes[1:], sizes, metadata["activations"], strict=False):
        layers += [nn.Linear(below, above), *([] if name == "none" else [{**TORCH, "step": Step}[name]()])]
    net = nn.Sequential(*layers).to(next(iter(state.values())).dtype)
    net.load_state_dict(state)
    x = torch.from_numpy(encoded_by_hand({"columns": metadata["columns"]}, data))
    z = net(x.to(next(iter(state.values())).dtype)).detach()
    if metadata["task"] == "regression":
        return {"values": z.numpy()}
    if z.shape[1] == 1:
        z = torch.cat([torch.zeros_like(z), z], dim=1)  # σ(z) = softmax(0, z)
    elif metadata["loss"] == "binary-cross-entropy":
        z = torch.nn.functional.logsigmoid(z)
    label = np.array(metadata["classes"])[z.argmax(dim=1).numpy()]
    return {"label": label, "probabilities": z.numpy() if metadata["loss"] == "mse" else z.softmax(dim=1).numpy()}


def metadata_of(to: str, exported: Exported) -> dict[str, Any]:
    """Return the metadata of an exported file."""
    if to == "onnx":
        onnx = pytest.importorskip("onnx")
        properties = {prop.key: prop.value for prop in onnx.load_from_string(exported.content).metadata_props}
        return json.loads(properties["deltaprop"])
    if to == "torch-export":
        extra = {"deltaprop.json": ""}
        torch.export.load(io.BytesIO(exported.content), extra_files=extra)
        return json.loads(extra["deltaprop.json"])
    head = int.from_bytes(exported.content[:8], "little")
    return json.loads(json.loads(exported.content[8 : 8 + head])["__metadata__"]["deltaprop"])


RUNTIMES: dict[str, Callable[[Exported, dp.Model, Any], dict[str, Array]]] = {
    "onnx": by_onnxruntime,
    "torch-export": by_torch_export,
    "state-dict": by_torch_nn,
}


def check(exported: Exported, to: str, model: dp.Model, data: Any) -> None:
    """Compare the runtime's predictions with the model's own on the same rows."""
    actual, data = RUNTIMES[to](exported, model, data), columns_of(model, data)
    own = model.predict(data)
    if model.task == "regression":
        scale = model.target_scaling.scale.numpy()
        assert_allclose(actual["values"] / scale, own.reshape(len(own), -1) / scale, **ROUNDING)
        return
    outputs = model.outputs(data)
    objective = model.objective
    second = objective.probabilities(outputs) if objective.has_probabilities else objective.scores(outputs)
    assert_allclose(actual["scores" if "scores" in actual else "probabilities"], second.numpy(), **ROUNDING)
    clear = np.diff(np.sort(second.numpy(), axis=1))[:, -1] > 1e-4  # in the other rows rounding may change the class
    assert actual["label"].astype(str)[clear].tolist() == own.astype(str)[clear].tolist()
    assert clear.sum() >= len(own) - 3


def repeated(data: Any, rows: int) -> Any:
    """Return this number of rows by repeating the data."""
    if isinstance(data, dict):
        return {name: [cells[at % len(cells)] for at in range(rows)] for name, cells in data.items()}
    return np.resize(data, (rows, *data.shape[1:]))


# --- every kind of run, every activation ---


# These take a second each and add little: "two" covers regression, "images" arrays and integer classes; the programs of
# torch.export and ONNX are built from the same module.
SLOW_KINDS = {"onnx": ("binary", "single", "logit", "mse", "value", "digits", "integers", "numbers"),
         "torch-export": ("single", "value", "digits", "integers")}  # fmt: skip
CASES = [
    pytest.param(kind, to, marks=[pytest.mark.slow] if kind in SLOW_KINDS.get(to, ()) else [])
    for kind in KINDS
    for to in RUNTIMES
    if kind != "filled"
]


@pytest.mark.parametrize(("kind", "to"), CASES)
def test_exported_predictions_are_the_models_own(
    runs: Runs, exported_once: Callable[[str, str], Exported], kind: str, to: str
):
    """On the rows of the data, one row, and a thousand; the export reports its difference and number of rows."""
    model, data = dp.load(runs[kind].folder), inputs_of(kind)
    if (kind, to) == ("dates", "state-dict"):
        with pytest.raises(UserError, match="a column far from 0 compared with its spread"):
            export.export(model, to)
        return
    exported = exported_once(kind, to)
    assert 0 <= exported.difference <= 1e-5
    assert exported.rows == 512
    for rows in (300, 1, 1000):
        check(exported, to, model, repeated(data, rows))


NAMES = [*core.ACTIVATIONS]
GROUP = 6  # activations in one model


@pytest.fixture(scope="module")
def model_of_activations(runs: Runs) -> Callable[[int], dp.Model]:
    """A cached function: index → a model with GROUP activations from there, one for each layer."""

    def train(at: int) -> dp.Model:
        some = tuple(NAMES[at : at + GROUP])
        return dp.load(runs.train(f"some{at}", runs["mixed"].data, missing="mean", hidden=(6,) * len(some),
                                  activation=some, epochs=1).folder)  # fmt: skip

    return functools.cache(train)


@pytest.mark.parametrize("to", RUNTIMES)
@pytest.mark.parametrize(
    "at", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in range(GROUP, len(NAMES), GROUP))]
)
def test_every_activation_is_exported(model_of_activations: Callable[[int], dp.Model], at: int, to: str):
    check(export.export(model_of_activations(at), to), to, model_of_activations(at), inputs_of("mixed"))


OTHER_NETWORKS = {
    "linear": ("numbers", {"hidden": ()}),
    "linear values": ("value", {"hidden": ()}),
    "not scaled": ("integers", {"scaling": "none"}),
    "softmax": ("numbers", {"loss": "mse", "output_activation": "softmax"}),
}


def other_network_case(name: str, to: str) -> Any:
    """Return a case, marked slow where little is new: only state-dict folds the scalings into the weights."""
    quick = to == "state-dict" or (name, to) == ("softmax", "torch-export")
    return pytest.param(*OTHER_NETWORKS[name], to, id=f"{name}-{to}", marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "settings", "to"), [other_network_case(name, to) for name in OTHER_NETWORKS for to in RUNTIMES]
)
def test_other_networks_are_exported(
    runs: Runs, request: pytest.FixtureRequest, kind: str, settings: dict[str, Any], to: str
):
    """Without a hidden layer both scalings are folded into the same weights."""
    model = dp.load(runs.train(request.node.name, runs[kind].data, **settings).folder)
    check(export.export(model, to), to, model, inputs_of(kind))


def test_a_nonlinear_output_before_unscaling_has_no_state_dict(runs: Runs):
    model = dp.load(runs.train("tanh out", runs["value"].data, output_activation="tanh").folder)
    with pytest.raises(UserError, match="the output activation tanh comes before the units of the target"):
        export.export(model, "state-dict")
    check(export.export(model, "torch-export"), "torch-export", model, inputs_of("value"))


# --- categories, missing cells and column names ---


@pytest.mark.filterwarnings("ignore:.* not seen in training")  # which is what is tried
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("kind", CATEGORICAL_KINDS[:1])
def test_unseen_and_missing_cells_are_handled_as_in_the_model(
    runs: Runs, exported_once: Callable[[str, str], Exported], kind: str, to: str
):
    model = dp.load(runs[kind].folder)
    data = {"a": [None, 1.0, None, -1.0], "city": ["Bonn", "Rome", None, "São Paulo"], "b": [3.0, None, None, 5.0]}
    check(exported_once(kind, to), to, model, data)


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch-export"])
def test_missing_numbers_without_categorical_inputs(runs: Runs, to: str):
    model = dp.load(runs["filled"].folder)
    check(export.export(model, to), to, model, {"a": [None, 1.0, None], "b": [3.0, None, None]})


# "ours": names that begin with the prefix of the graph's internal names, which must then use another prefix.
UNUSUAL_NAMES = {
    "any": [
        ("my column", "größe [m²]", "a,b"),
        ("label", "probabilities", "label_"),
        ("x", "encoded", "net/x"),
        ("place", "net/place", "names/all"),
        ("columns/1", "columns/0/index", "columns/0/cast"),
        ("values", "scores", "scores_"),
    ],
    "ours": [
        ("deltaprop.columns/0/index", "deltaprop.net/x", "deltaprop.net/index"),
        ("deltaprop.index", "deltaprop.names", "deltaprop.columns/0/cast"),
        ("deltaprop", "deltaprop_.net/x", "deltaprop_.names"),
    ],
}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(UNUSUAL_NAMES["any"], id="any", marks=pytest.mark.slow),
        pytest.param(UNUSUAL_NAMES["ours"], id="ours"),
    ],
)
def test_columns_of_any_name_are_exported(runs: Runs, tmp_path: Path, names: list[tuple[str, str, str]]):
    """The first of three names is a categorical column."""
    table = TABLES["mixed"]
    columns = {name: table[key] for three in names for name, key in zip(three, ("city", "a", "b"), strict=True)}
    missing = {name: cell for three in names for name, cell in zip(three, ("", math.nan, math.nan), strict=True)}
    run = runs.train(f"odd{len(names)}", write_csv(tmp_path / "t.csv", columns | {"y": table["y"]}), missing="mean")
    model = dp.load(run.folder)
    session = session_of(export.export(model, "onnx").content)
    feeds = {
        node.name: np.array(
            [empty if cell is None else cell for cell in columns[name]], dtype=object if empty == "" else np.float32
        )[:, None]
        for node, (name, empty) in zip(session.get_inputs(), missing.items(), strict=True)
    }
    label, probabilities = session.run(["label", "probabilities"], feeds)
    assert_allclose(probabilities, model.predict_proba(columns), **ROUNDING)
    assert (label == model.predict(columns)).mean() > 0.99


@pytest.mark.filterwarnings("ignore:.* not seen in training")  # which is what is tried
def test_a_model_with_only_a_categorical_input(runs: Runs, tmp_path: Path):
    """All inputs are categorical."""
    columns = {"city": TABLES["mixed"]["city"], "y": ["p" if c == "Rome" else "q" for c in TABLES["mixed"]["city"]]}
    run = runs.train("names alone", write_csv(tmp_path / "t.csv", columns), missing="mean")
    model = dp.load(run.folder)
    for to in ("onnx", "torch-export"):
        exported = export.export(model, to)
        data = {"city": ["Rome", "Paris", None, "Bonn"]}
        if to == "onnx":
            session = session_of(exported.content)
            cities = np.array([["Rome"], ["Paris"], [""], ["Bonn"]], dtype=object)
            actual = session.run(["probabilities"], {"city": cities})[0]
            assert_allclose(actual, model.predict_proba(data), **ROUNDING)
        else:
            check(exported, to, model, data)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mixed", ["label", "probabilities"]),
        ("numbers", ["label", "probabilities"]),
        pytest.param("mse", ["label", "scores"], marks=pytest.mark.slow),
        ("two", ["values"]),
    ],
)
def test_onnx_outputs_have_the_documented_order(
    runs: Runs, exported_once: Callable[[str, str], Exported], kind: str, names: list[str]
):
    """The class comes first, as in skl2onnx, because callers may take the outputs by position."""
    exported = exported_once(kind, "onnx")
    assert [output.name for output in session_of(exported.content).get_outputs()] == names
    assert f"outputs: {' and '.join(names)}, " in exported.notes[1]


def test_onnx_does_not_strip_spaces_around_categories(runs: Runs, exported_once: Callable[[str, str], Exported]):
    """As documented: reading a file strips spaces around a cell, but ai.onnx.ml has no operator for that."""
    model = dp.load(runs["mixed"].folder)
    rows = {name: {"a": [0.5], "city": [name], "b": [3.0]} for name in ("Rome", " Rome ", "")}
    actual = {
        name: by_onnxruntime(exported_once("mixed", "onnx"), model, data)["probabilities"]
        for name, data in rows.items()
    }
    assert actual[" Rome "].tolist() == actual[""].tolist() != actual["Rome"].tolist()


@pytest.mark.parametrize("kind", [pytest.param("integers", marks=pytest.mark.slow), "images"])
def test_integer_classes_are_int64_in_onnx(runs: Runs, exported_once: Callable[[str, str], Exported], kind: str):
    model, data = dp.load(runs[kind].folder), inputs_of(kind)
    label = by_onnxruntime(exported_once(kind, "onnx"), model, data)["label"]
    assert label.dtype == np.int64
    assert (label == model.predict(data)).mean() > 0.99


@pytest.mark.parametrize("kind", ["dates", "double"])
def test_float64_precision_is_kept_where_needed(runs: Runs, exported_once: Callable[[str, str], Exported], kind: str):
    """Times of 1.7e9 that differ by a second, which float32 cannot distinguish."""
    model = dp.load(runs[kind].folder)
    names = [column.name for column in model.encoding.inputs] if model.encoding else []
    data = {name: [1.7e9 + at if name == "when" else 5.0 + 1e-9 * at for at in range(100)] for name in names}
    for to in ("onnx", "torch-export"):
        exported = exported_once(kind, to)
        assert "float64" in exported.notes[0]
        actual = RUNTIMES[to](exported, model, data)["probabilities"]
        assert_allclose(actual, model.predict_proba(data), rtol=0, atol=1e-6 if kind == "dates" else 1e-13)


@pytest.mark.parametrize("to", RUNTIMES)
@pytest.mark.parametrize("kind", ["mixed", "two", "images"])
def test_the_metadata_describes_the_model(
    runs: Runs, exported_once: Callable[[str, str], Exported], tmp_path: Path, kind: str, to: str
):
    resolved = runs[kind].saved["resolved"]
    exported = exported_once(kind, to)
    metadata = metadata_of(to, exported)
    assert (metadata["deltaprop"], metadata["format"]) == (dp.__version__, 1)
    for name in ("task", "sizes", "loss", "columns"):
        assert metadata[name] == resolved[name]
    assert metadata["classes"] == resolved["class_names"]
    assert metadata["activations"] == ["relu", "none"]
    assert metadata["targets"] == (["u", "v"] if kind == "two" else ["y"])
    if to == "state-dict":
        (tmp_path / "t.safetensors").write_bytes(exported.content)
        with safe_open(tmp_path / "t.safetensors", "pt") as file:
            assert [*file.keys()] == ["0.bias", "0.weight", "2.bias", "2.weight"]


# --- exports whose predictions differ ---


@pytest.mark.parametrize("name", ["mean", "scale", "fill", "out_mean", "out_scale"])
def test_wrong_preprocessing_is_detected(runs: Runs, monkeypatch: pytest.MonkeyPatch, name: str):
    """A parameter of the module is 1 % off: the compared rows detect it. See also tests/cli/test_export.py."""
    model = dp.load(runs["value" if name.startswith("out") else "filled"].folder)
    module = DeploymentModule(model).eval()
    setattr(module, name, getattr(module, name) * 1.01 + 0.01)

    def build(model: dp.Model) -> Exported:
        return Exported(b"", lambda raw: deployment.by_name(model, module(torch.from_numpy(raw))), "float32", "us", ())

    monkeypatch.setitem(export.EXPORTS, "torch-export", export.EXPORTS["torch-export"]._replace(build=build))
    with pytest.raises(
        UserError, match=r"`to='torch-export'`: predictions differ by .* more than rounding \(1e-05\): not written"
    ):
        export.export(model, "torch-export")


def test_wrong_state_dict_weights_are_detected(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    folded = state_dict.folded
    monkeypatch.setattr(state_dict, "folded", lambda model: {k: t * 1.001 for k, t in folded(model).items()})
    with pytest.raises(UserError, match="`to='state-dict'`: predictions differ"):
        export.export(dp.load(runs["numbers"].folder), "state-dict")


def test_classes_in_another_order_are_detected(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    make = onnx_graph._add_class_names

    def wrong(graph: Any, model: dp.Model) -> Any:
        return make(graph, dataclasses.replace(model, class_names=model.class_names[::-1]))

    monkeypatch.setattr(onnx_graph, "_add_class_names", wrong)
    with pytest.raises(UserError, match="`to='onnx'`: predictions differ by inf"):
        export.export(dp.load(runs["numbers"].folder), "onnx")


def test_categories_in_another_order_are_detected(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    make = onnx_graph._add_columns

    def wrong(proto: Any, model: dp.Model, x: str) -> Any:
        assert model.encoding is not None
        inputs = tuple(dataclasses.replace(c, categories=c.categories[::-1]) for c in model.encoding.inputs)
        return make(proto, dataclasses.replace(model, encoding=dataclasses.replace(model.encoding, inputs=inputs)), x)

    monkeypatch.setattr(onnx_graph, "_add_columns", wrong)
    with pytest.raises(UserError, match="`to='onnx'`: predictions differ"):
        export.export(dp.load(runs["mixed"].folder), "onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_in_the_error(runs: Runs, monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"`to='onnx'` needs the package {package}: pip install 'deltaprop\[onnx\]'"):
        export.export(dp.load(runs["numbers"].folder), "onnx")


def test_an_unknown_format_is_refused(runs: Runs):
    with pytest.raises(UserError, match="unknown format 'onx': did you mean 'onnx'"):
        export.export(dp.load(runs["numbers"].folder), "onx")


def test_the_notes_describe_the_outputs_correctly(runs: Runs):
    """One logit belongs to the second class only; the outputs of a model trained on mse are not logits."""
    assert "logits of no, yes" in " ".join(export.export(dp.load(runs["numbers"].folder), "state-dict").notes)
    for kind in ("logit", "mse"):
        assert "logits of no, yes" not in " ".join(export.export(dp.load(runs[kind].folder), "state-dict").notes)
    assert "probabilities" not in " ".join(export.export(dp.load(runs["mse"].folder), "torch-export").notes)
