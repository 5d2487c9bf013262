"""The whole step captured in a CUDA graph, and replayed: one launch a step, where there were thirty.

On a GPU a step of a small net takes less time than Python takes to launch its operations. A graph keeps them: what a
step does from the indices of its rows on (gather x and y, FWD, BP1 to BP4, the update) is captured once, and then
replayed with other indices in the same place.

A graph holds host numbers as they were: η, μ, λ stand in the products (``core/sgd.py``). So it is good for one set of
options, and captured again when one changes, as a scheduler does once an epoch. Where that happens at every step,
capturing would cost more than it saves: a step is captured only after one with the same options has been taken
operation by operation, which warms up the libraries, too. The memory of the momentum buffers counts as an option: the
first step makes them, and an optimizer that has loaded a state has others.

A formula from outside this library is never captured: it may ask the device for a number, which no graph can hold, and
a capture that fails leaves CUDA in an undefined state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def can_capture(device: torch.device) -> bool:
    """Return whether a device has graphs."""
    return device.type == "cuda"


def is_ours(definition: type | None) -> bool:
    """Return whether a definition is one of this library's own, which may be captured."""
    return definition is None or definition.__module__.startswith("deltaprop.core.")


def capture(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return what replays some work on a device, as often as one likes; the work is not done now.

    Raises:
        RuntimeError: If it asks the device for a number, or does something else that no graph can hold.
    """
    with torch.cuda.device(device):  # the stream must be this device's, or the graph would be empty
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            work()
    replay: Callable[[], object] = graph.replay
    return replay


class CapturedStep:
    """One step on the rows of given indices, captured when it is worth it.

    Args:
        step: Takes the step on row indices [N], all its tensors in the same place each time; returns some of them.
        rows: N.
        device: A device that has graphs.
        holdable: Whether a graph may hold it.

    Attributes:
        results: What the step returned, in memory that the next one writes over.
    """

    results: tuple[Tensor, ...]

    def __init__(
        self, step: Callable[[Tensor], tuple[Tensor, ...]], rows: int, device: torch.device, holdable: bool
    ) -> None:
        self._step, self._holdable = step, holdable
        self._rows = torch.zeros(rows, dtype=torch.long, device=device)
        self._replay: Callable[[], object] | None = None
        self._version: object = None  # of the update that the last step was taken with

    def __call__(self, rows: Tensor, version: object) -> None:
        """Take the step on the rows of these indices.

        Args:
            rows: Indices, [N].
            version: Equal where the update is the same.
        """
        self._rows.copy_(rows)
        if version != self._version or not self._holdable:
            self._replay, self._version = None, version
            self._take()
            return
        if self._replay is None:
            self._replay = capture(self._take, self._rows.device)
        self._replay()

    def _take(self) -> None:
        self.results = self._step(self._rows)
