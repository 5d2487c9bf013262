"""The rows of an epoch in random order, read from the row groups of a table by shares.

The order is drawn, not stored: each stream takes its row groups in random order, of each blocks of neighbouring rows in
random order, and shuffles a few blocks together. A batch takes one row of each stream in turn. So the rows of a batch
do not depend on the number of processes, a process reads its own row groups alone, and from the counts of the row
groups all know how many rows of a batch are whose.
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
BATCHES = 4096  # of a shard, at most: there is a number for each and each stream


class Turns:
    """Streams of rows that take turns: one row of each in a round, without those that have ended.

    Args:
        lengths: The rows of each stream.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self._rounds = np.unique([0, *lengths])  # after so many rounds the number of streams changes
        self._rows = np.minimum(self.lengths, self._rounds[:, None]).sum(axis=1)  # in so many rounds

    def taken(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the first so many rows each stream has given, [len(rows), K].

        Example:
            >>> Turns([3, 1, 2]).taken(np.array([0, 2, 4, 6])).tolist()
            [[0, 0, 0], [1, 1, 0], [2, 1, 1], [3, 1, 2]]
        """
        stage = np.searchsorted(self._rows, rows, side="right") - 1
        begun = self._rounds[stage][:, None]
        takes_turns = self.lengths > begun
        rounds, further = np.divmod(rows - self._rows[stage], np.maximum(takes_turns.sum(axis=1), 1))
        turn = takes_turns.cumsum(axis=1) - 1
        in_rounds = begun + rounds[:, None] + (turn < further[:, None])
        return np.where(takes_turns, in_rounds, self.lengths)


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
        shard = max(1, min(BATCHES, SHARD_BYTES // row // batch_size)) * batch_size
        block: int = max(1, MIXED_BYTES // MIXED_BLOCKS // (8 * rows.nothing.shape[1]))
        self.block, self.chunk = (block, shard) if sizes is None else sizes
        self.turns = Turns([sum(rows.counts[at][0] for at in stream) for stream in rows.streams])
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
        given = self.turns.taken(np.array([begin]))[0].tolist()
        with ExitStack() as files:
            streams = []
            for at in self.own:
                with disk_errors(self.rows.folder):
                    self.rows.folder.mkdir(parents=True, exist_ok=True)
                    file = files.enter_context(tempfile.TemporaryFile(dir=self.rows.folder, buffering=0))
                streams.append(_Stream(self.rows, self.block, file, seed, *self._left(seed, at, given[at])))
            for first in range(begin, len(self), self.chunk):
                yield self._shard(streams, first, min(first + self.chunk, len(self)))

    def _shard(self, streams: Sequence[_Stream], first: int, end: int) -> Shard:
        """Return this process's share of some rows of the epoch."""
        ends = np.append(np.arange(first, end, self.batch_size), end)
        taken = np.diff(self.turns.taken(ends), axis=0)  # rows of each stream in each batch
        own = taken[:, self.own]
        read = [stream.take(count) for stream, count in zip(streams, own.sum(axis=0).tolist(), strict=True)]
        x, y, _ = self.rows.encoded(np.concatenate([self.rows.nothing, *read]))
        order = torch.from_numpy(_by_batch(own)).to(x.device)
        of_each = [taken[:, rank :: self.world.size].sum(axis=1) for rank in range(self.world.size)]
        counts = taken.sum(axis=1), own.sum(axis=1), np.max(of_each, axis=0)
        shares = [BatchShare(*of_batch) for of_batch in zip(*(of.tolist() for of in counts), strict=True)]
        return Shard(first // self.batch_size, x, self.objective.targets(y, x.dtype), order, shares)

    def _left(self, seed: int, number: int, given: int) -> tuple[list[int], int]:
        """Return the row groups of a stream that has given some rows, and how many rows of the first it has given."""
        groups = self.rows.streams[number]
        left = [groups[at] for at in _random(seed, number).permutation(len(groups))]
        while left and given >= (count := self.rows.counts[left[0]][0]):
            given -= count
            left.pop(0)
        return left, given


def _by_batch(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of rows that are stored stream after stream, batch after batch.

    Args:
        counts: The rows of each stream in each batch, [B, K].

    Example:
        >>> _by_batch(np.array([[2, 1], [1, 1]])).tolist()
        [0, 1, 3, 2, 4]
    """
    of_streams = counts.sum(axis=0)
    first = of_streams.cumsum() - of_streams + counts.cumsum(axis=0) - counts  # of each stream in each batch
    sizes = counts.ravel()
    return np.repeat(first.ravel() - (sizes.cumsum() - sizes), sizes) + np.arange(sizes.sum())


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
        random = _random(self.seed, len(self.rows.streams) + group)
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


def _random(seed: int, number: int) -> np.random.RandomState:
    """Return a generator of its own for each seed below 2⁶² and number."""
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, number])
