"""Arrays in files: ``.npz`` with x and y, and pairs of ``.npy``. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deltaprop.data.splits import Array
from deltaprop.data.table import unlisted
from deltaprop.errors import UserError, setting

ARRAY_NAMES = (".npz", ".npy")
LARGEST_HEADER = 1 << 16  # bytes


class Arrays(NamedTuple):
    """Inputs [N, …] and targets [N] or [N, k], and those of a test part if there is one."""

    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None


@dataclass(frozen=True)
class ArrayFile:
    """A ``.npz`` file with the arrays x and y (or x_train and y_train, as Keras names them), or a ``.npy`` file with x.

    Attributes:
        path: The file.
    """

    path: Path

    def read(self, target: Sequence[str] = (), test: Path | None = None) -> Arrays:
        """Return the arrays to train on, and those to test on: of ``test``, else x_test and y_test of the file.

        Args:
            target: For ``.npy`` the file of y; without it the last column of a two-dimensional x is y. For ``.npz`` the
                name of y in it.
            test: Another file of arrays to test on; for ``.npy`` its last column is y.

        Raises:
            UserError: If a file is damaged, holds objects, or x and y do not fit each other.
        """
        if len(target) > 1:
            raise UserError(f"{self.path}: `target` names one array, got {', '.join(target)}")
        x, y, x_test, y_test = self._arrays(target)
        tail = "_test"
        if test is not None:
            if not test.name.lower().endswith(ARRAY_NAMES):
                raise UserError(f"{setting('test', test)}: the training data are arrays: give a .npz or .npy")
            x_test, y_test, *_ = ArrayFile(test)._arrays(target if test.suffix.lower() == ".npz" else ())
            tail = ""
        x, y = _checked(self.path, x, y)
        if x_test is None or y_test is None:
            return Arrays(x, y)
        x_test, y_test = _checked(test or self.path, x_test, y_test, tail)
        for name, one, other in (("x", x_test, x), ("y", y_test, y)):
            if one.shape[1:] != other.shape[1:]:
                raise UserError(
                    f"{test or self.path}: {name}{tail} is {list(one.shape)}, unlike {name} of {self.path}, "
                    f"{list(other.shape)}: rows of the same shape are needed"
                )
        return Arrays(x, y, x_test, y_test)

    def inputs(self) -> Array:
        """Return x [N, …]; y need not exist."""
        is_npy = self.path.suffix.lower() == ".npy"
        x = read_npy(self.path) if is_npy else _Npz(self.path).first("x", "x_test", "x_train")
        _check_numbers(self.path, "x", x)
        return x

    def evaluation_part(self) -> tuple[Array, Array]:
        """Return x_test and y_test if the file has them, else x and y."""
        x, y, x_test, y_test = self._arrays()
        return _checked(self.path, x, y) if x_test is None or y_test is None else _checked(self.path, x_test, y_test)

    def _arrays(self, target: Sequence[str] = ()) -> Arrays:
        """Return the arrays as they are in the file."""
        if self.path.suffix.lower() == ".npy":
            x = read_npy(self.path)
            if target:
                return Arrays(x, read_npy(Path(target[0])))
            if x.ndim == 2 and x.shape[1] >= 2:
                return Arrays(x[:, :-1], x[:, -1])
            raise UserError(f"{self.path}: x has shape {list(x.shape)}: `target='FILE.npy'` says where y is")
        npz = _Npz(self.path)
        train = npz.first("x", "x_train"), npz.first(*target or ("y", "y_train"))
        has_test = {"x_test", "y_test"} <= {*npz.names}
        return Arrays(*train, *((npz.first("x_test"), npz.first("y_test")) if has_test else ()))


def _checked(path: Path, x: Array, y: Array, tail: str = "") -> tuple[Array, Array]:
    """Return x and y, [N, 1] as [N], after checking their shapes and values; ``tail`` ends their names in messages."""
    names = f"{path}: x{tail} and y{tail}"
    if x.ndim < 2 or y.ndim < 1:
        raise UserError(f"{path}: x must be [N, …], got {list(x.shape)}, and y [N], got {list(y.shape)}")
    if len(x) != len(y):
        raise UserError(f"{names} have {len(x)} and {len(y)} rows: a target for each row is needed")
    if not x.size or not y.size:
        what = f"are {list(x.shape)} and {list(y.shape)}: they hold no values" if len(x) else "have no rows"
        raise UserError(f"{names} {what}")
    _check_numbers(path, f"x{tail}", x)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    is_text = y.dtype.kind in "US"
    if y.dtype.kind not in "biufUS" or y.ndim > 2 or (is_text and y.ndim != 1):
        raise UserError(f"{path}: y is of {y.dtype} {list(y.shape)}: labels [N], or numbers [N] or [N, k], are needed")
    if not is_text:
        _check_numbers(path, f"y{tail}", y)
    return x, y


def _check_numbers(path: Path, name: str, array: Array) -> None:
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} is of {array.dtype}: numbers are needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0]
        place = f"row {at[0] + 1}" + (f", column {at[1] + 1}" if len(at) > 1 else "")
        raise UserError(f"{path}: {name} has {array[tuple(at)]} in {place}: correct it or leave the row out")


class _Npz:
    """Reads arrays of a ``.npz`` file by name; ``numpy.load`` would allocate what their headers promise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as archive:
            self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def first(self, *names: str) -> Array:
        """Return the array of the first of these names that exists, in any case."""
        by_lower = {name.lower(): name for name in self.names}
        member = next((by_lower[name.lower()] + ".npy" for name in names if name.lower() in by_lower), None)
        if member is None:
            raise UserError(f"{self.path}: {unlisted(names[0], self.names, noun='array')}")
        with self._open() as archive, archive.open(member) as file:
            return _read_array(f"{self.path}: {member}", file, archive.getinfo(member).file_size)

    @contextlib.contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with _system_errors(self.path), zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: not a sound .npz: {error}") from error


