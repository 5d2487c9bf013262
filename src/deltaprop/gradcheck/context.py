"""What all checks share: the function with its inputs, what was drawn at random, and how gradients are compared.

A check takes the :class:`CheckContext`. It raises :class:`Failed` or :class:`Warned` if it finds a mistake, and
:class:`Skipped` if it does not apply. ``check.py`` runs them in order.

Notation: f is the function, x its inputs, v = ∂C/∂f the gradient that backward receives (PyTorch's grad_output), and
the gradient ∂C/∂x of C = ⟨v, f(x)⟩ is what backward returns.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from deltaprop.errors import UserError, format_error
from deltaprop.gradcheck.differences import (
    COARSE,
    NOISE_MARGIN,
    EntryComparison,
    Scalar,
    Tolerance,
    check_by_differences,
    draw_entries,
)
from deltaprop.gradcheck.precision import DtypesSeen, precision_of
from deltaprop.gradcheck.target import CheckTarget, Gradients, random_like

COARSEST = 1e-4  # relative precision: float32 is finer, float16 and bfloat16 are coarser
NARROW_ATOL, NARROW_RTOL = 1e-3, 1e-2  # of a function that computes in a narrower dtype than it is checked in
NOT_REPRODUCIBLE = "f differs from call to call: torch.manual_seed does not reach its randomness"


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
        target: The function and its inputs. The check ``values`` may replace it by the same for symmetric matrices.
        tolerance: What an entry may be off by, and how exactly f computes.
        fast: Whether to compare fewer entries.
        seed: Seed of everything drawn at random.
        reference: A plain function to compare with, instead of differences.
        skip: Names of checks that are not run.
        deep: Whether third derivatives are checked.
        kinks: Kinks that the check ``values`` has found.
        is_wrong: Whether the check ``values`` has found an error, which other points would show again.
        obstacle: Why nothing can be checked, and the name of the check that reports it; None if all is well.
        generator: Draws what a check draws; each check begins with the seed.
        outputs: The outputs that have a gradient, and ``output_numbers`` their numbers among all.
        scale: The largest entry of the gradient, of those that are finite.
        finite: Which entries of it are.
        natural: The size of a gradient that is neither steep nor flat; one that is far smaller is 0 but for rounding.
        gradient_eps: The relative precision of the gradient, where backward computes in a narrower dtype than f.
        sensitivity: How much the gradient changes with the last digits of x, as a solver's of a nearly singular system.
        random: Whether f draws random numbers.
        is_narrow: Which outputs have fewer digits than the dtype, and ``exact`` the tolerance for the others.
    """

    target: CheckTarget
    tolerance: Tolerance
    fast: bool
    seed: int
    reference: CheckTarget | None = None
    skip: Collection[str] = ()
    deep: bool = False
    kinks: list[str] = field(default_factory=list)
    is_wrong: bool = False
    obstacle: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Draw v, compute the gradient that all others are compared with, and find out what f is like."""
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.most = 12 if self.fast else 400  # entries of an input to compare
        connected = [(k, t.detach()) for k, t in self.target.numbered_outputs(self.target.leaves()) if t.requires_grad]
        self.output_numbers, self.outputs = [k for k, _ in connected], [t for _, t in connected]
        self._v = random_like(self.outputs, self.generator)
        self.gradient_eps = 0.0
        self.natural = 0.01 * largest(self.outputs) / max(largest(self.target.values), 1e-30)
        self.sensitivity, self.scale = 0.0, 0.0
        self.finite = [torch.ones_like(t, dtype=torch.bool) for t in self.target.values]
        self._hidden: list[Tensor] = []  # entries on which a NaN depends: differences would not show it
        self._find_precision()
        self._find_randomness()
        if not self.outputs:
            expected = "expected a gradient for each input, got None (is forward detached?)"
            self.obstacle = "values", f"no output requires grad: {expected}"
        elif all(t.numel() and not t.isfinite().any() for t in self.outputs):
            self.obstacle = "values", "f is not finite at these inputs: nothing can be checked"
        else:
            self._find_gradient()

    def _find_precision(self) -> None:
        # Not of the inputs themselves, which may have been float32: then relu of them would look so, too.
        nearby, outputs = [t * (1 + 1e-9) for t in self.target.values], self.outputs
        with DtypesSeen() as seen:
            try:
                outputs = list(self.target.run(self.target.leaves(nearby)))
            except Exception:  # the inputs lie at the edge of what f accepts
                self.target.run(self.target.leaves())
        own = torch.finfo(self.target.dtype).eps
        self.is_narrow = [precision_of([t], seen.dtypes) > own for t in outputs]
        eps = precision_of(outputs, seen.dtypes)
        # Σ |v f|: what C is a sum of.
        terms = [torch.where(v == 0, 0.0, t * v).double() for t, v in zip(self.outputs, self._v, strict=True)]
        size = sum(float(t.abs().sum()) for t in terms)
        atol, rtol = self.tolerance.atol, self.tolerance.rtol
        self.exact = Tolerance(atol, rtol, own, size)
        if eps > own:
            atol, rtol = max(atol, NARROW_ATOL), max(rtol, NARROW_RTOL)
        self.tolerance = Tolerance(atol, rtol, eps, size)

    def _find_randomness(self) -> None:
        self.random = self._differs_with(seed=self.target.seed + 1)
        if self._differs_with(seed=self.target.seed):
            self.obstacle = "deterministic", NOT_REPRODUCIBLE

    def _differs_with(self, seed: int) -> bool:
        """Return whether f returns something else with a seed, by more than the last digits, as those of a solver."""
        other = copy.copy(self.target)
        other.seed = seed
        again = dict(other.numbered_outputs(other.leaves()))
        pairs = [(again[k], before) for k, before in zip(self.output_numbers, self.outputs, strict=True)]
        return any(mismatch(a, b, 1e4 * self.eps * largest([b])) is not None for a, b in pairs)

    def _find_gradient(self) -> None:
        try:
            gradient = self.gradient()
        except Exception as error:
            self.obstacle = "values", f"backward raises {format_error(error)}"
            if "use_reentrant=True" in str(error):
                name = self.target.name
                raise UserError(
                    f"{name} uses torch.utils.checkpoint(use_reentrant=True), whose backward cannot compute the "
                    "gradients of single inputs: take use_reentrant=False"
                ) from error
            return
        self.scale = largest(gradient)
        self.finite = [mask if g is None else g.isfinite() for g, mask in zip(gradient, self.finite, strict=True)]
        if any(bool(t.isnan().any()) for t in self.outputs):
            of_nan = self.gradient([t.isnan().to(t.dtype) for t in self.outputs])
            self._hidden = [t.flatten() != 0 for t in filled(of_nan, self.target.values)]
        nearly = [t * (1 + 4 * self.eps * d.sign()) for t, d in random_pairs(self.target.values, self.generator)]
        with contextlib.suppress(Exception):  # f does not accept them
            there = self.target.gradients(self.v, self.target.leaves(nearly))
            if self.scale > 1e3 * self.eps * self.natural:  # no mere rounding errors
                of_size = [t for t in there if t is not None and largest([t]) > 1e-6 * self.scale]
                self.gradient_eps = precision_of(of_size, ())
            changes = [None if a is None or b is None else b - a for a, b in zip(gradient, there, strict=True)]
            self.sensitivity = min(largest(changes), 1e-6 * self.scale)

    @property
    def eps(self) -> float:
        """The relative precision of f: less than its dtype has, if it computes in a narrower one."""
        return self.tolerance.eps

    @property
    def v(self) -> list[Tensor]:
        """The v that was drawn, in copies of its own for each caller: a backward may write to what it gets."""
        return [t.clone() for t in self._v]

    def gradient(self, v: Sequence[Tensor] | None = None, target: CheckTarget | None = None) -> Gradients:
        """Return the gradients for a copy of v, by default the one that was drawn."""
        return (target or self.target).gradients(self.v if v is None else [t.clone() for t in v])

    @property
    def has_right_values(self) -> bool:
        """Whether differences at other points would show anything but what ``values`` has shown."""
        return "values" not in self.skip and self.reference is None and not self.is_wrong and self.eps <= COARSEST

    def needs_differences(self) -> None:
        """Skip a check that compares with differences where the gradient is wrong on purpose."""
        if "values" in self.skip:
            raise Skipped('it compares with differences, as the check "values", which is skipped')
        self.needs_precision()

    def needs_precision(self) -> None:
        """Skip a check where f has too few digits for differences."""
        if self.eps > COARSEST:
            raise Skipped("f computes in 16 bits, too few for differences: pass a reference=, and dtype=torch.bfloat16")

    def needs_right_values(self) -> None:
        """Skip a check that would show again what the check ``values`` has found."""
        self.needs_differences()
        if self.reference is not None:
            raise Skipped("a reference is given: differences may not be accurate enough")
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

    def rounding(self, t: Tensor, slack: float = 1.0) -> float:
        """Return a generous bound of a gradient's rounding error: it is a sum whose terms may be larger than itself.

        Relative to the largest entry it is 10³ ε, in narrow dtypes less, times ``slack``, at most a hundredth or 8 ε.
        """
        eps = max(self.eps, self.gradient_eps, float(torch.finfo(t.dtype).eps))
        relative = min(1e3 * eps, max(8 * eps, 1e-4))
        relative = min(slack * relative, max(relative, 0.01))
        return relative * max(1e-30, largest([t]), 0.1 * self.scale, self.natural) + 30 * self.sensitivity

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

        Entries where the gradient is not finite are not compared: f has no slope there, or ``values`` reports it.

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
        self,
        c: Scalar,
        values: Sequence[Tensor],
        gradients: Gradients,
        most: int,
        size: float | None = None,
        tolerance: Tolerance | None = None,
    ) -> Iterator[tuple[int, EntryComparison]]:
        """Compare each gradient of C that is there with central differences; yield the number of the input, and how.

        ``size`` is that of the terms of C, by default Σ |v f|. Where rounding would hide any error, an entry cannot be
        judged.
        """
        tolerance = tolerance or self.tolerance
        if size is not None:  # C is one of derivatives
            tolerance = replace(tolerance, size=size, eps=max(tolerance.eps, self.gradient_eps))
            if tolerance.eps > COARSE:
                tolerance = replace(
                    tolerance, atol=max(tolerance.atol, NARROW_ATOL), rtol=max(tolerance.rtol, NARROW_RTOL)
                )
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            entries = draw_entries(values[i], most, self.generator)
            odd = torch.nonzero(~gradient.isfinite().flatten()).flatten()[:20].cpu()
            entries = torch.cat([entries, odd]).unique()  # a NaN is looked at, wherever it is
            comparison = check_by_differences(c, values, i, gradient, entries, tolerance)
            if i < len(self._hidden) and values[i] is self.target.values[i]:
                comparison.set_aside(self._hidden[i][entries.to(gradient.device)].cpu())
            size_here = max(self.scale, largest([comparison.got, comparison.expected]))
            if NOISE_MARGIN * comparison.noise > 1e-3 * size_here:
                gap = (comparison.got - comparison.expected).abs()
                strict = tolerance.atol * size_here + tolerance.rtol * comparison.expected.abs()
                comparison.set_aside((gap > strict) & ~comparison.wrong)
            yield i, comparison

    def must_agree(
        self, c: Scalar, values: Sequence[Tensor], gradients: Gradients, most: int, when: str = "", hint: str = ""
    ) -> None:
        """Fail if a gradient of C differs from central differences."""
        for i, comparison in self.by_differences(c, values, gradients, most):
            if comparison.wrong.any():
                name, detail = self.target.names[i], comparison.describe(values[i].shape)
                raise Failed(f"∂C/∂{name}{when and f' {when}'}: {detail}{hint and f': {hint}'}")


def has_both_signs(t: Tensor) -> bool:
    """Return whether some entries are positive and some negative."""
    return bool((t > 0).any() and (t < 0).any())


def random_pairs(tensors: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each tensor with a random one of the same shape."""
    return zip(tensors, random_like(tensors, generator), strict=True)


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
    entries = torch.arange(len(wrong), device="cpu")
    return EntryComparison(entries, one.flatten().cpu(), right.flatten().cpu(), wrong.cpu()).describe(expected.shape)


def differs(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are not exactly equal; NaN equals NaN."""
    return mismatch(a, b, 0.0) is not None


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients, with zeros in the place of None."""
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, like, strict=True)]
