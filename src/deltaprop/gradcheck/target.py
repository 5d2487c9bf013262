"""The function under test, whatever its kind: called on fresh copies of its inputs, with its gradients at hand."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import is_lazy

from deltaprop._torch_compat import PYTHON_FUNCTION, tree_flatten, tree_unflatten
from deltaprop.errors import UserError


class CheckTarget:
    """A function of tensors, and the inputs that it is tried on.

    Args:
        fn: A Function class, a module (whose parameters are inputs too), or any callable.
        inputs: Its positional arguments: tensors, containers of them, and anything else.
        dtype: That its floating tensors are tried in.

    Attributes:
        seed: Of what the function draws at random.
        name: Of the function.
        names: Of the inputs that have a gradient.
        values: Of these inputs, detached.
        rows: The leading size of the first of them.
        batched: Which of them have it, too, and so are likely to hold samples as rows.
        is_argument: Which of them are arguments, not parameters of a module.

    Raises:
        UserError: If it cannot be called, or there is nothing to differentiate.
    """

    def __init__(self, fn: Any, inputs: Any, dtype: torch.dtype) -> None:
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, Function):  # its apply
            fn = owner
        self.fn, self.dtype, self.seed = fn, dtype, 0
        # Found out here: the compiler, too, goes through `all_outputs`, and would break its graph at such a question.
        self._call = fn.apply if isinstance(fn, type) and issubclass(fn, Function) else fn
        if isinstance(fn, nn.Module) and any(map(is_lazy, [*fn.parameters(), *fn.buffers()])):
            raise UserError(f"{type(fn).__name__} has lazy layers that no input has shaped yet: call it once before")
        given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        self.module = copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else None
        self.name = type(fn).__name__ if self.module is not None else getattr(fn, "__name__", type(fn).__name__)
        self._flat, self._spec = tree_flatten(given)
        floating = [i for i, t in enumerate(self._flat) if isinstance(t, Tensor) and t.is_floating_point()]
        asking = [i for i in floating if self._flat[i].requires_grad]
        parameters = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad] if self.module else []
        # Where nobody says which inputs have a gradient, all that can have one are tried.
        self._at = asking or floating
        for i in floating:
            self._flat[i] = self._flat[i].detach().to(dtype)
        self.values = [self._flat[i] for i in self._at] + [p.detach() for _, p in parameters]
        self._parameter_names = [n for n, _ in parameters]
        self.names = [*self._names_of(given), *self._parameter_names]
        if not self.values:
            raise UserError(f"{self.name} has no input to differentiate: pass a tensor of floating-point numbers")
        self.is_argument = [i < len(self._at) for i in range(len(self.values))]
        first = next((t for t in self.values if t.dim()), self.values[0])
        self.rows = first.shape[0] if first.dim() else None
        self.batched = [
            i < len(self._at) and t.dim() > 0 and t.shape[0] == self.rows for i, t in enumerate(self.values)
        ]

    def _names_of(self, given: Sequence[Any]) -> list[str]:
        """Return what the inputs that have a gradient are called in the function's own signature."""
        try:
            target = self.fn.forward if isinstance(self.fn, type) or self.module is not None else self.fn
            words = [p.name for p in inspect.signature(target).parameters.values() if p.kind in (0, 1)]
            if isinstance(self.fn, type) and issubclass(self.fn, Function) and takes_ctx(self.fn):
                words = words[1:]
        except (TypeError, ValueError):
            words = []
        owners: list[str] = []
        for i, argument in enumerate(given):
            leaves = tree_flatten(argument)[0]
            word = words[i] if i < len(words) else f"input {i}"
            owners += [word if len(leaves) == 1 else f"{word}[{j}]" for j in range(len(leaves))]
        return [owners[i] for i in self._at]

    def leaves(self, values: Sequence[Tensor] | None = None, asking: Sequence[bool] | None = None) -> list[Tensor]:
        """Return fresh leaves with these values (its own by default); those that are asking require a gradient."""
        values = self.values if values is None else values
        asking = [True] * len(values) if asking is None else asking
        return [t.detach().clone().requires_grad_(asks) for t, asks in zip(values, asking, strict=True)]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the floating outputs of the function of these tensors in the places of its inputs.

        What it draws at random is the same at every call.
        """
        # torch.manual_seed takes its time for each kind of device, present or not.
        seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seed(self.seed)
        return tuple(t for t in self.all_outputs(tensors) if t.is_floating_point())

    def all_outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return all tensors that the function returns; a complex one as pairs of real numbers."""
        # Copies, so that what f writes to its constants, or a module to its buffers, is gone after the call.
        flat = [t.clone() if isinstance(t, Tensor) else t for t in self._flat]
        for i, t in zip(self._at, tensors, strict=False):
            flat[i] = t
        arguments = tree_unflatten(flat, self._spec)
        if self.module is not None:
            output = self._module_of(tensors[len(self._at) :])(*arguments)
        else:
            output = self._call(*arguments)
        found = [t for t in tree_flatten(output)[0] if isinstance(t, Tensor)]
        return [torch.view_as_real(t) if t.is_complex() else t for t in found]

    def _module_of(self, parameters: Sequence[Tensor]) -> Callable[..., Any]:
        """Return the module with other parameters, and buffers that may be written to."""
        assert self.module is not None
        own = dict(zip(self._parameter_names, parameters, strict=True))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A module of its own, whose parameters are these for good: a checkpoint calls it again in backward.
            replaced: dict[int, Any] = {id(p): own[name] for name, p in self.module.named_parameters() if name in own}
            return copy.deepcopy(self.module, replaced)
        own |= {name: t.clone() for name, t in self.module.named_buffers()}
        return partial(_call_with, self.module, own)

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs that depend on the tensors, which are protected from what writes in place by a copy."""
        return tuple(t for t in self([t.clone() for t in tensors]) if t.requires_grad)

    def with_constants(self, change: Callable[[Tensor], Tensor]) -> CheckTarget:
        """Return the same with those tensors changed that have a row for each sample but no gradient, as labels."""
        other = copy.copy(self)
        constant = [i for i, t in enumerate(self._flat) if isinstance(t, Tensor) and i not in self._at]
        rows = [i for i in constant if self._flat[i].dim() and self._flat[i].shape[0] == self.rows]
        other._flat = [change(t) if i in rows else t for i, t in enumerate(self._flat)]
        return other

    def cast(self, dtype: torch.dtype) -> CheckTarget:
        """Return the same in another dtype."""
        other = copy.copy(self)
        other.dtype = dtype
        other._flat = [t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in self._flat]
        other.values = [t.to(dtype) for t in self.values]
        other.module = None if self.module is None else copy.deepcopy(self.module).to(dtype)
        return other


def _call_with(module: nn.Module, own: dict[str, Tensor], *arguments: Any) -> Any:
    return torch.func.functional_call(module, own, arguments)


def takes_ctx(op: type[Function]) -> bool:
    """Return whether a Function's forward takes ctx, as it does where there is no setup_context."""
    return op.setup_context is PYTHON_FUNCTION.setup_context


def dot(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
    """Return Σ ⟨output, cotangent⟩, a scalar."""
    return torch.stack([(a * v).sum() for a, v in zip(outputs, cotangents, strict=True)]).sum()


def random_like(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return random tensors of the same shapes, entries between 0.5 and 1.5 in size and of either sign.

    So that no entry is too small to show what depends on it.
    """
    drawn = [torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1 for t in tensors]
    return [(r + r.sign() * 0.5).to(t) for r, t in zip(drawn, tensors, strict=True)]


def python_nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """Yield the nodes of a graph that are written in Python: custom Functions."""
    waiting, seen = [t.grad_fn for t in outputs], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            yield node
        waiting.extend(next_node for next_node, _ in node.next_functions)


Gradients = list[Tensor | None]


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor], **options: Any
) -> Gradients:
    """Return ∂Σ⟨output, cotangent⟩/∂leaf of each leaf; None where none is required, and where it is not used."""
    asking = [t for t in leaves if t.requires_grad]
    found = torch.autograd.grad(list(outputs), asking, list(cotangents), allow_unused=True, **options)
    dense = iter([t.to_dense() if t is not None and t.is_sparse else t for t in found])  # an embedding may be sparse
    return [next(dense) if t.requires_grad else None for t in leaves]
