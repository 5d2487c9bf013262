"""Look at one batch layer by layer: z, a, δ and the gradients, by the recursion that trains, without learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function

from deltaprop.core import Elementwise
from deltaprop.core.recursion import Layer, feed_forward, store_gradients
from deltaprop.loss_spec import LossLike, parse_loss
from deltaprop.nn.layers import read_layers

SATURATED = 0.05  # of the steepest derivative: hardly any δ passes


@torch.no_grad()
def capture_layers(model: nn.Module, loss: LossLike, x: Tensor, y: Tensor) -> list[Layer]:
    """Return every layer of a model on the batch (x, y); a parameter that does not learn has a gradient of 0.

    Args:
        model: An ``nn.Sequential`` of linear layers and activations.
        loss: A loss, as the drivers take it.
        x: Inputs, [N, n_0].
        y: Targets, as the loss takes them.

    Raises:
        UserError: If the model or the loss is not one that the recursion takes.
    """
    found, spec = read_layers(model), parse_loss(loss)
    _, saved = spec.forward(feed_forward(found, x), y)
    store_gradients(found, spec.grad_input(saved, spec.targets(y, saved)))
    return found


def delta_norm(layer: Layer) -> float:
    """Return the mean over samples of ‖∂C_n/∂z‖, C_n being the loss of one sample: Σ_n ‖δ_n‖, as δ holds the 1/N."""
    return float(layer.delta.norm(dim=1).sum())


def saturated_share(layer: Layer) -> float | None:
    """Return the share of entries where |σ'(z)| is at most 5 % of the activation's largest, so that little δ passes.

    None where the layer has no activation, or one whose derivative is a matrix.
    """
    flat = _is_flat(layer)
    return None if flat is None else float(flat.double().mean())


def dead_share(layer: Layer) -> float | None:
    """Return the share of units that are saturated on every sample of the batch; None as for the entries."""
    flat = _is_flat(layer)
    return None if flat is None else float(flat.all(dim=0).double().mean())


def _is_flat(layer: Layer) -> Tensor | None:
    largest, derivative = largest_derivative(layer), layer.derivative()
    return None if largest is None or derivative is None else derivative.abs() <= SATURATED * largest


def largest_derivative(layer: Layer) -> Tensor | None:
    """Return max |σ'(z)| over −8 ≤ z ≤ 8, in the dtype and on the device of z; None where there is no σ'."""
    op = layer.activation
    if op is None or not issubclass(op, Elementwise):
        return None
    grid = torch.linspace(-8, 8, 1601, dtype=layer.z.dtype, device=layer.z.device)
    saved = op.forward(grid, *layer.constants) if op.from_output else grid
    return op.derivative(saved, *layer.constants).abs().max()


def formula(op: type[Function]) -> str:
    """Return an activation and its derivative as its definition's docstring has them, on one line."""
    return " ".join((op.__doc__ or "").strip().split("\n\n")[0].split()).replace(" along ``dim``", "").replace("``", "")
