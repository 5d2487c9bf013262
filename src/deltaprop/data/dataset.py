"""A data set as a network trains on it (`Dataset`, made of `Split`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from deltaprop.data.columns import Task
from deltaprop.data.encoding import Encoding
from deltaprop.data.grouped import GroupedRows
from deltaprop.data.row_groups import PARTS
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import ROWS_AT_ONCE, OnDisk, Storage, Store


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One part of a data set; rows are samples.

    Args:
        x: Scaled inputs, shape ``[N, n]``.
        y: Class labels, shape ``[N]``, int64; or standardised targets, shape ``[N, k]``.
        y_raw: Targets in their own units, ``[N, k]``, float64, on the CPU: y, rounded to float32, has lost digits of
            them. None for classes, and for training rows, whose figures are told from y.
    """

    x: Tensor
    y: Tensor
    y_raw: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, rows: slice | Tensor) -> Tensor:
        """Return x of some rows."""
        return self.x[rows]

    def to(self, device: torch.device | str) -> Split:
        """Return the same rows on ``device``."""
        return Split(x=self.x.to(device), y=self.y.to(device), y_raw=self.y_raw)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedSplit:
    """One part of a data set whose inputs are encoded when they are needed, a few rows at a time.

    Args:
        store: The rows as they were read.
        rows: The indices of this part's rows in the store, in rising order.
        encode: Writes the inputs of some rows of the store, ``[M, n]``.
        width: n.
        y: As in `Split`, in memory.
        dtype: The dtype of the inputs.
        y_raw: As in `Split`.
    """

    store: Store
    rows: Rows
    encode: Callable[[Store, Rows, Tensor], None]
    width: int
    y: Tensor
    dtype: torch.dtype
    y_raw: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, rows: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """Return x of some rows, on the device of y.

        Args:
            rows: Their indices in this part.
            out: Memory to write them to, ``[≥ M, n]`` on the CPU; allocated by default.
        """
        indices = self._indices(rows)
        x = torch.empty(len(indices), self.width, dtype=self.dtype) if out is None else out[: len(indices)]
        for start in range(0, len(indices), ROWS_AT_ONCE):
            block = indices[start : start + ROWS_AT_ONCE]
            self.encode(self.store, block, x[start : start + len(block)])
        return x.to(self.y.device)

    def expect(self, rows: slice | Tensor) -> None:
        """Prefetch some rows that are on disk: they will be needed next."""
        if isinstance(self.store, OnDisk):
            self.store.expect(self._indices(rows))

    def to(self, device: torch.device | str) -> StreamedSplit:
        """Return the same rows, with inputs and y on ``device``."""
        return dataclasses.replace(self, y=self.y.to(device))

    def _indices(self, rows: slice | Tensor) -> Rows:
        indices: Rows = self.rows[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return indices


Part: TypeAlias = Split | StreamedSplit


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """How a table was read.

    Args:
        encoding: The inputs that its columns become.
        left_out: Columns that are not used, each with the reason; none for one that the user dropped.
        dropped: The number of rows that were left out because of a missing input.
        unlabelled: The number of rows that were left out because of a missing target.
        gaps: The number of missing cells that are filled.
        storage: Where its rows are.
        notes: How columns are read, where that may surprise.
        warnings: Warnings for the user.
    """

    encoding: Encoding
    left_out: tuple[tuple[str, str], ...] = ()
    dropped: int = 0
    unlabelled: int = 0
    gaps: int = 0
    storage: Storage = "memory"
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class EncodedRows(NamedTuple):
    """Rows as they were read, what writes their inputs, their labels or targets, and their indices in the store."""

    store: Store
    encode: Callable[[Store, Rows, Tensor], None]
    y: Array
    rows: Rows


class FittedData(NamedTuple):
    """All rows and those of a test set of its own, with a scaling fitted on the training rows; else as in `Dataset`."""

    scaling: Scaling
    rows: EncodedRows
    test: EncodedRows | None
    digest: str
    table: TableFacts | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set split in three and scaled.

    Args:
        name: The built-in name, or the name of the file or folder that was read.
        task: ``"classification"`` or ``"regression"``.
        train: The training rows.
        val: The validation rows; none if ``val_fraction`` was 0.
        test: The rows for the final evaluation.
        class_names: One name per class, empty for regression.
        image_shape: (rows, columns) where each sample is one picture, else None.
        input_scaling: The scaling of the raw inputs to ``x``, fitted on the training rows.
        target_scaling: The scaling of the raw targets to ``y``, fitted on the training rows; identity for classes.
        digest: SHA-256 of the raw data before any split, as hex (see `RawData.digest`).
        table: How a table was read; None for other data.
        classes_left_out: Classes of a single row, whose rows are in no part.
        notes: What the user is told of the targets.
        grouped: All rows, where they stay in their row groups: ``train``, ``val`` and ``test`` are a sample of them.
    """

    name: str
    task: Task
    train: Part
    val: Part
    test: Part
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None
    input_scaling: Scaling
    target_scaling: Scaling
    digest: str
    table: TableFacts | None = None
    classes_left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    grouped: GroupedRows | None = None

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each part."""
        if self.grouped is not None:
            return self.grouped.count
        return {part: len(getattr(self, part)) for part in PARTS}

    def class_counts(self, part: str) -> list[int]:
        """Return the number of rows of each class in a part."""
        if self.grouped is not None:
            return self.grouped.class_counts[part]
        counts: list[int] = torch.bincount(getattr(self, part).y, minlength=len(self.class_names)).tolist()
        return counts

    @property
    def n_inputs(self) -> int:
        """The number of input columns n."""
        return len(self.input_scaling.mean)

    @property
    def is_streamed(self) -> bool:
        """Whether inputs are encoded, perhaps from the disk, while the network trains."""
        return isinstance(self.train, StreamedSplit)

    @property
    def n_outputs(self) -> int:
        """The number of classes, or of target columns k."""
        return len(self.class_names) if self.task == "classification" else self.train.y.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data set, scalings included, on ``device``.

        The scaling of the targets stays where it is rather than lose digits: mps has no float64.
        """
        names = ["train", "val", "test", "input_scaling"]
        if torch.device(device).type != "mps":
            names.append("target_scaling")
        moved = {name: getattr(self, name).to(device) for name in names}
        if self.grouped is not None:
            moved["grouped"] = dataclasses.replace(self.grouped, device=torch.device(device))
        return dataclasses.replace(self, **moved)
