"""A CUDA graph for machines without CUDA: what is captured is a list of operations, replayed on the same memory.

Like a CUDA graph it does not do the work while it captures, keeps every host number as it was, writes results to the
same places again, and refuses to answer a question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

QUESTIONS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Recorder(TorchDispatchMode):
    """Records every operation, and what its memory held before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if asks(function, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for t in written(function, args, kwargs):
            self.before.setdefault(t.untyped_storage().data_ptr(), (storage(t), storage(t).clone()))
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Do all of it again, on the same memory."""
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            mine = [t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in mine:
                    old.copy_(new)


def asks(function: Any, args: Any) -> bool:
    """Return whether an operation waits for the device: its result is a number of Python's, or a shape."""
    name = function.overloadpacket.__name__
    masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
    return name in QUESTIONS or masks


def written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    found = []
    for number, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


def storage(t: Tensor) -> Tensor:
    """Return all of a tensor's memory as one row."""
    size = t.untyped_storage().nbytes() // t.element_size()
    return t.as_strided((size,), (1,), 0)


def capture(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Stand in for ``graph.capture``."""
    recorder = Recorder()
    with recorder:
        work()
    for memory, held in recorder.before.values():
        memory.copy_(held)
    return recorder.replay
