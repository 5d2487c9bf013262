"""A trained model taken elsewhere: ONNX, torch.export, plain weights; each held to our own predictions.

Preprocessing goes with it as far as a format allows:

==============  =====================================================================================================
 onnx            all of it: numbers as they are in the table, names of categories as text, missing numbers as NaN; out
                 come the class by its name and the probabilities, or the values in their own units
 torch-export    all but the names: a category is given by its place in the list that stands in the file, a class is
                 told by its place
 state-dict      the scalings, folded into the weights of the first layer and, for numbers, of the last:
                 W' = W / s, b' = b − W m / s;  the one-hot inputs and the softmax are left to whoever loads it
==============  =====================================================================================================
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import deltaprop
from deltaprop.errors import UserError, unknown_name
from deltaprop.trained.model import Model

Array = NDArray[Any]

TOLERANCE = 1e-5  # of probabilities, and of values in deviations of the target: rounding of float32 is a tenth of it
PROBES = 512  # rows that an export is held to
OPSET_ML = 3
OUTPUTS = ("label", "probabilities", "scores", "values")
LARGEST_ROUNDING = 1e-5  # of an input in float32, in deviations of its column; beyond it inputs are float64


@dataclass(frozen=True)
class Exported:
    """An export that gives what the model gives.

    Attributes:
        content: Of the file.
        difference: The largest between its answers and ours: of probabilities, or of values in deviations of the
            target.
        rows: That were compared.
        by: What computed its answers.
        notes: What its users need to know, a line each.
    """

    content: bytes
    difference: float
    rows: int
    by: str
    notes: tuple[str, ...]


def export(model: Model, to: str) -> Exported:
    """Return a model in another format, once its answers there are ours.

    Args:
        model: To export.
        to: ``"onnx"``, ``"torch-export"`` or ``"state-dict"``.

    Raises:
        UserError: If there is no such format, a package is missing, or the answers differ by more than rounding.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    with _quiet():
        found = FORMATS[to](model)
    if not found.difference <= TOLERANCE:
        far = "; a column far from 0 beside its spread, such as dates in seconds? onnx keeps its digits"
        hint = far if to == "state-dict" else ""
        raise UserError(
            f"--to {to}: answers differ by {found.difference:.3g} from the model's own, more than rounding "
            f"({TOLERANCE:g}): not written{hint}"
        )
    return found


class Whole(nn.Module):
    """A net with its preprocessing: raw inputs to what people read.

    Args:
        model: The model.
        encodes: Whether inputs are columns of the table, categories by their place; else they are encoded already.
    """

    mean: Tensor
    scale: Tensor
    fill: Tensor
    out_mean: Tensor
    out_scale: Tensor

    def __init__(self, model: Model, encodes: bool) -> None:
        super().__init__()
        self.net, self.objective = model.net, model.objective
        self.encoding = model.encoding if encodes else None
        numbers = [] if model.encoding is None else [model.encoding.inputs[at].fill for at in model.encoding.numbers]
        self.fills = any(fill is not None for fill in numbers)
        fill = torch.zeros(len(model.input_scaling.mean), dtype=torch.float64)
        known = [0.0 if number is None else number for number in numbers]
        fill[: len(numbers)] = torch.tensor(known, dtype=torch.float64)
        for name, tensor in {
            "mean": model.input_scaling.mean, "scale": model.input_scaling.scale, "fill": fill,
            "out_mean": model.target_scaling.mean, "out_scale": model.target_scaling.scale,
        }.items():  # fmt: skip
            self.register_buffer(name, tensor.detach().cpu().double())

    def forward(self, x: Tensor) -> Any:
        """Return (place of the class, probabilities or scores), or values."""
        x = x.double()
        if self.encoding is not None and self.encoding.categories:
            parts = [x[:, self.encoding.numbers]]
            for at in self.encoding.categories:
                names = torch.arange(len(self.encoding.inputs[at].categories), dtype=torch.float64)
                parts.append((x[:, at : at + 1] == names).double())
            x = torch.cat(parts, dim=1)
        if self.fills:
            x = torch.where(torch.isnan(x), self.fill, x)
        weight = next(self.net.parameters())
        outputs = self.net(((x - self.mean) / self.scale).to(weight.dtype))
        if self.objective.task == "regression":
            return (outputs.double() * self.out_scale + self.out_mean).to(weight.dtype)
        if not self.objective.has_probabilities:
            return self.objective.decide(outputs), self.objective.scores(outputs)
        return self.objective.decide(outputs), self.objective.probabilities(outputs)


