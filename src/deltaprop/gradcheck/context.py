"""What all checks share: the function with its inputs, what was drawn at random, and how gradients are compared.

A check takes the :class:`CheckContext`. It raises :class:`Failed` or :class:`Warned` if it finds a mistake, and
:class:`Skipped` if it does not apply. ``check.py`` runs them in order.

Notation: f is the function, x its inputs, v = ∂C/∂f the gradient that backward receives (PyTorch's grad_output), and
the gradient ∂C/∂x of C = ⟨v, f(x)⟩ is what backward returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deltaprop.errors import UserError
from deltaprop.gradcheck.differences import EntryComparison, Scalar, check_by_differences, draw_entries
from deltaprop.gradcheck.target import CheckTarget, Gradients, random_like

COARSEST = 1e-4  # relative precision: float32 is finer, float16 and bfloat16 are coarser
NARROW_ATOL, NARROW_RTOL = 1e-3, 1e-2  # of a function that computes in a narrower dtype than it is checked in


class Skipped(Exception):  # noqa: N818  # not an error
    """The check does not apply; the message is the reason."""


class Failed(Exception):  # noqa: N818  # the check failed, not the program
    """The check found a mistake; the message describes it."""

    severity: Literal["error", "warning"] = "error"


class Warned(Failed):
    """The check found something that may be intended, or is harmless."""

    severity = "warning"


@contextmanager
def on_error(outcome: type[Skipped | Failed], text: str) -> Iterator[None]:
    """Make an exception of the function under test an outcome of the check."""
    try:
        yield
    except Exception as error:
        raise outcome(f"{text} {format_error(error)}") from error


@dataclass
class CheckContext:
    """A function under test, and what its checks share.

    Attributes:
        target: The function and its inputs.
        atol: Allowed error of a gradient's entry, relative to the largest entry.
        rtol: Allowed error, relative to the entry itself.
        fast: Whether to compare fewer entries.
        seed: Seed of everything drawn at random.
        reference: A plain function to compare with, instead of differences.
        skip: Names of checks that are not run.
        deep: Whether third derivatives are checked.
        kinks: Kinks that the check ``values`` has found.
        eps: The relative precision of f: less than its dtype has, if it computes in a narrower one.
        is_wrong: Whether the check ``values`` has found an error, which other points would show again.
        broken: How backward raises, if it does: then there is no gradient to check.
    """

    target: CheckTarget
    atol: float
    rtol: float
    fast: bool
    seed: int
    reference: CheckTarget | None = None
    skip: Collection[str] = ()
    deep: bool = False
    kinks: list[str] = field(default_factory=list)
    eps: float = 0.0
    is_wrong: bool = False
    broken: str = ""

    def __post_init__(self) -> None:
        """Draw v, and compute the gradient that all others are compared with."""
        self.generator = torch.Generator().manual_seed(self.seed)
        connected = [(k, t.detach()) for k, t in self.target.numbered_outputs(self.target.leaves()) if t.requires_grad]
        self.output_numbers, self.outputs = [k for k, _ in connected], [t for _, t in connected]
        # Not of the inputs themselves, which may have been float32: then relu of them would look so, too.
        nearby = self.target.leaves([t * (1 + 1e-9) for t in self.target.values])
        with DtypesSeen() as seen:
            self.eps = _precision(self.target.run(nearby), seen.dtypes)
        if self.eps > torch.finfo(self.target.dtype).eps:
            self.atol, self.rtol = max(self.atol, NARROW_ATOL), max(self.rtol, NARROW_RTOL)
        self._v = random_like(self.outputs, self.generator)
        self.connected, self.most = bool(self.outputs), 12 if self.fast else 400  # entries of an input to compare
        # The size of a gradient that is neither steep nor flat; one that is far smaller is 0 but for rounding.
        self.natural = 0.01 * largest(self.outputs) / max(largest(self.target.values), 1e-30)
        self.sensitivity = 0.0
        self._hidden: list[Tensor] = []  # entries on which a NaN depends: differences would not show it
        self.scale, self.finite = 0.0, [torch.ones_like(t, dtype=torch.bool) for t in self.target.values]
        try:
            gradient = self.gradient()
            if any(bool(t.isnan().any()) for t in self.outputs):
                of_nan = self.gradient([t.isnan().to(t.dtype) for t in self.outputs])
                self._hidden = [t.flatten() != 0 for t in filled(of_nan, self.target.values)]
            self.scale = largest(gradient)
            self.finite = [mask if g is None else g.isfinite() for g, mask in zip(gradient, self.finite, strict=True)]
            # By how much a gradient changes with the last digits of x: a solver of a nearly singular system, say.
            nearly = [
                t * (1 + 4 * self.eps * sign.sign()) for t, sign in random_pairs(self.target.values, self.generator)
            ]
            changes = [
                None if a is None or b is None else b - a
                for a, b in zip(gradient, self.target.gradients(self.v, self.target.leaves(nearly)), strict=True)
            ]
            self.sensitivity = min(largest(changes), 1e-6 * self.scale)
        except Exception as error:
            self.broken = format_error(error)
            if "use_reentrant=True" in str(error):
                name = self.target.name
                raise UserError(
                    f"{name} uses torch.utils.checkpoint(use_reentrant=True), whose backward cannot compute the "
                    "gradients of single inputs: take use_reentrant=False"
                ) from error
        other = copy.copy(self.target)
        other.seed = 1
        again = other.run(other.leaves())
        self.random = any(map(self._differ, again, self.outputs))
        repeated = self.target.run(self.target.leaves())
        self.unseeded = any(map(self._differ, repeated, self.outputs))

    def _differ(self, a: Tensor, b: Tensor) -> bool:
        """Return whether two results of f differ by more than the last digits, as those of a solver may."""
        return mismatch(a, b, 1e4 * self.eps * largest([b])) is not None

    @property
    def v(self) -> list[Tensor]:
        """The v that was drawn, in copies of its own for each caller: a backward may write to what it gets."""
        return [t.clone() for t in self._v]

    def gradient(self, v: Sequence[Tensor] | None = None, target: CheckTarget | None = None) -> Gradients:
        """Return the gradients for a copy of v, by default the one that was drawn."""
        return (target or self.target).gradients(self.v if v is None else [t.clone() for t in v])

    def needs_differences(self) -> None:
        """Skip a check that compares with differences where the gradient is wrong on purpose."""
        if "values" in self.skip:
            raise Skipped('it compares with differences, as the check "values", which is skipped')
        self.needs_precision()

    def needs_precision(self) -> None:
        """Skip a check where f has too few digits for differences."""
        if self.eps > COARSEST:
            raise Skipped("f computes in 16 bits, too few for differences: pass a reference=")

    def needs_right_values(self) -> None:
        """Skip a check that would show again what the check ``values`` has found."""
        self.needs_differences()
        if self.is_wrong:
            raise Skipped('it would show again what the check "values" has found')

    def needs_finite(self) -> None:
        """Skip a check where f has no slope, or an infinite one."""
        if not all(bool(mask.all()) for mask in self.finite):
            raise Skipped("the gradient is not finite at these inputs")
        self.needs_slope()

    def needs_slope(self) -> None:
        """Skip a check where nothing but rounding errors could be compared."""
        if 0 < self.scale <= 1e3 * self.eps * self.natural:
            raise Skipped("the gradient is 0 but for rounding")

    def rounding(self, t: Tensor) -> float:
        """Return a generous bound of a gradient's rounding error: it is a sum whose terms may be larger than itself."""
        eps = 1e3 * max(self.eps, float(torch.finfo(t.dtype).eps))
        return eps * max(1e-30, largest([t]), 0.1 * self.scale, self.natural) + 30 * self.sensitivity

    def compare(
        self,
        got: Sequence[Tensor | None],
        expected: Sequence[Tensor | None],
        when: str,
        hint: str = "",
        tolerance: Callable[[Tensor], Tensor | float] | None = None,
        outcome: type[Failed] = Failed,
    ) -> None:
        """Raise the outcome if gradients differ from the expected ones; those where None is expected may be anything.

        Entries where the gradient is not finite are not compared: f has no slope there, or the check ``values`` told.

        Args:
            got: The gradients of the inputs.
            expected: What they should be.
            when: Says how they were computed: what follows "∂C/∂x" in the message.
            hint: The likely cause.
            tolerance: Allowed error of a gradient; that of rounding by default.
            outcome: What to raise.
        """
        problems = []
        for name, one, right, mask in zip(self.target.names, got, expected, self.finite, strict=True):
            if right is None:
                continue
            if one is not None and one.shape == right.shape == mask.shape and not mask.all():
                one, right = torch.where(mask, one, 0.0), torch.where(mask, right, 0.0)
            problem = mismatch(one, right, (tolerance or self.rounding)(right))
            if problem is not None:
                problems.append(f"∂C/∂{name} {when}: {problem}")
        if problems:
            raise outcome("; ".join(problems) + (f": {hint}" if hint else ""))

    def by_differences(
        self, c: Scalar, values: Sequence[Tensor], gradients: Gradients, most: int
    ) -> Iterator[tuple[int, EntryComparison]]:
        """Compare each gradient of C that is there with central differences; yield the number of the input, and how."""
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                entries = draw_entries(values[i], most, self.generator)
                odd = torch.nonzero(~gradient.isfinite().flatten()).flatten()[:20].cpu()
                entries = torch.cat([entries, odd]).unique()  # a NaN is looked at, wherever it is
                comparison = check_by_differences(c, values, i, gradient, entries, self.atol, self.rtol, self.eps)
                if i < len(self._hidden) and values[i] is self.target.values[i]:
                    comparison.set_aside(self._hidden[i][entries.to(gradient.device)].cpu())
                yield i, comparison


