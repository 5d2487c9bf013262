"""The progress of an epoch, shared by the training loop and the engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class BatchShare(NamedTuple):
    """How many rows of a batch are whose.

    Attributes:
        rows: N, of all processes.
        own: Those of this process.
        largest: The most that a process has.
    """

    rows: int
    own: int
    largest: int


@dataclass
class EpochState:
    """Steps done and the sum of their losses in one epoch, and when to pause it.

    An epoch that is paused after any step and continued sums its losses to the same bits as one without a pause.

    Attributes:
        total: Σ C · count over the steps done, a scalar on the device.
        done: Steps done.
        seen: Σ count over the steps done; for a mean loss usually the number of samples.
        pause: Called after a step with the number of steps done; returns whether to pause the epoch.
        interval: Steps between two calls of ``pause``.
        report: The loss to sum, from outputs and targets, if it is not the one that is minimised: a mean over rows, of
            one step or of several.
        shares: How each batch is shared by several processes, if the rows that an engine is given are this one's
            alone; None if they are those of all.
    """

    total: Tensor
    done: int = 0
    seen: Tensor | float = 0
    pause: Callable[[int], bool] | None = None
    interval: int = 1
    report: Callable[[Tensor, Tensor], Tensor] | None = None
    shares: Sequence[BatchShare] | None = None

    def add(self, loss: Tensor, count: Tensor | int) -> None:
        """Add the loss of one step, weighted by ``count``.

        The count is that of :meth:`~deltaprop.loss_spec.LossSpec.count`.
        """
        if isinstance(count, Tensor):  # if all labels of a batch are ignored C is NaN, and its count 0
            self.total.add_(torch.where(count == 0, 0.0, loss * count))
        else:
            self.total.add_(loss, alpha=count)  # stays on the device: .item() here would wait for it
        self.seen = self.seen + count

    def add_sum(self, total: Tensor, count: float) -> None:
        """Add the losses of several steps, already weighted by their counts, and the sum of these."""
        self.total.add_(total)
        self.seen = self.seen + count

    def steps_done(self, steps: int = 1) -> bool:
        """Count steps, and return whether to pause the epoch."""
        self.done += steps
        return self.pause is not None and self.done % self.interval == 0 and self.pause(self.done)

    def mean(self) -> Tensor:
        """Return the mean loss over samples; NaN before the first step."""
        return self.total / self.seen
