"""A trace beside what others have for its numbers: PyTorch's autograd on a twin of its own modules, and differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop import functional as F
from deltaprop.errors import UserError
from deltaprop.gradcheck.differences import check_by_differences
from deltaprop.loss_spec import LossSpec
from deltaprop.nn.layers import flat_modules
from deltaprop.nn.modules import to_torch
from deltaprop.tracing.record import Comparison, TraceRecord

BY_AUTOGRAD = 1e-10  # of the largest entry: both are float64
ROUNDING = 1e-14  # of numbers that are differences of larger ones, as p − 1 is
BY_DIFFERENCES = 1e-5
NOISE = 1e-9  # what rounding does to a difference, as a share of |C|
MOST_ENTRIES = 200  # of a tensor that are tried by differences, and
MOST_WORK = 5e10  # multiply-adds for all of them: some seconds. At least a few entries of each tensor
FEWEST_ENTRIES = 6


def compare(trace: TraceRecord) -> Iterator[Comparison]:
    """Yield every number of a trace beside autograd's, and δ and the gradients beside central differences."""
    yield from _beside_autograd(trace)
    yield from _beside_differences(trace)


def _beside_autograd(trace: TraceRecord) -> Iterator[Comparison]:
    """Compare with plain PyTorch: its loss, its modules, its autograd; a net that it has no modules for is left out."""
    y, options, call = trace.target, trace.options, torch_loss(trace.loss_name)
    top = trace.layers[-1].a.clone().requires_grad_()
    c = call(top, y, **options)
    yield _compared(0, "loss", torch.tensor(trace.loss, dtype=c.dtype), c.detach())
    yield _compared(len(trace.layers), "grad_a", trace.grad_a, torch.autograd.grad(c, top)[0])
    try:
        twin = to_torch(trace.model)
    except UserError:
        return
    assert isinstance(twin, nn.Sequential)
    found = _by_autograd(twin, lambda a: call(a, y, **options), trace.input)
    for at, (layer, theirs) in enumerate(zip(trace.layers, found, strict=True), start=1):
        for quantity, right in theirs.items():
            if getattr(layer, quantity) is not None:
                yield _compared(at, quantity, getattr(layer, quantity), right)


def _by_autograd(model: nn.Sequential, loss: Callable[[Tensor], Tensor], x: Tensor) -> list[dict[str, Tensor]]:
    """Return z, a, σ', δ and the gradients of each layer, as PyTorch's tape has them."""
    linears: list[nn.Linear] = []
    found: list[dict[str, Tensor]] = []
    a = x
    for _, module in flat_modules(model):
        if isinstance(module, nn.Linear):
            a = module(a)
            linears.append(module)
            found.append({"z": a, "a": a})
        else:
            z = found[-1]["z"].detach().requires_grad_()
            (slope,) = torch.autograd.grad(module(z.clone()).sum(), z, materialize_grads=True)
            a = module(a.clone())  # a copy: an in-place module would overwrite z
            found[-1] |= {"a": a, "slope": slope}
    zs = [layer["z"] for layer in found]
    params = [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
    grads = torch.autograd.grad(loss(a), [*zs, *params], materialize_grads=True)
    by_param = dict(zip(params, grads[len(zs) :], strict=True))
    for layer, linear, delta in zip(found, linears, grads, strict=False):
        layer |= {"delta": delta, "grad_weight": by_param[linear.weight]}
        if linear.bias is not None:
            layer["grad_bias"] = by_param[linear.bias]
    return [{name: t.detach() for name, t in layer.items()} for layer in found]


def _compared(layer: int, quantity: str, ours: Tensor, right: Tensor) -> Comparison:
    gap, largest = float((ours - right).abs().max()), float(right.abs().max())
    same = bool(torch.equal(ours.nan_to_num(), right.nan_to_num()))  # two that are no numbers agree
    ok = gap <= BY_AUTOGRAD * largest + ROUNDING or same
    return Comparison(layer, quantity, "autograd", 0.0 if same else gap / largest if largest else gap, ok)


def torch_loss(name: str) -> Callable[..., Tensor]:
    """Return PyTorch's loss of a name; the textbook's two in plain tensor arithmetic, an added one by its forward."""
    if name == "quadratic_loss":
        return lambda a, y: (a - y).square().sum() / (2 * len(a))
    if name == "binary_cross_entropy_per_sample":
        return lambda a, y, **options: (
            nn.functional.binary_cross_entropy_with_logits(a, y, reduction="sum", **options) / len(a)
        )
    return getattr(nn.functional, name, None) or partial(_by_forward, name)


def _by_forward(name: str, a: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Return C of a loss that PyTorch does not have, by the operations of its forward, on PyTorch's tape."""
    spec = LossSpec(name, options)
    return spec.forward(a, y)[0]


def _beside_differences(trace: TraceRecord) -> Iterator[Comparison]:
    """Compare δ and the gradients with (C(t + h) − C(t − h)) / 2h, entry by entry, from their own layer upwards."""
    modules = [module for _, module in flat_modules(trace.model)]
    starts = [at for at, module in enumerate(modules) if isinstance(module, nn.Linear)]
    generator = torch.Generator().manual_seed(0)
    loss = getattr(F, trace.loss_name)

    def c(start: int, z: Tensor) -> Tensor:
        """Return C from the z of the layer that is module number ``start``."""
        a = z
        for module in modules[start + 1 :]:
            a = module(a)
        value: Tensor = loss(a, trace.target, **trace.options)
        return value

    for at, (layer, start) in enumerate(zip(trace.layers, starts, strict=True), start=1):
        a_prev, weight, bias = trace.a_prev(at), layer.weight, layer.bias
        wide = len(a_prev) * sum(above.weight.numel() for above in trace.layers[at - 1 :])
        most = int(max(FEWEST_ENTRIES, min(MOST_ENTRIES, MOST_WORK / (6 * len(trace.layers) * wide))))

        def by_z(values: Sequence[Tensor], start: int = start) -> Tensor:
            return c(start, values[0].clone())  # an in-place module would write to it

        def by_weight(
            values: Sequence[Tensor], start: int = start, a_prev: Tensor = a_prev, bias: Tensor | None = bias
        ) -> Tensor:
            return c(start, nn.functional.linear(a_prev, values[0], bias))

        def by_bias(
            values: Sequence[Tensor], start: int = start, a_prev: Tensor = a_prev, weight: Tensor = weight
        ) -> Tensor:
            return c(start, nn.functional.linear(a_prev, weight, values[0]))

        asked: list[tuple[str, Any, Tensor, Tensor]] = [
            ("delta", by_z, layer.z, layer.delta),
            ("grad_weight", by_weight, weight, layer.grad_weight),
        ]
        if bias is not None and layer.grad_bias is not None:
            asked.append(("grad_bias", by_bias, bias, layer.grad_bias))
        for quantity, function, value, gradient in asked:
            found = check_by_differences(
                function, [value], 0, gradient, most, generator, BY_DIFFERENCES, BY_DIFFERENCES
            )
            at_kinks = {entry for entry, *_ in found.kinks}
            smooth = torch.tensor([int(entry) not in at_kinks for entry in found.entries])
            gap = float((found.got - found.expected)[smooth].abs().max()) if bool(smooth.any()) else 0.0
            largest, wrong = float(gradient.abs().max()), bool(found.wrong.any())
            resolved = NOISE * abs(trace.loss) <= 1e-3 * largest or wrong
            yield Comparison(at, quantity, "differences", gap / largest if largest else gap, not wrong, resolved)
