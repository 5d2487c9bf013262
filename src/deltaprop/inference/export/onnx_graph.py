"""An ONNX graph: the net by PyTorch's exporter, names of columns, categories and classes around it."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop._version import __version__
from deltaprop.errors import UserError
from deltaprop.inference.export.deployment import DeploymentModule, about, input_dtype, second
from deltaprop.inference.export.verification import Exported, fills, largest_difference, probes
from deltaprop.inference.model import Model

Array = NDArray[Any]

OPSET_ML = 3
OUTPUTS = ("label", "probabilities", "scores", "values")


def to_onnx(model: Model) -> Exported:
    """Return the model as an ONNX graph, by PyTorch's exporter, the names of categories and classes in it."""
    onnx, compose, runtime = _needed("onnx"), _needed("onnx.compose"), _needed("onnxruntime")
    _needed("onnxscript")
    dtype = input_dtype(model)
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
    graph.producer_name, graph.producer_version = "deltaprop", __version__
    onnx.helper.set_model_props(graph, {"deltaprop": json.dumps(about(model))})
    onnx.checker.check_model(graph)
    content = graph.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(raw: Array) -> dict[str, Array]:
        given = onnx_inputs(model, raw, dtype) if by_column else {"x": raw.astype(dtype)}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    kind = np.dtype(dtype).name
    shape = "an input for each column, [N, 1]: text for categories," if by_column else "one input x, [N, columns]:"
    out = f"label and {second(model)}"
    notes = (
        f"inputs: {shape} {kind}, as in the table; {'NaN where missing' if fills(model) else 'none missing'}",
        f"outputs: {out if model.class_names else 'values'}, [N, …]",
    )
    raw = probes(model, np.dtype(dtype))
    return Exported(content, largest_difference(model, raw, answer), len(raw), "onnxruntime", notes)


def _inner(model: Model) -> str:
    """Return what every name within the graph begins with, and no name of a column."""
    found = "deltaprop"
    while model.encoding is not None and any(column.name.startswith(found) for column in model.encoding.inputs):
        found += "_"
    return found


def _numeric_graph(model: Model, dtype: str) -> Any:
    """Return the graph from encoded inputs x to outputs."""
    from onnx import compose

    whole = DeploymentModule(model, encodes=False).eval()
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


def _needed(package: str) -> Any:
    """Return a package of the extra ``onnx``.

    Raises:
        UserError: If it is not there.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"`to='onnx'` needs the package {package}: pip install 'deltaprop[onnx]'") from error
