"""The model as one module, from raw rows to predictions, its export as a program of PyTorch, and what exports share."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop._version import __version__
from deltaprop.data.encoding import Input
from deltaprop.data.splits import Array
from deltaprop.inference.model import Model
from deltaprop.training.objective import Objective

LARGEST_ROUNDING = 1e-5  # of an input in float32, in deviations of its column; beyond it inputs are float64


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        content: The content of the file.
        predict: Returns its predictions by output name, for rows as they are read, categories by their index.
        dtype: The dtype of its inputs.
        by: What computes its predictions.
        notes: What its users need to know, a line each.
        difference: The largest difference between its predictions and the model's: of probabilities, or of values in
            deviations of the target; NaN before they are compared.
        rows: The number of rows that were compared.
    """

    content: bytes
    predict: Callable[[Array], dict[str, Array]] = field(repr=False)
    dtype: str
    by: str
    notes: tuple[str, ...]
    difference: float = math.nan
    rows: int = 0


class DeploymentModule(nn.Module):
    """A network with its preprocessing, from the columns of a table to predictions.

    A category is its index, −1 if training has not seen it; a missing cell of either kind is NaN.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.objective, self.encoding = model.net, model.objective, model.encoding
        self.fills, self.dtype = fills(model), getattr(torch, input_dtype(model))
        self.width = len(model.input_scaling.mean) if model.encoding is None else len(model.encoding.inputs)
        fill = torch.zeros(len(model.input_scaling.mean), dtype=torch.float64)
        if model.encoding is not None:
            for at, number in enumerate(model.encoding.numbers):
                fill[at] = model.encoding.inputs[number].fill or 0.0
        scalings = [t.cpu().double() for s in (model.input_scaling, model.target_scaling) for t in (s.mean, s.scale)]
        self.mean, self.scale, self.out_mean, self.out_scale, self.fill = map(nn.Buffer, (*scalings, fill))

    def exporter_arguments(self) -> dict[str, Any]:
        """Return what PyTorch's exporters need to know of the input: an example, and that it has any number of rows."""
        zeros = torch.zeros(3, self.width, dtype=self.dtype)
        return {"args": (zeros,), "dynamic_shapes": ({0: torch.export.Dim("rows")},)}

    def forward(self, x: Tensor) -> Any:
        """Return (index of the class, probabilities or scores), or values."""
        x = x.double()
        if self.encoding is not None and self.encoding.flagged:
            flags = [self._flags(x[:, at : at + 1], self.encoding.inputs[at]) for at in self.encoding.flagged]
            x = torch.cat([x[:, self.encoding.numbers], *flags], dim=1)
        if self.fills:
            x = torch.where(torch.isnan(x), self.fill, x)
        weight = next(self.net.parameters())
        outputs = self.net(((x - self.mean) / self.scale).to(weight.dtype))
        if self.objective.task == "regression":
            return (outputs.double() * self.out_scale + self.out_mean).to(weight.dtype)
        return class_outputs(self.objective, outputs)

    @staticmethod
    def _flags(cells: Tensor, column: Input) -> Tensor:
        """Return the inputs of 0 and 1 of a column [N, 1], in the order of `Input.flags`."""
        is_missing, flags = torch.isnan(cells), []
        if column.kind == "categories":
            is_known = cells == torch.arange(len(column.categories), dtype=torch.float64)
            flags.append(is_known)
            if column.others:
                flags.append(~is_known.any(dim=1, keepdim=True) & ~is_missing)
        return torch.cat([*flags, *([is_missing] if column.absent else [])], dim=1).double()


def to_torch_export(model: Model) -> Exported:
    """Export a model as a program of PyTorch."""
    dtype, module = input_dtype(model), DeploymentModule(model).eval()
    program = torch.export.export(module, **module.exporter_arguments())
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"deltaprop.json": json.dumps(about(model))})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    categories = ", categories by their index" if model.encoding is not None and model.encoding.categories else ""
    categories += f"; {missing_inputs(model)}" if model.encoding is not None else ""
    notes = (
        f"input: x, [N, {module.width}] of {dtype}, columns in the order of the table{categories}",
        f"outputs: {f'index of the class, {second_output(model)}' if model.class_names else 'values'}",
        "names and their order: extra file deltaprop.json",
    )

    def predict(raw: Array) -> dict[str, Array]:
        return by_name(model, loaded(torch.from_numpy(raw.astype(dtype))))

    return Exported(file.getvalue(), predict, dtype, "torch.export", notes)


def by_name(model: Model, outputs: Any) -> dict[str, Array]:
    """Return the outputs of a `DeploymentModule` by their names, a class by its own."""
    if model.task == "regression":
        return {"values": outputs.detach().numpy()}
    index, second = outputs
    return {"label": model.classes[index.numpy()], second_output(model): second.detach().numpy()}


def class_outputs(objective: Objective, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the predicted class, and the probabilities, or the scores of a loss that has none."""
    second = objective.probabilities if objective.has_probabilities else objective.scores
    return objective.decide(outputs), second(outputs)


def second_output(model: Model) -> str:
    """Return the name of the output beside the class."""
    return "probabilities" if model.objective.has_probabilities else "scores"


def fills(model: Model) -> bool:
    """Return whether missing numbers are filled in."""
    return model.encoding is not None and any(column.fill is not None for column in model.encoding.inputs)


def missing_inputs(model: Model) -> str:
    """Return what is given for a missing number."""
    return "NaN where missing" if fills(model) else "none missing"


def input_dtype(model: Model) -> str:
    """Return float32, or float64 where a column needs more digits, such as one of dates in seconds."""
    far = model.input_scaling.mean.abs() + 4 * model.input_scaling.scale
    rounding = float((far * 2.0**-24 / model.input_scaling.scale).max())
    return "float64" if model.dtype == torch.float64 or rounding > LARGEST_ROUNDING else "float32"


def about(model: Model) -> dict[str, Any]:
    """Return the description that a file contains: columns, classes, the network."""
    return {
        "format": 1,
        "deltaprop": __version__,
        "task": model.task,
        "classes": [*model.class_names],
        "columns": None if model.encoding is None else model.encoding.to_json(),
        "inputs": None if model.encoding is None else model.encoding.names,
        "targets": [*model.target_names],
        "sizes": model.sizes,
        "activations": [*model.config.activations, model.config.output_activation],
        "loss": model.objective.name,
    }
