"""Parse a loss argument (a name, a function, a module of ``torch.nn``) into a :class:`LossSpec`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltaprop import functional as F
from deltaprop._torch_compat import module_hooks
from deltaprop.core import LOSSES, Loss
from deltaprop.errors import UserError, unknown_name

LossLike = str | Callable[..., Tensor] | nn.Module

# Modules of torch.nn: the name of the loss here, and the options stored as attributes.
_TORCH_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.CrossEntropyLoss: ("cross_entropy", ("weight", "ignore_index", "reduction", "label_smoothing")),
    nn.BCEWithLogitsLoss: ("binary_cross_entropy_with_logits", ("weight", "pos_weight", "reduction")),
    nn.MSELoss: ("mse_loss", ("reduction",)),
    nn.L1Loss: ("l1_loss", ("reduction",)),
    nn.HuberLoss: ("huber_loss", ("reduction", "delta")),
}

# Names on the command line that are not the name without "_loss".
_SHORT_NAMES = {"binary_cross_entropy_per_sample": "binary-cross-entropy"}


def short_name(name: str) -> str:
    """Return a loss's name as the command line spells it: ``"mse"`` of ``"mse_loss"``."""
    return _SHORT_NAMES.get(name, name.removesuffix("_loss").replace("_", "-"))


