"""Arrow IPC files, which Feather files are: the file format and the stream format, compressed or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.data.formats.parquet import column_indices
from deltaprop.data.table import BATCH_ROWS, Batch, ReadOptions, check_names
from deltaprop.errors import UserError, counted

ARROW_NAMES = (".feather", ".arrow", ".arrows", ".ipc")
FILE_MAGIC, FEATHER_1 = b"ARROW1", b"FEA1"


@dataclass(frozen=True)
class ArrowFile:
    """A file of Arrow record batches.

    Attributes:
        path: The file.
        names: The names of the columns.
        files: The file.
    """

    path: Path
    names: list[str]
    files: tuple[Path, ...]

    def place(self, row: int) -> str:
        """Return the file and the number of a row."""
        return f"{self.path}: row {row}"

    @classmethod
    def open(cls, path: Path, options: ReadOptions) -> ArrowFile:
        """Return the table of a file; see :func:`open_table`."""
        with _reader(path) as reader:
            schema = reader.schema
            names = [schema.names[at].strip() for at in column_indices(schema)]  # decoding a damaged name may fail
        check_names(path, names)
        if len(names) < options.least:
            raise UserError(f"{path}: {counted(len(names), 'column')}: inputs and a target need two")
        return cls(path, names, (path,))

    def batches(self, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Batch]:
        """Yield the rows block by block, in the file's own types.

        Raises:
            UserError: If the file is damaged.
        """
        import pyarrow

        with _reader(self.path) as reader:
            count = getattr(reader, "num_record_batches", None)  # only the file format says
            source = reader if count is None else (reader.get_batch(at) for at in range(count))
            size = self.path.stat().st_size
            for at, batch in enumerate(source):
                for column in batch.columns:
                    column.validate(full=True)
                    if pyarrow.types.is_dictionary(column.type):
                        column.dictionary.validate(full=True)
                on_bytes(size * (at + 1) // count if count else 0)
                batch = batch.select(column_indices(batch.schema)).rename_columns(self.names)
                for start in range(0, len(batch), BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Any]:
    """Open a file in the format that its first bytes say."""
    import pyarrow
    from pyarrow import ipc

    try:
        with pyarrow.OSFile(str(path)) as file:
            magic = file.read(len(FILE_MAGIC))
            file.seek(0)
            if magic.startswith(FEATHER_1):
                raise UserError(f"{path}: this is version 1 of Feather: write it again, in version 2")
            yield ipc.open_file(file) if magic == FILE_MAGIC else ipc.open_stream(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        what = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a sound Arrow or Feather file: {what}") from error
