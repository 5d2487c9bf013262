"""Files that commands write: checked before any work is done, and written whole or not at all."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaprop.errors import UserError
from deltaprop.training.atomic_files import write_whole
from deltaprop.training.run_folder import is_own

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class OutputFile:
    """A file to write, named by a flag; creating the object checks that the file can be written.

    Attributes:
        flag: Flag that names it, such as ``"--json"``.
        path: The file; None if the flag was not given.
        endings: Accepted endings of its name, such as :data:`PICTURES`; any by default.

    Raises:
        UserError: If it is a folder, is in a folder without write permission, or has another ending.
    """

    flag: str
    path: Path | None
    endings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            folder = self.path.resolve().parent
            is_folder, is_in_folder = self.path.is_dir(), folder.is_dir()
        except (OSError, ValueError) as error:  # not a valid file name
            raise UserError(f"{self.flag} {str(self.path)!r}: {getattr(error, 'strerror', None) or error}") from error
        if is_folder:
            raise self._error("this is a folder; name a file")
        if not is_in_folder:
            raise self._error(f"there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise self._error(f"no permission to write in {folder}")
        if not self.path.name.lower().endswith(self.endings or ""):
            *first, last = self.endings
            raise self._error(f"the name must end in {', '.join(first)}{' or ' if first else ''}{last}")

    def check_apart(self, run: Path, *data: str | Path) -> None:
        """Check that writing the file overwrites neither data nor a file that the run has written itself."""
        if self.path is None:
            return
        path = self.path.resolve()
        if is_own(run, path):
            raise self._error("this is a file of the run itself; name another file")
        for source in (Path(name).resolve() for name in data):
            if path == source or (source.is_dir() and path.parent == source):
                raise self._error("this is the data itself; name another file")

    def write(self, content: str | bytes) -> None:
        """Write the file; a UserError is raised if that fails."""
        assert self.path is not None
        content = content.encode() if isinstance(content, str) else content
        try:
            if is_stream(self.path):
                self.path.write_bytes(content)
            else:
                write_whole(self.path.resolve(), content)
        except OSError as error:
            raise self._error(f"cannot be written: {error.strerror}") from error

    def write_figure(self, figure: Figure) -> None:
        """Write a figure, in the format of the file's ending; see :meth:`write`."""
        assert self.path is not None
        buffer = io.BytesIO()
        figure.savefig(buffer, format=self.path.suffix[1:].lower())
        self.write(buffer.getvalue())

    def _error(self, text: str) -> UserError:
        return UserError(f"{self.flag} {self.path}: {text}")


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a terminal, which is written to, not replaced."""
    return path.exists() and not path.is_file()
