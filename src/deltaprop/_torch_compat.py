"""Private entry points of PyTorch that the core and the checks for hooks need, each beside what it stands for.

Tried with PyTorch 2.11 to 2.13. Where a release has a public way, that way belongs here instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# torch.func has no "is a transform active?"; Function.apply asks this one.
transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active

# Function.apply calls it on each input: a tensor that outlived its transform stands for its plain value.
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead


def in_forward_mode() -> bool:
    """Return whether a level of ``torch.autograd.forward_ad`` is open: it has no public query."""
    return forward_ad._current_level >= 0


def forward_mode_enabled() -> AbstractContextManager[None]:
    """Return a context with forward-mode AD on: inside a Function's jvp it is off (pytorch issue 197867)."""
    return forward_ad._set_fwd_grad_enabled(True)


def quick_apply(function: type[Function]) -> Callable[..., Any]:
    """Return ``function.apply`` for a Function with ``forward(ctx, …)``, less 5 µs of Python a call.

    ``apply`` checks whether the class has a ``setup_context``, which this one has not, and unwraps what outlived a
    transform, which is done here.
    """
    apply = super(Function, function).apply  # type: ignore[misc]  # the C part of a class whose stubs have Python alone

    def quick(*inputs: Any) -> Any:
        return apply(*[_unwrap_if_dead(t) if isinstance(t, Tensor) else t for t in inputs])

    return quick


# Hooks on all modules and on all optimizers have no public query.
GLOBAL_MODULE_HOOKS: tuple[dict[int, Any], ...] = tuple(
    getattr(nn.modules.module, f"_global_{name}_hooks")
    for name in ("forward", "forward_pre", "backward", "backward_pre")
)
GLOBAL_OPTIMIZER_HOOKS: tuple[dict[int, Any], ...] = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
