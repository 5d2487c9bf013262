"""What the explicit driver takes: a stack of linear layers, each with one activation or none, and nothing else.

Anything else is refused here, by name: the recursion would not call it, and training would go wrong in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from deltaprop.errors import UserError
from deltaprop.modules import GLOBAL_HOOKS, MLP, Activation, Linear, from_torch
from deltaprop.optim import SGD

ELSEWHERE = "train it by autograd (loss.backward(); on the command line --engine autograd)"

Found = list[tuple[nn.Linear, Activation | None, nn.Module | None]]
"""Each linear layer, its activation as ours, and the module in the model that it stands for."""


def read_layers(model: nn.Module) -> tuple[Found, list[dict[str, Any]]]:
    """Return each linear layer with its activation, and the dictionaries of modules that they were read from.

    Args:
        model: An ``nn.Sequential`` of linear layers and activations, ours or PyTorch's, nested as one likes.

    Raises:
        UserError: If there is anything else in it.
    """
    if not isinstance(model, nn.Sequential):
        raise UserError(f"the explicit driver takes an nn.Sequential, got {type(model).__name__}: {ELSEWHERE}")
    if any(GLOBAL_HOOKS):
        raise UserError(f"there are hooks on all modules, which nothing would call: {ELSEWHERE}")
    read: list[dict[str, Any]] = []
    found: Found = []
    free = False  # whether the last layer may still get an activation
    for name, module in _flat(model, "", read):
        kind = f"module {name} ({type(module).__name__})"
        if _hooked(module) or "forward" in vars(module):
            raise UserError(f"{kind} has hooks or a forward of its own, which nothing would call: {ELSEWHERE}")
        ours = from_torch(module)
        if type(ours) is Linear:
            found.append((module, None, None))  # type: ignore[arg-type]  # PyTorch's Linear or ours
            free = True
        elif not isinstance(ours, Activation) or type(ours).forward is not Activation.forward:
            raise UserError(f"{kind} is neither a linear layer nor an activation that has a δ here: {ELSEWHERE}")
        elif not free:
            raise UserError(f"{kind} does not follow a linear layer: {ELSEWHERE}")
        else:
            found[-1] = (found[-1][0], ours, module)
            free = False
    if not found:
        raise UserError("the model has no linear layer")
    for (below, *_), (above, *_) in pairwise(found):
        if below.out_features != above.in_features:
            raise UserError(f"a layer of {below.out_features} outputs comes before one of {above.in_features} inputs")
    return found, read


def _flat(model: nn.Sequential, prefix: str, read: list[dict[str, Any]]) -> Iterator[tuple[str, nn.Module]]:
    own = "forward" in vars(model) or type(model).forward not in (nn.Sequential.forward, MLP.forward)
    if own or _hooked(model):
        raise UserError(f"{prefix or 'the model'} has a forward or hooks, which nothing would call: {ELSEWHERE}")
    read.append(model._modules)
    for name, module in model._modules.items():  # not named_children(), which names a shared module once
        if isinstance(module, nn.Sequential):
            yield from _flat(module, f"{prefix}{name}.", read)
        elif module is not None:
            yield f"{prefix}{name}", module


def _hooked(module: nn.Module) -> bool:
    return any(hook_tables([module]))


def hook_tables(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    """Return the dictionaries of everything that a call of these modules would run besides their forward."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [getattr(module, name) for module in modules for name in names]


def check_parameters(linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Return the parameters of the layers, in order.

    Raises:
        UserError: If layers share one, or not all are contiguous, real, of one dtype, on one device, without hooks.
    """
    params = [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
    if len(set(map(id, params))) < len(params):
        raise UserError(f"layers share a parameter, whose gradients would have to be added up: {ELSEWHERE}")
    first = params[0]
    for p in params:
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise UserError(f"parameters must all be {first.dtype} on {first.device}, got {p.dtype} on {p.device}")
        if not p.is_floating_point():
            raise UserError(f"parameters must be real numbers, got {p.dtype}")
        if not p.is_contiguous():
            raise UserError(f"parameters must be contiguous, got strides {p.stride()} for shape {list(p.shape)}")
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise UserError(f"a parameter of shape {list(p.shape)} has hooks, which nothing would call: {ELSEWHERE}")
    return params


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose step would do anything but SGD.

    Raises:
        UserError: If it is of another kind, or has hooks on its step.
    """
    known = type(optimizer) in (SGD, torch.optim.SGD)
    hooks = known and any(step_hooks(optimizer))
    if not known or hooks:
        raise UserError(
            f"the explicit driver fuses SGD itself into its products, got {type(optimizer).__name__}"
            f"{' with step hooks' if hooks else ''}: {ELSEWHERE}"
        )


def step_hooks(optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    """Return the dictionaries of what a step of the optimizer would run besides."""
    return [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    ]
