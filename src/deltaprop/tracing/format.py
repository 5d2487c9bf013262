"""How a trace writes numbers: four digits that count, a real minus, and superscripts for layers."""

from __future__ import annotations

from torch import Tensor

UP = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Return a number with four digits that count, and a real minus."""
    return f"{value:.4g}".replace("-", "−") if value else "0"  # not −0


def bracketed(value: float) -> str:
    """Return a number as a factor or a term: a negative one in brackets."""
    return f"({number(value)})" if value < 0 else number(value)


def row(values: Tensor) -> str:
    """Return a vector, or a number."""
    return f"[{', '.join(map(number, values.tolist()))}]" if values.dim() else number(values.item())


def up(layer: int) -> str:
    """Return a layer's number as a superscript."""
    return str(layer).translate(UP)


def place(*indices: int) -> str:
    """Return indices as people count them, from 1, in brackets."""
    return f"[{','.join(str(i + 1) for i in indices)}]"
