"""Capture one batch layer by layer: z, a, δ and the gradients, by the recursion that trains, without an update."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.autograd import Function

from deltaprop.core import Elementwise
from deltaprop.core.recursion import Layer, feed_forward, store_gradients
from deltaprop.loss_spec import LossLike, parse_loss
from deltaprop.nn.layers import read_layers

SATURATED = 0.05  # share of the largest |σ'|: at or below it hardly any δ passes


@torch.no_grad()
def capture_layers(model: nn.Module, loss: LossLike, x: Tensor, y: Tensor) -> list[Layer]:
    """Return every layer of a model on the batch (x, y); a frozen parameter has a gradient of 0.

    Args:
        model: An ``nn.Sequential`` of linear layers and activations.
        loss: A loss, as the engines take it.
        x: Inputs, [N, n_0].
        y: Targets, as the loss takes them.

    Raises:
        UserError: If the recursion does not support the model or the loss.
    """
    layers, spec = read_layers(model), parse_loss(loss)
    _, saved = spec.forward(feed_forward(layers, x), y)
    store_gradients(layers, spec.grad_input(saved, spec.targets(y, saved)))
    return layers


def delta_norm(layer: Layer) -> float:
    """Return the mean over samples of ‖∂C_n/∂z‖, C_n being the loss of one sample: Σ_n ‖δ_n‖, as δ holds the 1/N."""
    return float(layer.delta.norm(dim=1).sum())


def saturated_share(layer: Layer) -> float | None:
    """Return the share of entries where |σ'(z)| is at most 5 % of the activation's largest, so that little δ passes.

    None for a layer without an activation, or with one whose derivative is a matrix.
    """
    saturated = _is_saturated(layer)
    return None if saturated is None else float(saturated.double().mean())


def dead_share(layer: Layer) -> float | None:
    """Return the share of units that are saturated on every sample of the batch; None as in `saturated_share`."""
    saturated = _is_saturated(layer)
    return None if saturated is None else float(saturated.all(dim=0).double().mean())


def _is_saturated(layer: Layer) -> Tensor | None:
    """Return where |σ'(z)| is at most 5 % of max |σ'(z)| over −8 ≤ z ≤ 8; None where there is no σ'."""
    op, derivative = layer.activation, layer.derivative()
    if op is None or derivative is None or not issubclass(op, Elementwise):
        return None
    grid = torch.linspace(-8, 8, 1601, dtype=layer.z.dtype, device=layer.z.device)
    saved = op.forward(grid, *layer.constants) if op.from_output else grid
    return derivative.abs() <= SATURATED * op.derivative(saved, *layer.constants).abs().max()


def formula(op: type[Function]) -> str:
    """Return the formulas of an activation or a loss and of its derivative, the first paragraph of its docstring."""
    return " ".join((op.__doc__ or "").strip().split("\n\n")[0].split()).replace(" along ``dim``", "").replace("``", "")


def value_and_derivative(formula: str) -> tuple[str, str]:
    """Return the two halves of a formula, the second without remarks: ``("a = tanh z", "σ'(z) = 1 − a²")``."""
    value, _, derivative = formula.partition(";")
    return value, re.split(r"\. |\.$|, at |, 0 at |, with | \(0 at| \(the ", derivative.strip())[0]
