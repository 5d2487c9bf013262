"""The one way from a definition to its callable.

A definition is a ``torch.autograd.Function`` with four methods, ``forward``, ``setup_context``, ``backward`` and
``jvp``, and nothing else: it is what a reader should meet. No single Function class serves every caller, though:

- the compiler (``torch.compile``, ``torch.export``) refuses a Function that defines ``jvp``;
- ``torch.func`` and forward mode need ``setup_context`` and ``jvp``;
- eager mode pays about 12 µs a call for both, because PyTorch then binds the signature on every call.

So two classes are derived mechanically from the definition, and :func:`primitive` returns a function that picks:

=========  ==========================================  ===============================================
 class      methods                                     used
=========  ==========================================  ===============================================
 ``lean``   ``forward(ctx, …)``, ``backward``           in eager mode and by the compiler
 ``full``   ``forward(…)``, ``setup_context``,          under ``vmap``, ``grad``, ``jacrev``, ``jacfwd``,
            ``backward``, ``jvp``, a vmap rule          ``hessian`` and inside a forward-mode level
=========  ==========================================  ===============================================

Two things no Function can do in PyTorch 2.11 to 2.13, and which users should know:
``torch.compile(torch.func.grad(f))`` traces the forward and differentiates that, ignoring every custom backward
(pytorch issue 193279), and an exported graph carries the forward alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

# Private, as is `_current_level` below: PyTorch 2.11 to 2.13 has no public query for either. `Function.apply` itself
# asks this one.
transforming = torch._C._are_functorch_transforms_active
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead  # private too, and called by `Function.apply` as well


class _Primals:
    """A jvp's context whose saved tensors carry no tangent of their own at the level being differentiated."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        saved = ctx.saved_tensors
        self.saved_tensors = [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in saved]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def quick_apply(lean: type[Function]) -> Callable[..., Any]:
    """Return what ``apply`` of a class with ``forward(ctx, …)`` calls, less 5 µs of Python.

    ``apply`` looks whether the class has a ``setup_context``, which this one has not, and frees what leaked out of a
    transform, which is done here.
    """
    apply = super(Function, lean).apply  # type: ignore[misc]  # the C part of a class whose stubs have Python alone

    def quick(*inputs: Any) -> Any:
        return apply(*[_unwrap_if_dead(t) if isinstance(t, Tensor) else t for t in inputs])

    return quick


def in_plain_eager_mode() -> bool:
    """Return whether nothing transforms, traces or compiles: no ``torch.func``, no forward mode, no compiler."""
    return not (
        transforming() or forward_ad._current_level >= 0 or is_compiling() or torch._C._get_tracing_state() is not None
    )


def primitive(op: type[Function]) -> Callable[..., Any]:
    """Turn a definition into its callable, for eager mode, ``torch.func``, forward mode and the compiler alike.

    Args:
        op: A Function with ``forward(*inputs)``, ``setup_context``, ``backward`` and ``jvp``. Tensors are kept by
            ``ctx.save_for_backward`` in ``setup_context``; the same tensors are there in ``jvp``.

    Returns:
        A function of the positional arguments of ``op.forward``, named ``op``'s name in lower case. It raises
        TypeError for a complex first argument: the δ formulas are those of real numbers.

    Example:
        >>> from deltaprop.ops.activations import Sigmoid
        >>> sigmoid = primitive(Sigmoid)
        >>> z = torch.zeros(2, requires_grad=True)
        >>> sigmoid(z).sum().backward()
        >>> z.grad
        tensor([0.2500, 0.2500])
    """
    run, keep, push = op.forward, op.setup_context, op.jvp

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        keep(ctx, inputs, output)
        return output

    # The compiler counts the parameters of forward to see whether it takes ctx, so *inputs must be spelled out.
    names = ["ctx", *inspect.signature(run).parameters]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions have it

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep(ctx, inputs, output)
        ctx.save_for_forward(*ctx.to_save)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        # Without this, a jvp nested in another is silently zero (pytorch issue 197867).
        with forward_ad._set_fwd_grad_enabled(True):
            return push(_Primals(ctx), *tangents)

    def derive(kind: str, **members: Any) -> Any:
        return type(f"{op.__name__}{kind}", (Function,), {"backward": staticmethod(op.backward), **members})

    lean = derive("", forward=staticmethod(forward))
    full = derive(
        "Full",
        forward=staticmethod(run),
        setup_context=staticmethod(setup_context),
        jvp=staticmethod(jvp),
        generate_vmap_rule=True,
    )

    apply = quick_apply(lean)

    def call(*inputs: Any) -> Any:
        if isinstance(inputs[0], Tensor) and inputs[0].is_complex():  # what is no tensor, PyTorch refuses or traces
            raise TypeError(f"{call.__name__} is written for real numbers, got {inputs[0].dtype}")
        special = transforming() or forward_ad._current_level >= 0
        if is_compiling():
            return run(*inputs) if special else lean.apply(*inputs)
        if special:
            return full.apply(*inputs)
        return apply(*inputs)

    call.__name__ = call.__qualname__ = op.__name__.lower()
    # A code object of its own: the compiler counts recompilations by it, and profilers show its name.
    call.__code__ = call.__code__.replace(co_name=call.__name__)
    call.__module__ = op.__module__
    call.__doc__ = op.__doc__
    return call
