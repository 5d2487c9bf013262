"""Private entry points of PyTorch, each beside the public thing that it stands for.

Tried with PyTorch 2.11 to 2.13. Where a release has a public way, that way belongs here instead.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# torch.utils has no public way to take containers of tensors apart.
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_unflatten as tree_unflatten

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


def module_hooks(module: nn.Module) -> list[dict[int, Any]]:
    """Return the dictionaries of all that a call of a module runs besides its forward: they have no public query."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [getattr(module, name) for name in names]


def tensor_hooks(t: Tensor) -> tuple[Any, Any]:
    """Return the hooks on a tensor's gradient, each None where there are none: ``register_hook`` has no query."""
    return t._backward_hooks, t._post_accumulate_grad_hooks


def optimizer_hooks(optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    """Return the dictionaries of what an optimizer's step runs besides: ``register_step_pre_hook`` has no query."""
    return [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *GLOBAL_OPTIMIZER_HOOKS]


def without_compiler(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of an optimizer without PyTorch's wrapper, which imports the compiler: that takes a second."""
    unwrapped: Callable[..., Any] = inspect.unwrap(method)
    return unwrapped


def mark_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell schedulers that a step was taken, as ``optimizer.step()`` does: else their first step warns."""
    optimizer._opt_called = True  # type: ignore[attr-defined]  # not in its stubs


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children by name, to read or to write: ``named_children`` names one that occurs twice once."""
    return module._modules


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return a module's own parameters by name, to read or to write; ``named_parameters`` makes a generator anew."""
    return module._parameters


def many_recompilations(limit: int) -> AbstractContextManager[Any]:
    """Return a context in which the compiler may compile a function so many times: the limits have no public name."""
    import torch._dynamo  # which takes a second or two

    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(
        recompile_limit=limit, accumulated_recompile_limit=limit
    )
    return patch


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Silence the loggers of PyTorch: the compiler reports each graph break at length, and pytest would show it."""
    logging.getLogger("torch.__trace")  # which the compiler makes at its first use
    known = logging.root.manager.loggerDict
    loggers = [log for name, log in known.items() if name.split(".")[0] == "torch" and isinstance(log, logging.Logger)]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def defines_vmap(node: Any) -> bool:
    """Return whether the Function of a node of the tape has a vmap rule of its own."""
    return type(node)._forward_cls.vmap is not torch.autograd.Function.vmap


def defines_jvp(node: Any) -> bool:
    """Return whether the Function of a node of the tape has a jvp of its own: a node knows its Function privately."""
    return type(node)._forward_cls.jvp is not torch.autograd.Function.jvp


def output_metadata(node: Any, number: int) -> Any:
    """Return shape, dtype and device of what a node's output was: nodes of the tape have no public query for it."""
    return node._input_metadata[number]  # the input of its backward


# The base class of Functions of every kind; torch.autograd.Function itself is one of them.
PYTHON_FUNCTION: Any = torch.autograd.function._SingleLevelFunction


@functools.cache
def default_store() -> Any:
    """Return the store by which the processes of the default group have met; only a new group could be given one."""
    from torch.distributed.distributed_c10d import _get_default_store  # not in a PyTorch built without processes

    return _get_default_store()


def blas_gemm(dtype: torch.dtype) -> int | None:
    """Return the address of PyTorch's own BLAS product, ``sgemm_`` or ``dgemm_``; None if its library exports none."""
    names = {torch.float32: "sgemm_", torch.float64: "dgemm_"}
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))  # loaded already
        return ctypes.cast(getattr(library, names[dtype]), ctypes.c_void_p).value
    except (OSError, AttributeError, KeyError):
        return None
