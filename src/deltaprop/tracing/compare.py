"""Compare a trace with PyTorch's autograd, on a copy of the network made of torch.nn modules, and with differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from deltaprop.errors import UserError
from deltaprop.gradcheck.differences import Tolerance, check_by_differences, draw_entries
from deltaprop.loss_spec import LossSpec
from deltaprop.nn.layers import flat_modules
from deltaprop.nn.modules import to_torch
from deltaprop.tracing.record import Comparison, TraceRecord

BY_AUTOGRAD = 1e-10  # tolerance relative to the largest entry: both are float64
ROUNDING = 1e-14  # absolute tolerance, for differences of larger numbers such as p − 1
BY_DIFFERENCES = 1e-5
NOISE = 1e-9  # rounding error of a difference, as a share of |C|
MOST_ENTRIES = 200  # entries of a tensor that differences try, and
MOST_WORK = 5e10  # multiply-adds for all of them, some seconds; but at least FEWEST_ENTRIES of each tensor
FEWEST_ENTRIES = 6


def compare(trace: TraceRecord) -> Iterator[Comparison]:
    """Yield comparisons of every number with autograd, and of δ and the gradients with central differences."""
    yield from _with_autograd(trace)
    generator = torch.Generator().manual_seed(0)
    for at in range(1, len(trace.layers) + 1):
        yield from _with_differences(trace, at, generator)


def _with_autograd(trace: TraceRecord) -> Iterator[Comparison]:
    """Compare with plain PyTorch: its loss, its modules, its autograd; only with its loss if it lacks an activation."""
    loss = torch_loss(trace.loss_name)
    top = trace.layers[-1].a.clone().requires_grad_()
    c = loss(top, trace.target, **trace.options)
    yield _compared(0, "loss", torch.tensor(trace.loss, dtype=c.dtype), c.detach())
    yield _compared(len(trace.layers), "grad_a", trace.grad_a, torch.autograd.grad(c, top)[0])
    try:
        model = to_torch(trace.model)
    except UserError:
        return
    assert isinstance(model, nn.Sequential)
    layers = _by_autograd(model, lambda a: loss(a, trace.target, **trace.options), trace.input)
    for at, (layer, references) in enumerate(zip(trace.layers, layers, strict=True), start=1):
        for quantity, reference in references.items():
            if getattr(layer, quantity) is not None:
                yield _compared(at, quantity, getattr(layer, quantity), reference)


def _by_autograd(model: nn.Sequential, loss: Callable[[Tensor], Tensor], x: Tensor) -> list[dict[str, Tensor]]:
    """Return z, a, σ', δ and the gradients of each layer, computed by autograd."""
    layers: list[dict[str, Tensor]] = []
    params: list[tuple[dict[str, Tensor], str, Tensor]] = []  # the layer, the name of the gradient, by what
    a = x
    for _, module in flat_modules(model):
        if isinstance(module, nn.Linear):
            a = module(a)
            layers.append({"z": a, "a": a})
            named = (("delta", a), ("grad_weight", module.weight), ("grad_bias", module.bias))
            params += [(layers[-1], name, t) for name, t in named if t is not None]
        else:
            z = layers[-1]["z"].detach().requires_grad_()
            (derivative,) = torch.autograd.grad(module(z.clone()).sum(), z, materialize_grads=True)
            a = module(a.clone())  # a copy: an in-place module would overwrite z
            layers[-1] |= {"a": a, "derivative": derivative}
    grads = torch.autograd.grad(loss(a), [t for *_, t in params], materialize_grads=True)
    for (layer, name, _), grad in zip(params, grads, strict=True):
        layer[name] = grad
    return [{name: t.detach() for name, t in layer.items()} for layer in layers]


def _compared(layer: int, quantity: str, ours: Tensor, reference: Tensor) -> Comparison:
    gap, largest = float((ours - reference).abs().max()), float(reference.abs().max())
    same = bool(torch.equal(ours.nan_to_num(), reference.nan_to_num()))  # NaN agrees with NaN
    ok = gap <= BY_AUTOGRAD * largest + ROUNDING or same
    return Comparison(layer, quantity, "autograd", 0.0 if same else gap / largest if largest else gap, ok)


def torch_loss(name: str) -> Callable[..., Tensor]:
    """Return PyTorch's loss of a name; the textbook's two in plain tensor arithmetic, an added one by its forward."""
    if name == "quadratic_loss":
        return lambda a, y: (a - y).square().sum() / (2 * len(a))
    if name == "binary_cross_entropy_per_sample":
        return lambda a, y, **options: binary_cross_entropy_with_logits(a, y, reduction="sum", **options) / len(a)
    return getattr(nn.functional, name, None) or (lambda a, y, **options: LossSpec(name, options).forward(a, y)[0])


def _with_differences(trace: TraceRecord, at: int, generator: torch.Generator) -> Iterator[Comparison]:
    """Compare δ and the gradients of a layer with (C(t + h) − C(t − h)) / 2h, entry by entry."""
    modules = [module for _, module in flat_modules(trace.model)]
    start = [index for index, module in enumerate(modules) if isinstance(module, nn.Linear)][at - 1]
    spec = LossSpec(trace.loss_name, dict(trace.options))
    layer, a_prev, above = trace.layers[at - 1], trace.a_prev(at), nn.Sequential(*modules[start + 1 :])

    def loss_of_z(z: Tensor) -> Tensor:
        return spec(above(z.clone()), trace.target)  # a copy: an in-place module would write to z

    functions: dict[str, tuple[Tensor | None, Callable[[Any], Tensor]]] = {
        "delta": (layer.z, lambda values: loss_of_z(values[0])),
        "grad_weight": (layer.weight, lambda values: loss_of_z(linear(a_prev, values[0], layer.bias))),
        "grad_bias": (layer.bias, lambda values: loss_of_z(linear(a_prev, layer.weight, values[0]))),
    }
    work = 6 * len(trace.layers) * len(a_prev) * sum(other.weight.numel() for other in trace.layers[at - 1 :])
    most = int(max(FEWEST_ENTRIES, min(MOST_ENTRIES, MOST_WORK / work)))
    for quantity, (value, function) in functions.items():
        gradient: Tensor | None = getattr(layer, quantity)
        if value is None or gradient is None:
            continue
        entries = draw_entries(value, most, generator)
        check = check_by_differences(function, [value], 0, gradient, entries, Tolerance(BY_DIFFERENCES, BY_DIFFERENCES))
        kinks = {entry for entry, *_ in check.kinks}
        smooth = torch.tensor([int(entry) not in kinks for entry in check.entries])
        gap = float((check.got - check.expected)[smooth].abs().max()) if bool(smooth.any()) else 0.0
        largest, wrong = float(gradient.abs().max()), bool(check.wrong.any())
        resolved = NOISE * abs(trace.loss) <= 1e-3 * largest or wrong
        yield Comparison(at, quantity, "differences", gap / largest if largest else gap, not wrong, resolved)
