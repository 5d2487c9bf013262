"""A trace as a worked example: forward, loss, each δ, gradients and update, each equation with its numbers.

The terminal prints the steps, the HTML page walks through them, TensorBoard stores them as text. Of a large layer only
some neurons are written out; the contribution of the others to a sum is one number, so that every sum is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from deltaprop.tracing.capture import value_and_derivative
from deltaprop.tracing.format import Line, bracketed, computed, number, place, up, vector
from deltaprop.tracing.loss_lines import gradient_terms, loss_formulas, loss_lines
from deltaprop.tracing.record import LayerRecord, TraceRecord
from deltaprop.tracing.summary import layer_quantities

MAX_PARAMETERS = 40  # of a network that is small enough for pencil and paper
MAX_ROWS = 4  # samples whose numbers are written out
MAX_NEURONS = 8  # neurons of the input or a hidden layer that are written out
MAX_OUTPUTS = 12  # more, as each may be a class


@dataclass(frozen=True)
class Part:
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
    parts: tuple[Part, ...]


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
    parameters = sum(layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in trace.layers)
    return parameters <= MAX_PARAMETERS and len(trace.input) <= 2


def select(trace: TraceRecord) -> Selection:
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
        shown: The samples and neurons to write out; those of :func:`select` by default.
    """
    return tuple(_Writer(trace, lr, select(trace) if shown is None else shown).steps())


