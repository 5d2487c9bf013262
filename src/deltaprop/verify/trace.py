"""One batch through the textbook's page: z, a, σ'(z), δ and the gradients of each layer, by the hand-written formulas.

Every number is then asked for twice more: of autograd, on a twin of plain ``torch.nn`` modules, and (δ and the
gradients) of central differences of C. Everything is computed in float64, whatever the model's dtype.

Shapes: x [N, n_0]; z, a, σ' and δ [N, n_l]; ∂C/∂W [n_l, n_{l−1}], ∂C/∂b [n_l].
"""

from __future__ import annotations

import copy
import dataclasses
import html
import inspect
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltaprop import functional as F
from deltaprop.core import ACTIVATIONS, Activation
from deltaprop.core.linear import linear_grad_input
from deltaprop.core.recursion import Layer, feed_forward, store_gradients
from deltaprop.errors import UserError
from deltaprop.layers import ELSEWHERE, read_layers, refuse_contained_activation
from deltaprop.loss_spec import LossLike, LossSpec, parse_loss
from deltaprop.optim import sgd_update
from deltaprop.verify.comparing import Comparison, compare
from deltaprop.verify.observe import delta_norm, formula, saturated_share

NAMES = {op: name for name, op in ACTIVATIONS.items()}


class TracedLayer:
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
        self.constants = "" if op is None else _told(op, record.constants)

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
class Trace:
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
    layers: tuple[TracedLayer, ...]
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

    def html(self, lr: float = 0.5) -> str:
        """Return one self-contained page to walk through step by step, the last step an update with this η."""
        from deltaprop.verify.page import html_page

        return html_page(self, lr)

    def _repr_html_(self) -> str:
        """Return the page in a frame, as a notebook shows it."""
        return f'<iframe srcdoc="{html.escape(self.html())}" style="width: 100%; height: 48em; border: 0"></iframe>'

    def __str__(self) -> str:
        """Return what the terminal shows: a tiny net number by number, else tables."""
        from rich.console import Console  # printed far less often than the package is imported

        from deltaprop.verify.quantities import headline, tables, verdict
        from deltaprop.verify.steps import as_text, is_tiny, steps

        if is_tiny(self):
            return "\n".join([*as_text(steps(self, 0.5)), verdict(self)])
        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(*tables(self), sep="\n", highlight=False)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        return "\n".join([headline(self), *lines, f"{self.loss_name}: C = {self.loss:.6g}", verdict(self)])

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


def trace(model: nn.Module, loss: LossLike, x: Tensor, y: Tensor) -> Trace:
    """Trace one batch through a net by the hand-written formulas, and compare every number.

    Args:
        model: An :class:`~deltaprop.MLP`, or any ``nn.Sequential`` of linear layers and activations, ours or PyTorch's.
        loss: A loss, as the drivers take it.
        x: Inputs, [N, n_0].
        y: Targets, as the loss takes them.

    Returns:
        The trace: ``.layers[0].delta``, ``.ok``. The model is left as it is.

    Raises:
        UserError: If the model is no stack of layers, or inputs or targets do not fit.

    Source:
        Nielsen, Neural Networks and Deep Learning (2015), chapter 2, equations BP1 to BP4.

    Example:
        >>> from deltaprop import MLP
        >>> model = MLP([2, 3, 1], "sigmoid")
        >>> found = trace(model, "quadratic_loss", torch.rand(4, 2), torch.rand(4, 1))
        >>> found.ok, list(found.layers[0].delta.shape)
        (True, [4, 3])
    """
    spec = parse_loss(loss)
    name = spec.name
    if not isinstance(model, nn.Sequential):
        raise UserError(f"trace takes an nn.Sequential of linear layers and activations, got {type(model).__name__}")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"inputs and targets must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if not bool(x.isfinite().all()):
        raise UserError("inputs must be finite numbers, got NaN or ∞ among them")
    tensors = [*model.parameters(), *model.buffers(), x, y]
    if any(map(is_lazy, tensors)):
        raise UserError("the net has lazy layers that no input has shaped yet: call it once before")
    if any(t.is_complex() or t.is_meta for t in tensors):
        raise UserError("trace takes real numbers, not complex ones nor tensors on the meta device")
    own = copy.deepcopy(model).to("cpu", torch.float64)
    try:
        found = read_layers(own)
    except UserError as error:
        raise UserError(
            f"trace takes linear layers and activations alone: {str(error).removesuffix(f': {ELSEWHERE}')}"
        ) from error
    refuse_contained_activation(found, name, spec.definition.contains)
    learns = [layer.learns for layer in found]
    own.requires_grad_(True)
    shared = [id(p) for layer in found for p in (layer.weight, layer.bias) if p is not None]
    for layer in found:
        layer.learns = (True, True)
        if "softmax" in NAMES.get(layer.activation, "") and layer.constants[0] not in (-1, 1):  # type: ignore[arg-type]
            what = f"{layer.activation.__name__} must be over the neurons"  # type: ignore[union-attr]
            raise UserError(f"{what}, dim 1 or −1, got dim {layer.constants[0]}")
    if len(set(shared)) < len(shared):
        raise UserError(
            "trace takes layers of their own: one stands in the net twice, or shares a parameter, and has two δ"
        )
    x = x.detach().to("cpu", torch.float64)
    y = _double(y.detach())
    spec = LossSpec(name, {key: _double(value) for key, value in spec.options.items()})
    n_0 = found[0].weight.shape[1]
    if x.dim() != 2 or x.shape[1] != n_0 or not len(x):
        raise UserError(f"inputs must be [N, {n_0}] with N at least 1, got {list(x.shape)}")
    with torch.no_grad():
        top = feed_forward(found, x)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error", UserWarning)  # targets that broadcast: seldom what is meant
            c = spec(top, y)
    except (RuntimeError, ValueError, IndexError, TypeError, UserWarning) as error:
        text = " ".join(str(error).split())
        hint = "" if y.is_floating_point() or name == "cross_entropy" else "; labels are for cross_entropy"
        raise UserError(
            f"{name} does not take outputs {list(top.shape)} and targets {list(y.shape)}: {text}{hint}"
        ) from error
    if not bool(c.isfinite()):
        raise UserError(f"the loss of this batch is {c.item():g}: there are no finite numbers to follow")
    with torch.no_grad():
        _, saved = spec.forward(top, y)
        grad_a = spec.grad_input(saved, spec.targets(y, saved))  # BP1, left factor
        store_gradients(found, grad_a)  # BP1-BP4
    layers = tuple(map(TracedLayer, found, learns))
    traced = Trace(x, y, name, float(c), grad_a, layers, (), spec.options, own)
    return dataclasses.replace(traced, comparisons=tuple(compare(traced)))


def _double(value: Any) -> Any:
    """Return what is a floating tensor in float64, and all else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _told(op: type[Activation], constants: tuple[Any, ...]) -> str:
    """Return the constants of an activation in words."""
    names = list(inspect.signature(op.forward).parameters)[1:]
    return ", ".join(f"{name} = {value}" for name, value in zip(names, constants, strict=True) if name != "dim")
