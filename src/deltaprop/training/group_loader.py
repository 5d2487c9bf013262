"""The rows of an epoch in random order, read from the row groups of a table by shares.

The order is drawn, not stored: each stream takes its row groups in random order, of each blocks of neighbouring rows in
random order, and shuffles a few blocks together. A shard has a share of each stream, and which row of it is of which
stream is drawn for the shard. So the rows of a batch do not depend on the number of processes, a process reads its own
row groups alone, and from the counts of the row groups all know which rows of a batch are whose.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data import GroupedRows, Part
from deltaprop.data.ahead import ahead
from deltaprop.data.columns import Numbers
from deltaprop.data.row_groups import CHANGED
from deltaprop.data.store import disk_errors
from deltaprop.distributed import World
from deltaprop.epoch_state import BatchShare
from deltaprop.errors import UserError
from deltaprop.training.data_loader import Order, Shard
from deltaprop.training.objective import Objective

SHARD_BYTES = 1 << 24  # of a shard, of which there are two
MIXED_BYTES, MIXED_BLOCKS = 1 << 19, 16  # that a stream shuffles together
ROW_BYTES = 32  # of a label, of an index, and of what these are made from


class Schedule:
    """When each stream gives its rows: at even times from 0 to 1, so that all end together, however long they are.

    Row j of a stream of n rows has the time (j + u)/n, with u in [0, 1) drawn for each stream.

    Args:
        lengths: The rows of each stream.
        seed: Of the epoch.
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self._phase = _random(seed, 0).random_sample(len(self.lengths))

    def given(self, rows: int) -> NDArray[np.int64]:
        """Return how many of the first so many rows of the epoch each stream has given.

        Example:
            >>> [Schedule([30, 10, 20], 0).given(rows).tolist() for rows in (0, 6, 59, 60)]
            [[0, 0, 0], [3, 1, 2], [30, 10, 19], [30, 10, 20]]
        """
        early, late = 0.0, 1.0
        for _ in range(60):  # until the times are neighbours in float64
            middle = (early + late) / 2
            early, late = (middle, late) if self._until(middle).sum() <= rows else (early, middle)
        counts = self._until(early)
        more = np.flatnonzero(self._until(late) > counts)  # of equal times the lower streams' are first
        counts[more[: rows - int(counts.sum())]] += 1
        return counts

    def _until(self, time: float) -> NDArray[np.int64]:
        return np.clip(np.ceil(self.lengths * time - self._phase), 0, self.lengths).astype(np.int64)


