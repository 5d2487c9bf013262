"""Parquet files, and folders of parts that are read in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.data.formats.table import ROWS_AT_ONCE, Batch, counted
from deltaprop.errors import UserError

PARQUET_NAMES = (".parquet", ".pq")


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file, or a folder of parts that are read in the order of their names.

    Attributes:
        path: The file or the folder.
        names: Of the columns.
        files: The parts.
    """

    path: Path
    names: list[str]
    files: list[Path]

    def place(self, row: int) -> str:
        """Return the file and the number of a row in it, from one over all files."""
        from pyarrow import parquet

        for part in self.files:
            rows = parquet.read_metadata(part).num_rows
            if row <= rows:
                return f"{part}: row {row}"
            row -= rows
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, delimiter: str = "auto", *, least: int = 2) -> ParquetTable:
        """Return the table of a file or of a folder, once its parts are seen to have the same columns."""
        parts = parts_of(path) if path.is_dir() else [path]
        if not parts:
            raise UserError(f"{path}: there is no .parquet file in this folder")
        names: list[str] = []
        kinds: list[str] = []
        for part in parts:
            schema = _schema(part)
            its = [(schema.field(at).name.strip(), _family(schema.field(at).type)) for at in _columns(schema)]
            for at, (name, _) in enumerate(its):
                if not name:
                    raise UserError(f"{part}: column {at + 1} has no name: name it")
                if name in [other for other, _ in its[:at]]:
                    raise UserError(f"{part}: two columns are called {name!r}: rename one")
            if not names:
                names, kinds = [name for name, _ in its], [kind for _, kind in its]
            elif [name for name, _ in its] != names:
                odd = next(iter({*names} ^ {name for name, _ in its}), None)
                what = f"column {odd!r} is in one of them alone" if odd else "they have them in another order"
                raise UserError(f"{part}: its columns are not those of {parts[0].name}: {what}")
            for name, kind, other in zip(names, kinds, [kind for _, kind in its], strict=True):
                if kind != other and "null" not in (kind, other):
                    raise UserError(f"{part}: column {name!r} is {other}, in {parts[0].name} {kind}")
        if len(names) < least:
            raise UserError(f"{path}: {counted(len(names), 'column')}: inputs and a target need two")
        return cls(path, names, parts)

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Give the rows, block by block, in the files' own types.

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
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                    done += len(batch)
                    on_bytes(before + size * done // total)
                    yield batch.select(_columns(batch.schema)).rename_columns(self.names)
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{part}: damaged: {' '.join(str(error).split())[:200]}") from error
            before += size


def _columns(schema: Any) -> list[int]:
    """Return the places of the columns: all but the numbers of rows that pandas keeps beside them."""
    return [at for at, name in enumerate(schema.names) if not re.fullmatch(r"__index_level_\d+__", name)]


def parts_of(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, by name; what begins with . or _ is not data."""
    found = (path for path in folder.iterdir() if path.name.lower().endswith(PARQUET_NAMES))
    return sorted(path for path in found if path.name[0] not in "._")


def _schema(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (pyarrow.ArrowException, OSError) as error:
        what = getattr(error, "strerror", None) or f"no sound Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: {what}") from error


def _family(kind: Any) -> str:
    """Return what a Parquet type is to a net: ``"numbers"``, ``"text"``, or its own name."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind):
        return "text"
    return str(kind)
