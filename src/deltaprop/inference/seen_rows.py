"""Recognise rows that a model was trained on, while it is evaluated on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.columns import Column, Numbers
from deltaprop.data.digests import Digests, add_targets, input_digests, is_among
from deltaprop.data.formats import open_source
from deltaprop.data.formats.arrays import ArrayFile
from deltaprop.data.raw_data import RawData
from deltaprop.data.splits import Array, Rows
from deltaprop.data.store import described_columns
from deltaprop.data.table import NUMBER, Batch
from deltaprop.inference.inputs import InputBlocks
from deltaprop.inference.model import Model
from deltaprop.training.seen_rows import TrainingRows


class SeenRows(NamedTuple):
    """What is known of rows that a model was trained or validated on.

    Attributes:
        mask: Whether each row is equal to one of them, [N]; None if the rows were not compared.
        same_file: Whether all rows together are the data that the run was trained on, if rows were not compared.
        unknown: Why rows were not compared; empty for a run of a version that stored no digests.
    """

    mask: NDArray[np.bool_] | None
    same_file: bool = False
    unknown: str = ""

    @property
    def total(self) -> int | None:
        """The number of such rows; None if the rows were not compared."""
        return None if self.mask is None else int(self.mask.sum())


class RowMatcher:
    """Compares rows with those that a model was trained and validated on, while they are read.

    Args:
        model: The model.
        known: The rows of its run.
        blocks: The data. They are hashed as a whole if the rows of the run are not known.
    """

    def __init__(self, model: Model, known: TrainingRows, blocks: InputBlocks) -> None:
        self.model, self.known, self.blocks = model, known, blocks
        self._digests: list[Digests] = []
        self._sha256 = hashlib.sha256()
        # Classes are read as names, but training may have read them as numbers.
        are_numbers = bool(model.class_names) and all(re.fullmatch(NUMBER, name) for name in model.class_names)
        self._of_numbers = hashlib.sha256() if are_numbers else None
        if known.digests is None and blocks.reader is not None:
            blocks.raw = self._hashed(blocks.raw)

    def _hashed(self, raw: Iterator[tuple[Numbers, Rows, Batch]]) -> Iterator[tuple[Numbers, Rows, Batch]]:
        for block in raw:
            self._sha256.update(np.ascontiguousarray(block[0], dtype="<f8").data)
            if self._of_numbers is not None:
                (column,) = self.blocks.target_columns
                numbers = [float(name) if re.fullmatch(NUMBER, name) else np.nan for name in column.names]
                of_rows = np.array(numbers)[block[0][:, -1].astype(np.intp)]
                rows = np.concatenate([block[0][:, :-1], of_rows[:, None]], axis=1)
                self._of_numbers.update(np.ascontiguousarray(rows, dtype="<f8").data)
            yield block

    def add(self, x: Tensor) -> None:
        """Take the scaled inputs of the next rows."""
        if self.known.digests is not None:
            self._digests.append(input_digests(x))

    def match(self, y: Array, path: Path) -> SeenRows:
        """Return which rows are known, after all were added.

        Args:
            y: Labels [N], or numbers [N, k] in their own units.
            path: The data.
        """
        if self.known.digests is None:
            return SeenRows(None, self.known.data_sha256 in self._data_sha256(y, path), self.known.unknown)
        targets = torch.from_numpy(y.astype(np.int64 if self.model.class_names else np.float64))
        if not self.model.class_names:
            targets = self.model.target_scaling.apply(targets)
        digests = add_targets(np.concatenate(self._digests), targets, self.model.dtype)
        return SeenRows(is_among(digests, self.known.digests))

    def _data_sha256(self, y: Array, path: Path) -> list[str]:
        """Return the digests that a run trained on these data may have stored."""
        if (reader := self.blocks.reader) is not None:
            self._sha256.update(described_columns(reader.inputs, reader.targets))
            digests = [self._sha256.hexdigest()]
            if self._of_numbers is not None:
                targets = [Column(column.name) for column in reader.targets]
                self._of_numbers.update(described_columns(reader.inputs, targets))
                digests.append(self._of_numbers.hexdigest())
            return digests
        opened = open_source(path)
        if not isinstance(opened, ArrayFile):  # a folder of IDX files, which is evaluated on its test part
            return []
        return [RawData(name="", task=self.model.objective.task, x=opened.evaluation_part()[0], y=y).digest()]
