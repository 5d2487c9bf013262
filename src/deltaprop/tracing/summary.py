"""Every quantity of a trace as a row of a table: its equation, shape, norm, and what others have for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from deltaprop.tracing.format import number, up
from deltaprop.tracing.record import Comparison, LayerRecord, TraceRecord

if TYPE_CHECKING:  # a trace is printed far less often than the package is imported
    from rich.table import Table


@dataclass(frozen=True)
class Quantity:
    """A row of the table.

    Attributes:
        symbol: Such as ``"δ¹"``.
        equation: What it is computed by.
        shape: As text.
        norm: Of all entries, ‖·‖₂, as text.
        autograd: The largest difference from autograd's, relative to the largest entry; empty where it was not asked.
        differences: The same from central differences.
    """

    symbol: str
    equation: str
    shape: str
    norm: str
    autograd: str
    differences: str


def quantities(trace: TraceRecord) -> list[Quantity]:
    """Return z, a, σ'(z), δ, ∂C/∂W and ∂C/∂b of every layer."""
    by = {(c.layer, c.quantity, c.beside): c for c in trace.comparisons}
    found = []
    for at, layer in enumerate(trace.layers, start=1):
        for name, symbol, equation, value in _of_layer(trace, at, layer):
            beside = [_format_error(by.get((at, name, who))) for who in ("autograd", "differences")]
            found.append(Quantity(symbol, equation, str(list(value.shape)), number(float(value.norm())), *beside))
    return found


def _of_layer(trace: TraceRecord, at: int, layer: LayerRecord) -> list[tuple[str, str, str, Tensor]]:
    this, below, above = up(at), up(at - 1), up(at + 1)
    sigma = layer.activation
    bias = f" + b{this}" if layer.bias is not None else ""
    left = f"∂C/∂a{this}" if at == len(trace.layers) else f"(δ{above} W{above})"
    right = f" ⊙ σ'(z{this})" if sigma else ""
    if layer.slope is None:
        left, right = left.strip("()"), f", through the Jacobian of {sigma}"
    rows = [
        ("z", f"z{this}", f"a{below} (W{this})ᵀ{bias}", layer.z),
        ("a", f"a{this}", f"{sigma}(z{this})" if sigma else f"z{this}", layer.a),
    ]
    if sigma and layer.slope is not None:
        rows.append(("slope", f"σ'(z{this})", slope_alone(layer.formula), layer.slope))
    rows.append(("delta", f"δ{this}", f"{left}{right}", layer.delta))
    rows.append(("grad_weight", f"∂C/∂W{this}", f"(δ{this})ᵀ a{below}", layer.grad_weight))
    if layer.grad_bias is not None:
        rows.append(("grad_bias", f"∂C/∂b{this}", f"Σₙ δ{this}", layer.grad_bias))
    return rows


def slope_alone(formula: str) -> str:
    """Return σ'(z) of an activation's formula, without what the formula says about it."""
    return re.split(r"\. |\.$|, at |, with | \(0 at| \(the ", formula.rpartition("σ'(z) = ")[2])[0]


def described(trace: TraceRecord) -> str:
    """Return the net in one line, such as ``"2 → 3 sigmoid → 1"``."""
    layers = [f"{size} {layer.activation}".strip() for size, layer in zip(trace.sizes[1:], trace.layers, strict=True)]
    return " → ".join([str(trace.sizes[0]), *layers])


def headline(trace: TraceRecord) -> str:
    """Return what was traced, in one line."""
    about = f" ({trace.about})" if trace.about else ""
    return f"one batch of {len(trace.input)} through {described(trace)}{about}"


def verdict(trace: TraceRecord) -> str:
    """Return how far others have the same numbers, in one line."""
    numbers = range(len(trace.layers) + 1)
    by_autograd, by_differences = (max(trace.error(n, who) for n in numbers) for who in ("autograd", "differences"))
    if trace.ok and not any(c.quantity == "z" for c in trace.comparisons):
        return f"ok: central differences have the same numbers to {power(by_differences)}; PyTorch has no such modules"
    if trace.ok:
        exactly = f"to {power(by_autograd)}" if by_autograd else "to the bit"
        return f"ok: PyTorch's autograd has the same numbers {exactly}, central differences to {power(by_differences)}"
    return f"NOT OK: autograd differs by {power(by_autograd)}, central differences by {power(by_differences)}"


def _format_error(comparison: Comparison | None) -> str:
    """Return the error of a comparison; words where the numbers are too small for differences."""
    if comparison is None:
        return ""
    return power(comparison.error) if comparison.resolved else "too small"


def power(error: float) -> str:
    """Return an error to its power of ten."""
    return f"{error:.0e}" if error else "0"


def tables(found: TraceRecord) -> tuple[Table, Table]:
    """Return two tables for a rich console: one row a layer, and one row a quantity."""
    return _overview(found), _in_full(found)


def _overview(found: TraceRecord) -> Table:
    """Return one row a layer: how large its activations are, how saturated it is, how much of the error reaches it."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for column in ("mean |a|", "saturated", "‖δ_n‖ mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for at, layer in enumerate(found.layers, start=1):
        saturated = layer.saturated
        table.add_row(
            f"{at} {layer.activation}".strip(),
            f"{float(layer.a.abs().mean()):.3g}",
            "" if saturated is None else f"{100 * saturated:.0f} %",
            f"{layer.delta_norm:.3g}",
        )
    return table


def _in_full(found: TraceRecord) -> Table:
    """Return one row a quantity: its equation, shape, norm and errors."""
    from rich.table import Table
    from rich.text import Text  # as it stands: an equation may have brackets

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("equation")
    for column in ("shape", "norm", "autograd", "diff."):
        table.add_column(column, justify="right", no_wrap=True)
    for q in quantities(found):
        table.add_row(*[Text(cell) for cell in (q.symbol, q.equation, q.shape, q.norm, q.autograd, q.differences)])
    return table


LEGEND = (
    "saturated: |σ'| at most 5 % of its steepest. ‖δ_n‖ mean: over samples, without the 1/N. norm: of all entries. "
    "autograd, diff.: largest difference, relative to the largest entry; of large tensors differences try 200 entries."
)
