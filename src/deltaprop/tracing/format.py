"""How a trace formats numbers and lines: four significant digits, a true minus sign, superscripts for layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One computation with its numbers.

    Attributes:
        text: Such as ``"z¹[1] = 0.66·0.3 + (−0.45) = −0.252"``.
        neuron: Index of the neuron in its layer, from 0; None for a line about all of them.
        row: Index of the sample, from 0; None for a line about all of them.
    """

    text: str
    neuron: int | None = None
    row: int | None = None


def computed(name: str, terms: str, value: float, neuron: int | None = None, row: int | None = None) -> Line:
    """Return ``name = terms = value``; ``name = value`` where the terms are a single number."""
    text = number(value)
    return Line(f"{name} = {text}" if terms.strip("()") == text else f"{name} = {terms} = {text}", neuron, row)


def number(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits and a true minus sign."""
    return f"{value:.{digits}g}".replace("-", "−") if value else "0"  # not −0


def bracketed(value: float) -> str:
    """Return a number as a factor or a term: a negative one in brackets."""
    return f"({number(value)})" if value < 0 else number(value)


def vector(values: Tensor) -> str:
    """Return a vector in square brackets, or a single number; of a matrix the shape."""
    if values.dim() > 1:
        return f"a tensor {list(values.shape)}"
    return f"[{', '.join(map(number, values.tolist()))}]" if values.dim() else number(values.item())


def up(layer: int) -> str:
    """Return the number of a layer as a superscript."""
    return str(layer).translate(SUPERSCRIPTS)


def place(*indices: int) -> str:
    """Return indices, counted from 1, in square brackets."""
    return f"[{','.join(str(i + 1) for i in indices)}]"
