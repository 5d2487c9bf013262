"""The formats of tables: a file here, and its rows in ``FORMATS``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from deltaprop.data.formats.csv import CSV_NAMES, CsvTable
from deltaprop.data.formats.parquet import PARQUET_NAMES, ParquetTable, parts_of
from deltaprop.data.formats.table import Table
from deltaprop.errors import UserError

# By the end of a file's name: what opens it, given the path, the delimiter that was asked for (``"auto"``, which a
# format may ignore) and ``least``, the fewest columns it must have.
FORMATS: dict[str, Callable[..., Table]] = {
    **dict.fromkeys(CSV_NAMES, CsvTable.open),
    **dict.fromkeys(PARQUET_NAMES, ParquetTable.open),
}


def is_table(source: str | Path) -> bool:
    """Return whether a name is that of a table, or of a folder of Parquet parts."""
    path = Path(source)
    if os.path.isdir(path):  # for a name that no file can have it is False
        return bool(parts_of(path))
    return path.name.lower().endswith(tuple(FORMATS))


def open_table(path: Path, delimiter: str = "auto", *, least: int = 2) -> Table:
    """Return a table, once its header is checked; no row is read.

    Args:
        path: A file whose name ends as one of ``FORMATS`` (another is read as CSV), or a folder of Parquet parts.
        delimiter: Between the cells of a CSV: ``"auto"``, ``"tab"`` or one character.
        least: How many columns it must have: two to train on, an input and a target.

    Raises:
        UserError: If it is not there, cannot be read, or its header is none.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe or a device is read once, and a table more often: write it to a file")
    if path.is_dir():
        return ParquetTable.open(path, least=least)
    name = path.name.lower()
    ending = max((ending for ending in FORMATS if name.endswith(ending)), key=len, default=".csv")
    return FORMATS[ending](path, delimiter, least=least)
