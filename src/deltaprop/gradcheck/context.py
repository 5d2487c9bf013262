"""What all checks share: the trial (a function, its inputs, what has been drawn), and what a check may find.

A check takes the trial and returns what it found: None where all is well, or a :class:`Finding`. It raises
:class:`Skipped` where it does not apply. ``gradients.py`` asks them in order.

Notation: f is the function, x its inputs, v = ∂C/∂f what comes from above (PyTorch's grad_output), and the gradient
∂C/∂x of C = ⟨v, f(x)⟩ is what backward returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from deltaprop.errors import UserError
from deltaprop.gradcheck.target import CheckTarget, Gradients, dot, gradients, random_like


class Skipped(Exception):  # noqa: N818  # not an error: the question does not arise
    """The check does not apply, for this reason."""


@dataclass(frozen=True)
class Finding:
    """What a check found to be wrong."""

    detail: str
    severity: Literal["error", "warning"] = "error"


Found = Finding | None


@dataclass
class CheckContext:
    """A subject, and what all checks share.

    Attributes:
        subject: The function and its inputs.
        atol: What gradients may differ by.
        rtol: The same, relative to the largest entry.
        fast: Whether to try fewer entries.
        seed: Of all that is drawn.
        reference: A plain function to compare with, instead of differences.
        skip: Names of checks that are not made.
        kinks: What ``values`` found at kinks.
    """

    target: CheckTarget
    atol: float
    rtol: float
    fast: bool
    seed: int
    reference: CheckTarget | None = None
    skip: Collection[str] = ()
    kinks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw v, and take the gradient that all others are compared with."""
        self.generator = torch.Generator().manual_seed(self.seed)
        leaves = self.target.leaves()
        outputs = self.target.run(leaves)
        self.outputs = [t.detach() for t in outputs]
        self.v = random_like(self.outputs, self.generator)
        self.connected = bool(outputs)
        self.scale = 0.0
        try:
            self.scale = largest(self.gradient())
        except Exception as error:  # what backward raises is for `values` to tell
            if "use_reentrant=True" in str(error):
                name = self.target.name
                raise UserError(
                    f"{name} uses torch.utils.checkpoint(use_reentrant=True), whose backward gives no gradient of a "
                    "chosen input: take use_reentrant=False"
                ) from error
        other = copy.copy(self.target)
        other.seed = 1
        again = [t.detach() for t in other.run(other.leaves())]
        self.random = any(difference(a, b) > 0 for a, b in zip(self.outputs, again, strict=True))

    @property
    def most(self) -> int:
        """How many entries of an input are tried."""
        return 12 if self.fast else 400

    def gradient(self, v: Sequence[Tensor] | None = None, target: CheckTarget | None = None) -> Gradients:
        """Return the gradients for v, by default the one that was drawn."""
        target = target or self.target
        leaves = target.leaves()
        return gradients(target.run(leaves), leaves, self.v if v is None else v)

    def close(self, a: Tensor, b: Tensor, slack: float = 1.0) -> bool:
        """Return whether two gradients agree to rounding."""
        return difference(a, b) <= slack * self.rounding(b)

    def rounding(self, t: Tensor) -> float:
        """Return what rounding may do to a gradient, generously: it is a sum of parts that may be larger than it is."""
        return 1e3 * float(torch.finfo(t.dtype).eps) * max(1e-30, largest([t]), 0.1 * self.scale)


def largest(gradients: Sequence[Tensor | None]) -> float:
    """Return the largest entry of some gradients."""
    return max((float(t.detach().abs().max()) for t in gradients if t is not None and t.numel()), default=0.0)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors; infinite where one is not finite and the other differs."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    a, b = a.detach(), b.detach()
    gap = (a.double() - b.double()).abs()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(gap), gap)
    return float(gap.nan_to_num(float("inf")).max())


def filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient, 0 where there is none."""
    return torch.zeros_like(like) if gradient is None else gradient


def weighed(context: CheckContext) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return C = ⟨v, f(x)⟩ as a function of x."""
    target, places = context.target, places_with_graph(context)

    def c(tensors: Sequence[Tensor]) -> Tensor:
        outputs = target(tensors)
        return dot([outputs[k] for k in places], context.v).double()

    return c


def places_with_graph(context: CheckContext) -> list[int]:
    """Return which outputs have a graph."""
    leaves = context.target.leaves()
    return [k for k, t in enumerate(context.target([t.clone() for t in leaves])) if t.requires_grad]


def format_error(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