class _Writer:
    """Writes the steps of one trace."""

    def __init__(self, trace: TraceRecord, lr: float, shown: Selection) -> None:
        self.trace, self.lr, self.shown = trace, lr, shown
        self.depth = len(trace.layers)

    def steps(self) -> Iterator[ExampleStep]:
        yield self.input()
        for at in range(1, self.depth + 1):
            yield self.forward(at)
        yield self.loss()
        for at in range(self.depth, 0, -1):
            yield self.delta(at)
        yield self.gradients()
        yield self.update()

    def per_sample(self, lines: Callable[[int, int], Iterator[Line]], at: int) -> tuple[Line, ...]:
        """Return the lines of a layer for each sample that is shown."""
        return tuple(line for n in self.shown.rows for line in lines(at, n))

    def per_neuron(self, symbol: str, at: int, n: int, values: Tensor, terms: Callable[[int], str]) -> Iterator[Line]:
        """Yield the computation of a quantity [N, n_l] for each neuron of a layer that is shown."""
        for j in self.shown.neurons[at]:
            yield computed(f"{symbol}{place(j)}", terms(j), values[n, j].item(), j, n)

    def input(self) -> ExampleStep:
        lines = tuple(
            Line(f"a⁰ = {self.some(self.trace.input[n], 0)}    y = {self.target(n)}", row=n) for n in self.shown.rows
        )
        words = "The input x of each sample enters the network; y is its target."
        return ExampleStep("input", None, "input", words, (Part("INPUT", "a⁰ = x", 0, lines),))

    def forward(self, at: int) -> ExampleStep:
        layer, (z, a, *_) = self.trace.layers[at - 1], layer_quantities(self.trace, at).values()
        words = f"Each neuron computes a weighted sum of its inputs{'' if layer.bias is None else ' plus a bias'}"
        value, _ = value_and_derivative(layer.formula)
        words += f" and applies {layer.activation}: {value}." if layer.activation else ", without an activation."
        words += f" {layer.constants}." if layer.constants else ""
        equation = f"{z.symbol} = {z.equation},  {a.symbol} = {a.equation}"
        part = Part("FWD", equation, at, self.per_sample(self.forward_lines, at))
        return ExampleStep("forward", at, f"forward {at}", words, (part,))

    def forward_lines(self, at: int, n: int) -> Iterator[Line]:
        layer, (z, a, *_) = self.trace.layers[at - 1], layer_quantities(self.trace, at).values()
        a_prev = self.trace.a_prev(at)[n]

        def weighted_sum(j: int) -> str:
            terms = _products(layer.weight[j], a_prev, self.shown.neurons[at - 1])
            return terms if layer.bias is None else f"{terms} + {bracketed(layer.bias[j].item())}"

        yield from self.per_neuron(z.symbol, at, n, z.value, weighted_sum)
        if layer.activation and layer.derivative is None:
            yield Line(f"{a.symbol} = {a.equation} = {self.some(layer.a[n], at)}", row=n)
        elif layer.activation:
            yield from self.per_neuron(a.symbol, at, n, a.value, lambda j: _activation(layer, n, j))

    def loss(self) -> ExampleStep:
        words = "The loss C measures how far the outputs a are from the targets y."
        options = "".join(f", {name}={_option(value)}" for name, value in self.trace.options.items())
        cost, _ = loss_formulas(self.trace)
        equation = f"{cost}{',  ' if cost else ''}{self.trace.loss_name}{options}"
        part = Part("C", equation, None, tuple(loss_lines(self.trace, self.shown.rows)))
        return ExampleStep("loss", None, "loss C", words, (part,))

    def delta(self, at: int) -> ExampleStep:
        layer, delta = self.trace.layers[at - 1], layer_quantities(self.trace, at)["delta"]
        top, parts, equation = at == self.depth, [], delta.equation
        words = "δ of the layer above is propagated back through its weights"
        if top:
            words = "δ of the output layer, ∂C/∂z, is the derivative of the loss with respect to a"
            formula = loss_formulas(self.trace)[1] or f"∂C/∂a{up(at)}"
            parts = [Part("BP1", f"{formula}, the derivative of the loss", at, self.per_sample(self.grad_a_lines, at))]
        if layer.derivative is None:
            equation = JACOBIANS.get(layer.activation, JACOBIANS["log_softmax"]).format(up(at))
            words += f", passed through {layer.activation}, whose derivative is a matrix, as each a depends on every z"
        elif layer.activation:
            words += f", times the derivative of {layer.activation}, {value_and_derivative(layer.formula)[1]}"
        tag = "BP1" if top else "BP2"
        parts.append(Part(tag, f"{delta.symbol} = {equation}", at, self.per_sample(self.delta_lines, at)))
        return ExampleStep("delta", at, delta.symbol, f"{words}.", tuple(parts))

    def grad_a_lines(self, at: int, n: int) -> Iterator[Line]:
        def terms(j: int) -> str:
            return gradient_terms(self.trace, n, j) if at == self.depth else self.grad_a(at, n, j)

        yield from self.per_neuron(f"∂C/∂a{up(at)}", at, n, self.trace.grad_of_a(at), terms)

    def delta_lines(self, at: int, n: int) -> Iterator[Line]:
        layer, quantities = self.trace.layers[at - 1], layer_quantities(self.trace, at)
        if layer.derivative is None and at < self.depth:
            yield from self.grad_a_lines(at, n)
        if "derivative" in quantities:
            for j in self.shown.neurons[at]:
                yield Line(f"{quantities['derivative'].symbol}{place(j)} = {_derivative(layer, n, j)}", j, n)

        def terms(j: int) -> str:
            left = self.grad_a(at, n, j)
            if layer.derivative is None:
                return self.through_jacobian(at, n, j)
            if not layer.activation:
                return left
            return f"{f'({left})' if ' + ' in left else left} · {bracketed(layer.derivative[n, j].item())}"

        yield from self.per_neuron(f"δ{up(at)}", at, n, layer.delta, terms)

    def grad_a(self, at: int, n: int, j: int) -> str:
        """Return ∂C/∂a of one neuron: a number for the output layer, else the sum over the layer above."""
        if at == self.depth:
            return number(self.trace.grad_a[n, j].item())
        above = self.trace.layers[at]
        return _products(above.delta[n], above.weight[:, j], self.shown.neurons[at + 1])

    def through_jacobian(self, at: int, n: int, j: int) -> str:
        """Return δ of softmax or log-softmax in numbers: ∂C/∂a times a matrix."""
        layer, grad_a = self.trace.layers[at - 1], self.trace.grad_of_a(at)[n]
        a = layer.a[n]
        if layer.activation == "softmax":
            inner = _products(grad_a, a, self.shown.neurons[at])
            return f"{number(a[j].item())}·({bracketed(grad_a[j].item())} − ({inner}))"
        total = grad_a.sum().item()
        if abs(total) <= 1e-12 * float(grad_a.abs().max()):
            total = 0.0  # the gradient of the loss sums to 0, except for rounding
        return f"{number(grad_a[j].item())} − {number(a[j].exp().item())}·{bracketed(total)}"

    def gradients(self) -> ExampleStep:
        parts, rows = [], self.shown.rows
        for at in range(self.depth, 0, -1):
            layer, q, a_prev = self.trace.layers[at - 1], layer_quantities(self.trace, at), self.trace.a_prev(at)
            weights, biases = [], []
            for j in self.shown.neurons[at]:
                if layer.grad_bias is not None:
                    terms = _products(layer.delta[:, j], None, rows)
                    biases.append(computed(f"{q['grad_bias'].symbol}{place(j)}", terms, layer.grad_bias[j].item(), j))
                for k in self.shown.neurons[at - 1]:
                    terms, gradient = _products(layer.delta[:, j], a_prev[:, k], rows), layer.grad_weight[j, k].item()
                    weights.append(computed(f"{q['grad_weight'].symbol}{place(j, k)}", terms, gradient, j))
            for tag, name, lines in (("BP3", "grad_bias", biases), ("BP4", "grad_weight", weights)):
                if name in q:
                    parts.append(Part(tag, f"{q[name].symbol} = {q[name].equation}", at, tuple(lines)))
        words = (
            "The gradient of a weight is the δ of its neuron times the activation of its input; "
            "the gradient of a bias is the δ of its neuron. Both are summed over the samples."
        )
        return ExampleStep("gradients", None, "gradients", words, tuple(parts))

    def update(self) -> ExampleStep:
        parts, lr, loss, after = [], number(self.lr), self.trace.loss, self.trace.loss_after(self.lr)
        for at, layer in enumerate(self.trace.layers, start=1):
            lines = []
            for j in self.shown.neurons[at]:
                for k in self.shown.neurons[at - 1] if layer.learns[0] else ():
                    weight, gradient = layer.weight[j, k].item(), layer.grad_weight[j, k].item()
                    lines.append(Line(self.step(f"W{up(at)}{place(j, k)}", weight, gradient), j))
                if layer.bias is not None and layer.grad_bias is not None and layer.learns[1]:
                    bias, gradient = layer.bias[j].item(), layer.grad_bias[j].item()
                    lines.append(Line(self.step(f"b{up(at)}{place(j)}", bias, gradient), j))
            frozen = "" if any(layer.learns) else ", which is frozen and not updated"
            parts.append(Part("SGD", f"θ ← θ − η ∂C/∂θ, η = {lr}, layer {at}{frozen}", at, tuple(lines)))
        far = ": the step was too large, a smaller η reduces C" if after > loss else ""
        line = Line(f"C was {number(loss)}, and is {number(after)} after the step{far}")
        parts.append(Part("C", "the same batch after the update", None, (line,)))
        words = "One step of gradient descent: each parameter minus η times its gradient."
        return ExampleStep("update", None, "update", words, tuple(parts))

    def step(self, name: str, value: float, gradient: float) -> str:
        new = number(value - self.lr * gradient)
        return f"{name} ← {number(value)} − {number(self.lr)}·{bracketed(gradient)} = {new}"

    def target(self, n: int) -> str:
        """Return y of a sample; for a label, which counts from 0, also the neuron."""
        y = self.trace.target[n]
        if y.dim() or y.is_floating_point() or self.trace.loss_name != "cross_entropy":
            return self.some(y, self.depth)
        return f"{int(y)}, which is neuron {int(y) + 1}" if y >= 0 else f"{int(y)}, which is ignored"

    def some(self, values: Tensor, at: int) -> str:
        """Return the entries of the neurons that are shown, in brackets."""
        kept = self.shown.neurons[at]
        if not values.dim() or len(kept) == len(values):
            return vector(values)
        return f"{vector(values[list(kept)])}, neurons {', '.join(str(k + 1) for k in kept)} of {len(values)}"


JACOBIANS = {  # δ^l, where the derivative of the activation is a matrix
    "softmax": "a{0} ⊙ (∂C/∂a{0} − ⟨∂C/∂a{0}, a{0}⟩)",
    "log_softmax": "∂C/∂a{0} − exp(a{0}) Σ ∂C/∂a{0}",
}


def _activation(layer: LayerRecord, n: int, j: int) -> str:
    """Return σ(z) of one entry in numbers."""
    z = layer.z[n, j].item()
    templates = {"sigmoid": f"1/(1 + exp({number(-z)}))", "relu": f"max(0, {number(z)})", "identity": number(z)}
    return templates.get(layer.activation, f"{layer.activation}({number(z)})")


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


def _option(value: object) -> str:
    if isinstance(value, Tensor):
        return vector(value) if value.dim() <= 1 else f"a tensor {list(value.shape)}"
    return str(value)


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
