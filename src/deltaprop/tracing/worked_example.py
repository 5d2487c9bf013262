"""A trace as the steps of the textbook's page: forward, loss, each δ, gradients, update, with the numbers put in.

The terminal prints them, the HTML page walks through them, TensorBoard keeps them as text: one place for the words.
Of a layer with many neurons some are shown, and what the others add to a sum is one number: the sums stay right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaprop.tracing.format import bracketed, number, place, row, up
from deltaprop.tracing.loss_lines import gradient_lines, loss_formulas, loss_lines
from deltaprop.tracing.record import LayerRecord, TraceRecord
from deltaprop.tracing.summary import slope_alone

FEW_NUMBERS = 40  # parameters, above which nobody would take a pencil
MOST_ROWS = 4  # samples whose numbers are written out
MOST_NEURONS = 8  # of a layer; outputs more, for each is a class that people know
MOST_OUTPUTS = 12


@dataclass(frozen=True)
class Line:
    """One sum with its numbers.

    Attributes:
        text: Such as ``"z¹[1] = 0.66·0.3 + (−0.45) = −0.252"``.
        neuron: Which of the layer it tells of, from 0; None for all.
        row: Which sample, from 0; None for all.
    """

    text: str
    neuron: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class Part:
    """An equation, and its numbers.

    Attributes:
        tag: FWD, C, BP1 to BP4 or SGD.
        equation: In symbols.
        layer: It tells of, from 1; 0 for the input; None for the whole net.
        lines: The numbers.
    """

    tag: str
    equation: str
    layer: int | None = None
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class ExampleStep:
    """A step of the page.

    Attributes:
        kind: ``"input"``, ``"forward"``, ``"loss"``, ``"delta"``, ``"gradients"`` or ``"update"``.
        layer: Of ``"forward"`` and ``"delta"``, from 1.
        name: Short, for a button.
        words: What happens, in plain words.
        parts: Equations with their numbers.
    """

    kind: str
    layer: int | None
    name: str
    words: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Shown:
    """Which of a trace is written out.

    Attributes:
        rows: Samples.
        neurons: Of layer 0 (the input) to L, in order.
    """

    rows: tuple[int, ...]
    neurons: tuple[tuple[int, ...], ...] = field(repr=False)


def is_tiny(trace: TraceRecord) -> bool:
    """Return whether a trace is small enough to be followed number by number with pencil and paper."""
    parameters = sum(layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in trace.layers)
    return parameters <= FEW_NUMBERS and len(trace.input) <= 2


def choose(trace: TraceRecord) -> Shown:
    """Return what to write out: all of a small layer; of a larger one what matters most on this batch.

    That is the inputs with the largest mean |a⁰|, the neurons with the largest mean |δ|, and the samples with the
    largest ‖δ^L‖, the largest first: of a net that has learnt, most samples have nothing to teach.
    """
    weights = [trace.input.abs(), *[layer.delta.abs() for layer in trace.layers]]
    neurons = []
    for number_, weight in enumerate(weights):
        most = MOST_OUTPUTS if number_ == len(trace.layers) else MOST_NEURONS
        best = weight.mean(dim=0).argsort(descending=True, stable=True)[:most]
        neurons.append(tuple(sorted(best.tolist())))
    rows = range(len(trace.input))
    if len(rows) > MOST_ROWS:
        rows = trace.layers[-1].delta.norm(dim=1).argsort(descending=True, stable=True)[:MOST_ROWS].tolist()
    return Shown(tuple(rows), tuple(neurons))


def steps(trace: TraceRecord, lr: float, shown: Shown | None = None) -> tuple[ExampleStep, ...]:
    """Return the steps: input, forward layer by layer, the loss, δ^L down to δ¹, the gradients, the update.

    Args:
        trace: Of a batch.
        lr: The learning rate η of the update.
        shown: What to write out; :func:`choose` by default.
    """
    return tuple(_Writer(trace, lr, choose(trace) if shown is None else shown).steps())


class _Writer:
    """Writes the steps of one trace."""

    def __init__(self, trace: TraceRecord, lr: float, shown: Shown) -> None:
        self.trace, self.lr, self.shown = trace, lr, shown
        self.depth = len(trace.layers)

    def steps(self) -> Iterator[ExampleStep]:
        yield self.input()
        for at, layer in enumerate(self.trace.layers, start=1):
            yield self.forward(at, layer)
        yield self.loss()
        for at in range(self.depth, 0, -1):
            yield self.delta(at, self.trace.layers[at - 1])
        yield self.gradients()
        yield self.update()

    def input(self) -> ExampleStep:
        lines = []
        for n in self.shown.rows:
            given = self.some(self.trace.input[n], 0)
            lines.append(Line(f"a⁰ = {given}    y = {self.target(n)}", row=n))
        words = "A sample goes in, and y is what should come out."
        return ExampleStep("input", None, "input", words, (Part("INPUT", "a⁰ = x", 0, tuple(lines)),))

    def forward(self, at: int, layer: LayerRecord) -> ExampleStep:
        above, below = up(at), up(at - 1)
        bias = f" + b{above}" if layer.bias is not None else ""
        sigma = f"a{above} = {layer.activation}(z{above})" if layer.activation else f"a{above} = z{above}"
        lines = []
        for n in self.shown.rows:
            a_prev = self.trace.a_prev(at)[n]
            for j in self.shown.neurons[at]:
                terms = self.products(layer.weight[j], a_prev, at - 1)
                if layer.bias is not None:
                    terms += f" + {bracketed(layer.bias[j].item())}"
                lines.append(_equals(f"z{above}{place(j)}", terms, layer.z[n, j].item(), j, n))
            if layer.activation and layer.slope is None:
                lines.append(Line(f"a{above} = {layer.activation}(z{above}) = {self.some(layer.a[n], at)}", row=n))
            elif layer.activation:
                for j in self.shown.neurons[at]:
                    name = f"a{above}{place(j)}"
                    lines.append(_equals(name, bent_in_numbers(layer, n, j), layer.a[n, j].item(), j, n))
        words = "Each neuron weighs what the layer below gives it"
        words += ", adds its bias" if layer.bias is not None else ""
        words += (
            f", and bends the sum: {layer.formula.split(';')[0]}." if layer.activation else ". Nothing bends the sum."
        )
        words += f" {layer.constants}." if layer.constants else ""
        part = Part("FWD", f"z{above} = a{below} (W{above})ᵀ{bias},  {sigma}", at, tuple(lines))
        return ExampleStep("forward", at, f"forward {at}", words, (part,))

    def loss(self) -> ExampleStep:
        trace = self.trace
        words = "One number says how wrong the outputs are; a is the output, y the target."
        options = "".join(f", {name}={_value(value)}" for name, value in trace.options.items())
        cost, _ = loss_formulas(trace)
        lines = tuple(Line(text, None, n) for text, n in loss_lines(trace, self.shown.rows))
        part = Part("C", f"{cost}{',  ' if cost else ''}{trace.loss_name}{options}", None, lines)
        return ExampleStep("loss", None, "loss C", words, (part,))

    def delta(self, at: int, layer: LayerRecord) -> ExampleStep:
        top, above = at == self.depth, up(at)
        tag = "BP1" if top else "BP2"
        left = f"∂C/∂a{above}" if top else f"(δ{up(at + 1)} W{up(at + 1)})"
        words = (
            "How much C reacts to each output's z: the slope of the loss"
            if top
            else "The error goes back through the weights it came by"
        )
        equation = f"δ{above} = {left}"
        if layer.activation == "softmax":
            equation = f"δ{above} = a{above} ⊙ (∂C/∂a{above} − ⟨∂C/∂a{above}, a{above}⟩)"
            words += ", and through softmax, whose derivative is a matrix, as each a depends on every z"
        elif layer.slope is None:
            equation = f"δ{above} = ∂C/∂a{above} − exp(a{above}) Σ ∂C/∂a{above}"
            words += f", and through {layer.activation}, whose derivative is a matrix, as each a depends on every z"
        elif layer.activation:
            equation += f" ⊙ σ'(z{above})"
            words += f", times the slope of {layer.activation}, σ'(z) = {slope_alone(layer.formula)}"
        parts = []
        if top:
            formula = loss_formulas(self.trace)[1] or f"∂C/∂a{above}"
            lines = tuple(
                Line(f"∂C/∂a{above}{place(j)} = {text}", j, n)
                for text, j, n in gradient_lines(self.trace, self.shown.rows, self.shown.neurons[at])
            )
            parts.append(Part("BP1", f"{formula}, the slope of the loss", at, lines))
        lines = tuple(line for n in self.shown.rows for line in self.deltas(at, layer, n))
        parts.append(Part(tag, equation, at, lines))
        return ExampleStep("delta", at, f"δ{above}", f"{words}.", tuple(parts))

    def deltas(self, at: int, layer: LayerRecord, n: int) -> Iterator[Line]:
        above = up(at)
        if layer.slope is None and at < self.depth:
            for j in self.shown.neurons[at]:
                name, grad_a = f"∂C/∂a{above}{place(j)}", self.trace.grad_of_a(at)[n, j].item()
                yield _equals(name, self.left(at, n, j), grad_a, j, n)
        if layer.activation and layer.slope is not None:
            for j in self.shown.neurons[at]:
                text = slope_in_numbers(layer, n, j)
                if text:
                    yield Line(f"σ'(z{above}){place(j)} = {text}", j, n)
        for j in self.shown.neurons[at]:
            left = self.left(at, n, j)
            delta = number(layer.delta[n, j].item())
            if layer.slope is None:
                text = self.through_jacobian(at, layer, n, j)
            elif layer.activation:
                factor = f"({left})" if " + " in left else left
                text = f"{factor} · {bracketed(layer.slope[n, j].item())}"
            else:
                text = left
            yield Line(f"δ{above}{place(j)} = {text}" + ("" if text == delta else f" = {delta}"), j, n)

    def left(self, at: int, n: int, j: int) -> str:
        """Return ∂C/∂a of one neuron: a number for the output layer, else the sum that gives it."""
        if at == self.depth:
            return number(self.trace.grad_a[n, j].item())
        above = self.trace.layers[at]
        return self.products(above.delta[n], above.weight[:, j], at + 1)

    def through_jacobian(self, at: int, layer: LayerRecord, n: int, j: int) -> str:
        """Return δ of softmax or log-softmax in numbers: ∂C/∂a times a matrix."""
        a, grad_a = layer.a[n], self.trace.grad_of_a(at)[n]
        if layer.activation == "softmax":
            inner = self.products(grad_a, a, at)
            return f"{number(a[j].item())}·({bracketed(grad_a[j].item())} − ({inner}))"
        p, total = number(a[j].exp().item()), grad_a.sum().item()
        if abs(total) <= 1e-12 * float(grad_a.abs().max()):
            total = 0.0  # of a loss that adds up to 0, but for rounding
        return f"{number(grad_a[j].item())} − {p}·{bracketed(total)}"

    def gradients(self) -> ExampleStep:
        parts = []
        for at in range(self.depth, 0, -1):
            layer, above, below = self.trace.layers[at - 1], up(at), up(at - 1)
            rows = self.shown.rows
            if layer.grad_bias is not None:
                lines = []
                for j in self.shown.neurons[at]:
                    deltas = _sum([bracketed(layer.delta[n, j].item()) for n in rows], layer.delta[:, j], rows)
                    lines.append(_equals(f"∂C/∂b{above}{place(j)}", deltas, layer.grad_bias[j].item(), j))
                parts.append(Part("BP3", f"∂C/∂b{above} = Σₙ δ{above}", at, tuple(lines)))
            lines = []
            a_prev = self.trace.a_prev(at)
            for j in self.shown.neurons[at]:
                for k in self.shown.neurons[at - 1]:
                    products = [f"{bracketed(layer.delta[n, j].item())}·{bracketed(a_prev[n, k].item())}" for n in rows]
                    terms = _sum(products, layer.delta[:, j] * a_prev[:, k], rows)
                    lines.append(_equals(f"∂C/∂W{above}{place(j, k)}", terms, layer.grad_weight[j, k].item(), j))
            parts.append(Part("BP4", f"∂C/∂W{above} = (δ{above})ᵀ a{below}", at, tuple(lines)))
        words = (
            "A weight's gradient is the δ above it times the activation below it; a bias has its neuron's δ. "
            "Both are summed over the samples."
        )
        return ExampleStep("gradients", None, "gradients", words, tuple(parts))

    def update(self) -> ExampleStep:
        lr = number(self.lr)
        parts = []
        for at, layer in enumerate(self.trace.layers, start=1):
            lines = []
            for j in self.shown.neurons[at]:
                for k in self.shown.neurons[at - 1] if layer.learns[0] else ():
                    w, g = layer.weight[j, k].item(), layer.grad_weight[j, k].item()
                    lines.append(Line(_step(f"W{up(at)}{place(j, k)}", w, g, self.lr), j))
                if layer.bias is not None and layer.grad_bias is not None and layer.learns[1]:
                    b, g = layer.bias[j].item(), layer.grad_bias[j].item()
                    lines.append(Line(_step(f"b{up(at)}{place(j)}", b, g, self.lr), j))
            frozen = "" if any(layer.learns) else ", which is frozen and stays"
            parts.append(Part("SGD", f"θ ← θ − η ∂C/∂θ, η = {lr}, layer {at}{frozen}", at, tuple(lines)))
        after = self.trace.loss_after(self.lr)
        far = ": the step was too long, a smaller η goes down" if after > self.trace.loss else ""
        lines = [Line(f"C was {number(self.trace.loss)}, and is {number(after)} after the step{far}")]
        parts.append(Part("C", "the same batch again", None, tuple(lines)))
        words = "One step downhill: each parameter less η times its gradient."
        return ExampleStep("update", None, "update", words, tuple(parts))

    def products(self, first: Tensor, second: Tensor, at: int) -> str:
        """Return Σ first · second over the neurons of a layer: those shown, and what the others add."""
        kept = self.shown.neurons[at]
        terms = [f"{bracketed(first[k].item())}·{bracketed(second[k].item())}" for k in kept]
        return _sum(terms, first * second, kept)

    def target(self, n: int) -> str:
        """Return y of a sample; of a label, which counts from 0, the neuron too."""
        y = self.trace.target[n]
        if y.dim() or y.is_floating_point() or self.trace.loss_name != "cross_entropy":
            return self.some(y, self.depth)
        return f"{int(y)}, which is neuron {int(y) + 1}" if y >= 0 else f"{int(y)}, which is ignored"

    def some(self, values: Tensor, at: int) -> str:
        """Return the entries that are shown, in brackets."""
        if not values.dim():
            return number(values.item())
        kept = self.shown.neurons[at]
        if len(kept) == len(values):
            return row(values)
        return f"{row(values[list(kept)])}, neurons {', '.join(str(k + 1) for k in kept)} of {len(values)}"


def bent_in_numbers(layer: LayerRecord, n: int, j: int) -> str:
    """Return a = σ(z) of one entry with its numbers."""
    z = layer.z[n, j].item()
    if layer.activation == "sigmoid":
        return f"1/(1 + exp({number(-z)}))"
    if layer.activation == "relu":
        return f"max(0, {number(z)})"
    return number(z) if layer.activation == "identity" else f"{layer.activation}({number(z)})"


def slope_in_numbers(layer: LayerRecord, n: int, j: int) -> str:
    """Return σ'(z) of one entry with its numbers, for the activations whose slope is simple arithmetic."""
    assert layer.slope is not None
    z, a, slope = number(layer.z[n, j].item()), number(layer.a[n, j].item()), number(layer.slope[n, j].item())
    value = layer.a[n, j].item()
    flat = abs(value) > 0.99  # 1 − a of the rounded a would have no digits left
    if layer.activation == "sigmoid":
        return f"{a}·{number(1 - value) if flat else f'(1 − {a})'} = {slope}"
    if layer.activation == "tanh":
        return (
            f"{number(1 - abs(value))}·{number(1 + abs(value))} = {slope}"
            if flat
            else f"1 − {bracketed(value)}² = {slope}"
        )
    if layer.activation == "step":
        return "0, as a step is flat"
    if layer.activation in ("relu", "leaky_relu"):
        return f"{slope}, as z = {z} {'>' if layer.z[n, j] > 0 else '≤'} 0"
    return slope