# --- the formats ---


def to_onnx(model: Model) -> Exported:
    """Return the model as an ONNX graph, by PyTorch's exporter, the names of categories and classes in it."""
    onnx, compose, runtime = _needed("onnx"), _needed("onnx.compose"), _needed("onnxruntime")
    _needed("onnxscript")
    dtype = _input_dtype(model)
    graph = _numeric_graph(model, dtype)
    like = graph
    by_column = model.encoding is not None and bool(model.encoding.categories)
    inner = _inner(model)
    if by_column:
        graph = compose.merge_models(
            _columns_graph(model, dtype, like), graph, io_map=[(f"{inner}.encoded", f"{inner}.net/x")]
        )
    if model.class_names:
        graph = compose.merge_models(
            graph, _names_graph(model, like), io_map=[(f"{inner}.net/place", f"{inner}.place")]
        )
        label_first = sorted(graph.graph.output, key=lambda output: OUTPUTS.index(output.name))
        del graph.graph.output[:]
        graph.graph.output.extend(label_first)
    graph.producer_name, graph.producer_version = "deltaprop", deltaprop.__version__
    onnx.helper.set_model_props(graph, {"deltaprop": json.dumps(_about(model))})
    onnx.checker.check_model(graph)
    content = graph.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(raw: Array) -> dict[str, Array]:
        given = onnx_inputs(model, raw, dtype) if by_column else {"x": raw.astype(dtype)}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    kind = np.dtype(dtype).name
    shape = "an input for each column, [N, 1]: text for categories," if by_column else "one input x, [N, columns]:"
    out = f"label and {_second(model)}"
    notes = (
        f"inputs: {shape} {kind}, as in the table; {'NaN where missing' if _fills(model) else 'none missing'}",
        f"outputs: {out if model.class_names else 'values'}, [N, …]",
    )
    raw = _probes(model, np.dtype(dtype))
    return Exported(content, _largest(model, raw, answer), len(raw), "onnxruntime", notes)


def to_torch_export(model: Model) -> Exported:
    """Return the model as an exported program of PyTorch, to be loaded by ``torch.export.load``."""
    whole = Whole(model, encodes=True).eval()
    dtype = torch.float64 if _input_dtype(model) == "float64" else torch.float32
    width = len(model.input_scaling.mean) if model.encoding is None else len(model.encoding.inputs)
    program = torch.export.export(
        whole, (torch.zeros(3, width, dtype=dtype),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"deltaprop.json": json.dumps(_about(model))})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def answer(raw: Array) -> dict[str, Array]:
        found = loaded(torch.from_numpy(raw).to(dtype))
        return _named(model, found)

    notes = (
        f"input: x, [N, {width}] of {str(dtype).removeprefix('torch.')}, columns in the order of the table"
        + (", categories by their place" if model.encoding is not None and model.encoding.categories else ""),
        f"outputs: {f'place of the class, {_second(model)}' if model.class_names else 'values'}",
        "names, and what goes where: extra file deltaprop.json",
    )
    raw = _probes(model, np.dtype(_input_dtype(model)))
    return Exported(file.getvalue(), _largest(model, raw, answer), len(raw), "torch.export", notes)


