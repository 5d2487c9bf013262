"""The record of one batch: z, a, σ'(z), δ and the gradients of each layer, and how far others have the same numbers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop import functional as F
from deltaprop.core import ACTIVATIONS, Activation
from deltaprop.core.linear import linear_grad_input
from deltaprop.core.recursion import Layer
from deltaprop.optim import sgd_update
from deltaprop.tracing.capture import delta_norm, formula, saturated_share

NAMES = {op: name for name, op in ACTIVATIONS.items()}


@dataclass(frozen=True)
class Comparison:
    """One quantity beside what somebody else has for it.

    Attributes:
        layer: Counted from 1; 0 for C itself.
        quantity: ``"loss"``, ``"grad_a"`` (∂C/∂a^L), ``"z"``, ``"a"``, ``"slope"``, ``"delta"``, ``"grad_weight"`` or
            ``"grad_bias"``.
        beside: ``"autograd"`` or ``"differences"``.
        error: The largest difference, relative to the largest entry.
        ok: Whether that is rounding.
        resolved: Whether the numbers are large enough for differences to tell them from rounding.
    """

    layer: int
    quantity: str
    beside: str
    error: float
    ok: bool
    resolved: bool = True


class LayerRecord:
    """One layer on one batch, with the words for it.

    Args:
        record: The layer, as the recursion left it.
        learns: Whether W and b are learnt; those that are frozen stay.

    Attributes:
        weight: W, [n, n_prev].
        bias: b, [n], or None.
        activation: Its name; empty where there is none.
        formula: Of the activation and its derivative, in words; empty where there is none.
        constants: Of the activation, in words; empty where it has none.
        z: Pre-activation.
        a: Activation; z itself where there is none.
        slope: σ'(z); ones where there is no activation; None for softmax, whose derivative is a matrix.
        delta: δ = ∂C/∂z.
        grad_weight: ∂C/∂W.
        grad_bias: ∂C/∂b, or None.
    """

    def __init__(self, record: Layer, learns: tuple[bool, bool] = (True, True)) -> None:
        self.record, self.learns = record, learns
        self.weight, self.bias = record.weight.detach(), None if record.bias is None else record.bias.detach()
        self.z, self.a, self.delta = record.z, record.a, record.delta
        self.grad_weight, self.grad_bias = record.grad_weight, record.grad_bias
        self.slope = record.derivative()
        op = record.activation
        self.activation = "" if op is None else NAMES.get(op, op.__name__.lower())
        self.formula = "" if op is None else formula(op)
        self.constants = "" if op is None else _format_constants(op, record.constants)

    def updated(self, lr: float) -> tuple[Tensor, Tensor | None]:
        """Return W and b after one step of SGD with learning rate η; what is frozen stays."""
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


@dataclass(frozen=True)
class TraceRecord:
    """A batch through a net, forward and back.

    Attributes:
        input: a^0 = x, [N, n_0].
        target: y.
        loss_name: Of C.
        loss: C, a number.
        grad_a: ∂C/∂a^L, [N, n_L]: the left factor of BP1.
        layers: Of layer 1 to L; ``layers[0]`` is layer 1.
        comparisons: Every quantity beside autograd's, δ and the gradients beside central differences.
        options: Of the loss, by name.
        model: The net in float64, as it was traced.
        about: Whose net it is, and which batch, in words; empty where nobody said.
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
        """Whether autograd and central differences have the same numbers."""
        return all(comparison.ok for comparison in self.comparisons)

    @property
    def sizes(self) -> list[int]:
        """[n_0, …, n_L]."""
        return [self.input.shape[1], *[layer.z.shape[1] for layer in self.layers]]

    def error(self, layer: int, beside: str) -> float:
        """Return the largest error of a layer (counted from 1) beside ``"autograd"`` or ``"differences"``."""
        asked = [c for c in self.comparisons if c.layer == layer and c.beside == beside and c.resolved]
        return max((c.error for c in asked), default=0.0)

    def grad_of_a(self, layer: int) -> Tensor:
        """Return ∂C/∂a^l, [N, n_l], the left factor of BP1 and BP2 (layers counted from 1)."""
        if layer == len(self.layers):
            return self.grad_a
        above = self.layers[layer]
        return linear_grad_input(above.delta, above.weight)

    def loss_after(self, lr: float) -> float:
        """Return C of the same batch after one step of SGD with learning rate η."""
        after = copy.deepcopy(self.model)
        linears = [module for module in after.modules() if isinstance(module, nn.Linear)]
        with torch.no_grad():
            for linear, layer in zip(linears, self.layers, strict=True):
                for p, value in zip((linear.weight, linear.bias), layer.updated(lr), strict=True):
                    if p is not None and value is not None:
                        p.copy_(value)
            return float(getattr(F, self.loss_name)(after(self.input), self.target, **self.options))

    def a_prev(self, layer: int) -> Tensor:
        """Return what layer l (counted from 1) is given, a^{l−1}."""
        return self.input if layer == 1 else self.layers[layer - 2].a


def _format_constants(op: type[Activation], constants: tuple[Any, ...]) -> str:
    """Return the constants of an activation in words."""
    names = list(inspect.signature(op.forward).parameters)[1:]
    return ", ".join(f"{name} = {value}" for name, value in zip(names, constants, strict=True) if name != "dim")
