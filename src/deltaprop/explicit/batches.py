"""The batches of an epoch, in a given order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaprop.distributed import World
from deltaprop.epoch_state import BatchShare
from deltaprop.loss_spec import LossSpec, SampleWeighted

ALONE = World()
TARGETS_AT_ONCE = 2**14  # numbers: targets are prepared for several batches at once, as many as fit in the cache


@dataclass(frozen=True)
class Share:
    """The part of a batch that one of several processes has.

    Attributes:
        rows: Rows of the whole batch.
        own_rows: Those of this process.
        largest: The most that a process has.
        loss: The loss of its rows: their mean, or their sum where the mean divides by weights.
        factor: What that counts in the loss of the batch.
        count: The weight of the whole batch in a mean over several.
    """

    rows: int
    own_rows: int
    largest: int
    loss: LossSpec
    factor: Tensor | float
    count: Tensor | int

    def part(self, c: Tensor) -> Tensor:
        """Return what the loss of its rows adds to that of the batch."""
        return c * self.factor if self.own_rows else c.new_zeros(())  # a mean over no rows is NaN

    def whole(self, c: Tensor) -> Tensor:
        """Return the loss of the batch from the sum of the parts: NaN if no row counts."""
        return torch.where(self.count == 0, torch.nan, c) if isinstance(self.count, Tensor) else c


@dataclass
class EpochRows:
    """The rows of an epoch in order, and the size of its batches.

    Attributes:
        x: Inputs, [M, n_0].
        y: Targets, [M, …].
        batch_size: Rows per batch; the last has the rest.
        order: Row indices in order; None for the rows in order.
        weights: The weight of each sample, [M]; None for equal weights.
        world: The processes that share each batch.
        given: The shares of an `EpochState`.
        of_batches: How each batch is shared.
        sizes: The rows of this process in each.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    order: Tensor | None = None
    weights: Tensor | None = None
    world: World = ALONE
    given: Sequence[BatchShare] | None = None
    of_batches: Sequence[BatchShare] = field(init=False)
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        size, rows, world = self.batch_size, len(self), self.world
        whole = [size] * (rows // size) + ([rows % size] if rows % size else [])
        of_one = [BatchShare(n, len(range(n)[world.share(n)]), world.largest_share(n)) for n in whole]
        self.of_batches = of_one if self.given is None else self.given
        self.sizes = [share.own for share in self.of_batches]
        if world.size > 1 and self.given is None:
            order = torch.arange(rows, device=self.x.device) if self.order is None else self.order
            of_whole = order[: rows // size * size].view(-1, size)[:, world.share(size)].reshape(-1)
            last = order[rows // size * size :]
            self.order = torch.cat([of_whole, last[world.share(len(last))]])

    def __len__(self) -> int:
        """Return the number of rows to train on, of this process."""
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

    def shares(self, loss: LossSpec, step: int, targets: Sequence[tuple[Tensor, ...]], outputs: int) -> list[Share]:
        """Return this process's share of some batches from ``step`` on, whose targets these are."""
        of_batches = self.of_batches[step : step + len(targets)]
        counts = [loss.count(self.x.new_empty(s.own, outputs), t) for s, t in zip(of_batches, targets, strict=True)]
        if any(isinstance(count, Tensor) for count in counts):
            ours = torch.stack([torch.as_tensor(count).to(self.x) for count in counts])
            of_all = self.world.sum(ours.clone())
            factors = ours / of_all
            if not isinstance(loss, SampleWeighted):  # 1/D: where D of our rows is 0, their terms may not be
                loss, factors = loss.summed(), 1 / (of_all + (of_all == 0))
            return [Share(*s, loss, *of) for s, *of in zip(of_batches, factors, of_all, strict=True)]
        is_mean = loss.reduction == "mean"
        return [Share(*s, loss, s.own / s.rows if is_mean else 1.0, s.rows) for s in of_batches]


def batches(
    loss: LossSpec, data: EpochRows, start: int, outputs: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], Share | None]]:
    """Yield inputs and targets of each batch, and with several processes what share of it they are.

    The targets end with the weights of the samples, if there are any. Rows are gathered batch by batch, always into the
    same memory: the rounding of a product depends on the alignment of its factors, and a resumed epoch must give the
    same bits.

    Args:
        loss: Determines the form of the targets.
        data: The rows, in order.
        start: The first batch, counted from 0.
        outputs: n_L.
    """
    x, order, sizes = data.x, data.order, data.sizes
    largest = max(sizes, default=0)
    gathered = None if order is None else x.new_empty(largest, x.shape[1])
    at_once, first = max(1, TARGETS_AT_ONCE // (data.batch_size * outputs)), sum(sizes[:start])
    for step in range(start, len(sizes), at_once):
        of_block = sizes[step : step + at_once]
        last = first + sum(of_block)
        x_batches = (x if order is None else order)[first:last].split(of_block)
        targets = [*zip(*[t.split(of_block) for t in data.targets(loss, first, last, outputs)], strict=True)]
        shares = data.shares(loss, step, targets, outputs) if data.world.size > 1 else [None] * len(targets)
        for chosen, of_batch, share in zip(x_batches, targets, shares, strict=True):
            if gathered is not None:
                chosen = torch.index_select(x, 0, chosen, out=gathered[: len(chosen)])
            yield chosen, of_batch, share
        first = last