def to_state_dict(model: Model) -> Exported:
    """Return weights as safetensors for a plain ``torch.nn.Sequential`` on raw numbers, scalings folded into them."""
    import safetensors.torch

    state = folded(model)
    content = safetensors.torch.save(state, {"deltaprop": json.dumps(_about(model))})
    twin: nn.Module = nn.Sequential(*model.net)
    with contextlib.suppress(UserError):  # an activation that PyTorch has not
        twin = deltaprop.to_torch(model.net)
    plain = safetensors.torch.load(content)

    def answer(raw: Array) -> dict[str, Array]:
        x = torch.from_numpy(model.encoding.encode(raw) if model.encoding is not None else raw)
        outputs = torch.func.functional_call(twin, plain, (x.to(next(iter(plain.values())).dtype),))
        if model.task == "regression":
            return {"values": outputs.detach().numpy()}
        if not model.objective.has_probabilities:
            return _named(model, (model.objective.decide(outputs), model.objective.scores(outputs)))
        return _named(model, (model.objective.decide(outputs), model.objective.probabilities(outputs)))

    net = ", ".join(repr(module) for module in twin.children())
    notes = (
        f"torch.nn.Sequential({net})",
        "inputs: " + (", ".join(model.encoding.names) if model.encoding is not None else "raw, flattened"),
        "outputs: " + _outputs_of_net(model),
    )
    raw = _probes(model, np.dtype("float64"))
    return Exported(content, _largest(model, raw, answer), len(raw), "torch.nn", notes)


def _second(model: Model) -> str:
    """Return what comes beside a class."""
    return "probabilities" if model.objective.has_probabilities else "scores"


def _outputs_of_net(model: Model) -> str:
    """Return what the net itself gives, in words."""
    if model.task == "regression":
        return ", ".join(model.target_names)
    kind = "logit" if model.objective.name in ("cross-entropy", "binary-cross-entropy") else "score"
    if model.objective.one_logit:
        return f"one {kind}, high for {model.class_names[1]}"
    return f"{kind}s of {', '.join(model.class_names)}"


FORMATS: dict[str, Callable[[Model], Exported]] = {
    "onnx": to_onnx,
    "torch-export": to_torch_export,
    "state-dict": to_state_dict,
}
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2", "state-dict": ".safetensors"}


def folded(model: Model) -> dict[str, Tensor]:
    """Return the weights of the same net on raw inputs: W' = W / s and b' = b − W m / s, worked out in float64.

    For numbers the last layer gives them in their own units: W' = s W, b' = s b + m.

    Raises:
        UserError: If an output activation stands between the last layer and the units of the target.
    """
    state = {name: t.detach().cpu() for name, t in model.net.state_dict().items()}
    dtype = next(iter(state.values())).dtype
    linears = sorted({int(name.partition(".")[0]) for name in state})
    first, last = linears[0], linears[-1]
    double = {name: t.double() for name, t in state.items()}
    mean, scale = model.input_scaling.mean.cpu(), model.input_scaling.scale.cpu()
    weight = double[f"{first}.weight"] / scale
    double[f"{first}.bias"] = double[f"{first}.bias"] - weight @ mean
    double[f"{first}.weight"] = weight
    if model.task == "regression":
        if model.config.output_activation != "none":
            raise UserError(
                f"--to state-dict: the output activation {model.config.output_activation} stands before the units of "
                "the target, which plain weights cannot hold: take onnx or torch-export"
            )
        out_mean, out_scale = model.target_scaling.mean.cpu(), model.target_scaling.scale.cpu()
        double[f"{last}.weight"] = double[f"{last}.weight"] * out_scale[:, None]
        double[f"{last}.bias"] = double[f"{last}.bias"] * out_scale + out_mean
    return {name: t.to(dtype).contiguous() for name, t in double.items()}


# --- ONNX, piece by piece ---


def _inner(model: Model) -> str:
    """Return what every name within the graph begins with, and no name of a column."""
    found = "deltaprop"
    while model.encoding is not None and any(column.name.startswith(found) for column in model.encoding.inputs):
        found += "_"
    return found


def _numeric_graph(model: Model, dtype: str) -> Any:
    """Return the graph from encoded inputs x to outputs."""
    from onnx import compose

    whole = Whole(model, encodes=False).eval()
    width = len(model.input_scaling.mean)
    prefix = f"{_inner(model)}.net/"
    outputs = [f"{prefix}place", "probabilities" if model.objective.has_probabilities else "scores"]
    by_column = model.encoding is not None and bool(model.encoding.categories)
    program = torch.onnx.export(
        whole,
        (torch.zeros(3, width, dtype=torch.float64 if dtype == "float64" else torch.float32),),
        dynamo=True,
        verbose=False,
        input_names=[f"{prefix}x" if by_column else "x"],
        output_names=outputs if model.class_names else ["values"],
        dynamic_shapes=({0: torch.export.Dim("rows")},),
    )
    assert program is not None
    return compose.add_prefix(program.model_proto, prefix, rename_inputs=False, rename_outputs=False)


