"""Train the network of a run again on other data in memory, with the same settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltaprop.data.frames import frame_table
from deltaprop.data.splits import Array
from deltaprop.errors import UserError
from deltaprop.training import TrainConfig, train


def retrain(config: TrainConfig, data: Any, y: Any, targets: Sequence[str], task: str, folder: Path) -> Path:
    """Train on all rows of a table, and return the folder of the run.

    Args:
        config: The configuration of the run. Nothing is held out for a test, and its validation rows are as before.
        data: A table with the columns of inputs, or an array [N, n].
        y: Targets, [N] or [N, k].
        targets: Their names.
        task: ``"classification"`` or ``"regression"``.
        folder: An empty folder to work in.

    Raises:
        UserError: If training refuses the data; the message speaks of the data, not of a file.
    """
    names: dict[str, Any] = {"target": (), "drop": (), "categorical": (), "keep_column": ()}
    if isinstance(data, np.ndarray):
        path = folder / "data.npz"
        np.savez(path, x=data, y=y)
    else:
        path, names["target"] = folder / "data.parquet", tuple(targets)
        present = _write_table(path, data, y, targets)
        for name in ("categorical", "keep_column"):
            names[name] = tuple(column for column in getattr(config, name) if column in present)
    settings: dict[str, Any] = {
        "data": str(path), "test": str(path), "task": task, "folds": 0, "fold": 0, "rare_classes": "keep",
        "log_every": 0, "save_every": "1000000m", "run_dir": folder / "run", "config": None, "cache": folder / "cache",
        **{name: getattr(TrainConfig, name) for name in ("delimiter", "encoding", "header", "sheet")},
    }  # fmt: skip
    try:
        return train(dataclasses.replace(config, **settings, **names)).folder
    except UserError as error:
        raise UserError(str(error).replace(str(path), "the data")) from error


def picture_array(x: Array, shape: tuple[int, int]) -> Array:
    """Return rows of pixels as images of bytes, [N, rows, columns].

    Raises:
        UserError: If they are not bytes.
    """
    if not ((x >= 0) & (x <= 255) & (x % 1 == 0)).all():
        raise UserError("fit of a model of images needs pixels that are whole numbers from 0 to 255")
    return x.reshape(len(x), *shape).astype(np.uint8)


def _write_table(path: Path, data: Any, y: Any, targets: Sequence[str]) -> set[str]:
    """Write inputs and targets as one table, and return the names of the inputs."""
    import pyarrow
    from pyarrow import parquet

    table = frame_table(data).table
    table = table.select([name for name in table.column_names if name not in targets])
    columns = [*np.asarray(y).T] if np.ndim(y) > 1 else [np.asarray(y)]
    if len(columns) != len(targets):
        raise UserError(f"y must hold {len(targets)} targets per row, as in the run, got {len(columns)}")
    inputs = {*table.column_names}
    for name, column in zip(targets, columns, strict=True):
        if len(column) != table.num_rows:
            raise UserError(f"y must hold one target for each of {table.num_rows} rows, got {len(column)}")
        values = pyarrow.array(column.tolist(), from_pandas=True)
        if values.null_count:
            row = next(at for at, value in enumerate(values) if not value.is_valid) + 1
            raise UserError(f"Input y contains NaN: the target of row {row} is missing: leave it out")
        table = table.append_column(name, values)
    parquet.write_table(table, path)
    return inputs


def pixel_settings(scaling_scale: torch.Tensor) -> dict[str, Any]:
    """Return the settings that scale images as a run did: by one divisor for all pixels."""
    return {"scaling": "pixel", "pixel_scale": float(scaling_scale[0])}
