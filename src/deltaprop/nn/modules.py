"""The modules: Linear, one module per activation, MLP, and conversion from and to ``torch.nn``.

They hold parameters and call :mod:`deltaprop.functional`; the formulas are in :mod:`deltaprop.core`.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from deltaprop import functional as F
from deltaprop._torch_compat import children
from deltaprop.core import ACTIVATIONS, primitive
from deltaprop.core import Activation as Definition
from deltaprop.errors import UserError, unknown_name
from deltaprop.nn.init import INITS, initialize


class Linear(nn.Linear):
    """z = a_prev Wᵀ + b, with its backward pass written by hand.

    A subclass of ``torch.nn.Linear``: same parameters, same initialisation under the same seed, same state_dict.

    Example:
        >>> layer = Linear(3, 2)
        >>> layer(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return z, [..., n_out], from a_prev, [..., n_in]."""
        return F.linear(input, self.weight, self.bias)


class Activation(nn.Module):
    """a = σ(z) as a module; one subclass for each row of ``deltaprop.core.ACTIVATIONS``.

    The constants of the formula (``negative_slope``, ``alpha``, …) are its arguments, in the order of its definition,
    and its attributes. A new row needs no class here: :func:`activation_module` creates one.
    """

    op: ClassVar[type[Definition]]
    call: ClassVar[Callable[..., Tensor]]
    constants: ClassVar[dict[str, Any]]  # names and defaults

    def __init_subclass__(cls, row: str | None = None) -> None:
        super().__init_subclass__()
        if row is not None:
            cls.op, cls.call = ACTIVATIONS[row], staticmethod(primitive(ACTIVATIONS[row]))
            _, *constants = inspect.signature(cls.op.forward).parameters.values()
            cls.constants = {p.name: p.default for p in constants}
            _MODULES[row] = cls

    def __init__(self, *args: Any, inplace: bool = False, **kwargs: Any) -> None:
        super().__init__()
        if inplace:
            raise ValueError("inplace=True is not possible here: the δ formulas read what it would overwrite")
        unknown = [name for name in kwargs if name not in self.constants]
        if unknown or len(args) > len(self.constants):
            allowed = ", ".join(self.constants) or "no arguments"
            raise TypeError(f"{type(self).__name__} takes {allowed}, got {[*args, *unknown]}")
        for name, value in {**self.constants, **dict(zip(self.constants, args, strict=False)), **kwargs}.items():
            setattr(self, name, value)

    def forward(self, input: Tensor) -> Tensor:
        """Return a from z, of any shape."""
        return type(self).call(input, *[getattr(self, name) for name in self.constants])

    def constant_values(self) -> tuple[Any, ...]:
        """Return the constants of the formula, in the order of its definition."""
        return tuple(getattr(self, name) for name in self.constants)

    def extra_repr(self) -> str:
        """Return the constants, as repr shows them."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.constants)


_MODULES: dict[str, type[Activation]] = {}


def activation_module(name: str) -> type[Activation]:
    """Return the module class of a row of ``deltaprop.core.ACTIVATIONS``.

    Raises:
        UserError: If there is no such row; the nearest name is suggested.

    Example:
        >>> activation_module("leaky_relu")(0.2)
        LeakyReLU(negative_slope=0.2)
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    op = ACTIVATIONS[name]
    if name not in _MODULES or _MODULES[name].op is not op:
        # `__module__`: pickle finds the class here, by `__getattr__` below.
        type(op.__name__, (Activation,), {"__doc__": op.__doc__, "__module__": __name__}, row=name)
    return _MODULES[name]


class Step(Activation, row="step"):
    """a = 1 where z > 0, else 0: the perceptron's. No gradient passes it."""

    def __init__(self) -> None:
        super().__init__()


class Identity(Activation, row="identity"):
    """a = z."""

    def __init__(self) -> None:
        super().__init__()


class ReLU(Activation, row="relu"):
    """a = max(0, z). ``inplace=True`` is refused."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace=inplace)


class LeakyReLU(Activation, row="leaky_relu"):
    """a = z where z > 0, else s z, s being ``negative_slope``. ``inplace=True`` is refused."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__(negative_slope, inplace=inplace)


class ELU(Activation, row="elu"):
    """a = z where z > 0, else α (e^z − 1), α being ``alpha``. ``inplace=True`` is refused."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__(alpha, inplace=inplace)


class GELU(Activation, row="gelu"):
    """a = z Φ(z), or its tanh form with ``approximate="tanh"``."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__(approximate)


class SiLU(Activation, row="silu"):
    """a = z / (1 + e^−z). ``inplace=True`` is refused."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace=inplace)


class Softplus(Activation, row="softplus"):
    """a = log(1 + e^{βz}) / β, β being ``beta``; z itself where βz exceeds ``threshold``."""

    def __init__(self, beta: float = 1, threshold: float = 20) -> None:
        super().__init__(beta, threshold)


class Sigmoid(Activation, row="sigmoid"):
    """a = 1 / (1 + e^−z)."""

    def __init__(self) -> None:
        super().__init__()


class Tanh(Activation, row="tanh"):
    """a = tanh z."""

    def __init__(self) -> None:
        super().__init__()


class Softmax(Activation, row="softmax"):
    """a_i = e^{z_i} / Σ_j e^{z_j}, j along ``dim``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim)


