"""A stand-in for CUDA graphs on machines without CUDA: a list of operations, replayed on the same memory.

Like a CUDA graph it has no effect while it captures, keeps every host number, writes results to the same memory again,
and refuses synchronization with the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONIZING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Recorder(TorchDispatchMode):
    """Records every operation, and the previous content of the memory it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if synchronizes(function, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for t in written_tensors(function, args, kwargs):
            self.before.setdefault(t.untyped_storage().data_ptr(), (storage(t), storage(t).clone()))
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Run all recorded operations again on the same memory."""
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            mine = [t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in mine:
                    old.copy_(new)


def synchronizes(function: Any, args: Any) -> bool:
    """Return whether an operation waits for the device: its result is a Python number, or a shape."""
    name = function.overloadpacket.__name__
    masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
    return name in SYNCHRONIZING or masks


def written_tensors(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    found = []
    for number, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


def storage(t: Tensor) -> Tensor:
    """Return the whole storage of a tensor as a vector."""
    size = t.untyped_storage().nbytes() // t.element_size()
    return t.as_strided((size,), (1,), 0)


def capture(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Replace ``graph.capture``."""
    recorder = Recorder()
    with recorder:
        work()
    for memory, content in recorder.before.values():
        memory.copy_(content)
    return recorder.replay
