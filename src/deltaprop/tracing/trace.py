"""Trace one batch: z, a, σ'(z), δ and the gradients of each layer, by the hand-written formulas.

Every number is compared with autograd on a copy made of ``torch.nn`` modules, δ and the gradients also with central
differences of C. Everything is computed in float64, whatever the model's dtype.

Shapes: x [N, n_0]; z, a, σ' and δ [N, n_l]; ∂C/∂W [n_l, n_{l−1}], ∂C/∂b [n_l].
"""

from __future__ import annotations

import copy
import dataclasses
import html
import io
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltaprop.core.recursion import Layer, feed_forward, store_gradients
from deltaprop.errors import UserError
from deltaprop.loss_spec import LossLike, LossSpec, parse_loss
from deltaprop.nn.layers import ELSEWHERE, read_layers, refuse_contained_activation
from deltaprop.tracing.compare import compare
from deltaprop.tracing.page import html_page
from deltaprop.tracing.record import NAMES, LayerRecord, TraceRecord
from deltaprop.tracing.summary import headline, tables, verdict
from deltaprop.tracing.worked_example import as_text, is_tiny, steps


class Trace(TraceRecord):
    """One batch through a network, forward and backward; it can be printed, or shown as a page or in a notebook.

    The numbers are the attributes of :class:`~deltaprop.tracing.record.TraceRecord`.
    """

    def html(self, lr: float = 0.5) -> str:
        """Return one self-contained page to walk through step by step; the last step is an update with this η."""
        return html_page(self, lr)

    def _repr_html_(self) -> str:
        """Return the page in an iframe, for a notebook."""
        return f'<iframe srcdoc="{html.escape(self.html())}" style="width: 100%; height: 48em; border: 0"></iframe>'

    def __str__(self) -> str:
        """Return the worked example of a tiny network, tables of a larger one."""
        from rich.console import Console  # printed far less often than the package is imported

        if is_tiny(self):
            return "\n".join([*as_text(steps(self, 0.5)), verdict(self)])
        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(*tables(self), sep="\n", highlight=False)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        return "\n".join([headline(self), *lines, f"{self.loss_name}: C = {self.loss:.6g}", verdict(self)])


def trace(model: nn.Module, loss: LossLike, x: Tensor, y: Tensor) -> Trace:
    """Trace one batch through a network by the hand-written formulas, and compare every number.

    Args:
        model: An :class:`~deltaprop.MLP`, or any ``nn.Sequential`` of linear layers and activations, ours or PyTorch's.
        loss: A loss, as the engines take it.
        x: Inputs, [N, n_0].
        y: Targets, as the loss takes them.

    Returns:
        The trace: ``.layers[0].delta``, ``.ok``. The model is not changed.

    Raises:
        UserError: If the model is not a stack of layers, or inputs or targets do not fit.

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
    if not isinstance(model, nn.Sequential):
        raise UserError(f"trace takes an nn.Sequential of linear layers and activations, got {type(model).__name__}")
    _check_tensors(model, x, y)
    own = copy.deepcopy(model).to("cpu", torch.float64)
    try:
        layers = read_layers(own)
    except UserError as error:
        message = str(error).removesuffix(f": {ELSEWHERE}")
        raise UserError(f"trace takes only linear layers and activations: {message}") from error
    _check_layers(layers, spec)
    learns = [layer.learns for layer in layers]
    for layer in layers:
        layer.learns = (True, True)  # a frozen layer has gradients too
    own.requires_grad_(True)
    x, y = x.detach().to("cpu", torch.float64), _to_float64(y.detach())
    spec = LossSpec(spec.name, {key: _to_float64(value) for key, value in spec.options.items()})
    n_0 = layers[0].weight.shape[1]
    if x.dim() != 2 or x.shape[1] != n_0 or not len(x):
        raise UserError(f"inputs must be [N, {n_0}] with N at least 1, got {list(x.shape)}")
    with torch.no_grad():
        top = feed_forward(layers, x)
        c = _loss(spec, top, y)
        _, saved = spec.forward(top, y)
        grad_a = spec.grad_input(saved, spec.targets(y, saved))  # BP1, left factor
        store_gradients(layers, grad_a)  # BP1-BP4
    traced = Trace(x, y, spec.name, c, grad_a, tuple(map(LayerRecord, layers, learns)), (), spec.options, own)
    return dataclasses.replace(traced, comparisons=tuple(compare(traced)))


def _check_tensors(model: nn.Module, x: Any, y: Any) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"inputs and targets must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if not bool(x.isfinite().all()):
        raise UserError("inputs must be finite numbers, got NaN or ∞ among them")
    tensors = [*model.parameters(), *model.buffers(), x, y]
    if any(map(is_lazy, tensors)):
        raise UserError("the network has lazy layers without a shape: call it once on an input before")
    if any(t.is_complex() or t.is_meta for t in tensors):
        raise UserError("trace takes real numbers, not complex ones nor tensors on the meta device")


def _check_layers(layers: list[Layer], spec: LossSpec) -> None:
    refuse_contained_activation(layers, spec.name, spec.definition.contains)
    for op, constants in ((layer.activation, layer.constants) for layer in layers):
        if op is not None and "softmax" in NAMES.get(op, "") and constants[0] not in (-1, 1):
            raise UserError(f"{op.__name__} must be over the neurons, dim 1 or −1, got dim {constants[0]}")
    shared = [id(p) for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    if len(set(shared)) < len(shared):
        raise UserError("a layer is in the network twice, or shares a parameter with another: it would have two δ")


def _loss(spec: LossSpec, outputs: Tensor, y: Tensor) -> float:
    """Return C, if the loss takes targets of this shape and C is finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # targets that broadcast: rarely intended
            c = float(spec(outputs, y))
    except (RuntimeError, ValueError, IndexError, TypeError, UserWarning) as error:
        text = " ".join(str(error).split())
        hint = "" if y.is_floating_point() or spec.name == "cross_entropy" else "; labels are for cross_entropy"
        shapes = f"outputs {list(outputs.shape)} and targets {list(y.shape)}"
        raise UserError(f"{spec.name} does not take {shapes}: {text}{hint}") from error
    if not math.isfinite(c):
        raise UserError(f"the loss of this batch is {c:g}, not finite")
    return c


def _to_float64(value: Any) -> Any:
    """Return a floating-point tensor in float64 on the CPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()
