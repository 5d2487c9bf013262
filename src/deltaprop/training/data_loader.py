"""The rows of an epoch in random order, shard by shard if they are streamed from disk or augmented.

Reading single rows from a disk in random order would be slow. So blocks of neighbouring rows are drawn in random order,
enough blocks for one shard are read together, and the rows of the shard are shuffled. A shard holds a whole number of
batches, so that an epoch has the same steps as in memory. During training on one shard the next is encoded, or
augmented (``data/augment.py``), and the operating system reads the one after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deltaprop.data import Deformation, Part, StreamedSplit
from deltaprop.epoch_state import BatchShare
from deltaprop.training.objective import Objective

CHUNK_BYTES = 1 << 25  # bytes of inputs per shard: two shards are in memory, three during augmentation
BLOCK_BYTES = 1 << 19  # bytes of neighbouring rows that are read together


@dataclass(frozen=True)
class Order:
    """The random order of an epoch.

    Attributes:
        rows: Row indices, on the CPU.
        seed: Seed of the augmentation.
    """

    rows: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Shard:
    """Rows that an engine trains on.

    Attributes:
        first: Index of its first step in the epoch.
        x: Inputs; streamed ones are overwritten when the shard after the next is read.
        y: Targets, as the loss takes them.
        order: Row indices in the order of training.
        shares: How processes share each batch, where the rows are this one's; None where they are those of all.
    """

    first: int
    x: Tensor
    y: Tensor
    order: Tensor
    shares: Sequence[BatchShare] | None = None

    def steps(self, batch_size: int) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.order) / batch_size) if self.shares is None else len(self.shares)


class DataLoader:
    """The training rows of a run, epoch by epoch.

    Args:
        part: The training rows.
        objective: Converts labels to targets.
        batch_size: Rows per step.
        sizes: Rows per block and per shard, needed to resume an epoch that was begun with them; chosen by default.
        deform: The augmentation of pictures; None for none.
    """

    def __init__(
        self,
        part: Part,
        objective: Objective,
        batch_size: int,
        sizes: tuple[int, int] | None = None,
        deform: Deformation | None = None,
    ) -> None:
        self.part, self.objective, self.batch_size, self.deform = part, objective, batch_size, deform
        self.streams = isinstance(part, StreamedSplit)
        width, dtype = (part.width, part.dtype) if isinstance(part, StreamedSplit) else (part.x.shape[1], part.x.dtype)
        row = width * dtype.itemsize
        default = max(1, BLOCK_BYTES // row), max(1, CHUNK_BYTES // row // batch_size) * batch_size
        if not self.streams:
            default = len(part), len(part) if deform is None else default[1]
        self.block, self.chunk = default if sizes is None else sizes
        if isinstance(part, StreamedSplit):
            # Allocated once: new memory, page by page, would take as long as reading and encoding the rows.
            shape = min(self.chunk, len(part)), part.width
            self._buffers = [torch.empty(shape, dtype=part.dtype) for _ in range(2)]
        else:
            self.x, self.y = part.x, objective.targets(part.y, part.x.dtype)

    def __len__(self) -> int:
        """Return N."""
        return len(self.part)

    def first_rows(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return x and y of the first rows, in the order of the data."""
        x = self.part.inputs(slice(rows))
        return x, self.objective.targets(self.part.y[:rows], x.dtype)

    def draw(self, generator: torch.Generator) -> Order:
        """Return a random order for an epoch, the same on every device."""
        seed = 0 if self.deform is None else int(torch.randint(2**62, (), generator=generator))
        if not self.streams:
            return Order(torch.randperm(len(self), generator=generator), seed)
        rows, at = torch.empty(len(self), dtype=torch.int64), 0
        for block in torch.randperm(-(-len(self) // self.block), generator=generator).tolist():
            first, end = block * self.block, min((block + 1) * self.block, len(self))
            torch.arange(first, end, out=rows[at : at + end - first])
            at += end - first
        for shard in rows.split(self.chunk):
            shard.copy_(shard[torch.randperm(len(shard), generator=generator)])
        return Order(rows, seed)

    def shards(self, order: Order, done: int) -> Iterator[Shard]:
        """Yield the shards of an epoch, from the one that contains step ``done`` on."""
        if not self.streams and self.deform is None:
            yield Shard(0, self.x, self.y, order.rows.to(self.x.device))
            return
        steps = self.chunk // self.batch_size
        begin = done // steps
        parts = order.rows.split(self.chunk)[begin:]
        if not parts:
            return
        if isinstance(self.part, StreamedSplit):
            self.part.expect(parts[0])  # the operating system reads them
        with ThreadPoolExecutor(1) as reader:
            make = self._read if self.streams else partial(self._augment, order.seed)

            def submit(number: int) -> Future[Shard]:
                return reader.submit(make, (begin + number) * steps, *parts[number : number + 2])

            pending = submit(0)
            for number in range(1, len(parts) + 1):
                shard = pending.result()
                if number < len(parts):
                    pending = submit(number)
                yield shard

    def _augment(self, seed: int, first: int, rows: Tensor, *_: Tensor) -> Shard:
        """Return a shard of augmented pictures; its generator depends on the first step, so a resume repeats it."""
        assert self.deform is not None
        rows = rows.to(self.x.device)
        generator = torch.Generator(self.x.device).manual_seed(seed + first)
        x = self.deform(self.x.index_select(0, rows), generator)
        return Shard(first, x, self.y.index_select(0, rows), torch.arange(len(rows), device=x.device))

    def _read(self, first: int, rows: Tensor, *following: Tensor) -> Shard:
        """Return a shard, its rows in the order of the file; ``following`` are the rows of the next shard."""
        assert isinstance(self.part, StreamedSplit)
        for next_rows in following:
            self.part.expect(next_rows)
        ascending, permutation = rows.sort()
        order = torch.empty_like(permutation)
        order[permutation] = torch.arange(len(rows))  # the index of each row among the sorted ones
        self._buffers.reverse()  # the other one is in use for training
        x = self.part.inputs(ascending, out=self._buffers[0])
        y = self.objective.targets(self.part.y[ascending.to(self.part.y.device)], x.dtype)
        return Shard(first, x, y, order.to(x.device))
