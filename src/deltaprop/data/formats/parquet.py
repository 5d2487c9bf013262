"""Parquet files, and folders of parts, which are read in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.data.table import BATCH_ROWS, Batch, ReadOptions, check_names, type_family
from deltaprop.errors import UserError, counted

PARQUET_NAMES = (".parquet", ".pq")


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file, or a folder of parts, which are read in the order of their names.

    Attributes:
        path: The file or the folder.
        names: The names of the columns.
        files: The parts.
    """

    path: Path
    names: list[str]
    files: list[Path]

    def place(self, row: int) -> str:
        """Return the file and the number in it of a row, which is counted from 1 over all files."""
        from pyarrow import parquet

        for part in self.files:
            rows = parquet.read_metadata(part).num_rows
            if row <= rows:
                return f"{part}: row {row}"
            row -= rows
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, options: ReadOptions) -> ParquetTable:
        """Return the table of a file or a folder; its parts must have the same columns (see :func:`open_table`)."""
        parts = parts_of(path) if path.is_dir() else [path]
        if not parts:
            raise UserError(f"{path}: there is no .parquet file in this folder")
        first = _columns_of(parts[0])
        for part in parts[1:]:
            columns = _columns_of(part)
            if [*columns] != [*first]:
                odd = next(iter(first.keys() ^ columns.keys()), None)
                what = f"column {odd!r} is in only one of them" if odd else "they have them in another order"
                raise UserError(f"{part}: its columns are not those of {parts[0].name}: {what}")
            for name, family in columns.items():
                if family != first[name] and "null" not in (family, first[name]):
                    raise UserError(f"{part}: column {name!r} is {family}, in {parts[0].name} {first[name]}")
        if len(first) < options.least:
            raise UserError(f"{path}: {counted(len(first), 'column')}: inputs and a target need two")
        return cls(path, [*first], parts)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block, in the files' own types.

        Raises:
            UserError: If a file is damaged.
        """
        import pyarrow
        from pyarrow import parquet

        before = 0
        for part in self.files:
            size = part.stat().st_size
            try:
                file = parquet.ParquetFile(part, memory_map=False)
                done, total = 0, max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                    done += len(batch)
                    on_bytes(before + size * done // total)
                    yield batch.select(column_indices(batch.schema)).rename_columns(self.names)
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{part}: damaged: {' '.join(str(error).split())[:200]}") from error
            before += size


def parts_of(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, by name; names that begin with . or _ are not data."""
    found = (path for path in folder.iterdir() if path.name.lower().endswith(PARQUET_NAMES))
    return sorted(path for path in found if path.name[0] not in "._")


def column_indices(schema: Any) -> list[int]:
    """Return the indices of the columns, without the row numbers that pandas stores beside them."""
    return [at for at, name in enumerate(schema.names) if not re.fullmatch(r"__index_level_\d+__", name)]


def _columns_of(path: Path) -> dict[str, str]:
    """Return the type family of each column of a file, by name."""
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (pyarrow.ArrowException, OSError) as error:
        what = getattr(error, "strerror", None) or f"not a sound Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: {what}") from error
    indices, names = column_indices(schema), [name.strip() for name in schema.names]
    check_names(path, [names[at] for at in indices])
    return {names[at]: type_family(schema.field(at).type) for at in indices}
