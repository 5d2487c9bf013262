"""Weights for a plain ``torch.nn.Sequential`` on raw numbers, the scalings folded into them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltaprop.errors import UserError
from deltaprop.inference.export.deployment import about
from deltaprop.inference.export.verification import Exported, largest_difference, named, probes
from deltaprop.inference.model import Model
from deltaprop.nn import to_torch

Array = NDArray[Any]


def to_state_dict(model: Model) -> Exported:
    """Return weights as safetensors for a plain ``torch.nn.Sequential`` on raw numbers, scalings folded into them."""
    import safetensors.torch

    state = folded(model)
    content = safetensors.torch.save(state, {"deltaprop": json.dumps(about(model))})
    twin: nn.Module = nn.Sequential(*model.net)
    with contextlib.suppress(UserError):  # an activation that PyTorch has not
        twin = to_torch(model.net)
    plain = safetensors.torch.load(content)

    def answer(raw: Array) -> dict[str, Array]:
        x = torch.from_numpy(model.encoding.encode(raw) if model.encoding is not None else raw)
        outputs = torch.func.functional_call(twin, plain, (x.to(next(iter(plain.values())).dtype),))
        if model.task == "regression":
            return {"values": outputs.detach().numpy()}
        if not model.objective.has_probabilities:
            return named(model, (model.objective.decide(outputs), model.objective.scores(outputs)))
        return named(model, (model.objective.decide(outputs), model.objective.probabilities(outputs)))

    net = ", ".join(repr(module) for module in twin.children())
    notes = (
        f"torch.nn.Sequential({net})",
        "inputs: " + (", ".join(model.encoding.names) if model.encoding is not None else "raw, flattened"),
        "outputs: " + _outputs_of_net(model),
    )
    raw = probes(model, np.dtype("float64"))
    return Exported(content, largest_difference(model, raw, answer), len(raw), "torch.nn", notes)


def _outputs_of_net(model: Model) -> str:
    """Return what the net itself gives, in words."""
    if model.task == "regression":
        return ", ".join(model.target_names)
    kind = "logit" if model.objective.name in ("cross-entropy", "binary-cross-entropy") else "score"
    if model.objective.one_logit:
        return f"one {kind}, high for {model.class_names[1]}"
    return f"{kind}s of {', '.join(model.class_names)}"


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
                f"`to='state-dict'`: the output activation {model.config.output_activation} stands before the units of "
                "the target, which plain weights cannot hold: take onnx or torch-export"
            )
        out_mean, out_scale = model.target_scaling.mean.cpu(), model.target_scaling.scale.cpu()
        double[f"{last}.weight"] = double[f"{last}.weight"] * out_scale[:, None]
        double[f"{last}.bias"] = double[f"{last}.bias"] * out_scale + out_mean
    return {name: t.to(dtype).contiguous() for name, t in double.items()}
