"""A program of PyTorch, for ``torch.export.load``."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.inference.export.deployment import DeploymentModule, about, input_dtype, second
from deltaprop.inference.export.verification import Exported, largest_difference, named, probes
from deltaprop.inference.model import Model

Array = NDArray[Any]


def to_torch_export(model: Model) -> Exported:
    """Return the model as an exported program of PyTorch, to be loaded by ``torch.export.load``."""
    whole = DeploymentModule(model, encodes=True).eval()
    dtype = torch.float64 if input_dtype(model) == "float64" else torch.float32
    width = len(model.input_scaling.mean) if model.encoding is None else len(model.encoding.inputs)
    program = torch.export.export(
        whole, (torch.zeros(3, width, dtype=dtype),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"deltaprop.json": json.dumps(about(model))})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def answer(raw: Array) -> dict[str, Array]:
        found = loaded(torch.from_numpy(raw).to(dtype))
        return named(model, found)

    notes = (
        f"input: x, [N, {width}] of {str(dtype).removeprefix('torch.')}, columns in the order of the table"
        + (", categories by their place" if model.encoding is not None and model.encoding.categories else ""),
        f"outputs: {f'place of the class, {second(model)}' if model.class_names else 'values'}",
        "names, and what goes where: extra file deltaprop.json",
    )
    raw = probes(model, np.dtype(input_dtype(model)))
    return Exported(file.getvalue(), largest_difference(model, raw, answer), len(raw), "torch.export", notes)
