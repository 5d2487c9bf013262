"""A trace as a worked example: forward, loss, each δ, gradients and update, each equation with its numbers.

The terminal prints the steps, the HTML page walks through them, TensorBoard stores them as text. Of a large layer only
some neurons are written out; the contribution of the others to a sum is one number, so that every sum is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from deltaprop.tracing.capture import value_and_derivative
from deltaprop.tracing.format import Line, bracketed, computed, number, place, up, vector
from deltaprop.tracing.loss_lines import gradient_terms, loss_formulas, loss_lines
from deltaprop.tracing.record import LayerRecord, TraceRecord
from deltaprop.tracing.summary import Quantity, layer_quantities

MAX_PARAMETERS = 40  # of a network that is small enough for pencil and paper
MAX_ROWS = 4  # samples whose numbers are written out
MAX_NEURONS = 8  # neurons of the input or a hidden layer that are written out
MAX_OUTPUTS = 12  # more, as each may be a class


@dataclass(frozen=True)
class Equation:
    """An equation with its numbers.

    Attributes:
        tag: INPUT, FWD, C, BP1 to BP4 or SGD.
        equation: The equation in symbols.
        layer: Number of the layer, from 1; 0 for the input; None for the whole network.
        lines: The numbers.
    """

    tag: str
    equation: str
    layer: int | None = None
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class ExampleStep:
    """A step of the worked example.

    Attributes:
        kind: ``"input"``, ``"forward"``, ``"loss"``, ``"delta"``, ``"gradients"`` or ``"update"``.
        layer: Number of the layer, from 1, for ``"forward"`` and ``"delta"``; else None.
        name: Short name, for a button.
        words: What happens, as a sentence.
        parts: The equations with their numbers.
    """

    kind: str
    layer: int | None
    name: str
    words: str
    parts: tuple[Equation, ...]


@dataclass(frozen=True)
class Selection:
    """The samples and neurons of a trace that are written out.

    Attributes:
        rows: Indices of the samples.
        neurons: Indices of the neurons of layer 0 (the input) to L, in order.
    """

    rows: tuple[int, ...]
    neurons: tuple[tuple[int, ...], ...] = field(repr=False)


def is_tiny(trace: TraceRecord) -> bool:
    """Return whether a trace is small enough for every number to be written out."""
    return sum(p.numel() for p in trace.model.parameters()) <= MAX_PARAMETERS and len(trace.input) <= 2


def select_entries(trace: TraceRecord) -> Selection:
    """Return what to write out: all of a small layer; of a larger one what matters most on this batch.

    That is the inputs with the largest mean |a⁰|, the neurons with the largest mean |δ|, and the samples with the
    largest ‖δ^L‖, the largest first: in a trained network δ of most samples is close to 0.
    """
    weights = [trace.input.abs(), *[layer.delta.abs() for layer in trace.layers]]
    neurons = []
    for at, weight in enumerate(weights):
        most = MAX_OUTPUTS if at == len(trace.layers) else MAX_NEURONS
        largest = weight.mean(dim=0).argsort(descending=True, stable=True)[:most]
        neurons.append(tuple(sorted(largest.tolist())))
    rows = range(len(trace.input))
    if len(rows) > MAX_ROWS:
        rows = trace.layers[-1].delta.norm(dim=1).argsort(descending=True, stable=True)[:MAX_ROWS].tolist()
    return Selection(tuple(rows), tuple(neurons))


def steps(trace: TraceRecord, lr: float, shown: Selection | None = None) -> tuple[ExampleStep, ...]:
    """Return the steps: input, forward layer by layer, the loss, δ^L down to δ¹, the gradients, the update.

    Args:
        trace: The trace of a batch.
        lr: The learning rate η of the update.
        shown: The samples and neurons to write out; those of :func:`select_entries` by default.
    """
    writer = _Writer(trace, lr, select_entries(trace) if shown is None else shown)
    layers = range(1, len(trace.layers) + 1)
    forward, backward = map(writer.forward, layers), map(writer.delta, reversed(layers))
    return (writer.input(), *forward, writer.loss(), *backward, writer.gradients(), writer.update())


class _Writer:
    """Writes the steps of one trace."""

    def __init__(self, trace: TraceRecord, lr: float, shown: Selection) -> None:
        self.trace, self.lr, self.shown = trace, lr, shown
        self.depth = len(trace.layers)

    def input(self) -> ExampleStep:
        lines = tuple(
            Line(f"a⁰ = {self.some(self.trace.input[n], 0)}    y = {self.target(n)}", row=n) for n in self.shown.rows
        )
        words = "The input x of each sample enters the network; y is its target."
        return ExampleStep("input", None, "input", words, (Equation("INPUT", "a⁰ = x", 0, lines),))

    def forward(self, at: int) -> ExampleStep:
        layer, (z, a, *_) = self.trace.layers[at - 1], layer_quantities(self.trace, at).values()
        words = f"Each neuron computes a weighted sum of its inputs{'' if layer.bias is None else ' plus a bias'}"
        value, _ = value_and_derivative(layer.formula)
        words += f" and applies {layer.activation}: {value}." if layer.activation else ", without an activation."
        words += f" {layer.constants}." if layer.constants else ""
        equation = f"{z.symbol} = {z.equation},  {a.symbol} = {a.equation}"
        part = Equation("FWD", equation, at, self.per_sample(at, "z", "a" if layer.activation else ""))
        return ExampleStep("forward", at, f"forward {at}", words, (part,))

    def loss(self) -> ExampleStep:
        words = "The loss C measures how far the outputs a are from the targets y."
        texts = {k: vector(v) if isinstance(v, Tensor) else str(v) for k, v in self.trace.options.items()}
        options = "".join(f", {name}={text}" for name, text in texts.items())
        cost, _ = loss_formulas(self.trace)
        equation = f"{cost}{',  ' if cost else ''}{self.trace.loss_name}{options}"
        part = Equation("C", equation, None, tuple(loss_lines(self.trace, self.shown.rows)))
        return ExampleStep("loss", None, "loss C", words, (part,))

    def delta(self, at: int) -> ExampleStep:
        layer, delta = self.trace.layers[at - 1], layer_quantities(self.trace, at)["delta"]
        top, parts, equation = at == self.depth, [], delta.equation
        words = "δ of the layer above is propagated back through its weights"
        if top:
            words = "δ of the output layer, ∂C/∂z, is the derivative of the loss with respect to a"
            formula = loss_formulas(self.trace)[1] or f"∂C/∂a{up(at)}"
            parts = [Equation("BP1", f"{formula}, the derivative of the loss", at, self.per_sample(at, "grad_a"))]
        if layer.derivative is None:
            equation = JACOBIANS.get(layer.activation, JACOBIANS["log_softmax"]).format(up(at))
            words += f", passed through {layer.activation}, whose derivative is a matrix, as each a depends on every z"
        elif layer.activation:
            words += f", times the derivative of {layer.activation}, {value_and_derivative(layer.formula)[1]}"
        before = "derivative" if layer.derivative is not None else "" if top else "grad_a"
        lines = self.per_sample(at, before if layer.activation else "", "delta")
        parts.append(Equation("BP1" if top else "BP2", f"{delta.symbol} = {equation}", at, lines))
        return ExampleStep("delta", at, delta.symbol, f"{words}.", tuple(parts))

    def gradients(self) -> ExampleStep:
        parts = []
        for at in range(self.depth, 0, -1):
            quantities = layer_quantities(self.trace, at)
            for tag, name in (("BP3", "grad_bias"), ("BP4", "grad_weight")):
                if name in quantities:
                    equation = f"{quantities[name].symbol} = {quantities[name].equation}"
                    parts.append(Equation(tag, equation, at, tuple(self.computations(at, name))))
        words = (
            "The gradient of a weight is the δ of its neuron times the activation of its input; "
            "the gradient of a bias is the δ of its neuron. Both are summed over the samples."
        )
        return ExampleStep("gradients", None, "gradients", words, tuple(parts))

    def update(self) -> ExampleStep:
        parts, lr, loss, after = [], number(self.lr), self.trace.loss, self.trace.loss_after(self.lr)
        for at, layer in enumerate(self.trace.layers, start=1):
            lines = []
            pairs = ("W", layer.weight, layer.grad_weight), ("b", layer.bias, layer.grad_bias)
            for (name, value, gradient), new, learns in zip(pairs, layer.updated(self.lr), layer.learns, strict=True):
                if learns and value is not None and gradient is not None and new is not None:
                    for index in self.indices(at, value.dim()):
                        step = f"{number(value[index].item())} − {lr}·{bracketed(gradient[index].item())}"
                        text = f"{name}{up(at)}{place(*index)} ← {step} = {number(new[index].item())}"
                        lines.append(Line(text, index[0]))
            frozen = "" if any(layer.learns) else ", which is frozen and not updated"
            by_neuron = tuple(sorted(lines, key=lambda line: line.neuron or 0))  # its weights, then its bias
            parts.append(Equation("SGD", f"θ ← θ − η ∂C/∂θ, η = {lr}, layer {at}{frozen}", at, by_neuron))
        hint = ": the step was too large, a smaller η reduces C" if after > loss else ""
        line = Line(f"C was {number(loss)}, and is {number(after)} after the step{hint}")
        parts.append(Equation("C", "the same batch after the update", None, (line,)))
        words = "One step of gradient descent: each parameter minus η times its gradient."
        return ExampleStep("update", None, "update", words, tuple(parts))

    def indices(self, at: int, dims: int) -> list[tuple[int, ...]]:
        """Return the indices that are shown of the neurons of a layer, or of its weights."""
        return [*itertools.product(*[self.shown.neurons[layer] for layer in (at, at - 1)[:dims]])]

    def per_sample(self, at: int, *names: str) -> tuple[Line, ...]:
        """Return the computations of some quantities of a layer, those of the first sample first."""
        return tuple(line for n in self.shown.rows for name in names if name for line in self.computations(at, name, n))

    def computations(self, at: int, name: str, n: int | None = None) -> Iterator[Line]:
        """Yield the computation of a quantity of a layer for each entry that is shown, for a sample or for all."""
        layer, grad_a = self.trace.layers[at - 1], Quantity(f"∂C/∂a{up(at)}", "", self.trace.grad_of_a(at))
        quantity = {**layer_quantities(self.trace, at), "grad_a": grad_a}[name]
        values = quantity.value if n is None else quantity.value[n]
        if name == "a" and layer.derivative is None:
            yield Line(f"{quantity.symbol} = {quantity.equation} = {self.some(values, at)}", row=n)
            return
        for index in self.indices(at, values.dim()):
            symbol = f"{quantity.symbol}{place(*index)}"
            if n is None:  # a gradient, the sum over the samples
                a_prev = self.trace.a_prev(at)[:, index[1]] if name == "grad_weight" else None
                terms = _products(layer.delta[:, index[0]], a_prev, self.shown.rows)
                yield computed(symbol, terms, values[index].item(), index[0])
            elif name == "derivative":
                yield Line(f"{symbol} = {_derivative(layer, n, *index)}", index[0], n)
            else:
                yield computed(symbol, self.terms(name, at, n, *index), values[index].item(), index[0], n)

    def terms(self, name: str, at: int, n: int, j: int) -> str:
        """Return the computation of z, a, ∂C/∂a or δ of one neuron for one sample."""
        layer, neurons = self.trace.layers[at - 1], self.shown.neurons
        if name == "z":
            terms = _products(layer.weight[j], self.trace.a_prev(at)[n], neurons[at - 1])
            return terms if layer.bias is None else f"{terms} + {bracketed(layer.bias[j].item())}"
        if name == "a":
            z = layer.z[n, j].item()
            texts = {"sigmoid": f"1/(1 + exp({number(-z)}))", "relu": f"max(0, {number(z)})", "identity": number(z)}
            return texts.get(layer.activation, f"{layer.activation}({number(z)})")
        if name == "delta" and layer.derivative is None:
            return self.through_jacobian(at, n, j)
        if at == self.depth:
            left = number(self.trace.grad_a[n, j].item()) if name == "delta" else gradient_terms(self.trace, n, j)
        else:
            left = _products(self.trace.layers[at].delta[n], self.trace.layers[at].weight[:, j], neurons[at + 1])
        if name == "grad_a" or not layer.activation or layer.derivative is None:
            return left
        return f"{f'({left})' if ' + ' in left else left} · {bracketed(layer.derivative[n, j].item())}"

    def through_jacobian(self, at: int, n: int, j: int) -> str:
        """Return δ of softmax or log-softmax in numbers: ∂C/∂a times a matrix."""
        layer, grad_a = self.trace.layers[at - 1], self.trace.grad_of_a(at)[n]
        a, total = layer.a[n], grad_a.sum().item()
        if layer.activation == "softmax":
            inner = _products(grad_a, a, self.shown.neurons[at])
            return f"{number(a[j].item())}·({bracketed(grad_a[j].item())} − ({inner}))"
        if abs(total) <= 1e-12 * float(grad_a.abs().max()):
            total = 0.0  # the gradient of the loss sums to 0, except for rounding
        return f"{number(grad_a[j].item())} − {number(a[j].exp().item())}·{bracketed(total)}"

    def target(self, n: int) -> str:
        """Return y of a sample; for a label, which counts from 0, also the neuron."""
        y = self.trace.target[n]
        if y.dim() or y.is_floating_point() or self.trace.loss_name != "cross_entropy":
            return self.some(y, self.depth)
        return f"{int(y)}, which is neuron {int(y) + 1}" if y >= 0 else f"{int(y)}, which is ignored"

    def some(self, values: Tensor, at: int) -> str:
        """Return the entries of the neurons that are shown, in brackets."""
        neurons = self.shown.neurons[at]
        if not values.dim() or len(neurons) == len(values):
            return vector(values)
        return f"{vector(values[list(neurons)])}, neurons {', '.join(str(k + 1) for k in neurons)} of {len(values)}"


JACOBIANS = {  # δ^l, where the derivative of the activation is a matrix
    "softmax": "a{0} ⊙ (∂C/∂a{0} − ⟨∂C/∂a{0}, a{0}⟩)",
    "log_softmax": "∂C/∂a{0} − exp(a{0}) Σ ∂C/∂a{0}",
}


def _derivative(layer: LayerRecord, n: int, j: int) -> str:
    """Return σ'(z) of one entry in numbers, written out for the activations whose derivative is simple arithmetic."""
    assert layer.derivative is not None
    z, a, derivative = layer.z[n, j].item(), layer.a[n, j].item(), number(layer.derivative[n, j].item())
    flat = abs(a) > 0.99  # 1 − a of the rounded a would have no digits left
    if layer.activation == "sigmoid":
        return f"{number(a)}·{number(1 - a) if flat else f'(1 − {number(a)})'} = {derivative}"
    if layer.activation == "tanh":
        terms = f"{number(1 - abs(a))}·{number(1 + abs(a))}" if flat else f"1 − {bracketed(a)}²"
        return f"{terms} = {derivative}"
    if layer.activation == "step":
        return "0, as step is constant on both sides of 0"
    if layer.activation in ("relu", "leaky_relu"):
        return f"{derivative}, as z = {number(z)} {'>' if z > 0 else '≤'} 0"
    return derivative


def _products(first: Tensor, second: Tensor | None, shown: Sequence[int]) -> str:
    """Return Σ first · second, or Σ first: the terms that are shown, and one number for the sum of the others."""
    terms = [bracketed(first[k].item()) for k in shown]
    if second is not None:
        terms = [f"{term}·{bracketed(second[k].item())}" for term, k in zip(terms, shown, strict=True)]
    if len(shown) < len(first):
        others = (first if second is None else first * second).clone()
        others[list(shown)] = 0
        terms.append(f"({len(first) - len(shown)} more: {number(others.sum().item())})")
    return " + ".join(terms)


def as_text(steps: Sequence[ExampleStep]) -> Iterator[str]:
    """Yield the steps as lines of text: what happens, the equation, and its numbers, indented."""
    several = len({line.row for step in steps for part in step.parts for line in part.lines} - {None}) > 1
    for step in steps:
        yield f"# {step.words}"
        for part in step.parts:
            yield f"{part.tag:<4} {part.equation}"
            for line in part.lines:
                sample = f"sample {line.row + 1}: " if several and line.row is not None else ""
                yield f"  {sample}{line.text}"
