"""The function under test, whatever its kind: called on fresh copies of its inputs."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parameter import is_lazy

from deltaprop._torch_compat import PYTHON_FUNCTION, tree_flatten, tree_unflatten
from deltaprop.errors import UserError, format_error
from deltaprop.gradcheck.differences import Scalar

Gradients = list[Tensor | None]


class CheckTarget:
    """A function of tensors, and the inputs that it is checked on.

    Args:
        fn: A Function class, a module (whose parameters are inputs too), or any callable.
        inputs: Its positional arguments: tensors, containers of them, and anything else. A complex tensor is checked
            as the pairs of real numbers that ``torch.view_as_real`` makes of it.
        dtype: The dtype that floating tensors are cast to.
        seed: Seed of what the function draws at random.

    Attributes:
        seed: Seed of what the function draws at random.
        advance: How many numbers are drawn after the seed is set, before the function is called.
        name: Name of the function.
        names: Names of the differentiated inputs.
        values: The differentiated inputs, detached.
        rows: The leading size of the first of them.
        batched: Which of them have this leading size too, and so are likely to hold samples as rows.
        is_argument: Which of them are arguments, not parameters of a module.
        is_square: Which of them are square matrices: one matrix each, rather than samples as rows.
        integers: Inputs of integers, which may be labels or indices.
        is_function: Whether it is a Function class.
        has_constants: Whether there are other floating inputs, which are not differentiated.
        conjugates: Whether complex outputs are conjugated.
        symmetric: The inputs, by number, that f gets as (x + xᵀ)/2.

    Raises:
        UserError: If it cannot be called, or there is nothing to differentiate.
    """

    def __init__(self, fn: Any, inputs: Any, dtype: torch.dtype, seed: int = 0) -> None:
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, Function):  # its apply
            fn = owner
        self.is_function = isinstance(fn, type) and issubclass(fn, Function)
        if not callable(fn):
            raise UserError(f"pass a Function class, a module or a function, not {fn!r:.60}")
        self.fn, self.dtype, self.seed, self.advance = fn, dtype, seed, 0
        self.conjugates = False
        self.symmetric: tuple[int, ...] = ()
        # Decided here: the compiler, too, traces `all_outputs`, and would break its graph at such a test.
        self._call = fn.apply if isinstance(fn, type) and issubclass(fn, Function) else fn
        if isinstance(fn, nn.Module) and any(map(is_lazy, [*fn.parameters(), *fn.buffers()])):
            raise UserError(f"{type(fn).__name__} has lazy layers without a shape: call it once on an input before")
        arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        try:
            self.module = copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else None
        except RuntimeError as error:  # torch.nn.utils.weight_norm's; that of torch.nn.utils.parametrizations can be
            raise UserError(f"{type(fn).__name__} cannot be copied by copy.deepcopy: {format_error(error)}") from error
        self.name = type(fn).__name__ if self.module is not None else getattr(fn, "__name__", type(fn).__name__)
        self._flat, self._spec = tree_flatten(arguments)
        floating = [i for i, t in enumerate(self._flat) if isinstance(t, Tensor) and _has_gradient(t)]
        if any(self._flat[i].requires_grad and self._flat[i].layout != torch.strided for i in floating):
            raise UserError(
                "gradients by sparse inputs are not supported: pass a dense one, or one without requires_grad"
            )
        # The differentiated arguments: if none requires a gradient, all that can have one.
        dense = [i for i in floating if self._flat[i].layout == torch.strided]
        self._indices = [i for i in dense if self._flat[i].requires_grad] or dense
        for i in floating:
            self._flat[i] = _cast(self._flat[i].detach(), dtype).clone()  # the caller's own is never written to
        if any(p.is_complex() for p in fn.parameters()) if isinstance(fn, nn.Module) else False:
            raise UserError(
                f"{self.name} has complex parameters: hold them as torch.view_as_real(…), and call "
                "torch.view_as_complex(…) in forward"
            )
        named = self.module.named_parameters() if self.module else ()
        parameters = {name: p.detach() for name, p in named if p.requires_grad}
        self._parameter_names = list(parameters)
        self.names = [*self._argument_names(arguments), *parameters]
        self.values = [*[_as_real(self._flat[i]) for i in self._indices], *parameters.values()]
        if not self.values:
            raise UserError(f"{self.name} has no input to differentiate: pass a tensor of floating-point numbers")
        self.is_argument = [i < len(self._indices) for i in range(len(self.values))]
        first = next((t for t in self.values if t.dim()), self.values[0])
        self.rows = first.shape[0] if first.dim() else None
        self._pairs = [self._flat[i].is_complex() for i in self._indices] + [False] * len(parameters)
        self.is_square = [_is_square(t) for t in self.plain_values()]
        self.batched = [
            own and t.dim() > 0 and t.shape[0] == self.rows and (not square or self.is_square[0])
            for t, own, square in zip(self.values, self.is_argument, self.is_square, strict=True)
        ]
        constants = [t for i, t in enumerate(self._flat) if isinstance(t, Tensor) and i not in floating]
        self.integers = [t for t in constants if t.dtype != torch.bool]
        self.has_constants = len(floating) > len(self._indices)

    def _argument_names(self, arguments: Sequence[Any]) -> list[str]:
        """Return the names of the differentiated arguments in the function's own signature."""
        is_function = isinstance(self.fn, type) and issubclass(self.fn, Function)
        try:
            target = self.fn.forward if isinstance(self.fn, type) or self.module is not None else self.fn
            words = [p.name for p in inspect.signature(target).parameters.values() if p.kind in (0, 1)]
            if is_function and self.fn.setup_context is PYTHON_FUNCTION.setup_context:  # forward(ctx, …)
                words = words[1:]
        except (TypeError, ValueError):
            words = []
        names: list[str] = []
        for i, argument in enumerate(arguments):
            count = len(tree_flatten(argument)[0])
            word = words[i] if i < len(words) else f"input {i}"
            names += [word] if count == 1 else [f"{word}[{j}]" for j in range(count)]
        return [f"view_as_real({names[i]})" if self._flat[i].is_complex() else names[i] for i in self._indices]

    def leaves(self, values: Sequence[Tensor] | None = None, requires_grad: Sequence[bool] = ()) -> list[Tensor]:
        """Return fresh leaves with these values, by default the inputs; all require a gradient by default."""
        values = self.values if values is None else values
        needed = requires_grad or [True] * len(values)
        return [t.detach().clone().requires_grad_(r) for t, r in zip(values, needed, strict=True)]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the floating outputs of the function of these inputs; it draws the same at random at every call."""
        self._set_seed()
        return tuple(t for t in self.all_outputs(tensors) if isinstance(t, Tensor) and t.is_floating_point())

    def _set_seed(self) -> None:
        # torch.manual_seed is slow for each kind of device, present or not.
        seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seed(self.seed)
        if self.advance:
            for device in {"cpu", self.values[0].device.type}:
                torch.rand(self.advance, device=device)

    def all_outputs(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return all that the function returns, in a flat list; a complex tensor as pairs of real numbers."""
        outputs = self.raw_outputs(tensors)
        if self.conjugates:  # so that backward receives a grad_output whose conjugation is still to be done
            outputs = [t.conj() if isinstance(t, Tensor) and t.is_complex() else t for t in outputs]
        return [_as_real(t) if isinstance(t, Tensor) else t for t in outputs]

    def raw_outputs(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return all that the function returns, in a flat list."""
        # Copies, so that what f writes to its constants, or a module to its buffers, is gone after the call.
        flat = [t.clone() if isinstance(t, Tensor) else t for t in self._flat]
        tensors = [(t + t.mT) / 2 if i in self.symmetric else t for i, t in enumerate(tensors)]
        for i, t in zip(self._indices, tensors, strict=False):
            flat[i] = torch.view_as_complex(t.contiguous()) if self._flat[i].is_complex() else t
        call = self._call if self.module is None else self._module_with(tensors[len(self._indices) :])
        output = call(*tree_unflatten(flat, self._spec))
        flat_output: list[Any] = tree_flatten(output)[0]
        return flat_output

    def _module_with(self, parameters: Sequence[Tensor]) -> Callable[..., Any]:
        """Return the module with other parameters, and buffers that may be written to."""
        module, own = self.module, dict(zip(self._parameter_names, parameters, strict=True))
        assert module is not None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A module of its own, which keeps these parameters: a checkpoint calls it again in backward.
            replaced: dict[int, Any] = {id(p): own[name] for name, p in module.named_parameters() if name in own}
            return copy.deepcopy(module, replaced)
        own |= {name: t.clone() for name, t in module.named_buffers()}
        return lambda *arguments: torch.func.functional_call(module, own, arguments)

    def numbered_outputs(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Return the floating outputs as :meth:`run_all` does, each with its number among all that is returned."""
        self._set_seed()
        outputs = enumerate(self.all_outputs([t.clone() for t in tensors]))
        return [(k, t) for k, t in outputs if isinstance(t, Tensor) and t.is_floating_point()]

    def run_all(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the floating outputs; copies protect the tensors from in-place operations."""
        return self([t.clone() for t in tensors])

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs that require a gradient, as :meth:`run_all` does."""
        return tuple(t for t in self.run_all(tensors) if t.requires_grad)

    def gradients(self, v: Sequence[Tensor], leaves: Sequence[Tensor] | None = None, **options: Any) -> Gradients:
        """Return the gradients of ⟨v, f(x)⟩ by a forward and a backward on these leaves, by default the inputs."""
        leaves = self.leaves() if leaves is None else leaves
        return gradients(self.run(leaves), leaves, v, **options)

    def weighted_sum(self, v: Sequence[Tensor], values: Sequence[Tensor] | None = None) -> Scalar:
        """Return C = ⟨v, f(x)⟩ as a function of x, of the outputs that require a gradient at these values.

        What is not finite there is left out; where such an entry of f changes with x, C is NaN: it has no slope.
        """
        at_values = [(k, t.detach()) for k, t in enumerate(self.run_all(self.leaves(values))) if t.requires_grad]
        finite = [t.isfinite() for _, t in at_values]
        whole = all(bool(mask.all()) for mask in finite)

        def c(tensors: Sequence[Tensor]) -> Tensor:
            try:
                outputs = self.run_all(tensors)
            except Exception:  # a moved point, beyond the edge of what f accepts
                return torch.tensor(math.nan, dtype=torch.float64, device="cpu")
            connected = [outputs[k] for k, _ in at_values]
            if whole:
                return dot(connected, v).double()
            total = dot([torch.where(mask, t, 0.0) for t, mask in zip(connected, finite, strict=True)], v).double()
            same = all(
                bool(((t == before) | t.isnan() & before.isnan() | mask).all())
                for t, (_, before), mask in zip(connected, at_values, finite, strict=True)
            )
            return total if same else total * math.nan

        return c

    def plain_values(self) -> list[Tensor]:
        """Return the inputs as the function gets them: complex ones are complex."""
        return [torch.view_as_complex(t) if pair else t for t, pair in zip(self.values, self._pairs, strict=True)]

    def changed(self, change: Callable[[Tensor], Tensor], mask: Sequence[bool]) -> list[Tensor]:
        """Return the inputs, of which those in the mask are changed as the function gets them."""
        values = zip(self.values, self.plain_values(), mask, strict=True)
        return [_as_real(change(plain)).contiguous() if chosen else t for t, plain, chosen in values]

    def as_symmetric(self, number: int) -> CheckTarget:
        """Return the same as a function of any matrix x, of which f gets (x + xᵀ)/2."""
        other = copy.copy(self)
        other.symmetric = (*self.symmetric, number)
        return other

    def with_constants(self, change: Callable[[Tensor], Tensor]) -> CheckTarget:
        """Return the same with those tensors changed that have a row for each sample but no gradient, as labels."""
        other = copy.copy(self)
        other._flat = [
            change(t) if isinstance(t, Tensor) and i not in self._indices and self._holds_rows(t) else t
            for i, t in enumerate(self._flat)
        ]
        return other

    def _holds_rows(self, t: Tensor) -> bool:
        return t.dim() > 0 and t.shape[0] == self.rows and not _is_square(t) and t.layout == torch.strided

    def cast(self, dtype: torch.dtype) -> CheckTarget:
        """Return the same in another dtype."""
        other = copy.copy(self)
        other.dtype = dtype
        other._flat = [_cast(t, dtype) if isinstance(t, Tensor) and _has_gradient(t) else t for t in self._flat]
        other.values = [t.to(dtype) for t in self.values]
        other.module = None if self.module is None else copy.deepcopy(self.module).to(dtype)
        return other


def _has_gradient(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _is_square(t: Tensor) -> bool:
    return t.dim() == 2 and t.shape[0] == t.shape[1] > 1


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype.to_complex() if t.is_complex() else dtype)


def _as_real(t: Tensor) -> Tensor:
    """Return a complex tensor as pairs of real numbers: what the checks perturb and compare."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def dot(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
    """Return Σ ⟨output, cotangent⟩, a scalar."""
    return torch.stack([(a * v).sum() for a, v in zip(outputs, cotangents, strict=True)]).sum()


def random_like(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return random tensors of the same shapes; |entry| is 0.5 to 1.5, so that none is too small to show an error.

    Where a tensor is not finite, as f at an edge of its domain, it is 0.
    """
    drawn = [torch.rand(t.shape, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1 for t in tensors]
    return [
        torch.where(t.detach().isfinite(), (r + r.sign() * 0.5).to(t), 0.0) for r, t in zip(drawn, tensors, strict=True)
    ]


def python_nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """Yield the nodes of a graph that are written in Python: custom Functions."""
    return (node for node in nodes_of(outputs) if isinstance(node, torch.autograd.function.BackwardCFunction))


def nodes_of(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """Yield the nodes of a graph."""
    waiting, seen = [t.grad_fn for t in outputs], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(next_node for next_node, _ in node.next_functions)


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor], **options: Any
) -> Gradients:
    """Return ∂Σ⟨output, cotangent⟩/∂leaf of each leaf; None where none is required, and where it is not used."""
    needed = [t for t in leaves if t.requires_grad]
    raw = torch.autograd.grad(list(outputs), needed, list(cotangents), allow_unused=True, **options)
    # An embedding's may be sparse; a copy, as a backward may write to what it has returned before.
    dense = iter([None if t is None else t.to_dense() if t.is_sparse else t.clone() for t in raw])
    return [next(dense) if t.requires_grad else None for t in leaves]
