"""Central differences: what a gradient should be, by the definition of the derivative.

    ∂g/∂x_i ≈ (g(x + h e_i) − g(x − h e_i)) / 2h

with an error of about h² from the curve and ε |g| / h from rounding; h = ε^⅓ max(1, |x_i|) makes both about ε^⅔.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scalar = Callable[[Sequence[Tensor]], Tensor]
"""A function of tensors whose value is one number."""


@dataclass(frozen=True)
class Slopes:
    """What differences say of one input.

    Attributes:
        entries: Which entries were tried, as indices into the flattened input.
        central: Of each.
        left: The difference on the left of x alone, (g(x) − g(x − h)) / h.
        right: The one on the right.
        noise: What rounding may have done to each.
    """

    entries: Tensor
    central: Tensor
    left: Tensor
    right: Tensor
    noise: float


def step_size(x: float, dtype: torch.dtype) -> float:
    """Return h for an entry of this value."""
    return float(torch.finfo(dtype).eps ** (1 / 3)) * max(1.0, abs(x))


def slopes(
    g: Scalar, values: Sequence[Tensor], at: int, most: int, generator: torch.Generator, shrink: float = 1.0
) -> Slopes:
    """Return the slopes of g along the entries of one of its inputs.

    Args:
        g: Called with tensors of its own, without a graph.
        values: Of all inputs.
        at: Which input.
        most: How many entries to try; where there are more, a random choice.
        generator: Draws it.
        shrink: h times this.
    """
    x = values[at]
    count = x.numel()
    entries = torch.arange(count) if count <= most else torch.randperm(count, generator=generator)[:most].sort()[0]
    return slopes_at(g, values, at, entries, shrink)


def slopes_at(g: Scalar, values: Sequence[Tensor], at: int, entries: Tensor, shrink: float = 1.0) -> Slopes:
    """Return the slopes of g along these entries of one of its inputs."""
    x = values[at]
    here = value(g, values)
    central, left, right = (torch.zeros(len(entries), dtype=torch.float64) for _ in range(3))
    largest, smallest = abs(here), float("inf")
    for k, entry in enumerate(entries.tolist()):
        start = float(x.reshape(-1)[entry])
        h = step_size(start, x.dtype) * shrink
        up, down = (_moved(values, at, entry, start + sign * h) for sign in (1, -1))
        above, below = value(g, up), value(g, down)
        # What was really added, after rounding.
        gone_up = float(up[at].reshape(-1)[entry]) - start
        gone_down = start - float(down[at].reshape(-1)[entry])
        central[k] = (above - below) / (gone_up + gone_down)
        left[k], right[k] = (here - below) / gone_down, (above - here) / gone_up
        largest, smallest = max(largest, abs(above), abs(below)), min(smallest, h)
    noise = float(torch.finfo(x.dtype).eps) * largest / smallest
    return Slopes(entries, central, left, right, noise)


def value(g: Scalar, values: Sequence[Tensor]) -> float:
    """Return g without a graph."""
    with torch.no_grad():
        return float(g([t.detach().clone() for t in values]))


def _moved(values: Sequence[Tensor], at: int, entry: int, to: float) -> list[Tensor]:
    """Return the values with one entry of one of them moved."""
    moved = list(values)
    x = values[at].clone(memory_format=torch.contiguous_format)
    x.view(-1)[entry] = to
    moved[at] = x
    return moved


def place(entry: int, shape: Sequence[int]) -> str:
    """Return where an entry of a flattened tensor stands, such as ``[2, 0]``."""
    index = []
    for size in reversed(shape):
        index.append(entry % size)
        entry //= size
    return f"[{', '.join(map(str, reversed(index)))}]"
