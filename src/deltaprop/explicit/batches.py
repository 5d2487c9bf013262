"""The batches of an epoch, in a given order of the rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deltaprop.loss_spec import LossSpec

TARGETS_AT_ONCE = 2**14  # numbers: targets are prepared for several batches at once, as many as fit in the cache


def batches(
    loss: LossSpec, x: Tensor, y: Tensor, batch_size: int, order: Tensor | None, start: int, outputs: int,
    weights: Tensor | None = None,
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:  # fmt: skip
    """Yield inputs and targets of each batch; the targets end with the weights of the samples, if there are any.

    Rows are gathered batch by batch, always into the same memory: the rounding of a product depends on the alignment of
    its factors, and a resumed epoch must give the same bits.

    Args:
        loss: Determines the form of the targets.
        x: Inputs, [M, n_0].
        y: Targets, [M, …].
        batch_size: Rows per batch; the last has the rest.
        order: Row indices in order; None for the rows in order.
        start: The first batch, counted from 0.
        outputs: n_L.
        weights: The weight of each sample, [M]; None for equal weights.
    """
    rows = len(x) if order is None else len(order)
    gathered = None if order is None else x.new_empty(min(batch_size, rows), x.shape[1])
    block = batch_size * max(1, TARGETS_AT_ONCE // (batch_size * outputs))
    for first in range(start * batch_size, rows, block):
        last = min(first + block, rows)
        y_block = y[first:last] if order is None else y.index_select(0, order[first:last])
        targets = loss.targets(y_block, x.new_empty(last - first, outputs))
        if weights is not None:
            of_block = weights[first:last] if order is None else weights.index_select(0, order[first:last])
            targets = (*targets, of_block)
        x_batches = (x if order is None else order)[first:last].split(batch_size)
        for chosen, *of_batch in zip(x_batches, *[t.split(batch_size) for t in targets], strict=True):
            if gathered is not None:
                chosen = torch.index_select(x, 0, chosen, out=gathered[: len(chosen)])
            yield chosen, tuple(of_batch)
