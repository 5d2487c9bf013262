"""One batch through the textbook's page: z, a, σ'(z), δ and the gradients of each layer, by the hand-written formulas.

Every number is then asked for twice more: of autograd, on a twin of plain ``torch.nn`` modules, and (δ and the
gradients) of central differences of C. Everything is computed in float64, whatever the model's dtype.

Shapes: x [N, n_0]; z, a, σ' and δ [N, n_l]; ∂C/∂W [n_l, n_{l−1}], ∂C/∂b [n_l].
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import html
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltaprop import functional as F
from deltaprop.errors import UserError, unknown_name
from deltaprop.explicit.losses import Rule
from deltaprop.explicit.reading import ELSEWHERE, read_layers
from deltaprop.modules import Activation
from deltaprop.ops import ACTIVATIONS, Elementwise
from deltaprop.ops.linear import linear_forward, linear_grad_a_prev, linear_grad_bias, linear_grad_weight
from deltaprop.optim import sgd_update
from deltaprop.verify.comparing import Comparison, compare
from deltaprop.verify.observe import SATURATED, formula, mean_delta_norm, steepest

LOSSES = (
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_per_sample",
    "quadratic_loss",
    "mse_loss",
    "l1_loss",
    "huber_loss",
)
NAMES = {op: name for name, op in ACTIVATIONS.items()}


@dataclass(frozen=True)
class TracedLayer:
    """One layer on one batch.

    Attributes:
        weight: W, [n, n_prev].
        bias: b, [n], or None.
        activation: Its name; empty where there is none.
        formula: Of the activation and its derivative, in words; empty where there is none.
        constants: Of the activation, in words; empty where it has none.
        z: Pre-activation.
        a: Activation; z itself where there is none.
        slope: σ'(z); ones where there is no activation; None for softmax, whose derivative is a matrix.
        steepest: The largest |σ'| there is; None where there is no activation, or no σ'.
        delta: δ = ∂C/∂z.
        grad_weight: ∂C/∂W.
        grad_bias: ∂C/∂b, or None.
        learns: Whether W and b are learnt; those that are frozen stay.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str
    formula: str
    constants: str
    z: Tensor
    a: Tensor
    slope: Tensor | None
    steepest: float | None
    delta: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None
    learns: tuple[bool, bool] = (True, True)

    def updated(self, lr: float) -> tuple[Tensor, Tensor | None]:
        """Return W and b after one step of SGD with learning rate η; what is frozen stays."""
        weight = sgd_update(self.weight, self.grad_weight, lr=lr)[0] if self.learns[0] else self.weight
        if self.bias is None or self.grad_bias is None or not self.learns[1]:
            return weight, self.bias
        return weight, sgd_update(self.bias, self.grad_bias, lr=lr)[0]

    @property
    def delta_norm(self) -> float:
        """The mean over samples of ‖∂C_n/∂z‖: Σ_n ‖δ_n‖, as δ holds the loss's 1/N."""
        return mean_delta_norm(self.delta)

    @property
    def saturated(self) -> float | None:
        """The share of entries where |σ'(z)| is at most 5 % of the steepest; None without a σ'."""
        if self.slope is None or self.steepest is None:
            return None
        return float((self.slope.abs() <= SATURATED * self.steepest).double().mean())


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
        return linear_grad_a_prev(above.delta, above.weight)

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


