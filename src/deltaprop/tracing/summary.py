"""Every quantity of a trace as a row of a table: its equation, shape, norm, and errors against the references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from deltaprop.tracing.capture import value_and_derivative
from deltaprop.tracing.format import number, up
from deltaprop.tracing.record import TraceRecord

if TYPE_CHECKING:  # a trace is printed far less often than the package is imported
    from rich.table import Table


@dataclass(frozen=True)
class Quantity:
    """One quantity of a layer, a row of the table.

    Attributes:
        symbol: Such as ``"δ¹"``.
        equation: The right-hand side of its equation.
        value: Its values.
        autograd: The largest difference from autograd, relative to the largest entry; empty if not compared.
        differences: The same for central differences.
    """

    symbol: str
    equation: str
    value: Tensor
    autograd: str = ""
    differences: str = ""

    @property
    def shape(self) -> str:
        """The shape, as text."""
        return str(list(self.value.shape))

    @property
    def norm(self) -> str:
        """The norm of all entries, ‖·‖₂, as text."""
        return number(float(self.value.norm()))


def layer_quantities(trace: TraceRecord, at: int) -> dict[str, Quantity]:
    """Return z, a, σ'(z), δ, ∂C/∂W and ∂C/∂b of a layer (from 1), those that it has, by attribute name."""
    layer, this, below, above = trace.layers[at - 1], up(at), up(at - 1), up(at + 1)
    sigma, derivative = layer.activation, layer.derivative
    left = f"∂C/∂a{this}" if at == len(trace.layers) else f"(δ{above} W{above})"
    delta = f"{left} ⊙ σ'(z{this})" if sigma else left
    if derivative is None:
        delta = f"{left.strip('()')}, through the Jacobian of {sigma}"
    bias = "" if layer.bias is None else f" + b{this}"
    rows = {
        "z": Quantity(f"z{this}", f"a{below} (W{this})ᵀ{bias}", layer.z),
        "a": Quantity(f"a{this}", f"{sigma}(z{this})" if sigma else f"z{this}", layer.a),
    }
    if sigma and derivative is not None:
        equation = value_and_derivative(layer.formula)[1].removeprefix("σ'(z) = ")
        rows["derivative"] = Quantity(f"σ'(z{this})", equation, derivative)
    rows["delta"] = Quantity(f"δ{this}", delta, layer.delta)
    rows["grad_weight"] = Quantity(f"∂C/∂W{this}", f"(δ{this})ᵀ a{below}", layer.grad_weight)
    if layer.grad_bias is not None:
        rows["grad_bias"] = Quantity(f"∂C/∂b{this}", f"Σₙ δ{this}", layer.grad_bias)
    return rows


def quantities(trace: TraceRecord) -> list[Quantity]:
    """Return the table rows of every layer: z, a, σ'(z), δ, ∂C/∂W and ∂C/∂b."""
    comparisons = {(c.layer, c.quantity, c.beside): c for c in trace.comparisons}
    rows = []
    for at in range(1, len(trace.layers) + 1):
        for name, quantity in layer_quantities(trace, at).items():
            compared = [comparisons.get((at, name, reference)) for reference in ("autograd", "differences")]
            errors = ["" if c is None else format_difference(c.error) if c.resolved else "too small" for c in compared]
            rows.append(replace(quantity, autograd=errors[0], differences=errors[1]))
    return rows


def architecture(trace: TraceRecord) -> str:
    """Return the layers of the network in one line, such as ``"2 → 3 sigmoid → 1"``."""
    layers = [f"{size} {layer.activation}".strip() for size, layer in zip(trace.sizes[1:], trace.layers, strict=True)]
    return " → ".join([str(trace.sizes[0]), *layers])


def headline(trace: TraceRecord) -> str:
    """Return what was traced, in one line."""
    about = f" ({trace.about})" if trace.about else ""
    return f"one batch of {len(trace.input)} through {architecture(trace)}{about}"


def verdict(trace: TraceRecord) -> str:
    """Return how closely autograd and central differences agree with the trace, in one line."""
    layers = range(len(trace.layers) + 1)
    errors = {reference: max(trace.error(n, reference) for n in layers) for reference in ("autograd", "differences")}
    autograd, differences = map(format_difference, errors.values())
    if not trace.ok:
        return f"NOT OK: autograd differs by {autograd}, central differences by {differences}"
    if not any(c.quantity == "z" for c in trace.comparisons):
        return f"ok: central differences agree to {differences}; PyTorch has no such modules"
    exactly = f"to {autograd}" if errors["autograd"] else "exactly"
    return f"ok: PyTorch's autograd agrees {exactly}, central differences to {differences}"


def format_difference(error: float) -> str:
    """Return an error with one digit and its power of ten."""
    return f"{error:.0e}" if error else "0"


def tables(trace: TraceRecord) -> tuple[Table, Table]:
    """Return two tables for a rich console: one row per layer, and one row per quantity."""
    from rich.text import Text  # unlike a string never read as markup: an equation may have brackets

    layers = _table(["layer"], ["mean |a|", "saturated", "‖δ_n‖ mean"])
    for at, layer in enumerate(trace.layers, start=1):
        saturated = "" if layer.saturated is None else f"{100 * layer.saturated:.0f} %"
        mean = f"{float(layer.a.abs().mean()):.3g}"
        layers.add_row(f"{at} {layer.activation}".strip(), mean, saturated, f"{layer.delta_norm:.3g}")
    details = _table(["", "equation"], ["shape", "norm", "autograd", "diff."])
    for q in quantities(trace):
        details.add_row(*map(Text, (q.symbol, q.equation, q.shape, q.norm, q.autograd, q.differences)))
    return layers, details


def _table(texts: list[str], values: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in (*texts, *values):
        table.add_column(name, justify="right" if name in values else "left", no_wrap=name != "equation")
    return table


LEGEND = (
    "saturated: |σ'| at most 5 % of its maximum. ‖δ_n‖ mean: over samples, without the 1/N. norm: of all entries. "
    "autograd, diff.: largest difference, relative to the largest entry; of large tensors differences try 200 entries."
)
