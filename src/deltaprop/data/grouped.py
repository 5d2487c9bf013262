"""Rows that stay in the row groups of Parquet files: what one pass over them finds, and how they are read in training.

What is found of a row group does not depend on the process that has read it, and is put together in the order of the
table: so the statistics have the same bits for any number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.classes import MOST_CLASSES, Targets, TargetValues
from deltaprop.data.columns import Column, Missing, Numbers, Reader
from deltaprop.data.encoding import Encoder, InputStatistics
from deltaprop.data.infer import TablePlan
from deltaprop.data.profile import MOST_COUNTED
from deltaprop.data.row_groups import CHANGED, PARTS, Division, RowGroup, own_groups
from deltaprop.data.scaling import Moments
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import InMemory, described_columns
from deltaprop.data.table import BATCH_ROWS
from deltaprop.errors import UserError

DECODED_BYTES = 1 << 24  # of the rows that are read together
# Row groups that a sample is drawn from: as many as have so many rows, within limits.
LOOKED_AT, FEWEST_GROUPS, SAMPLE_GROUPS = 1 << 20, 4, 64
SAMPLE_ROWS = 10_000  # of each part, on average
SAMPLE_BYTES = 1 << 24  # of their inputs, at most

Counts = dict[str, list[int]]
"""How often each value of a target occurs in each part; a number by its ``repr``."""


@dataclass(frozen=True)
class Reading:
    """How row groups are read.

    Attributes:
        plan: The columns.
        missing: What to do about a missing cell.
        division: Which part each row is in.
        most_values: Different values of a target that are counted; with more there are no counts.
        targets: What is predicted; None as long as that is not known.
        always: Labels of classes whose rows are all trained on, whatever part they were drawn for; not those of a
            table to test on.
    """

    plan: TablePlan
    missing: Missing
    division: Division
    most_values: int
    targets: Targets | None = None
    always: Sequence[int] = ()

    @classmethod
    def of(cls, plan: TablePlan, missing: Missing, division: Division, *, has_classes: bool) -> Reading:
        """Return it with the most values that may be classes: many if there are names, or classes are asked for."""
        are_names = any(column.kind == "categories" for column in plan.targets)
        return cls(plan, missing, division, MOST_COUNTED if are_names or has_classes else MOST_CLASSES)

    @property
    def names(self) -> list[str]:
        """The columns of the file that are read."""
        return [*dict.fromkeys(column.source for column in (*self.plan.inputs, *self.plan.targets))]

    def parts(self, rows: Rows, y: TargetValues) -> tuple[NDArray[np.int8], Numbers]:
        """Return the index in ``PARTS`` of the part of each row, −1 for one that is left out, and y or its labels.

        Args:
            rows: The indices of the rows in the table.
            y: Their targets.
        """
        parts = self.division.parts(rows)
        if self.targets is None or not self.targets.class_names:
            return parts, y.values
        labels = self.targets.encode(y)
        parts[np.isin(labels, self.always) & (rows < self.division.rows)] = 0
        parts[labels < 0] = -1
        return parts, labels[:, None].astype(np.float64)

    def chosen(self, group: RowGroup) -> RowGroup:
        """Return a row group with these columns, and blocks of a limited size."""
        rows = max(1, min(BATCH_ROWS, DECODED_BYTES // (8 * (len(self.plan.inputs) + len(self.plan.targets)))))
        return replace(group, names=self.names, rows_at_once=rows)


@dataclass
class GroupFacts:
    """What one pass over rows has found.

    Attributes:
        inputs: Statistics of the inputs of training rows.
        digest: SHA-256 of the rows as they are read, and of the columns, as hex.
        rows: Rows of each part.
        dropped: Rows that are left out for a missing input.
        unlabelled: Rows that are left out for a missing target.
        gaps: Missing cells in the others.
        targets: Mean and variance of the targets, of each part.
        least: The smallest number of each target, of each part, [3, k].
        most: The largest, [3, k].
        names: The names of categories in each column of inputs and of targets.
        counts: How often each value of the only target occurs; None if there are several targets, or too many values.
    """

    inputs: InputStatistics
    digest: str
    rows: list[int]
    dropped: int
    unlabelled: int
    gaps: int
    targets: list[Moments]
    least: Array
    most: Array
    names: list[list[str]]
    counts: Counts | None

    def to_json(self) -> dict[str, Any]:
        """Return them for another process."""
        found = {**vars(self), "inputs": self.inputs.to_json(), "targets": [part.to_json() for part in self.targets]}
        return found | {"least": self.least.tolist(), "most": self.most.tolist()}

    @classmethod
    def from_json(cls, columns: Sequence[Column], found: dict[str, Any]) -> GroupFacts:
        """Return what :meth:`to_json` gave; ``columns`` are those of inputs."""
        inputs = InputStatistics.from_json(columns, found["inputs"])
        targets = [Moments.from_json(part) for part in found["targets"]]
        ends = {name: np.array(found[name]) for name in ("least", "most")}
        return cls(**{**found, "inputs": inputs, "targets": targets, **ends})


def survey(group: RowGroup, reading: Reading) -> GroupFacts:
    """Read a row group once, and return what is in it.

    Raises:
        UserError: If a cell does not fit its column, or the file is damaged.
    """
    plan, width = reading.plan, len(reading.plan.inputs)
    inputs, targets = ([replace(column, names={}) for column in part] for part in (plan.inputs, plan.targets))
    reader = Reader(reading.chosen(group), inputs, targets, reading.missing)
    statistics, moments, digest = InputStatistics(inputs), [Moments(len(targets)) for _ in PARTS], hashlib.sha256()
    least, most = (np.full((len(PARTS), len(targets)), of_none) for of_none in (np.inf, -np.inf))
    counter = _Counter(targets, reading.most_values)
    rows = np.zeros(len(PARTS), dtype=np.int64)
    for block, numbers, _ in reader.blocks():
        digest.update(np.ascontiguousarray(block, dtype="<f8").data)
        y = block[:, width:]
        parts, _ = reading.parts(group.first + numbers - 1, TargetValues(targets, y, str(group.path), False))
        rows += np.bincount(parts[parts >= 0], minlength=len(PARTS))
        statistics.add(block[parts == 0, :width])
        counter.add(y[:, 0], parts)
        for part in np.unique(parts[parts >= 0]):
            of_part = y[parts == part]
            moments[part].add(of_part)
            least[part] = np.minimum(least[part], of_part.min(axis=0))
            most[part] = np.maximum(most[part], of_part.max(axis=0))
    digest.update(described_columns(inputs, targets))
    names = [[*column.names] for column in (*inputs, *targets)]
    return GroupFacts(
        statistics, digest.hexdigest(), rows.tolist(), reader.dropped, reader.unlabelled, reader.gaps, moments, least,
        most, names, counter.counts,
    )  # fmt: skip


class _Counter:
    """Counts the values of the only target, as long as they are not too many."""

    def __init__(self, targets: Sequence[Column], most: int) -> None:
        self.column, self.most = targets[0], most
        self.counts: Counts | None = {} if len(targets) == 1 else None

    def add(self, values: Numbers, parts: NDArray[np.int8]) -> None:
        """Count values, each in its part."""
        if self.counts is None:
            return
        names = [*self.column.names]
        for part in range(len(PARTS)):
            uniques, counts = np.unique(values[parts == part], return_counts=True)
            if len(uniques) > self.most:
                self.counts = None
                return
            for value, count in zip(uniques.tolist(), counts.tolist(), strict=True):
                key = names[int(value)] if self.column.kind == "categories" else repr(value + 0.0)  # −0.0 is 0.0
                self.counts.setdefault(key, [0] * len(PARTS))[part] += count
        if len(self.counts) > self.most:
            self.counts = None


def merged(facts: Sequence[GroupFacts], plan: TablePlan, most_values: int) -> GroupFacts:
    """Return what was found in several row groups, in the order given."""
    inputs, targets = InputStatistics(plan.inputs), [Moments(len(plan.targets)) for _ in PARTS]
    counts: Counts | None = None if any(of.counts is None for of in facts) else {}
    names: list[dict[str, None]] = [{} for _ in (*plan.inputs, *plan.targets)]
    for of in facts:
        inputs.merge(of.inputs)
        for part, other in zip(targets, of.targets, strict=True):
            part.merge(other)
        for all_names, more in zip(names, of.names, strict=True):
            all_names |= dict.fromkeys(more)
        if counts is not None and of.counts is not None:
            for value, by_part in of.counts.items():
                counts[value] = [*map(sum, zip(counts.get(value, [0] * len(PARTS)), by_part, strict=True))]
            counts = counts if len(counts) <= most_values else None
    digest = hashlib.sha256("\n".join(of.digest for of in facts).encode()).hexdigest()
    rows = [sum(by_part) for by_part in zip(*(of.rows for of in facts), strict=True)]
    dropped, unlabelled, gaps = (sum(getattr(of, name) for of in facts) for name in ("dropped", "unlabelled", "gaps"))
    least, most = np.min([of.least for of in facts], axis=0), np.max([of.most for of in facts], axis=0)
    return GroupFacts(
        inputs, digest, rows, dropped, unlabelled, gaps, targets, least, most, [*map(sorted, names)], counts
    )


class Window(NamedTuple):
    """Rows of a row group, in order.

    Attributes:
        group: Its index in the table.
        parts: The index in ``PARTS`` of the part of each, [N].
        x: Scaled inputs, [N, n].
        y: Labels [N], or scaled targets [N, k].
        y_raw: Targets in their own units, [N, k], float64; None for classes.
    """

    group: int
    parts: NDArray[np.int8]
    x: Tensor
    y: Tensor
    y_raw: Tensor | None

    def some(self, rows: Rows) -> Window:
        """Return some of the rows."""
        at = torch.from_numpy(rows)
        raw = None if self.y_raw is None else self.y_raw[at]
        return Window(self.group, self.parts[rows], self.x[at], self.y[at], raw)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedRows:
    """All rows of a data set that stay in their row groups.

    Attributes:
        groups: The row groups, in the order of the table.
        streams: The row groups of each stream, see `row_groups.deal`.
        reading: How they are read; its columns have the names of all categories.
        encode: Writes inputs.
        scale: Makes y of targets in their own units; for classes it has no use.
        counts: Rows of each part, of each row group.
        class_counts: Rows of each class, of each part; none for numbers.
        moments: Mean and variance of each target, of each part, in their own units.
        varies: Whether each target has different values, of each part.
        farthest: The largest absolute value among inputs and targets of the training rows.
        folder: Where streams keep rows that wait for their turn.
        device: Where x and y are returned.
    """

    groups: Sequence[RowGroup]
    streams: Sequence[Sequence[int]]
    reading: Reading
    encode: Encoder
    scale: Callable[[Tensor], Tensor]
    counts: Sequence[Sequence[int]]
    class_counts: Mapping[str, list[int]]
    moments: Mapping[str, Moments]
    varies: Mapping[str, Array]
    farthest: float
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def targets(self) -> Targets:
        """What is predicted."""
        assert self.reading.targets is not None
        return self.reading.targets

    @property
    def width(self) -> int:
        """The number of inputs n."""
        return len(self.encode.encoding)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return self.encode.dtype

    @cached_property
    def count(self) -> dict[str, int]:
        """Rows of each part."""
        return dict(zip(PARTS, map(sum, zip(*self.counts, strict=True)), strict=True))

    def own(self, rank: int, size: int) -> list[int]:
        """Return the row groups of a process, in the order of the table."""
        return own_groups(self.streams, rank, size)

    def read(self, group: int, parts: Sequence[str]) -> Iterator[tuple[NDArray[np.int8], Numbers]]:
        """Yield the rows of some parts in a row group, block by block: the part of each, and the row [p + k].

        They are as they were read, but for classes, which are their labels.

        Raises:
            UserError: If the file is damaged, or has changed.
        """
        plan, chosen = self.reading.plan, [PARTS.index(part) for part in parts]
        columns, width = (*plan.inputs, *plan.targets), len(plan.inputs)
        known = [len(column.names) for column in columns]
        table = self.reading.chosen(self.groups[group])
        for block, numbers, _ in Reader(table, plan.inputs, plan.targets, self.reading.missing).blocks():
            if known != [len(column.names) for column in columns]:
                raise UserError(f"{table.path}: {CHANGED}: it has a name that was not there before")
            y = TargetValues(plan.targets, block[:, width:], str(table.path), False)
            of_rows, block[:, width:] = self.reading.parts(table.first + numbers - 1, y)
            rows = np.flatnonzero(np.isin(of_rows, chosen))
            yield of_rows[rows], block[rows]

    def encoded(self, block: Numbers) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x, y and y_raw, as in `Window`, of rows [N, p + k] as they were read."""
        width = len(self.reading.plan.inputs)
        x = torch.empty(len(block), self.width, dtype=self.dtype)
        if len(block):
            self.encode(InMemory(block[:, :width]), np.arange(len(block)), x)
        if self.targets.class_names:
            return x.to(self.device), torch.from_numpy(block[:, width].astype(np.int64)).to(self.device), None
        raw = torch.from_numpy(block[:, width:].copy())
        return x.to(self.device), self.scale(raw).to(self.device), raw

    def windows(self, group: int, parts: Sequence[str], most: int) -> Iterator[Window]:
        """Yield the rows of some parts in a row group as a network takes them, at most so many at a time."""
        for of_rows, block in self.read(group, parts):
            for first in range(0, len(block), most):
                some = slice(first, first + most)
                yield Window(group, of_rows[some], *self.encoded(block[some]))

    @property
    def nothing(self) -> Numbers:
        """No rows, [0, p + k]."""
        return np.empty((0, len(self.reading.plan.inputs) + len(self.reading.plan.targets)))

    def sample(self) -> dict[str, Tensor]:
        """Return x, y and y_raw of some rows of each part, such as "train.x": drawn from evenly spaced row groups."""
        most = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // (self.width * self.dtype.itemsize)))
        rows = max(group.rows for group in self.groups)
        spaced = np.linspace(0, len(self.groups) - 1, max(FEWEST_GROUPS, min(SAMPLE_GROUPS, LOOKED_AT // rows)))
        chosen = sorted({*spaced.round().astype(int).tolist()})
        found: dict[str, list[Window]] = {
            part: [Window(0, np.empty(0, np.int8), *self.encoded(self.nothing))] for part in PARTS
        }
        of_parts = np.array(self.counts)[chosen].sum(axis=0)
        random = np.random.RandomState(0)
        for group in chosen:
            for window in self.windows(group, PARTS, BATCH_ROWS):
                drawn = random.random_sample(len(window.x))
                for number, part in enumerate(PARTS):
                    share = most / max(1, of_parts[number])
                    found[part].append(window.some(np.flatnonzero((window.parts == number) & (drawn < share))))
        names = ("x", "y") if self.targets.class_names else ("x", "y", "y_raw")
        return {
            f"{part}.{name}": torch.cat([getattr(window, name) for window in windows]).contiguous()
            for part, windows in found.items()
            for name in names
        }


def exchanged(facts: Mapping[int, GroupFacts]) -> bytes:
    """Return what this process has found, by row group, for the others."""
    return json.dumps({group: of.to_json() for group, of in facts.items()}).encode()


def unite_names(facts: Sequence[GroupFacts]) -> None:
    """Keep each name of a category once: with the first of some row groups."""
    if facts:
        names = [dict.fromkeys(facts[0].names[at]) for at in range(len(facts[0].names))]
        for of in facts:
            for known, more in zip(names, of.names, strict=True):
                known |= dict.fromkeys(more)
            of.names = [[] for _ in names]
        facts[0].names = [*map(list, names)]


def of_all(told: Sequence[bytes], columns: Sequence[Column]) -> list[GroupFacts]:
    """Return what the processes have found of each row group, in the order of the table."""
    found = {int(group): facts for each in told for group, facts in json.loads(each).items()}
    return [GroupFacts.from_json(columns, found[group]) for group in sorted(found)]
