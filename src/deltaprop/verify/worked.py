"""A trace as a worked example: every number with the equation that gives it, to follow with pencil and paper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from deltaprop.verify.trace import Trace, TracedLayer

FEW_NUMBERS = 40  # parameters, above which nobody would take a pencil
FORMULAS = {
    "quadratic_loss": "C = ½ Σ (a − y)²/N,  ∂C/∂a = (a − y)/N",
    "mse_loss": "C = Σ (a − y)²/M over all M entries,  ∂C/∂a = 2 (a − y)/M",
    "l1_loss": "C = Σ |a − y|/M over all M entries,  ∂C/∂a = ±1/M, the sign of a − y",
    "huber_loss": "C = Σ h(a − y)/M over all M entries,  ∂C/∂a = (a − y)/M, a − y clipped to ±1",
    "cross_entropy": "C = −Σ ln p_y/N, p = exp(a)/Σ exp(a),  ∂C/∂a = (p − 1 at y, p elsewhere)/N",
    "binary_cross_entropy_with_logits": "C = −Σ [y ln s + (1 − y) ln(1 − s)]/M, s = 1/(1 + e^−a),  ∂C/∂a = (s − y)/M",
    "binary_cross_entropy_per_sample": "C = −Σ [y ln s + (1 − y) ln(1 − s)]/N, s = 1/(1 + e^−a),  ∂C/∂a = (s − y)/N",
}
UP = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_tiny(trace: Trace) -> bool:
    """Return whether a trace is small enough to be followed number by number."""
    parameters = sum(layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in trace.layers)
    return parameters <= FEW_NUMBERS and len(trace.input) <= 2


def worked_example(trace: Trace, lr: float) -> Iterator[str]:
    """Yield the lines: FWD, the loss, BP1, BP2, BP3 and BP4 layer by layer, and the update.

    Args:
        trace: Of a tiny net.
        lr: The learning rate η of the update.
    """
    samples, depth = len(trace.input), len(trace.layers)
    for n in range(samples):
        of = f" of sample {n + 1}" if samples > 1 else ""
        yield f"INPUT{of}"
        yield f"  a⁰ = {_row(trace.input[n])}    y = {_row(trace.target[n])}"
        for number, layer in enumerate(trace.layers, start=1):
            yield from _forward(trace, number, layer, n)
    yield f"LOSS  {trace.loss_name}: C = {_n(trace.loss)}"
    yield f"  with a the output:  {FORMULAS[trace.loss_name]}"
    for number in range(depth, 0, -1):
        layer = trace.layers[number - 1]
        up = _up(number)
        top = number == depth
        tag = "BP1" if top else "BP2"
        what = f"∂C/∂a{up}" if top else f"(δ{_up(number + 1)} W{_up(number + 1)})"
        bent = f" ⊙ σ'(z{up})" if layer.activation else ""
        yield f"{tag}  δ{up} = {what}{bent}"
        for n in range(samples):
            yield from _delta(trace, number, layer, n)
        yield from _gradients(trace, number, layer)
    yield f"SGD  θ ← θ − η ∂C/∂θ, η = {_n(lr)}"
    for number, layer in enumerate(trace.layers, start=1):
        yield from _update(number, layer, lr)


def _forward(trace: Trace, number: int, layer: TracedLayer, n: int) -> Iterator[str]:
    up, below = _up(number), _up(number - 1)
    sigma = f"a{up} = {layer.activation}(z{up})" if layer.activation else f"a{up} = z{up}"
    yield f"FWD  z{up} = a{below} (W{up})ᵀ + b{up},  {sigma}"
    a_prev = trace.a_prev(number)[n]
    for j in range(len(layer.z[n])):
        terms = [f"{_f(w)}·{_f(a)}" for w, a in zip(layer.weight[j].tolist(), a_prev.tolist(), strict=True)]
        if layer.bias is not None:
            terms.append(_f(layer.bias[j].item()))
        yield f"  z{up}{_sub(j)} = {' + '.join(terms)} = {_n(layer.z[n, j].item())}"
    if layer.activation:
        yield f"  a{up} = {_row(layer.a[n])}"


def _delta(trace: Trace, number: int, layer: TracedLayer, n: int) -> Iterator[str]:
    up = _up(number)
    of = f"  sample {n + 1}: " if len(trace.input) > 1 else "  "
    if number == len(trace.layers):
        left = [_n(value) for value in trace.grad_a[n].tolist()]
    else:
        above = trace.layers[number]
        left = [_sum(zip(above.delta[n].tolist(), column, strict=True)) for column in above.weight.T.tolist()]
    for j, delta in enumerate(layer.delta[n].tolist()):
        if layer.slope is None:
            yield f"{of}δ{up}{_sub(j)} = a (∂C/∂a − ⟨∂C/∂a, a⟩) = {_n(delta)}"
        elif layer.activation:
            factor = f"({left[j]})" if " + " in left[j] else left[j]
            yield f"{of}δ{up}{_sub(j)} = {factor} · {_f(layer.slope[n, j].item())} = {_n(delta)}"
        else:
            equals = "" if left[j] == _n(delta) else f" = {_n(delta)}"
            yield f"{of}δ{up}{_sub(j)} = {left[j]}{equals}"


def _gradients(trace: Trace, number: int, layer: TracedLayer) -> Iterator[str]:
    up, below = _up(number), _up(number - 1)
    a_prev, samples = trace.a_prev(number), range(len(trace.input))
    if layer.grad_bias is not None:
        yield f"BP3  ∂C/∂b{up} = Σₙ δ{up} = {_row(layer.grad_bias)}"
    yield f"BP4  ∂C/∂W{up} = (δ{up})ᵀ a{below}"
    for j, row in enumerate(layer.grad_weight.tolist()):
        for k, gradient in enumerate(row):
            terms = _sum((layer.delta[n, j].item(), a_prev[n, k].item()) for n in samples)
            yield f"  ∂C/∂W{up}{_sub(j, k)} = {terms} = {_n(gradient)}"


def _update(number: int, layer: TracedLayer, lr: float) -> Iterator[str]:
    up = _up(number)
    for j, (row, gradients) in enumerate(zip(layer.weight.tolist(), layer.grad_weight.tolist(), strict=True)):
        for k, (w, g) in enumerate(zip(row, gradients, strict=True)):
            yield f"  W{up}{_sub(j, k)} ← {_n(w)} − {_n(lr)}·{_f(g)} = {_n(w - lr * g)}"
    if layer.bias is not None and layer.grad_bias is not None:
        for j, (b, g) in enumerate(zip(layer.bias.tolist(), layer.grad_bias.tolist(), strict=True)):
            yield f"  b{up}{_sub(j)} ← {_n(b)} − {_n(lr)}·{_f(g)} = {_n(b - lr * g)}"


def _sum(products: Iterable[tuple[float, float]]) -> str:
    """Return a sum of products."""
    return " + ".join(f"{_f(a)}·{_f(b)}" for a, b in products)


def _n(value: float) -> str:
    """Return a number with four digits that count, and a real minus."""
    return f"{value:.4g}".replace("-", "−")


def _f(value: float) -> str:
    """Return a number as a factor or a term: a negative one in brackets."""
    return f"({_n(value)})" if value < 0 else _n(value)


def _row(values: Tensor) -> str:
    if not values.dim():
        return _n(values.item())
    return f"[{', '.join(map(_n, values.tolist()))}]"


def _up(number: int) -> str:
    return str(number).translate(UP)


def _sub(*indices: int) -> str:
    return f"[{','.join(str(i + 1) for i in indices)}]"