def has_both_signs(t: Tensor) -> bool:
    """Return whether some entries are positive and some negative."""
    return bool((t > 0).any() and (t < 0).any())


def random_pairs(tensors: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each tensor with a random one of the same shape."""
    return zip(tensors, random_like(tensors, generator), strict=True)


class DtypesSeen(TorchFunctionMode):
    """Note the dtypes of floating tensors that a function computes in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what is called, and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.dtypes.add(result.dtype)
        return result


def _precision(outputs: Sequence[Tensor], seen: Collection[torch.dtype]) -> float:
    """Return the relative precision of outputs: that of the dtype that they fill.

    A function of float64 that computes in float32 returns float32, or numbers that all are numbers of float32. Of 16
    bits, which many numbers fill, only a dtype that was seen counts.
    """
    eps = 0.0
    for t in outputs:
        eps = max(eps, float(torch.finfo(t.dtype).eps))
        if t.numel() < 4 or torch.equal((2 * t).round(), 2 * t):  # whole numbers and halves fill none
            continue
        for dtype in {torch.float32, *seen}:
            if torch.equal(t.to(dtype).to(t.dtype), t):
                eps = max(eps, float(torch.finfo(dtype).eps))
    return eps


def largest(gradients: Sequence[Tensor | None]) -> float:
    """Return the largest absolute entry of some gradients, of those that are finite."""
    sizes = [t.detach().abs() for t in gradients if t is not None and t.numel()]
    return max((float(torch.where(size.isfinite(), size, 0.0).max()) for size in sizes), default=0.0)


def mismatch(got: Tensor | None, expected: Tensor, tolerance: Tensor | float) -> str | None:
    """Return how a tensor differs from the expected one, None if by no more than the tolerance."""
    if got is None:
        return "got None"
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    one, right = got.detach().double(), expected.detach().double()
    errors = (one - right).abs().nan_to_num(float("inf"))  # infinite where one alone is not finite
    wrong = ~((errors <= tolerance) | (one == right) | (one.isnan() & right.isnan())).flatten()
    if not wrong.any():
        return None
    entries = torch.arange(len(wrong))
    return EntryComparison(entries, one.flatten().cpu(), right.flatten().cpu(), wrong.cpu()).describe(expected.shape)


def differs(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are not exactly equal; NaN equals NaN."""
    return mismatch(a, b, 0.0) is not None


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients, with zeros in the place of None."""
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, like, strict=True)]


def format_error(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
