"""Which files are tables, and what reads each: CSV (plain or .gz), Parquet, and folders of Parquet parts."""

from __future__ import annotations

import os
from pathlib import Path

from deltaprop.data.formats.csv import CSV_NAMES, CsvTable
from deltaprop.data.formats.parquet import PARQUET_NAMES, ParquetTable, parts_of
from deltaprop.data.formats.table import Table
from deltaprop.errors import UserError


def is_table(source: str | Path) -> bool:
    """Return whether a name is that of a table, or of a folder of Parquet parts."""
    path = Path(source)
    if os.path.isdir(path):  # for a name that no file can have it is False
        return bool(parts_of(path))
    return path.name.lower().endswith((*CSV_NAMES, *PARQUET_NAMES))


def open_table(path: Path, delimiter: str = "auto", *, least: int = 2) -> Table:
    """Return a table, once its header is judged; no row is read.

    Args:
        path: A CSV file, a Parquet file, or a folder of Parquet parts.
        delimiter: Between the cells of a CSV: ``"auto"``, ``"tab"`` or one character.
        least: How many columns it must have: two to train on, an input and a target.

    Raises:
        UserError: If it is not there, cannot be read, or its header is none.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe or a device is read once, and a table more often: write it to a file")
    parts = parts_of(path) if path.is_dir() else [path]
    if not parts:
        raise UserError(f"{path}: there is no .parquet file in this folder")
    if parts[0].name.lower().endswith(PARQUET_NAMES):
        return ParquetTable.open(path, parts, least)
    return CsvTable.open(path, delimiter, least=least)
