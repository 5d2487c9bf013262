"""The record of one batch: z, a, σ'(z), δ and the gradients of each layer, and how they compare with references."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop.core import ACTIVATIONS
from deltaprop.core.linear import linear_grad_input
from deltaprop.core.recursion import Layer
from deltaprop.loss_spec import LossSpec
from deltaprop.optim import sgd_update
from deltaprop.tracing.capture import delta_norm, formula, saturated_share

NAMES = {op: name for name, op in ACTIVATIONS.items()}


@dataclass(frozen=True)
class Comparison:
    """One quantity compared with a reference.

    Attributes:
        layer: Number of the layer, from 1; 0 for C itself.
        quantity: ``"loss"``, ``"grad_a"`` (∂C/∂a^L), ``"z"``, ``"a"``, ``"derivative"`` (σ'(z)), ``"delta"``,
            ``"grad_weight"`` or ``"grad_bias"``.
        beside: The reference, ``"autograd"`` or ``"differences"``.
        error: The largest difference, relative to the largest entry.
        ok: Whether the difference is rounding.
        resolved: Whether the values are large enough for differences to tell them from rounding.
    """

    layer: int
    quantity: str
    beside: str
    error: float
    ok: bool
    resolved: bool = True


class LayerRecord:
    """One layer on one batch, with the names of its activation and formula.

    Args:
        record: The layer, as the recursion left it.
        learns: Whether W and b are trained; a frozen one keeps its value.

    Attributes:
        weight: W, [n, n_prev].
        bias: b, [n], or None.
        activation: Name of the activation; empty without one.
        formula: Formulas of the activation and its derivative; empty without one.
        constants: Constants of the activation as text; empty if it has none.
        z: Pre-activation.
        a: Activation; z itself without an activation.
        derivative: σ'(z); ones without an activation; None for softmax, whose derivative is a matrix.
        delta: δ = ∂C/∂z.
        grad_weight: ∂C/∂W.
        grad_bias: ∂C/∂b, or None.
    """

    def __init__(self, record: Layer, learns: tuple[bool, bool] = (True, True)) -> None:
        self.record, self.learns = record, learns
        self.weight, self.bias = record.weight.detach(), None if record.bias is None else record.bias.detach()
        self.z, self.a, self.delta = record.z, record.a, record.delta
        self.grad_weight, self.grad_bias = record.grad_weight, record.grad_bias
        self.derivative = record.derivative()
        self.activation = self.formula = self.constants = ""
        if (op := record.activation) is not None:
            self.activation, self.formula = NAMES.get(op, op.__name__.lower()), formula(op)
            named = zip(list(inspect.signature(op.forward).parameters)[1:], record.constants, strict=True)
            self.constants = ", ".join(f"{name} = {value}" for name, value in named if name != "dim")

    def updated(self, lr: float) -> tuple[Tensor, Tensor | None]:
        """Return W and b after one step of SGD with learning rate η; a frozen parameter keeps its value."""
        weight = sgd_update(self.weight, self.grad_weight, lr=lr)[0] if self.learns[0] else self.weight
        if self.bias is None or self.grad_bias is None or not self.learns[1]:
            return weight, self.bias
        return weight, sgd_update(self.bias, self.grad_bias, lr=lr)[0]

    @property
    def delta_norm(self) -> float:
        """The mean over samples of ‖∂C_n/∂z‖: Σ_n ‖δ_n‖, as δ holds the loss's 1/N."""
        return delta_norm(self.record)

    @property
    def saturated(self) -> float | None:
        """The share of entries where |σ'(z)| is at most 5 % of the largest; None without a σ'."""
        return saturated_share(self.record)

    @property
    def slope(self) -> Tensor | None:
        """The old name of ``derivative``, until 2.0."""
        warnings.warn("LayerRecord.slope is LayerRecord.derivative now; the old name will be removed in version 2.0",
                      DeprecationWarning, stacklevel=2)  # fmt: skip
        return self.derivative


@dataclass(frozen=True)
class TraceRecord:
    """One batch through a network, forward and backward.

    Attributes:
        input: a^0 = x, [N, n_0].
        target: y.
        loss_name: Name of the loss function.
        loss: C, a number.
        grad_a: ∂C/∂a^L, [N, n_L]: the left factor of BP1.
        layers: Layers 1 to L; ``layers[0]`` is layer 1.
        comparisons: Every quantity compared with autograd, δ and the gradients also with central differences.
        options: Options of the loss, by name.
        model: The network in float64, as it was traced.
        about: Which network and which batch this is, as text; empty by default.
    """

    input: Tensor
    target: Tensor
    loss_name: str
    loss: float
    grad_a: Tensor
    layers: tuple[LayerRecord, ...]
    comparisons: tuple[Comparison, ...] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    model: nn.Sequential = field(repr=False)
    about: str = ""

    @property
    def ok(self) -> bool:
        """Whether autograd and central differences agree with every number."""
        return all(comparison.ok for comparison in self.comparisons)

    @property
    def sizes(self) -> list[int]:
        """[n_0, …, n_L]."""
        return [self.input.shape[1], *[layer.z.shape[1] for layer in self.layers]]

    def error(self, layer: int, beside: str) -> float:
        """Return the largest error of a layer (from 1) compared with ``"autograd"`` or ``"differences"``."""
        errors = [c.error for c in self.comparisons if c.layer == layer and c.beside == beside and c.resolved]
        return max(errors, default=0.0)

    def grad_of_a(self, layer: int) -> Tensor:
        """Return ∂C/∂a^l, [N, n_l], the left factor of BP1 and BP2 (layers counted from 1)."""
        if layer == len(self.layers):
            return self.grad_a
        above = self.layers[layer]
        return linear_grad_input(above.delta, above.weight)

    @torch.no_grad()
    def loss_after(self, lr: float) -> float:
        """Return C of the same batch after one step of SGD with learning rate η."""
        values = [value for layer in self.layers for value in layer.updated(lr) if value is not None]
        updated = dict(zip([name for name, _ in self.model.named_parameters()], values, strict=True))
        outputs = torch.func.functional_call(self.model, updated, (self.input,))
        return float(LossSpec(self.loss_name, dict(self.options))(outputs, self.target))

    def a_prev(self, layer: int) -> Tensor:
        """Return a^{l−1}, the input of layer l (counted from 1)."""
        return self.input if layer == 1 else self.layers[layer - 2].a
