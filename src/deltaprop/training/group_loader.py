"""The rows of an epoch in random order, read from the row groups of a table by shares.

The order is drawn, not stored: each stream of row groups takes its own in random order, reads them a window at a time,
and shuffles each window. A batch takes one row of each stream in turn. So the rows of a batch do not depend on the
number of processes, a process reads its own row groups alone, and how many rows of a batch are whose is known to all
from the counts of the row groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data import GroupedRows, Part
from deltaprop.data.ahead import ahead
from deltaprop.distributed import World
from deltaprop.training.data_loader import CHUNK_BYTES, Order, Shard
from deltaprop.training.objective import Objective

WINDOW = 256, 8192  # rows of the file that are shuffled together: at least, and at most

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
        sizes: Rows per window and per shard, needed to resume an epoch that was begun with them; chosen by default.
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
        row = rows.width * rows.dtype.itemsize
        least, most = WINDOW
        window = max(least, min(most, CHUNK_BYTES // (row * len(rows.streams))))
        self.block, self.chunk = sizes or (window, max(1, min(BATCHES, CHUNK_BYTES // row // batch_size)) * batch_size)
        self.turns = Turns([sum(rows.counts[at][0] for at in stream) for stream in rows.streams])
        self.nothing = rows.nothing.x, rows.nothing.y
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
        streams = self._streams(seed, begin)
        for first in range(begin, len(self), self.chunk):
            end = min(first + self.chunk, len(self))
            ends = np.append(np.arange(first, end, self.batch_size), end)
            taken = np.diff(self.turns.taken(ends), axis=0)  # rows of each stream in each batch
            own = taken[:, self.own]
            read = [stream.take(count) for stream, count in zip(streams, own.sum(axis=0).tolist(), strict=True)]
            x, y = (torch.cat(part) for part in zip(*read, strict=True)) if read else self.nothing
            yield Shard(
                first // self.batch_size, x, self.objective.targets(y, x.dtype),
                torch.from_numpy(_by_batch(own)).to(x.device),
                [*zip(taken.sum(axis=1).tolist(), own.sum(axis=1).tolist(), strict=True)],
            )  # fmt: skip

    def _streams(self, seed: int, begin: int) -> list[_Stream]:
        """Return the streams of this process, after the first ``begin`` rows of the epoch."""
        given = self.turns.taken(np.array([begin]))[0]
        return [_Stream(self._stream(seed, at, int(given[at])), self.nothing) for at in self.own]

    def _stream(self, seed: int, number: int, skipped: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of a stream in random order, window by window, after some that are skipped."""
        groups = self.rows.streams[number]
        for at in np.array(groups)[_random(seed, number).permutation(len(groups))].tolist():
            if skipped >= (count := self.rows.counts[at][0]):
                skipped -= count
                continue
            random = _random(seed, len(self.rows.streams) + at)
            for window in self.rows.windows(at, ("train",), self.block):
                order = torch.from_numpy(random.permutation(len(window.x)))[skipped:]
                skipped -= len(window.x) - len(order)
                yield window.x[order], window.y[order]


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
    """Rows that come window by window, and are taken in any number."""

    def __init__(self, windows: Iterator[tuple[Tensor, Tensor]], nothing: tuple[Tensor, Tensor]) -> None:
        self.windows, self.nothing = windows, nothing
        self.waiting = nothing

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the next rows."""
        found, held = [self.waiting], len(self.waiting[0])
        while held < count:
            found.append(next(self.windows))
            held += len(found[-1][0])
        x, y = (torch.cat(part) if len(part) > 1 else part[0] for part in zip(*found, strict=True))
        # A copy, or a slice would keep all of a window in memory.
        self.waiting = (x[count:].clone(), y[count:].clone()) if held > count else self.nothing
        return x[:count], y[:count]


def _random(seed: int, number: int) -> np.random.RandomState:
    """Return a generator of its own for each seed below 2⁶² and number."""
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, number])
