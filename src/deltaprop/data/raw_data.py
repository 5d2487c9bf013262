"""A data set as it was read or generated (`RawData`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from deltaprop.data.columns import Task
from deltaprop.data.splits import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class RawData:
    """A data set as it was read or generated: not yet split, scaled or flattened.

    Args:
        name: The name of the data set.
        task: ``"classification"`` or ``"regression"``.
        x: Inputs, shape ``[N, ...]``; a sample's axes are flattened later.
        y: Labels, shape ``[N]``, integers from 0; or targets, shape ``[N, k]``.
        x_test: Inputs of the official test set, shape ``[M, ...]``, or None without one.
        y_test: Its labels or targets, or None.
        class_names: One name per class, empty for regression.
        classes_left_out: Classes of a single row, whose rows are not in it.
        notes: What the user is told of the targets.
        pictures: Whether x holds pixels.
        full_scale: The largest value of a pixel, or None if it is unknown.
    """

    name: str
    task: Task
    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None
    class_names: tuple[str, ...] = ()
    classes_left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: bool = False
    full_scale: float | None = None

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(rows, columns) of a picture; None for other data and for pictures of another rank."""
        return (self.x.shape[1], self.x.shape[2]) if self.pictures and self.x.ndim == 3 else None

    def digest(self) -> str:
        """Return the SHA-256, as hex, of the dtype, shape and bytes of each array.

        The bytes are taken in row order and little-endian, so the same data gives the same digest on every machine,
        whether the files were compressed or not.
        """
        sha = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test):
            if array is None:
                sha.update(b"none;")
                continue
            sha.update(f"{array.dtype.name} {array.shape};".encode())
            sha.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return sha.hexdigest()