def trace(model: nn.Module, loss: str | Callable[..., Tensor], x: Tensor, y: Tensor) -> Trace:
    """Trace one batch through a net by the hand-written formulas, and compare every number.

    Args:
        model: An :class:`~deltaprop.MLP`, or any ``nn.Sequential`` of linear layers and activations, ours or PyTorch's.
        loss: A function of :mod:`deltaprop.functional`, its name, or a ``functools.partial`` of one with options.
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
    name, call, options = _loss(loss)
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
        found, _ = read_layers(own)
    except UserError as error:
        raise UserError(
            f"trace takes linear layers and activations alone: {str(error).removesuffix(f': {ELSEWHERE}')}"
        ) from error
    last = found[-1][1]
    if last is not None and type(last).__name__ in Rule(name).contains:
        raise UserError(
            f"{name} already contains {type(last).__name__}: it would be applied twice; leave it out of the net"
        )
    learns = [
        (linear.weight.requires_grad, linear.bias is not None and linear.bias.requires_grad) for linear, *_ in found
    ]
    own.requires_grad_(True)
    shared = [id(p) for linear, *_ in found for p in (linear.weight, linear.bias) if p is not None]
    for _, sigma, _ in found:
        if getattr(sigma, "dim", -1) not in (-1, 1):
            raise UserError(
                f"{type(sigma).__name__} must be over the neurons, dim 1 or −1, got dim {getattr(sigma, 'dim', 0)}"
            )
    if len(set(shared)) < len(shared):
        raise UserError(
            "trace takes layers of their own: one stands in the net twice, or shares a parameter, and has two δ"
        )
    x = x.detach().to("cpu", torch.float64)
    y = _double(y.detach())
    options = {key: _double(value) for key, value in options.items()}
    first = found[0][0]
    if x.dim() != 2 or x.shape[1] != first.in_features or not len(x):
        raise UserError(f"inputs must be [N, {first.in_features}] with N at least 1, got {list(x.shape)}")
    zs: list[Tensor] = []
    activations = [x]
    with torch.no_grad():
        for linear, sigma, _ in found:
            z = linear_forward(activations[-1], linear.weight, linear.bias)  # FWD
            zs.append(z)
            activations.append(z if sigma is None else sigma.op.forward(z, *_constants(sigma)))
    top = activations[-1].clone().requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # targets that broadcast: seldom what is meant
            c = call(top, y, **options)
    except (RuntimeError, ValueError, IndexError, TypeError, UserWarning) as error:
        text = " ".join(str(error).split())
        hint = "" if y.is_floating_point() or name == "cross_entropy" else "; labels are for cross_entropy"
        raise UserError(
            f"{name} does not take outputs {list(top.shape)} and targets {list(y.shape)}: {text}{hint}"
        ) from error
    if c.dim():
        raise UserError(f"the loss must be one number: reduction 'mean' or 'sum', got {list(c.shape)}")
    if not bool(c.isfinite()):
        raise UserError(f"the loss of this batch is {c.item():g}: there are no finite numbers to follow")
    (grad_a,) = torch.autograd.grad(c, top)  # BP1, left factor: the loss's own hand-written backward
    layers: list[TracedLayer] = []
    carried = grad_a
    with torch.no_grad():
        for i in reversed(range(len(found))):
            linear, sigma, _ = found[i]
            z, a, a_prev = zs[i], activations[i + 1], activations[i]
            slope: Tensor | None = torch.ones_like(z)
            most: float | None = None
            delta = carried
            if sigma is not None:
                saved = a if sigma.op.from_output else z
                delta = sigma.op.delta(carried, saved, *_constants(sigma))  # BP1, BP2
                slope = None
                if issubclass(sigma.op, Elementwise):
                    slope = sigma.op.slope(saved, *_constants(sigma))
                    most = float(steepest(sigma.op, _constants(sigma), z))
            bias = linear.bias
            layers.append(
                TracedLayer(
                    weight=linear.weight.detach(),
                    bias=None if bias is None else bias.detach(),
                    activation="" if sigma is None else NAMES.get(sigma.op, type(sigma).__name__.lower()),
                    formula="" if sigma is None else formula(sigma.op),
                    constants="" if sigma is None else _told(sigma),
                    z=z,
                    a=a,
                    slope=slope,
                    steepest=most,
                    delta=delta,
                    grad_weight=linear_grad_weight(delta, a_prev),  # BP4
                    grad_bias=None if bias is None else linear_grad_bias(delta, bias.shape),  # BP3
                    learns=learns[i],
                )
            )
            carried = linear_grad_a_prev(delta, linear.weight)  # BP2, left factor
    layers.reverse()
    found_ = Trace(x, y, name, float(c.detach()), grad_a, tuple(layers), (), options, own)
    return dataclasses.replace(found_, comparisons=tuple(compare(found_)))


def _double(value: Any) -> Any:
    """Return what is a floating tensor in float64, and all else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _told(sigma: Activation) -> str:
    """Return the constants of an activation in words."""
    return ", ".join(f"{name} = {getattr(sigma, name)}" for name in sigma.constants if name != "dim")


def _constants(sigma: Activation) -> list[Any]:
    return [getattr(sigma, name) for name in sigma.constants]


def _loss(loss: str | Callable[..., Tensor]) -> tuple[str, Callable[..., Tensor], dict[str, Any]]:
    """Return the name of a loss, our function, and its options.

    Raises:
        UserError: If there is no such loss here.
    """
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        if loss.args:
            raise UserError(f"options of the loss must be given by keyword, got {len(loss.args)} by position")
        options, loss = dict(loss.keywords), loss.func
    if not isinstance(loss, str) and not callable(loss):
        raise UserError(f"the loss must be a function or its name, got {type(loss).__name__}")
    if not isinstance(loss, str):
        known = {
            getattr(module, name): name for name in LOSSES for module in (F, nn.functional) if hasattr(module, name)
        }
        given = getattr(loss, "__name__", type(loss).__name__)
        if loss not in known:
            raise UserError(f"trace has no δ for the loss {given}: take one of {', '.join(LOSSES)}")
        loss = known[loss]
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return loss, getattr(F, loss), options
