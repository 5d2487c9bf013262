"""One batch through the textbook's page: z, a, σ'(z), δ and the gradients of each layer, by the hand-written formulas.

Every number is then asked for twice more: of autograd, on a twin of plain ``torch.nn`` modules, and (δ and the
gradients) of central differences of C. Everything is computed in float64, whatever the model's dtype.

Shapes: x [N, n_0]; z, a, σ' and δ [N, n_l]; ∂C/∂W [n_l, n_{l−1}], ∂C/∂b [n_l].
"""

from __future__ import annotations

import copy
import dataclasses
import html
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltaprop.core.recursion import feed_forward, store_gradients
from deltaprop.errors import UserError
from deltaprop.loss_spec import LossLike, LossSpec, parse_loss
from deltaprop.nn.layers import ELSEWHERE, read_layers, refuse_contained_activation
from deltaprop.tracing.compare import compare
from deltaprop.tracing.page import html_page
from deltaprop.tracing.record import NAMES, LayerRecord, TraceRecord
from deltaprop.tracing.summary import headline, tables, verdict
from deltaprop.tracing.worked_example import as_text, is_tiny, steps


class Trace(TraceRecord):
    """A batch through a net, forward and back, and how it is shown: printed, as a page, in a notebook.

    The numbers are the attributes of :class:`~deltaprop.tracing.record.TraceRecord`.
    """

    def html(self, lr: float = 0.5) -> str:
        """Return one self-contained page to walk through step by step, the last step an update with this η."""
        return html_page(self, lr)

    def _repr_html_(self) -> str:
        """Return the page in a frame, as a notebook shows it."""
        return f'<iframe srcdoc="{html.escape(self.html())}" style="width: 100%; height: 48em; border: 0"></iframe>'

    def __str__(self) -> str:
        """Return what the terminal shows: a tiny net number by number, else tables."""
        from rich.console import Console  # printed far less often than the package is imported

        if is_tiny(self):
            return "\n".join([*as_text(steps(self, 0.5)), verdict(self)])
        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(*tables(self), sep="\n", highlight=False)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        return "\n".join([headline(self), *lines, f"{self.loss_name}: C = {self.loss:.6g}", verdict(self)])


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
    layers = tuple(map(LayerRecord, found, learns))
    traced = Trace(x, y, name, float(c), grad_a, layers, (), spec.options, own)
    return dataclasses.replace(traced, comparisons=tuple(compare(traced)))


def _double(value: Any) -> Any:
    """Return what is a floating tensor in float64, and all else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()
