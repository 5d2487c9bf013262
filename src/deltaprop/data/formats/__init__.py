"""The formats of data: each is a file here, and a row of ``FORMATS`` for each ending of a file's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from deltaprop.data.formats.arrays import ARRAY_NAMES, ArrayFile
from deltaprop.data.formats.arrow import ARROW_NAMES, ArrowFile
from deltaprop.data.formats.csv import CSV_NAMES, CsvTable
from deltaprop.data.formats.excel import EXCEL_NAMES, ExcelTable
from deltaprop.data.formats.idx import IdxFolder
from deltaprop.data.formats.idx_files import is_idx_prefix
from deltaprop.data.formats.jsonl import JSONL_NAMES, JsonLinesTable
from deltaprop.data.formats.parquet import PARQUET_NAMES, ParquetTable, parts_of
from deltaprop.data.table import DEFAULT_READING, ReadOptions, Table
from deltaprop.errors import UserError

# By the ending of a file's name: what opens a table, called with the path and the `ReadOptions`; or `ArrayFile`.
FORMATS: dict[str, Callable[..., Table] | type[ArrayFile]] = {
    **dict.fromkeys(CSV_NAMES, CsvTable.open),
    **dict.fromkeys(PARQUET_NAMES, ParquetTable.open),
    **dict.fromkeys(JSONL_NAMES, JsonLinesTable.open),
    **dict.fromkeys(ARROW_NAMES, ArrowFile.open),
    **dict.fromkeys(EXCEL_NAMES, ExcelTable.open),
    **dict.fromkeys(ARRAY_NAMES, ArrayFile),
}


def find_format(source: str | Path) -> Callable[..., Table] | type[ArrayFile] | type[IdxFolder] | None:
    """Return what opens a path: by the longest ending of ``FORMATS`` that fits; None if there is none."""
    path = Path(source)
    if os.path.isdir(source):  # not Path.is_dir, which raises for a name that no file can have; Path("") is a folder
        return ParquetTable.open if parts_of(path) else IdxFolder
    fitting = [ending for ending in FORMATS if path.name.lower().endswith(ending)]
    if fitting:
        return FORMATS[max(fitting, key=len)]
    return IdxFolder if is_idx_prefix(path) else None


def is_table(source: str | Path) -> bool:
    """Return whether a path is a table, or a folder of Parquet parts, by its name."""
    return find_format(source) not in (None, ArrayFile, IdxFolder)


def unknown_format(source: str | Path) -> UserError:
    """Return the error for a path that does not exist, or whose name has none of the endings of ``FORMATS``."""
    if not os.path.exists(source):
        return UserError(f"{source}: there is no such file or folder")
    return UserError(f"{source}: unknown ending: a table ends in {endings()}; arrays in {' or '.join(ARRAY_NAMES)}")


def endings() -> str:
    """Return the endings of the names of tables, as messages list them."""
    tables = [ending for ending, opener in FORMATS.items() if opener is not ArrayFile]
    packed = [ending for ending in tables if f"{ending}.gz" in tables]
    others = [ending for ending in tables if ending not in packed and ending.removesuffix(".gz") not in packed]
    return ", ".join([*packed[:-1], f"{packed[-1]} (each also with .gz)", *others])


def open_source(path: Path, options: ReadOptions = DEFAULT_READING) -> Table | ArrayFile | IdxFolder:
    """Return the table, file of arrays or IDX folder of a path; of a table its header is checked, and no row read.

    A file whose name has none of the endings of ``FORMATS`` is read as CSV.

    Raises:
        UserError: If a table does not exist, cannot be read, or its header is damaged.
    """
    opener: Any = find_format(path) or CsvTable.open
    if opener in (ArrayFile, IdxFolder):
        return cast(ArrayFile | IdxFolder, opener(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe or a device is read once, and a table more often: write it to a file")
    return cast(Table, opener(path, options))


def open_table(path: Path, options: ReadOptions = DEFAULT_READING) -> Table:
    """Return a table, as :func:`open_source` does; anything else is refused."""
    found = open_source(path, options)
    if isinstance(found, ArrayFile | IdxFolder):
        raise UserError(
            f"{path}: not a table: a file ending in {endings()} or a folder of Parquet files is needed here"
        )
    return found
