"""Export as a program of PyTorch, for ``torch.export.load``."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from numpy.typing import NDArray

from deltaprop.inference.export.deployment import DeploymentModule, about, example_input, input_dtype, second_output
from deltaprop.inference.export.verification import Exported, by_name
from deltaprop.inference.model import Model


def to_torch_export(model: Model) -> Exported:
    """Export a model as a program of PyTorch."""
    dtype = input_dtype(model)
    width = len(model.input_scaling.mean) if model.encoding is None else len(model.encoding.inputs)
    program = torch.export.export(DeploymentModule(model, encodes=True).eval(), **example_input(model, width))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"deltaprop.json": json.dumps(about(model))})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    categories = ", categories by their index" if model.encoding is not None and model.encoding.categories else ""
    notes = (
        f"input: x, [N, {width}] of {dtype}, columns in the order of the table{categories}",
        f"outputs: {f'index of the class, {second_output(model)}' if model.class_names else 'values'}",
        "names and their order: extra file deltaprop.json",
    )

    def predict(raw: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return by_name(model, loaded(torch.from_numpy(raw.astype(dtype))))

    return Exported(file.getvalue(), predict, dtype, "torch.export", notes)