def read_npy(path: Path) -> Array:
    """Return the array of a ``.npy`` file; refuse one that is damaged or holds objects."""
    if path.suffix.lower() != ".npy":
        raise UserError(f"{path}: a .npy file is needed here")
    with _system_errors(path), path.open("rb") as file:
        return _read_array(str(path), file, path.stat().st_size)


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _read_array(where: str, file: BinaryIO | Any, size: int) -> Array:
    """Return the array of a ``.npy`` file of ``size`` bytes, in native byte order and at most float64.

    ``numpy.load`` allocates what the header declares before it reads the data, so that a few bytes could ask for any
    amount of memory; here the promise is compared with the size first.
    """
    head = io.BytesIO(file.read(LARGEST_HEADER))
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version: Any = np.lib.format.read_magic(head)
        header: tuple[tuple[int, ...], bool, Any] = readers[version](head, max_header_size=LARGEST_HEADER)
        shape, fortran, dtype = header
    except KeyError as error:
        raise UserError(f"{where}: a .npy of version {'.'.join(map(str, version))}; 1.0 and 2.0 can be read") from error
    except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: not a sound .npy: {' '.join(str(error).split())[:120]}") from error
    if dtype.hasobject:
        raise UserError(f"{where}: it holds Python objects, which would have to be unpickled: save numbers or text")
    available, promised = size - head.tell(), math.prod(shape) * dtype.itemsize
    if promised > available or min(shape, default=0) < 0 or (dtype.itemsize == 0 and math.prod(shape)):
        raise UserError(
            f"{where}: its header declares {promised} bytes of {dtype} {list(shape)}, the file has {available}"
        )
    data = head.read(promised)
    data += file.read(promised - len(data))
    if len(data) < promised:  # the directory of a .npz may lie about the size
        raise UserError(f"{where}: it ends after {len(data)} of {promised} bytes")
    array = np.frombuffer(data, dtype)
    if dtype.kind == "f" and dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused with its row
            array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
