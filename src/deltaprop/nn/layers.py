"""Read the layers of a model: linear layers, each followed by one activation or none.

Any other module is refused by name: a engine without autograd would not call it, and training would silently go wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from deltaprop._torch_compat import GLOBAL_MODULE_HOOKS, children, module_hooks
from deltaprop.core import ACTIVATIONS
from deltaprop.core.recursion import Layer
from deltaprop.errors import UserError
from deltaprop.nn.modules import MLP, Activation, Linear, from_torch

ELSEWHERE = "train it by autograd (loss.backward(), `engine='autograd'`)"


def read_layers(model: nn.Module) -> list[Layer]:
    """Return the layers of a model, from the first, on its own Parameters.

    Args:
        model: An ``nn.Sequential`` of linear layers and activations, ours or PyTorch's, nested to any depth.

    Raises:
        UserError: If it contains any other module.
    """
    if not isinstance(model, nn.Sequential):
        raise UserError(f"training without autograd takes an nn.Sequential, got {type(model).__name__}: {ELSEWHERE}")
    if any(GLOBAL_MODULE_HOOKS):
        raise UserError(f"there are hooks on all modules, which would not be called: {ELSEWHERE}")
    found: list[Layer] = []
    takes_activation = False  # whether the last layer may still get one
    for name, module in flat_modules(model):
        kind = f"module {name} ({type(module).__name__})"
        if any(hook_tables([module])) or "forward" in vars(module):
            raise UserError(f"{kind} has hooks or a forward of its own, which would not be called: {ELSEWHERE}")
        ours = from_torch(module)
        if type(ours) is Linear:
            weight, bias = ours.weight, ours.bias
            learns = weight.requires_grad, bias is not None and bias.requires_grad
            found.append(Layer(weight, bias, learns=learns))
            takes_activation = True
        elif not isinstance(ours, Activation) or type(ours).forward is not Activation.forward:
            raise UserError(f"{kind} is neither a linear layer nor an activation that deltaprop has: {ELSEWHERE}")
        elif not takes_activation:
            raise UserError(f"{kind} does not follow a linear layer: {ELSEWHERE}")
        else:
            found[-1].activation, found[-1].constants = ours.op, ours.constant_values()
            takes_activation = False
    if not found:
        raise UserError("the model has no linear layer")
    for below, above in pairwise(found):
        n_out, n_in = len(below.weight), above.weight.shape[1]
        if n_out != n_in:
            raise UserError(f"a layer of {n_out} outputs comes before one of {n_in} inputs")
    return found


def flat_modules(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a Sequential and of those within it, in order, with their names.

    Raises:
        UserError: If a Sequential does more than call its modules in turn.
    """
    own = "forward" in vars(model) or type(model).forward not in (nn.Sequential.forward, MLP.forward)
    if own or any(hook_tables([model])):
        raise UserError(
            f"{prefix or 'the model'} has a forward or hooks of its own, which would not be called: {ELSEWHERE}"
        )
    for name, module in children(model).items():
        if isinstance(module, nn.Sequential):
            yield from flat_modules(module, f"{prefix}{name}.")
        elif module is not None:
            yield f"{prefix}{name}", module


def hook_tables(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    """Return the hook dictionaries of these modules: what a call runs besides ``forward``."""
    return [hooks for module in modules for hooks in module_hooks(module)]


def refuse_contained_activation(layers: list[Layer], loss_name: str, contains: tuple[str, ...]) -> None:
    """Refuse an output activation that the loss already contains: it would be applied twice.

    Raises:
        UserError: If the last layer has one.
    """
    last = layers[-1].activation
    if last is not None and any(last is ACTIVATIONS[name] for name in contains):
        raise UserError(
            f"{loss_name} already contains {last.__name__}: it would be applied twice; leave it out of the model"
        )
