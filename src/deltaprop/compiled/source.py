"""The C++ source for a model: the template ``epoch.cpp``, and in it the formulas of its activations and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from deltaprop.core import ACTIVATIONS, CrossEntropy, Elementwise, ElementwiseLoss
from deltaprop.core.emit import CPP, EmitError, emit_definition
from deltaprop.core.recursion import Layer
from deltaprop.errors import UserError
from deltaprop.loss_spec import LossSpec, short_name

REALS = {torch.float32: "float", torch.float64: "double"}


def distinct_activations(layers: Sequence[Layer]) -> list[Layer]:
    """Return a layer for each activation of a model, in an order that does not depend on theirs."""
    found: list[Layer] = []
    for layer in layers:
        if layer.activation is not None and any(isinstance(constant, Tensor) for constant in layer.constants):
            raise _refusal(layer, "it has a constant that is a tensor")
        if layer.activation is not None and activation_number(layer, found) < 0:
            found.append(layer)
    return sorted(found, key=lambda layer: (getattr(layer.activation, "__name__", ""), repr(layer.constants)))


def activation_number(layer: Layer, distinct: Sequence[Layer]) -> int:
    """Return the number of a layer's activation among these; −1 if it has none."""
    same = [(of.activation, of.constants) == (layer.activation, layer.constants) for of in distinct]
    return same.index(True) if True in same else -1


def source_for(activations: Sequence[Layer], loss: LossSpec, dtype: torch.dtype) -> str:
    """Return the source of a library that trains layers with these activations, and with this loss.

    Args:
        activations: A layer for each of them.
        loss: The loss.
        dtype: float32 or float64.

    Raises:
        UserError: If a formula cannot be written in C++; the message names it.
    """
    formulas, rows = [], []
    for number, layer in enumerate(activations):
        assert layer.activation is not None
        name = f"activation_{number}"
        formulas.append(_activation(layer, name))
        forward, derivative = f"apply_forward<{name}_forward<real>>", f"multiply_by_derivative<{name}_derivative<real>>"
        rows.append(f"    {{{forward}, {derivative}, {str(layer.activation.from_output).lower()}}},")
    rows = rows or ["    {nullptr, nullptr, false},  // no layer has one"]
    formulas += ["static const Activation ACTIVATIONS[] = {", *rows, "};", _loss(loss)]
    template = resources.files(__package__).joinpath("epoch.cpp").read_text(encoding="utf-8")
    before, after = template.split("// FORMULAS\n")
    return "\n".join([f"using real = {REALS[dtype]};", before, *formulas, after])


def _activation(layer: Layer, name: str) -> str:
    definition = layer.activation
    assert definition is not None
    if not issubclass(definition, Elementwise) or _overrides(definition, Elementwise, "delta"):
        is_matrix = not issubclass(definition, Elementwise)
        raise _refusal(layer, "its derivative is a matrix" if is_matrix else "it has a delta of its own")
    try:
        return emit_definition(definition, name, CPP, layer.constants)
    except EmitError as error:
        raise _refusal(layer, str(error)) from error


def _refusal(layer: Layer, reason: str) -> UserError:
    definition = layer.activation
    name = next((row for row, of in ACTIVATIONS.items() if of is definition), getattr(definition, "__name__", ""))
    return UserError(f"the compiled engine does not have the activation {name}: {reason}; {EXPLICIT}")


def _loss(loss: LossSpec) -> str:
    """Return ``struct Loss``, the value and the derivative of an entry, and ``CROSS_ENTROPY``."""
    definition = loss.definition
    try:
        if definition is CrossEntropy:
            return "constexpr bool CROSS_ENTROPY = true;  // written below\nstruct Loss;"
        if not issubclass(definition, ElementwiseLoss) or any(
            _overrides(definition, ElementwiseLoss, method) for method in ("forward", "grad_input", "grad_entries")
        ):
            raise EmitError("it is not computed entry by entry")
        constants = loss_constants(loss)
        emitted = emit_definition(definition, "loss", CPP, constants)
    except EmitError as error:
        name = short_name(loss.name)
        raise UserError(f"the compiled engine does not have the loss {name}: {error}; {EXPLICIT}") from error
    tensors = sum(isinstance(constant, Tensor) for constant in constants)
    given = "".join(f", constants[{number} * n]" for number in range(tensors))
    entries = [
        f"    static real {method}(real a, real y, [[maybe_unused]] const real* constants, [[maybe_unused]] long n)\n"
        f"    {{\n        return loss_{method}(a, y{given});\n    }}"
        for method in ("value", "derivative")
    ]
    return "\n".join([emitted, "constexpr bool CROSS_ENTROPY = false;", "struct Loss {", *entries, "};"])


def loss_constants(loss: LossSpec) -> tuple[Any, ...]:
    """Return what an element-wise loss takes after outputs, targets, weight and reduction."""
    return loss.arguments[2:]


def _overrides(definition: type, base: type, method: str) -> bool:
    """Return whether a definition has a method of its own in place of that of its base class."""
    own, of_base = getattr(definition, method), getattr(base, method)
    return getattr(own, "__func__", own) is not getattr(of_base, "__func__", of_base)


EXPLICIT = "take the explicit engine (dp.ExplicitTrainer, or a run with `engine='explicit'`)"
