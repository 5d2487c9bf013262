"""Export as an ONNX graph: the network by PyTorch's exporter, with the names of columns, categories and classes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch

from deltaprop._version import __version__
from deltaprop.data.splits import Array
from deltaprop.inference.export.deployment import (
    DeploymentModule,
    Exported,
    about,
    input_dtype,
    missing_inputs,
    second_output,
)
from deltaprop.inference.model import Model

OPSET_ML = 3
OUTPUTS = ("label", "probabilities", "scores", "values")


def to_onnx(model: Model) -> Exported:
    """Export a model as an ONNX graph, from the columns of a table to classes by their names."""
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  # which PyTorch's exporter needs

    dtype, by_column = input_dtype(model), model.encoding is not None and bool(model.encoding.categories)
    x = f"{_prefix(model)}.net/x" if by_column else "x"
    proto = _network_graph(model, x)
    if by_column:
        _add_columns(proto, model, x)
    if model.class_names:
        _add_class_names(proto.graph, model)
    proto.producer_name, proto.producer_version = "deltaprop", __version__
    onnx.helper.set_model_props(proto, {"deltaprop": json.dumps(about(model))})
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def predict(raw: Array) -> dict[str, Array]:
        inputs = onnx_inputs(model, raw, dtype) if by_column else {"x": raw.astype(dtype)}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    shape = "an input for each column, [N, 1]: text for categories," if by_column else "one input x, [N, columns]:"
    empty = ", empty text where a category is" if by_column else ""
    notes = (
        f"inputs: {shape} {dtype}, as in the table; {missing_inputs(model)}{empty}",
        f"outputs: {f'label and {second_output(model)}' if model.class_names else 'values'}, [N, …]",
    )
    return Exported(content, predict, dtype, "onnxruntime", notes)


def _prefix(model: Model) -> str:
    """Return a prefix for the names within the graph, which no name of a column begins with."""
    prefix = "deltaprop"
    while model.encoding is not None and any(column.name.startswith(prefix) for column in model.encoding.inputs):
        prefix += "_"
    return prefix


def _network_graph(model: Model, x: str) -> Any:
    """Return the graph of a `DeploymentModule`, from its input x to its outputs."""
    from onnx import compose

    prefix = f"{_prefix(model)}.net/"
    module = DeploymentModule(model).eval()
    program = torch.onnx.export(
        module,
        **module.exporter_arguments(),
        dynamo=True,
        verbose=False,
        input_names=[x],
        output_names=[f"{_prefix(model)}.index", second_output(model)] if model.class_names else ["values"],
    )
    assert program is not None
    return compose.add_prefix(program.model_proto, prefix, rename_inputs=False, rename_outputs=False)


def input_names(model: Model) -> list[str]:
    """Return the names of the inputs: those of the columns, with _ after one that is also the name of an output."""
    assert model.encoding is not None
    columns = [column.name for column in model.encoding.inputs]
    names: list[str] = []
    for column in columns:
        name = column
        while name in (*OUTPUTS, *names) or (name != column and name in columns):
            name += "_"
        names.append(name)
    return names


def _add_columns(proto: Any, model: Model, x: str) -> None:
    """Replace the input x by one input per column, [N, 1]: numbers as they are, names of categories by their index."""
    from onnx import TensorProto, helper

    assert model.encoding is not None
    kind = TensorProto.DOUBLE if input_dtype(model) == "float64" else TensorProto.FLOAT
    nodes, inputs, parts = [], [], []
    for at, (name, column) in enumerate(zip(input_names(model), model.encoding.inputs, strict=True)):
        is_text, own = column.kind != "numbers", f"{_prefix(model)}.columns/{at}"
        inputs.append(helper.make_tensor_value_info(name, TensorProto.STRING if is_text else kind, ["rows", 1]))
        parts.append(f"{own}/cast" if is_text else name)
        if is_text:
            index: dict[str, Any] = {
                "keys_strings": [*column.categories, ""],
                "values_floats": [*map(float, range(len(column.categories))), math.nan],
            }
            nodes += [
                helper.make_node(
                    "LabelEncoder", [name], [f"{own}/index"], domain="ai.onnx.ml", default_float=-1.0, **index
                ),
                helper.make_node("Cast", [f"{own}/index"], [f"{own}/cast"], to=kind),
            ]
    nodes += [helper.make_node("Concat", parts, [x], axis=1), *proto.graph.node]
    del proto.graph.input[:], proto.graph.node[:]
    proto.graph.input.extend(inputs)
    proto.graph.node.extend(nodes)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", OPSET_ML))


def _add_class_names(graph: Any, model: Model) -> None:
    """Replace the output of the class's index by its name, ``label``."""
    from onnx import TensorProto, helper

    classes, prefix = model.classes, _prefix(model)
    is_text = classes.dtype.kind != "i"
    kind = TensorProto.STRING if is_text else TensorProto.INT64
    values: Any = [name.encode() for name in model.class_names] if is_text else classes.tolist()
    graph.initializer.append(helper.make_tensor(f"{prefix}.names", kind, [len(classes)], values))
    graph.node.append(helper.make_node("Gather", [f"{prefix}.names", graph.output[0].name], ["label"], axis=0))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("label", kind, ["rows"]))


def onnx_inputs(model: Model, raw: Array, dtype: str) -> dict[str, Array]:
    """Return rows as they were read, categories by their index, as the inputs of the graph; missing text is empty."""
    assert model.encoding is not None
    inputs: dict[str, Array] = {}
    for at, (name, column) in enumerate(zip(input_names(model), model.encoding.inputs, strict=True)):
        if column.kind == "numbers":
            inputs[name] = raw[:, at : at + 1].astype(dtype)
        else:
            unknown = "_".join(["", *column.categories, ""])  # longer than each of them
            categories = np.array([*column.categories, "", unknown], dtype=object)
            inputs[name] = categories[np.nan_to_num(raw[:, at : at + 1], nan=-2).astype(np.int64)]
    return inputs