def _graph(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any], like: Any) -> Any:
    """Return a graph of the same versions as another."""
    from onnx import checker, helper

    version = next(found.version for found in like.opset_import if found.domain == "")
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    found = helper.make_model(helper.make_graph(nodes, name, inputs, outputs, constants), opset_imports=opsets)
    found.ir_version = like.ir_version
    checker.check_model(found)
    return found


def input_names(model: Model) -> list[str]:
    """Return the names of a graph's inputs: those of the columns, with _ behind what its outputs are called."""
    assert model.encoding is not None
    names: list[str] = []
    for column in model.encoding.inputs:
        name = column.name
        while name in (*OUTPUTS, *names) or (
            name != column.name and any(name == c.name for c in model.encoding.inputs)
        ):
            name += "_"
        names.append(name)
    return names


def _columns_graph(model: Model, dtype: str, like: Any) -> Any:
    """Return the graph from one input a column to encoded inputs: numbers as they are, names one-hot."""
    from onnx import TensorProto, helper

    encoding = model.encoding
    assert encoding is not None
    kind = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
    names, inner = input_names(model), _inner(model)
    inputs = [
        helper.make_tensor_value_info(name, kind if c.kind == "numbers" else TensorProto.STRING, ["rows", 1])
        for name, c in zip(names, encoding.inputs, strict=True)
    ]
    parts = [names[at] for at in encoding.numbers]
    nodes, shapes = [], []
    for at in encoding.categories:
        categories, own = [*encoding.inputs[at].categories], f"{inner}.columns/{at}"
        nodes += [
            helper.make_node(
                "OneHotEncoder", [names[at]], [f"{own}/hot"], domain="ai.onnx.ml", cats_strings=categories, zeros=1
            ),
            helper.make_node("Reshape", [f"{own}/hot", f"{own}/shape"], [f"{own}/flat"]),
            helper.make_node("Cast", [f"{own}/flat"], [f"{own}/cast"], to=kind),
        ]
        shapes.append(helper.make_tensor(f"{own}/shape", TensorProto.INT64, [2], [-1, len(categories)]))
        parts.append(f"{own}/cast")
    nodes.append(helper.make_node("Concat", parts, [f"{inner}.encoded"], axis=1))
    out = helper.make_tensor_value_info(f"{inner}.encoded", kind, ["rows", len(encoding)])
    return _graph("columns", nodes, inputs, [out], shapes, like)


def _names_graph(model: Model, like: Any) -> Any:
    """Return the graph from the place of a class to its name."""
    from onnx import TensorProto, helper

    classes, inner = model.classes, _inner(model)
    is_text = classes.dtype.kind != "i"
    kind = TensorProto.STRING if is_text else TensorProto.INT64
    values: Any = [name.encode() for name in model.class_names] if is_text else classes.tolist()
    names = helper.make_tensor(f"{inner}.names", kind, [len(classes)], values)
    node = helper.make_node("Gather", [f"{inner}.names", f"{inner}.place"], ["label"], axis=0)
    place = helper.make_tensor_value_info(f"{inner}.place", TensorProto.INT64, ["rows"])
    label = helper.make_tensor_value_info("label", kind, ["rows"])
    return _graph("names", [node], [place], [label], [names], like)


def onnx_inputs(model: Model, raw: Array, dtype: str) -> dict[str, Array]:
    """Return rows as they were read, categories by their place, as the graph takes them."""
    encoding = model.encoding
    assert encoding is not None
    found: dict[str, Array] = {}
    for at, (name, column) in enumerate(zip(input_names(model), encoding.inputs, strict=True)):
        if column.kind == "numbers":
            found[name] = raw[:, at : at + 1].astype(dtype)
        else:
            names = [*column.categories, ""]  # the last stands for a name that training has not seen
            places = np.nan_to_num(raw[:, at], nan=-1).astype(np.int64)
            found[name] = np.array([[names[place]] for place in places], dtype=object)
    return found


# --- what an export is held to ---


