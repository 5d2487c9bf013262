"""How far an epoch has come: what the training loop shares with the drivers, and nobody else needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class EpochState:
    """The running sum of an epoch, and where it may be broken off.

    An epoch that is broken off at any step and goes on from there adds up its losses to the same bits as one that
    never was.

    Attributes:
        total: Σ C of the steps done, each times what it counts, a scalar on the device.
        done: Steps done.
        seen: What they count together; of a mean loss usually the number of samples.
        pause: Asked after a step with the number of steps done; True breaks the epoch off.
        interval: Steps between two questions whether to pause.
        report: The loss to add up, from outputs and targets, where it is not the one that is minimised.
    """

    total: Tensor
    done: int = 0
    seen: Tensor | float = 0
    pause: Callable[[int], bool] | None = None
    interval: int = 1
    report: Callable[[Tensor, Tensor], Tensor] | None = None

    def add(self, loss: Tensor, count: Tensor | int) -> None:
        """Add the loss of one step, which counts ``count`` (:meth:`~deltaprop.loss_spec.LossSpec.count`)."""
        if isinstance(count, Tensor):  # of a batch whose labels are all ignored C is NaN, and counts nothing
            self.total.add_(torch.where(count == 0, 0.0, loss * count))
        else:
            self.total.add_(loss, alpha=count)  # stays on the device: .item() here would wait for it
        self.seen = self.seen + count

    def step_done(self) -> bool:
        """Count a step, and return whether to break the epoch off there."""
        self.done += 1
        return self.pause is not None and self.done % self.interval == 0 and self.pause(self.done)

    def mean(self) -> Tensor:
        """Return the mean loss, each sample counting once; NaN before the first step."""
        return self.total / self.seen
