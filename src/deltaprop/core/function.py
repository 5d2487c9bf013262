"""The one way from a definition to its callable.

A definition is a ``torch.autograd.Function`` with four methods, ``forward``, ``setup_context``, ``backward`` and
``jvp``. No single Function class serves every caller, though:

- the compiler (``torch.compile``, ``torch.export``) refuses a Function that defines ``jvp``, and cannot read an
  attribute of a Function class;
- ``torch.func`` and forward mode need ``setup_context`` and ``jvp``;
- eager mode pays about 12 µs a call for both, because PyTorch then binds the signature on every call.

So classes are derived mechanically from the definition, and :func:`primitive` returns a function that picks:

============  =======================================  =====================================================
 class         methods                                  used
============  =======================================  =====================================================
 ``lean``      ``forward(ctx, …)``, ``backward``        in eager mode
 ``compiled``  the same, on a plain class of formulas   by the compiler
 ``full``      ``forward(…)``, ``setup_context``,       under ``vmap``, ``grad``, ``jacrev``, ``jacfwd``,
               ``backward``, ``jvp``, a vmap rule       ``hessian`` and inside a forward-mode level
============  =======================================  =====================================================

Two things no Function can do in PyTorch 2.11 to 2.13, and which users should know:
``torch.compile(torch.func.grad(f))`` traces the forward and differentiates that, ignoring every custom backward
(pytorch issue 193279), and an exported graph carries the forward alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from deltaprop._torch_compat import forward_mode_enabled, in_forward_mode, quick_apply, transforming


class _Primals:
    """A jvp's context whose saved tensors carry no tangent of their own at the level being differentiated."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        saved = ctx.saved_tensors
        self.saved_tensors = [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in saved]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


@functools.cache
def primitive(op: type[Function]) -> Callable[..., Any]:
    """Turn a definition into its callable, for eager mode, ``torch.func``, forward mode and the compiler alike.

    Args:
        op: A Function with ``forward(*inputs)``, ``setup_context``, ``backward`` and ``jvp``. Tensors are saved by
            ``ctx.save_for_backward`` in ``setup_context``; the same tensors are there in ``jvp``.

    Returns:
        A function of the positional arguments of ``op.forward``, named ``op``'s name in lower case. It raises
        TypeError for a complex first argument: the δ formulas are those of real numbers.

    Example:
        >>> import torch
        >>> from deltaprop.core.activations import Sigmoid
        >>> sigmoid = primitive(Sigmoid)
        >>> z = torch.zeros(2, requires_grad=True)
        >>> sigmoid(z).sum().backward()
        >>> z.grad
        tensor([0.2500, 0.2500])
    """
    lean, compiled, full = _combined(op, op), _combined(op, _as_plain_class(op)), _full(op)
    apply = quick_apply(lean)

    def call(*inputs: Any) -> Any:
        if isinstance(inputs[0], Tensor) and inputs[0].is_complex():  # what is not a tensor, PyTorch refuses or traces
            raise TypeError(f"{call.__name__} is written for real numbers, got {inputs[0].dtype}")
        special = transforming() or in_forward_mode()
        if is_compiling():
            return op.forward(*inputs) if special else compiled.apply(*inputs)
        if special:
            return full.apply(*inputs)
        return apply(*inputs)

    call.__name__ = call.__qualname__ = op.__name__.lower()
    # A code object of its own: the compiler counts recompilations by it, and profilers show its name.
    call.__code__ = call.__code__.replace(co_name=call.__name__)
    call.__module__ = op.__module__
    call.__doc__ = op.__doc__
    return call


def _combined(op: type[Function], formulas: Any) -> Any:
    """Return a Function with ``forward(ctx, …)`` and ``backward`` that calls the methods of ``formulas``."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = formulas.forward(*inputs)
        formulas.setup_context(ctx, inputs, output)
        return output

    # The compiler counts the parameters of forward to see whether it takes ctx, so *inputs must be spelled out.
    names = ["ctx", *inspect.signature(op.forward).parameters]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions have it

    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return formulas.backward(ctx, *grad_outputs)

    return type(op.__name__, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def _as_plain_class(op: type[Function]) -> type:
    """Return a class with the definition's methods and attributes that is not a Function."""
    members: dict[str, Any] = {}
    for base in reversed(op.__mro__[: op.__mro__.index(Function)]):
        members |= {name: member for name, member in vars(base).items() if name not in ("__dict__", "__weakref__")}
    return type(op.__name__, (), members)


def _full(op: type[Function]) -> Any:
    """Return a Function with ``setup_context`` and ``jvp`` apart from ``forward``."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        op.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*(ctx.to_save or ()))

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_mode_enabled():  # without it a jvp nested in another is silently zero
            return op.jvp(_Primals(ctx), *tangents)

    methods = {"forward": op.forward, "setup_context": setup_context, "backward": op.backward, "jvp": jvp}
    members = {name: staticmethod(method) for name, method in methods.items()}
    return type(f"{op.__name__}Full", (Function,), {**members, "generate_vmap_rule": True})