@dataclass(frozen=True)
class LossSpec:
    """A loss with its options.

    Attributes:
        name: Name of the function in :mod:`deltaprop.functional`, a row of ``LOSSES``.
        options: Its keyword arguments.
    """

    name: str
    options: dict[str, Any]

    @property
    def definition(self) -> type[Loss]:
        """Its row of ``LOSSES``."""
        return LOSSES[self.name]

    @property
    def reduction(self) -> str:
        """``"mean"`` or ``"sum"``."""
        return str(self.options.get("reduction", "mean"))

    @functools.cached_property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments after outputs and targets in the definition's methods."""
        return tuple({**self.definition.options(), **self.options}.values())

    def __call__(self, a: Tensor, y: Tensor) -> Tensor:
        """Return C, recorded by autograd."""
        loss: Tensor = getattr(F, self.name)(a, y, **self.options)
        return loss

    def forward(self, a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return C without autograd, and the tensor that the gradient is computed from."""
        output = self.definition.forward(a, y, *self.arguments)
        return (output[0] if isinstance(output, tuple) else output), self.definition.saved(a, output)

    def of_batch(self, a: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` returns, of targets as :meth:`targets` returns them."""
        return self.forward(a, targets[0])

    def targets(self, y: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """Return targets as the gradient takes them, y first, one row per sample; ``like`` has the outputs' shape."""
        return self.definition.targets(y, like, *self.arguments)

    def grad_input(self, saved: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        """Return ∂C/∂a^L, the left factor of BP1."""
        return self.definition.grad_input(1.0, saved, targets, *self.arguments)

    def grad_entries(self, a: Tensor, targets: tuple[Tensor, ...]) -> Tensor | float:
        """Return ∂C/∂c of the loss c of an entry or a sample: a number, or a tensor that broadcasts to the targets."""
        return self.definition.grad_entries(1.0, a, targets, *self.arguments)

    def summed(self) -> LossSpec:
        """Return the same loss with ``reduction="sum"``."""
        return LossSpec(self.name, {**self.options, "reduction": "sum"})

    def on_targets(self, y: Tensor) -> LossSpec:
        """Return the loss without ``ignore_index`` where no target has that label: then it is not looked for."""
        if "ignore_index" not in self.definition.options() or y.is_floating_point():
            return self
        ignored = self.options.get("ignore_index", -100)
        if len(y):
            lowest, highest = y.aminmax()
            if lowest <= ignored <= highest and bool((y == ignored).any()):
                return self
        return LossSpec(self.name, {**self.options, "ignore_index": None})

    def count(self, outputs: Tensor, targets: tuple[Tensor, ...]) -> Tensor | int:
        """Return the weight of a batch in the mean loss over several batches: what C's mean divides by.

        So each sample counts once, and class weights and ignored labels count as they do in C.

        Args:
            outputs: a^L, or a tensor of its shape.
            targets: As :meth:`targets` returns them.
        """
        denominator = self.definition.denominator(outputs, targets, *self.arguments) if self.reduction == "mean" else 0
        return denominator if isinstance(denominator, Tensor) else len(outputs)


@dataclass(frozen=True)
class SampleWeighted(LossSpec):
    """C = Σ_n w_n C_n / Σ_n w_n, with C_n the loss of sample n and w_n > 0 its weight; for a sum C = Σ_n w_n C_n.

    C_n and its gradient are those of the definition without reduction, ∂C/∂a_n = (w_n / Σ w) ∂C_n/∂a_n. The tuple of
    targets ends with w, [N].
    """

    @functools.cached_property
    def _entrywise(self) -> tuple[Any, ...]:
        """The arguments of the definition's methods, with the losses of single entries in place of their mean."""
        return tuple({**self.definition.options(), **self.options, "reduction": "none"}.values())

    def grad_entries(self, a: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        """Return ∂C/∂c of each entry: w_n / Σ w, divided by the entries whose mean or sum is C_n; [N], or [N, 1]."""
        *of_loss, weights = targets
        grad = weights
        if self.reduction == "mean":
            denominator = self.definition.denominator(a, tuple(of_loss), *self.arguments)
            grad = weights * len(a) / (weights.sum() * denominator)
        return grad if self.definition.takes_labels else grad.unsqueeze(1)

    def of_batch(self, a: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return C without autograd, and the tensor that the gradient is computed from."""
        output = self.definition.forward(a, targets[0], *self._entrywise)
        entries = output[0] if isinstance(output, tuple) else output
        return (self.grad_entries(a, targets) * entries).sum(), self.definition.saved(a, output)

    def grad_input(self, saved: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        """Return ∂C/∂a^L, the left factor of BP1."""
        grad_entries = self.grad_entries(saved, targets)
        return self.definition.grad_input(grad_entries, saved, targets[:-1], *self._entrywise)

    def count(self, outputs: Tensor, targets: tuple[Tensor, ...]) -> Tensor | int:
        """Return Σ w, the weight of a batch in the mean over several."""
        return targets[-1].sum() if self.reduction == "mean" else len(outputs)


def parse_loss(loss: LossLike) -> LossSpec:
    """Return a loss with its options.

    Args:
        loss: A function of :mod:`deltaprop.functional` or its counterpart in ``torch.nn.functional``; its name in
            Python or on the command line (``"mse_loss"``, ``"mse"``); a ``functools.partial`` of a function with
            keyword options; or a loss module of ``torch.nn`` that has a counterpart here.

    Raises:
        UserError: If it is not one of these, or an option is unknown or out of range.
    """
    if isinstance(loss, LossSpec):
        return loss
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        if loss.args:
            raise UserError(f"options of the loss must be given by keyword, got {len(loss.args)} by position")
        options, loss = dict(loss.keywords), loss.func
    if isinstance(loss, nn.Module):
        name, attributes = _TORCH_MODULES.get(type(loss), ("", ()))
        options = {attribute: getattr(loss, attribute) for attribute in attributes}
        if any(module_hooks(loss)):
            raise UserError(f"the loss {type(loss).__name__} has hooks, which would not be called")
    elif isinstance(loss, str):
        name = loss if loss in LOSSES else {short_name(row): row for row in LOSSES}.get(loss, "")
        if not name:
            raise unknown_name("loss", loss, LOSSES)
    else:
        if not callable(loss):
            raise UserError(f"the loss must be a function or its name, got {type(loss).__name__}")
        name = next((row for row in LOSSES if loss in (getattr(F, row), getattr(nn.functional, row, None))), "")
    if not name:
        given = getattr(loss, "__name__", type(loss).__name__)
        raise UserError(f"there is no δ for the loss {given} here: take one of {', '.join(LOSSES)}")
    _check_options(name, options)
    return LossSpec(name, {option: value for option, value in options.items() if value is not None})


def _check_options(name: str, options: dict[str, Any]) -> None:
    known = set(LOSSES[name].options())  # of a row that was added at run time
    if name in F.__all__:
        known = set(inspect.signature(getattr(F, name)).parameters) - {"input", "target"}
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(sorted(known)) or 'none'}")
    if options.get("reduction", "mean") not in ("mean", "sum"):
        raise UserError(f"the loss must be one number: reduction 'mean' or 'sum', got {options['reduction']!r}")
    delta = options.get("delta", 1.0)
    if name == "huber_loss" and not (isinstance(delta, float | int) and delta > 0):
        raise UserError(f"delta of huber_loss must be a number above 0, got {delta!r}")
    if not 0 <= options.get("label_smoothing", 0.0) <= 1:
        raise UserError(f"label_smoothing must be between 0 and 1, got {options['label_smoothing']}")
