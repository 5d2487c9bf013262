"""The model as one module, from rows as people have them to answers, and what is said about it in each file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltaprop._version import __version__
from deltaprop.inference.model import Model

LARGEST_ROUNDING = 1e-5  # of an input in float32, in deviations of its column; beyond it inputs are float64


class DeploymentModule(nn.Module):
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


def input_dtype(model: Model) -> str:
    """Return float32, or float64 where a column would lose digits that count: one of dates in seconds, say."""
    weight = next(model.net.parameters())
    far = model.input_scaling.mean.abs() + 4 * model.input_scaling.scale
    rounding = float((far * 2.0**-24 / model.input_scaling.scale).max())
    return "float64" if weight.dtype == torch.float64 or rounding > LARGEST_ROUNDING else "float32"


def about(model: Model) -> dict[str, Any]:
    """Return what goes with an export: columns, classes, the net."""
    return {
        "format": 1,
        "deltaprop": __version__,
        "task": model.task,
        "classes": [*model.class_names],
        "columns": None if model.encoding is None else model.encoding.to_json(),
        "targets": [*model.target_names],
        "sizes": [model.net[0].in_features, *[m.out_features for m in model.net if isinstance(m, nn.Linear)]],
        "activations": [*model.config.activations, model.config.output_activation],
        "loss": model.objective.name,
    }


def second(model: Model) -> str:
    """Return what comes beside a class."""
    return "probabilities" if model.objective.has_probabilities else "scores"