def _probes(model: Model, dtype: np.dtype[Any]) -> Array:
    """Return rows as they are read, [N, p], drawn about the mean of each column, some far away, some missing."""
    rng = np.random.default_rng(0)
    mean, scale = model.input_scaling.mean.cpu().numpy(), model.input_scaling.scale.cpu().numpy()
    spread = rng.standard_normal((PROBES, len(mean))) * np.where(rng.random((PROBES, 1)) < 0.1, 10.0, 1.0)
    numbers = mean + scale * spread
    if model.encoding is None:
        return numbers.astype(dtype).astype(np.float64)
    raw = np.empty((PROBES, len(model.encoding.inputs)))
    raw[:, model.encoding.numbers] = numbers[:, : len(model.encoding.numbers)]
    if _fills(model):
        raw[rng.random(raw.shape) < 0.05] = np.nan
    for at in model.encoding.categories:
        raw[:, at] = rng.integers(-1, len(model.encoding.inputs[at].categories), PROBES)
    return raw.astype(dtype).astype(np.float64)


def _fills(model: Model) -> bool:
    return model.encoding is not None and any(column.fill is not None for column in model.encoding.inputs)


def _largest(model: Model, raw: Array, answer: Callable[[Array], dict[str, Array]]) -> float:
    """Return the largest difference between the answers of an export and the model's own; infinite for another class.

    A class may be another where two are equally likely but for rounding.
    """
    encoded = raw if model.encoding is None else model.encoding.encode(raw)
    weight = next(model.net.parameters())
    outputs = model.feed(model.input_scaling.apply(torch.from_numpy(encoded)).to(weight.dtype)).cpu()
    theirs = answer(raw)
    if model.task == "regression":
        units = model.target_scaling.scale.cpu().numpy()
        return float(np.abs((theirs["values"] - model.in_units(outputs).numpy()) / units).max())
    objective = model.objective
    ours = (objective.probabilities(outputs) if objective.has_probabilities else objective.scores(outputs)).numpy()
    size = np.maximum(1.0, np.abs(ours).max())
    difference = float(np.abs(theirs["probabilities" if objective.has_probabilities else "scores"] - ours).max() / size)
    places = {name: at for at, name in enumerate(model.classes.tolist())}
    scores = np.sort(objective.scores(outputs).numpy(), axis=1)
    clear = scores[:, -1] - scores[:, -2] > 2 * TOLERANCE * np.abs(scores).max()
    label = np.array([places[name] for name in theirs["label"].tolist()])
    if (label != objective.decide(outputs).numpy())[clear].any():
        return float("inf")
    return difference


def _named(model: Model, found: Any) -> dict[str, Array]:
    """Return what a module gave by the names of its outputs."""
    if model.task == "regression":
        return {"values": found.detach().numpy()}
    place, second = found
    name = "probabilities" if model.objective.has_probabilities else "scores"
    return {"label": model.classes[place.numpy()], name: second.detach().numpy()}


def _input_dtype(model: Model) -> str:
    """Return float32, or float64 where a column would lose digits that count: one of dates in seconds, say."""
    weight = next(model.net.parameters())
    far = model.input_scaling.mean.abs() + 4 * model.input_scaling.scale
    rounding = float((far * 2.0**-24 / model.input_scaling.scale).max())
    return "float64" if weight.dtype == torch.float64 or rounding > LARGEST_ROUNDING else "float32"


def _about(model: Model) -> dict[str, Any]:
    """Return what goes with an export: columns, classes, the net."""
    return {
        "format": 1,
        "deltaprop": deltaprop.__version__,
        "task": model.task,
        "classes": [*model.class_names],
        "columns": None if model.encoding is None else model.encoding.to_json(),
        "targets": [*model.target_names],
        "sizes": [model.net[0].in_features, *[m.out_features for m in model.net if isinstance(m, nn.Linear)]],
        "activations": [*model.config.activations, model.config.output_activation],
        "loss": model.objective.name,
    }


def _needed(package: str) -> Any:
    """Return a package of the extra ``onnx``.

    Raises:
        UserError: If it is not there.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"--to onnx needs the package {package}: pip install 'deltaprop[onnx]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what PyTorch's exporters say of packages that are not there and of their own innards."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)
