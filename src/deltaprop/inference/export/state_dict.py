"""Export as weights for a plain ``torch.nn.Sequential`` on raw numbers, the scalings folded into them."""

from __future__ import annotations

import contextlib
import json

import torch
from torch import Tensor, nn

from deltaprop.data.splits import Array
from deltaprop.errors import UserError
from deltaprop.inference.export.deployment import Exported, about, by_name, class_outputs
from deltaprop.inference.model import Model
from deltaprop.nn import to_torch


def to_state_dict(model: Model) -> Exported:
    """Export the weights as safetensors for a plain ``torch.nn.Sequential`` on raw numbers."""
    import safetensors.torch

    content = safetensors.torch.save(folded(model), {"deltaprop": json.dumps(about(model))})
    state = safetensors.torch.load(content)
    net: nn.Module = nn.Sequential(*model.net)
    with contextlib.suppress(UserError):  # an activation that PyTorch does not have
        net = to_torch(model.net)

    def predict(raw: Array) -> dict[str, Array]:
        x = torch.from_numpy(model.encoding.encode(raw) if model.encoding is not None else raw)
        outputs = torch.func.functional_call(net, state, (x.to(model.dtype),))
        return by_name(model, outputs if model.task == "regression" else class_outputs(model.objective, outputs))

    notes = (
        f"torch.nn.Sequential({', '.join(map(repr, net.children()))})",
        "inputs: " + (", ".join(model.encoding.names) if model.encoding is not None else "raw, flattened"),
        "outputs: " + _outputs_of_net(model),
    )
    return Exported(content, predict, "float64", "torch.nn", notes)


def _outputs_of_net(model: Model) -> str:
    """Return what the outputs of the network itself are."""
    if model.task == "regression":
        return ", ".join(model.target_names)
    kind = "logit" if model.objective.name in ("cross-entropy", "binary-cross-entropy") else "score"
    if model.objective.one_logit:
        return f"one {kind}, high for {model.class_names[1]}"
    return f"{kind}s of {', '.join(model.class_names)}"


def folded(model: Model) -> dict[str, Tensor]:
    """Return the weights of the same network on raw inputs: W' = W / s and b' = b − W m / s, computed in float64.

    For numbers the last layer returns them in their own units: W' = s W, b' = s b + m.

    Raises:
        UserError: If there is an output activation between the last layer and the units of the target.
    """
    state = {name: t.detach().cpu().double() for name, t in model.net.state_dict().items()}
    linears = sorted({int(name.partition(".")[0]) for name in state})
    weight, bias = f"{linears[0]}.weight", f"{linears[0]}.bias"
    state[weight] = state[weight] / model.input_scaling.scale.cpu()
    state[bias] = state[bias] - state[weight] @ model.input_scaling.mean.cpu()
    if model.task == "regression":
        if model.config.output_activation != "none":
            raise UserError(
                f"`to='state-dict'`: the output activation {model.config.output_activation} comes before the units of "
                "the target, which plain weights cannot hold: take onnx or torch-export"
            )
        weight, bias = f"{linears[-1]}.weight", f"{linears[-1]}.bias"
        mean, scale = model.target_scaling.mean.cpu(), model.target_scaling.scale.cpu()
        state[weight] = state[weight] * scale[:, None]
        state[bias] = state[bias] * scale + mean
    return {name: t.to(model.dtype).contiguous() for name, t in state.items()}
