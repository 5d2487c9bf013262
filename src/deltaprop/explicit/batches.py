"""The batches of an epoch, in a given order of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaprop.loss_spec import LossSpec

TARGETS_AT_ONCE = 2**14  # numbers: targets are prepared for several batches at once, as many as fit in the cache


@dataclass
class EpochRows:
    """The rows of an epoch in order, and the size of its batches.

    Attributes:
        x: Inputs, [M, n_0].
        y: Targets, [M, …].
        batch_size: Rows per batch; the last has the rest.
        order: Row indices in order; None for the rows in order.
        weights: The weight of each sample, [M]; None for equal weights.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    order: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows to train on."""
        return len(self.x) if self.order is None else len(self.order)

    def targets(self, loss: LossSpec, first: int, last: int, outputs: int) -> tuple[Tensor, ...]:
        """Return the targets of these rows in order as the loss takes them, the weights of the samples at the end."""
        y, weights = (
            t if t is None else t[first:last] if self.order is None else t.index_select(0, self.order[first:last])
            for t in (self.y, self.weights)
        )
        assert y is not None
        targets = loss.targets(y, self.x.new_empty(last - first, outputs))
        return targets if weights is None else (*targets, weights)


def batches(loss: LossSpec, data: EpochRows, start: int, outputs: int) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yield inputs and targets of each batch; the targets end with the weights of the samples, if there are any.

    Rows are gathered batch by batch, always into the same memory: the rounding of a product depends on the alignment of
    its factors, and a resumed epoch must give the same bits.

    Args:
        loss: Determines the form of the targets.
        data: The rows, in order.
        start: The first batch, counted from 0.
        outputs: n_L.
    """
    x, order, batch_size, rows = data.x, data.order, data.batch_size, len(data)
    gathered = None if order is None else x.new_empty(min(batch_size, rows), x.shape[1])
    block = batch_size * max(1, TARGETS_AT_ONCE // (batch_size * outputs))
    for first in range(start * batch_size, rows, block):
        last = min(first + block, rows)
        targets = data.targets(loss, first, last, outputs)
        x_batches = (x if order is None else order)[first:last].split(batch_size)
        for chosen, *of_batch in zip(x_batches, *[t.split(batch_size) for t in targets], strict=True):
            if gathered is not None:
                chosen = torch.index_select(x, 0, chosen, out=gathered[: len(chosen)])
            yield chosen, tuple(of_batch)
