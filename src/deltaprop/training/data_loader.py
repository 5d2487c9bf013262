"""The rows of an epoch, in a random order: all of them where they are in memory, else chunk by chunk.

Rows on disk cannot be drawn one by one: each would cost a read of its own. So blocks of neighbours are drawn in random
order, enough of them for a chunk are read together, and the rows of a chunk are shuffled. A chunk holds a whole number
of batches, so that an epoch has the same steps as if it were of one piece. While the net learns from one chunk, the
next is encoded, and the system reads the one after that.

Pictures that are deformed (``data/augment.py``) come chunk by chunk too: while the net learns from some, others are
deformed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deltaprop.data import Deformation, Part, StreamedSplit
from deltaprop.training.objective import Objective

CHUNK_BYTES = 1 << 25  # of inputs: two of them are in memory, a third while pictures are deformed
BLOCK_BYTES = 1 << 19  # of neighbours: that a disk reads at once


@dataclass(frozen=True)
class Order:
    """What is drawn for an epoch.

    Attributes:
        rows: Their numbers, on the CPU.
        seed: Of what deforms pictures.
    """

    rows: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Shard:
    """What an engine is given at a time.

    Attributes:
        first: The step that it begins with, from 0.
        x: Inputs; of rows on disk only until the next chunk is asked for, then their memory serves another.
        y: Targets, as the loss takes them.
        order: Of its rows.
    """

    first: int
    x: Tensor
    y: Tensor
    order: Tensor


class DataLoader:
    """The training part of a run, epoch by epoch.

    Args:
        part: Its rows.
        objective: Makes targets of labels.
        batch_size: Rows a step.
        sizes: Of a block and of a chunk, in rows, where an epoch goes on that was begun by them; usual ones by default.
        deform: What deforms pictures, each time that they are given; None for as they are.
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
        row = width * torch.finfo(dtype).bits // 8
        usual = max(1, BLOCK_BYTES // row), max(1, CHUNK_BYTES // row // batch_size) * batch_size
        if not self.streams:
            usual = len(part), len(part) if deform is None else usual[1]
        self.block, self.chunk = usual if sizes is None else sizes
        if isinstance(part, StreamedSplit):
            # Made once: to be given new memory page by page takes as long as to read and encode the rows into it.
            shape = min(self.chunk, len(part)), part.width
            self._into, self._other = (torch.empty(shape, dtype=part.dtype) for _ in range(2))
        else:
            self.x, self.y = part.x, objective.targets(part.y, part.x.dtype)

    def __len__(self) -> int:
        """Return N."""
        return len(self.part)

    def first(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return x and y of the first rows, as they come."""
        x = self.part.inputs(slice(rows))
        return x, self.objective.targets(self.part.y[:rows], x.dtype)

    def draw(self, generator: torch.Generator) -> Order:
        """Return the order of an epoch, the same on every device."""
        seed = 0 if self.deform is None else int(torch.randint(2**62, (), generator=generator))
        return Order(self._rows(generator), seed)

    def _rows(self, generator: torch.Generator) -> Tensor:
        rows = len(self)
        if not self.streams:
            return torch.randperm(rows, generator=generator)
        order = torch.empty(rows, dtype=torch.int64)
        at = 0
        for block in torch.randperm(-(-rows // self.block), generator=generator).tolist():
            first, end = block * self.block, min((block + 1) * self.block, rows)
            torch.arange(first, end, out=order[at : at + end - first])
            at += end - first
        for chunk in order.split(self.chunk):
            chunk.copy_(chunk[torch.randperm(len(chunk), generator=generator)])
        return order

    def chunks(self, order: Order, done: int) -> Iterator[Shard]:
        """Give the chunks of an epoch that are not done yet.

        Args:
            order: Of the epoch.
            done: Steps of it that are.
        """
        if not self.streams and self.deform is None:
            yield Shard(0, self.x, self.y, order.rows.to(self.x.device))
            return
        steps = self.chunk // self.batch_size
        begin = done // steps
        parts = order.rows.split(self.chunk)[begin:]
        if not parts:
            return
        self._expect(parts[0])
        with ThreadPoolExecutor(1) as reader:
            make = self._read if self.streams else partial(self._deformed, order.seed)
            coming: Future[Shard] = reader.submit(make, begin * steps, *parts[:2])
            for number in range(1, len(parts) + 1):
                chunk = coming.result()
                if number < len(parts):
                    coming = reader.submit(make, (begin + number) * steps, *parts[number : number + 2])
                yield chunk

    def _expect(self, rows: Tensor) -> None:
        if isinstance(self.part, StreamedSplit):
            self.part.expect(rows)

    def _deformed(self, seed: int, first: int, rows: Tensor, *_: Tensor) -> Shard:
        """Return a chunk of deformed pictures, by a generator of its own: those of an epoch that goes on are the same.

        Args:
            seed: Of the epoch.
            first: Its first step.
            rows: Of the part.
        """
        assert self.deform is not None
        rows = rows.to(self.x.device)
        generator = torch.Generator(self.x.device).manual_seed(seed + first)
        x = self.deform(self.x.index_select(0, rows), generator)
        return Shard(first, x, self.y.index_select(0, rows), torch.arange(len(rows), device=x.device))

    def _read(self, first: int, rows: Tensor, *following: Tensor) -> Shard:
        """Return a chunk: its rows in the order of the file, and the order that they are taken in.

        Args:
            first: Its first step.
            rows: Of the part.
            following: Those of the next chunk, if there is one.
        """
        for expected in following:
            self._expect(expected)
        assert isinstance(self.part, StreamedSplit)
        ascending, where = rows.sort()
        order = torch.empty_like(where)
        order[where] = torch.arange(len(where))  # the place of each row in the sorted ones
        self._into, self._other = self._other, self._into  # the net learns from what was read last
        x = self.part.inputs(ascending, out=self._into)
        y = self.objective.targets(self.part.y[ascending.to(self.part.y.device)], x.dtype)
        return Shard(first, x, y, order.to(x.device))
