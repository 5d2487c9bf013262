"""A step captured in a CUDA graph and replayed: one launch per step in place of about thirty.

On a GPU a step of a small net takes less time than Python needs to launch its operations. A graph records them: the
step from the row indices on (gather x and y, FWD, BP1 to BP4, the update) is captured once and replayed with other
indices in the same memory.

A graph contains host numbers as constants: η, μ, λ are arguments of its products (``core/sgd.py``). So it is valid for
one set of options, and captured again when one changes, as a scheduler does once per epoch. Where that happens at every
step, capturing would cost more than it saves: a step is captured only after one with the same options has been taken
eagerly, which also warms up the libraries. The address of the momentum buffers counts as an option: the first step
allocates them, and an optimizer that has loaded a state has others.

A formula from outside this library is never captured: it may read a number from the device, which a graph cannot, and
a failed capture leaves CUDA in an undefined state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def can_capture(device: torch.device) -> bool:
    """Return whether a device supports graphs."""
    return device.type == "cuda"


def is_ours(definition: type | None) -> bool:
    """Return whether a definition is this library's own and may be captured."""
    return definition is None or definition.__module__.startswith("deltaprop.core.")


def capture(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture some work on a device without running it; return the function that replays it.

    Raises:
        RuntimeError: If it reads a number from the device, or does anything else that cannot be captured.
    """
    with torch.cuda.device(device):  # the stream must be this device's, or the graph would be empty
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            work()
    replay: Callable[[], object] = graph.replay
    return replay


class CapturedStep:
    """One step on the rows of given indices, captured once the same update is taken twice.

    Args:
        step: Takes the step on row indices [N], its tensors in the same memory each time; returns some of them.
        rows: N.
        device: A device that supports graphs.
        holdable: Whether it may be captured.

    Attributes:
        results: What the step returned, in memory that the next step overwrites.
    """

    results: tuple[Tensor, ...]

    def __init__(
        self, step: Callable[[Tensor], tuple[Tensor, ...]], rows: int, device: torch.device, holdable: bool
    ) -> None:
        self._step, self._holdable = step, holdable
        self._rows = torch.zeros(rows, dtype=torch.long, device=device)
        self._replay: Callable[[], object] | None = None
        self._version: object = None  # of the last step's update

    def __call__(self, rows: Tensor, version: object) -> None:
        """Take the step on the rows of these indices.

        Args:
            rows: Indices, [N].
            version: Equal as long as the update is the same.
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