class LogSoftmax(Activation, row="log_softmax"):
    """a_i = z_i − log Σ_j e^{z_j}, j along ``dim``. Nats."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim)


if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        """Return the module of an activation that was registered at run time."""
        for row, op in ACTIVATIONS.items():
            if op.__name__ == name:
                return activation_module(row)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


ActivationLike = str | type[nn.Module] | nn.Module | Callable[..., Tensor]


class MLP(nn.Sequential):
    """A multilayer perceptron: a^l = σ(a^{l−1} (W^l)ᵀ + b^l) for l = 1 … L.

    An ``nn.Sequential`` of Linear and activation modules in turn, so its state_dict has the keys and shapes of the
    plain PyTorch twin ``Sequential(Linear, act, Linear, …)`` and loads there, and back.

    Args:
        sizes: [n_0, n_1, …, n_L]: inputs, hidden layers, outputs; at least two.
        activation: Activation of the hidden layers: a name in ``core.ACTIVATIONS``, a function of that name
            (``torch.relu``, ``torch.nn.functional.relu`` or ours), a module class or instance (copied for each layer),
            or a list of these, one per hidden layer. A ``torch.nn`` activation becomes ours where we have it.
        output_activation: Activation of the last layer; None for none, as losses from logits need.
        bias: Whether layers have biases.
        init: A name for :func:`initialize`; None for PyTorch's own.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        UserError: If sizes are fewer than two or not positive, a list does not have one activation per hidden layer,
            or a name is unknown.

    Example:
        >>> model = MLP([784, 30, 10], activation="sigmoid")
        >>> list(model.state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: ActivationLike | Sequence[ActivationLike] = "relu",
        output_activation: ActivationLike | None = None,
        *,
        bias: bool = True,
        init: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        given = sizes
        try:
            sizes = [0 if isinstance(n, bool) else operator.index(n) for n in sizes]
        except TypeError:
            sizes = []
        if len(sizes) < 2 or any(n < 1 for n in sizes):
            raise UserError(f"sizes must be two or more positive integers, such as [784, 30, 10], got {given}")
        if init is not None and init not in INITS:
            raise unknown_name("initialisation", init, INITS)
        hidden = len(sizes) - 2
        if isinstance(activation, Sequence) and not isinstance(activation, str):
            if len(activation) != hidden:
                raise UserError(
                    f"activation must be one, or a list with one per hidden layer: {hidden}, got {len(activation)}"
                )
            chosen: list[ActivationLike] = list(activation)
        else:
            chosen = [activation] * hidden
        modules: list[nn.Module] = []
        for n_in, n_out, sigma in zip(sizes[:-1], sizes[1:], [*chosen, output_activation], strict=True):
            modules.append(Linear(n_in, n_out, bias, device=device, dtype=dtype))
            if sigma is not None:
                modules.append(_as_module(sigma))
        super().__init__(*modules)
        if init is not None:
            initialize(self, init)

    def __getitem__(self, index: slice | int) -> nn.Module:
        """Return a module; a slice is a plain ``nn.Sequential`` of the same modules."""
        if isinstance(index, slice):
            named = [(name, module) for name, module in children(self).items() if module is not None]
            return nn.Sequential(OrderedDict(named[index]))
        return super().__getitem__(index)


def _as_module(activation: ActivationLike) -> nn.Module:
    if isinstance(activation, str):
        return activation_module(activation)()
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        return from_torch(activation())
    if isinstance(activation, nn.Module):
        return from_torch(copy.deepcopy(activation))
    for name in ACTIVATIONS:
        if any(activation is getattr(place, name, None) for place in (F, torch, nn.functional)):
            return activation_module(name)()
    raise UserError(
        "an activation must be a name, a function such as torch.relu, a module class or a module instance, "
        f"got {activation!r}"
    )


# --- from and to torch.nn ---


def from_torch(module: nn.Module) -> nn.Module:
    """Return the same model on hand-written ops: a new module tree on the same Parameter objects.

    ``torch.nn.Linear`` and the activations that have a counterpart here are replaced, at any depth; every other module
    is copied as it is, sharing its parameters and buffers. The original is untouched. ``inplace`` is dropped: the
    result is the same. Subclasses of ``torch.nn.Linear`` are copied unchanged: what they add is unknown.

    Example:
        >>> twin = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> ours = from_torch(twin)
        >>> type(ours[0]).__module__, ours[0].weight is twin[0].weight
        ('deltaprop.nn.modules', True)
    """
    return _convert(module, _to_ours, {})


def to_torch(module: nn.Module) -> nn.Module:
    """Return the same model on plain ``torch.nn`` modules: a new module tree on the same Parameter objects.

    An MLP becomes a ``torch.nn.Sequential``; its saved form loads without deltaprop.

    Raises:
        UserError: If a module has no counterpart in PyTorch (Step, Perceptron).
    """
    return _convert(module, _to_theirs, {})


def _convert(
    module: nn.Module, replacement: Callable[[nn.Module], nn.Module], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Rebuild a module tree; a module that occurs twice is shared in the copy too."""
    if module not in done:
        copied = replacement(module)
        done[module] = copied
        for name, child in children(module).items():
            if child is not None:
                children(copied)[name] = _convert(child, replacement, done)
    return done[module]


def _shallow(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a module of the given class with the same attributes, in dictionaries of its own."""
    copied = kind.__new__(kind)
    # Dictionaries hold parameters, buffers, children and hooks: what is added to one tree must not reach the other.
    copied.__dict__.update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in module.__dict__.items()})
    return copied


def _to_ours(module: nn.Module) -> nn.Module:
    if type(module) is nn.Linear:
        return _shallow(module, Linear)
    for name, op in ACTIVATIONS.items():
        if type(module) is getattr(nn, op.__name__, None):
            if getattr(module, "dim", -1) is None:  # softmax over an axis that PyTorch guesses
                break
            return _shallow(module, activation_module(name))  # constants and hooks are among its attributes
    return _shallow(module, type(module))


def _to_theirs(module: nn.Module) -> nn.Module:
    if type(module) is Linear:
        return _shallow(module, nn.Linear)
    if type(module) is MLP:
        return _shallow(module, nn.Sequential)
    if isinstance(module, Activation):
        twin = getattr(nn, type(module).__name__, None)
        if twin is None:
            raise UserError(f"{type(module).__name__} has no counterpart in torch.nn")
        theirs = _shallow(module, twin)
        theirs.__dict__.setdefault("inplace", False)  # some of PyTorch's read it, and ours have none
        return theirs
    if type(module).__module__.startswith("deltaprop."):  # a Perceptron, say
        raise UserError(f"{type(module).__name__} has no counterpart in torch.nn")
    return _shallow(module, type(module))