class GroupLoader:
    """The training rows of a run, epoch by epoch, of which each process reads its own.

    Args:
        rows: All rows.
        sample: A sample of the training rows.
        objective: Converts labels to targets.
        batch_size: Rows per step, of all processes.
        sizes: Rows per block and per shard, needed to resume an epoch that was begun with them; chosen by default.
        world: The processes.
    """

    def __init__(
        self,
        rows: GroupedRows,
        sample: Part,
        objective: Objective,
        batch_size: int,
        sizes: tuple[int, int] | None = None,
        world: World | None = None,
    ) -> None:
        self.rows, self.sample, self.objective, self.batch_size = rows, sample, objective, batch_size
        self.world = world or World()
        row = rows.width * rows.dtype.itemsize + ROW_BYTES
        shard = max(1, SHARD_BYTES // row // batch_size) * batch_size
        block: int = max(1, MIXED_BYTES // MIXED_BLOCKS // (8 * rows.nothing.shape[1]))
        self.block, self.chunk = (block, shard) if sizes is None else sizes
        self.lengths = [sum(rows.counts[at][0] for at in stream) for stream in rows.streams]
        self.own = [*range(len(rows.streams))[self.world.rank :: self.world.size]]

    def __len__(self) -> int:
        """Return N, of all processes."""
        return self.rows.count["train"]

    def first_rows(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return x and y of some rows."""
        x = self.sample.inputs(slice(rows))
        return x, self.objective.targets(self.sample.y[:rows], x.dtype)

    def draw(self, generator: torch.Generator) -> Order:
        """Return the seed of a random order for an epoch."""
        return Order(torch.empty(0, dtype=torch.int64), int(torch.randint(2**62, (), generator=generator)))

    def shards(self, order: Order, done: int) -> Iterator[Shard]:
        """Yield this process's rows of the shards of an epoch, from the one that contains step ``done`` on."""
        return ahead(self._read(order.seed, done * self.batch_size // self.chunk * self.chunk))

    def _read(self, seed: int, begin: int) -> Iterator[Shard]:
        """Yield shards from the row ``begin`` of the epoch on."""
        schedule = Schedule(self.lengths, seed)
        given = schedule.given(begin)
        with ExitStack() as files:
            streams = []
            for at in self.own:
                with disk_errors(self.rows.folder):
                    self.rows.folder.mkdir(parents=True, exist_ok=True)
                    file = files.enter_context(tempfile.TemporaryFile(dir=self.rows.folder, buffering=0))
                streams.append(_Stream(self.rows, self.block, file, seed, *self._left(seed, at, int(given[at]))))
            for first in range(begin, len(self), self.chunk):
                before, given = given, schedule.given(min(first + self.chunk, len(self)))
                yield self._shard(streams, given - before, first // self.chunk, seed)

    def _shard(self, streams: Sequence[_Stream], counts: NDArray[np.int64], number: int, seed: int) -> Shard:
        """Return this process's rows of a shard, in which each stream has so many rows."""
        of_stream = np.repeat(np.arange(len(counts)), counts)  # row by row, in random order
        of_stream = of_stream[_random(seed, 1, number).permutation(len(of_stream))]
        rank, size = of_stream % self.world.size, self.batch_size
        batches = range(0, len(rank), size)
        of_each = [np.bincount(rank[first : first + size], minlength=self.world.size) for first in batches]
        shares = [BatchShare(int(n.sum()), int(n[self.world.rank]), int(n.max())) for n in of_each]
        own = of_stream[rank == self.world.rank]
        place = np.empty(len(own), dtype=np.int64)
        place[own.argsort(kind="stable")] = np.arange(len(own))  # rows are read stream after stream
        read = [stream.take(int(counts[at])) for stream, at in zip(streams, self.own, strict=True)]
        x, y, _ = self.rows.encoded(np.concatenate([self.rows.nothing, *read]))
        order, first = torch.from_numpy(place).to(x.device), number * self.chunk // size
        return Shard(first, x, self.objective.targets(y, x.dtype), order, shares)

    def _left(self, seed: int, number: int, given: int) -> tuple[list[int], int]:
        """Return the row groups of a stream that has given some rows, and how many rows of the first it has given."""
        groups = self.rows.streams[number]
        left = [groups[at] for at in _random(seed, 2, number).permutation(len(groups))]
        while left and given >= (count := self.rows.counts[left[0]][0]):
            given -= count
            left.pop(0)
        return left, given


class _Stream:
    """The training rows of some row groups in random order, taken in any number.

    A row group is read as a whole, and its rows wait in a temporary file: an open Parquet file has megabytes of each
    column in memory, and there are many streams.

    Args:
        rows: All rows.
        block: Neighbouring rows that stay together until they are shuffled.
        file: A temporary file.
        seed: Of the epoch.
        groups: The row groups, in the order in which they are read.
        given: Rows of the first that are skipped.
    """

    def __init__(self, rows: GroupedRows, block: int, file: Any, seed: int, groups: Sequence[int], given: int) -> None:
        self.rows, self.block, self.file, self.seed, self.given = rows, block, file, seed, given
        self.mixed = (window for group in groups for window in self._shuffled(group))
        self.waiting = rows.nothing

    def take(self, count: int) -> Numbers:
        """Return the next rows, as they were read."""
        found = [self.rows.nothing]
        while count:
            while not len(self.waiting):
                self.waiting = next(self.mixed)
            found.append(self.waiting[:count])
            count -= len(found[-1])
            self.waiting = self.waiting[len(found[-1]) :]
        return np.concatenate(found)

    def _shuffled(self, group: int) -> Iterator[Numbers]:
        """Yield the rows of a row group in random order, a few blocks at a time."""
        rows = self._write(group)
        random = _random(self.seed, 3, group)
        blocks = random.permutation(-(-rows // self.block)).tolist()
        for first in range(0, len(blocks), MIXED_BLOCKS):
            yield self._mixed(random, blocks[first : first + MIXED_BLOCKS], rows)

    def _write(self, group: int) -> int:
        """Write the rows of a row group into the file, and return how many there are."""
        written = 0
        self.file.seek(0)
        for _, rows in self.rows.read(group, ("train",)):
            with disk_errors(self.rows.folder):
                if self.file.write(np.ascontiguousarray(rows).data) < rows.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += len(rows)
        if written != self.rows.counts[group][0]:
            raise UserError(f"{self.rows.groups[group].path}: {CHANGED}")
        return written

    def _mixed(self, random: np.random.RandomState, blocks: Sequence[int], rows: int) -> Numbers:
        """Return the rows of some blocks of the file, which has so many rows, shuffled, without those to skip."""
        width, found = self.rows.nothing.shape[1], []
        for at in blocks:
            begin, end = at * self.block, min((at + 1) * self.block, rows)
            self.file.seek(8 * width * begin)
            found.append(np.fromfile(self.file, np.float64, width * (end - begin)))
        mixed: Numbers = np.concatenate(found).reshape(-1, width)
        order = random.permutation(len(mixed))[self.given :]
        self.given -= len(mixed) - len(order)
        return mixed[order]


def _random(seed: int, *numbers: int) -> np.random.RandomState:
    """Return a generator of its own for each seed below 2⁶² and numbers."""
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, *numbers])
