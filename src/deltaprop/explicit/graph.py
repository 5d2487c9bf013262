"""The whole step captured in a CUDA graph, and replayed: one launch a step, where there were thirty.

On a GPU a step of a small net takes less time than Python takes to launch its operations. A graph keeps them: what a
step does from the numbers of its rows on (to gather x and y, FWD, BP1 to BP4, the update, and to add up C) is captured
once, and then replayed with other numbers in the same place.

A graph holds host numbers as they were: η, μ, λ stand in the products (``updates.py``). So it is good for one lesson
(``teaching.py``), and captured again when an option changes, as a scheduler does once an epoch. Where that happens at
every step, capturing would cost more than it saves: a step is captured only after one of the same lesson has been taken
operation by operation, which warms the libraries up, too, and gives birth to velocities.

An activation without a kernel is never captured: its formula may ask the device for a number, which no graph can hold,
and a capture that fails leaves CUDA in a state that nobody can vouch for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deltaprop.explicit.batches import Stage


def can_capture(device: torch.device) -> bool:
    """Return whether a device has graphs."""
    return device.type == "cuda"


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


class Captured:
    """The step of a stage on rows of x and y, captured when it is worth it.

    Args:
        stage: For blocks of one batch.
        x: Inputs, [M, n_0], on the device.
        y: Targets, as the stage's loss holds them.
        units: Of the targets, or None.
        total: Σ C N is added to it, a scalar.
    """

    def __init__(self, stage: Stage, x: Tensor, y: Tensor, units: Tensor | None, total: Tensor) -> None:
        self.stage = stage
        self._x, self._y, self._units, self._total = x, y, units, total
        self._rows = torch.zeros(stage.rows, dtype=torch.long, device=x.device)
        self._replay: Callable[[], object] | None = None
        self._lesson: int | None = None  # that the last step was taken in
        self._holdable = all(layer.plan.has_kernel for layer in stage.layers)

    def fits(self, x: Tensor, y: Tensor, units: Tensor | None, total: Tensor) -> bool:
        """Return whether these are the tensors that it reads, and writes to."""
        now, then = (x, y, units, total), (self._x, self._y, self._units, self._total)
        return [_place(t) for t in now] == [_place(t) for t in then]

    def step(self, rows: Tensor) -> None:
        """Take one step on the rows of these numbers, [N], and add its C to the total."""
        self._rows.copy_(rows)
        lesson = self.stage.lesson
        if lesson is None or lesson != self._lesson or not self._holdable:
            self._replay, self._lesson = None, lesson
            self._work()
            return
        if self._replay is None:
            self._replay = capture(self._work, self._rows.device)
        self._replay()

    def _work(self) -> None:
        self.stage.load(self._x, self._y, self.stage.rows, self._rows)
        self.stage.step(0)
        self.stage.add_values(self._total, 1, self._units)


def _place(t: Tensor | None) -> tuple[object, ...] | None:
    """Return where a tensor lies, and how."""
    return None if t is None else (t.data_ptr(), t.dtype, t.shape, t.stride())