def _sum(terms: Sequence[str], all_of_them: Tensor, kept: Iterable[int]) -> str:
    """Return a sum of products; what is not written out as one number."""
    left_out = len(all_of_them) - len(terms)
    if not left_out:
        return " + ".join(terms)
    others = torch.ones(len(all_of_them), dtype=torch.bool)
    others[list(kept)] = False
    rest = number(all_of_them[others].sum().item())
    return " + ".join([*terms, f"({left_out} more: {rest})"])


def _equals(name: str, terms: str, value: float, neuron: int, n: int | None = None) -> Line:
    """Return a sum and its value; the value alone where the sum is a single number."""
    text = number(value)
    return Line(f"{name} = {text}" if terms.strip("()") == text else f"{name} = {terms} = {text}", neuron, n)


def _step(name: str, value: float, gradient: float, lr: float) -> str:
    return f"{name} ← {number(value)} − {number(lr)}·{bracketed(gradient)} = {number(value - lr * gradient)}"


def _value(value: object) -> str:
    if isinstance(value, Tensor) and value.dim() > 1:
        return f"a tensor {list(value.shape)}"
    return row(value) if isinstance(value, Tensor) else str(value)


def as_text(found: Sequence[ExampleStep]) -> Iterator[str]:
    """Yield the steps as lines of text: what happens, the equation, and its numbers, indented."""
    many = len({line.row for step in found for part in step.parts for line in part.lines} - {None}) > 1
    for step in found:
        yield f"# {step.words}"
        for part in step.parts:
            yield f"{part.tag:<4} {part.equation}"
            for line in part.lines:
                of = f"sample {line.row + 1}: " if many and line.row is not None else ""
                yield f"  {of}{line.text}"
