"""Arrays in files: ``.npz`` with x and y, and pairs of ``.npy``. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deltaprop.data.classes import are_classes, check_counts, plain
from deltaprop.data.columns import TaskChoice, unlisted
from deltaprop.data.dataset import RawData
from deltaprop.data.splits import Array
from deltaprop.errors import UserError, setting

ARRAY_NAMES = (".npz", ".npy")
LARGEST_HEADER = 1 << 16


def is_array(source: str | Path) -> bool:
    """Return whether a name is that of a file of arrays."""
    return Path(source).name.lower().endswith(ARRAY_NAMES)


def load_arrays(path: Path, target: Sequence[str] = (), test: Path | None = None, task: TaskChoice = "auto") -> RawData:
    """Return a data set of arrays.

    Args:
        path: ``.npz`` with the arrays x and y (and x_test and y_test, or x_train and y_train, as Keras names them), or
            ``.npy`` with x.
        target: For ``.npy`` the file of y; without it the last column of a two-dimensional x is y. For ``.npz`` the
            name of y in it.
        test: Another file of the same kind to test on; for ``.npy`` its last column is y.
        task: Whether y is classes or numbers; ``"auto"`` takes text and few different whole numbers for classes.

    Raises:
        UserError: If a file is damaged, holds objects, or x and y do not fit each other.
    """
    if len(target) > 1:
        raise UserError(f"{path}: `target` names one array, got {', '.join(target)}")
    x, y, x_test, y_test = _pair(path, target)
    if test is not None:
        if not is_array(test):
            raise UserError(f"{setting('test', test)}: the training data are arrays: give a .npz or .npy")
        beside = target if test.suffix.lower() == ".npz" else ()
        x_test, y_test, *_ = _pair(test, beside)
    where = test or path
    if x_test is not None and y_test is not None:
        tail = "_test" if test is None else ""
        for name, one, other in (("x", x_test, x), ("y", _column(y_test), _column(y))):
            if one.shape[1:] != other.shape[1:]:
                raise UserError(
                    f"{where}: {name}{tail} is {list(one.shape)}, unlike {name} of {path}, {list(other.shape)}: "
                    "rows of the same shape are needed"
                )
    for name, array in (("x", x), ("x_test", x_test)):
        if array is not None:
            _check_numbers(path if name == "x" else (test or path), name, array)
    return _raw_data(path, test or path, x, y, x_test, y_test, task)


def read_inputs(path: Path) -> Array:
    """Return x of a file of arrays, [N, …], without asking for y.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    if path.suffix.lower() == ".npy":
        x = read_npy(path)
    else:
        arrays = _Npz(path)
        x = arrays[_named(path, arrays, ("x", "x_test", "x_train"))]
    _check_numbers(path, "x", x)
    return x


def load_labelled(path: Path, class_names: Sequence[str], target: Sequence[str] = ()) -> tuple[Array, Array]:
    """Return x [N, …] and y [N, k] of a file of arrays, labels by their place among the names of classes.

    Args:
        path: As for :func:`load_arrays`; of x_test and y_test where it has them.
        class_names: That labels are among; empty for numbers.
        target: As for :func:`load_arrays`.

    Raises:
        UserError: If a file is damaged, or a label is not among the classes.
    """
    x, y, x_test, y_test = _pair(path, target)
    if x_test is not None and y_test is not None:
        x, y = x_test, y_test
    y = _column(y)
    _check_numbers(path, "x", x)
    if not class_names:
        _check_numbers(path, "y", y)
        return x, y.astype(np.float64).reshape(len(y), -1)
    if y.ndim != 1:
        raise UserError(f"{path}: y has {y.shape[1]} columns; labels are one")
    places = {name: at for at, name in enumerate(class_names)}
    values, which = np.unique(y, return_inverse=True)
    for value in values:
        if _name(value) not in places:
            at = int((y == value).argmax())
            raise UserError(f"{path}: row {at + 1}: class {_name(value)!r} is in no training row")
    found = np.array([places[_name(value)] for value in values], dtype=np.float64)
    return x, found[which][:, None]


def _raw_data(
    path: Path, test: Path, x: Array, y: Array, x_test: Array | None, y_test: Array | None, task: TaskChoice
) -> RawData:
    """Return the data set of arrays that fit each other."""
    y, y_test = _column(y), None if y_test is None else _column(y_test)
    is_text = y.dtype.kind in "US"
    if y.dtype.kind not in "biufUS" or y.ndim > 2 or (is_text and y.ndim != 1):
        raise UserError(f"{path}: y is of {y.dtype} {list(y.shape)}: labels [N], or numbers [N] or [N, k], are needed")
    for file, name, array in ((path, "y", y), (test, "y_test", y_test)):
        if array is not None and not is_text:
            _check_numbers(file, name, array)
    pictures = x.ndim == 3 and x.dtype == np.uint8
    raw = RawData(
        name=path.name, task="regression", x=x, y=y, x_test=x_test,
        pictures=pictures, full_scale=255.0 if pictures else None,
    )  # fmt: skip
    classes = is_text or y.dtype.kind == "b" or (y.ndim == 1 and are_classes(y))
    if task == "regression" or (task == "auto" and not classes):
        if is_text:
            raise UserError(f"{path}: `task='regression'`: y is text such as {_name(y[0])!r}")
        numbers = y.astype(np.float64).reshape(len(y), -1)
        if (numbers == numbers[0]).all():
            raise UserError(f"{path}: y is {plain(numbers[0, 0])} in every row: there is nothing to learn")
        of_test = None if y_test is None else y_test.astype(np.float64).reshape(len(y_test), -1)
        return replace(raw, y=numbers, y_test=of_test)
    if y.ndim != 1:
        raise UserError(f"{path}: `task='classification'`: y has {y.shape[1]} columns; labels are one")
    values, first, labels, counts = np.unique(y, return_index=True, return_inverse=True, return_counts=True)
    names = tuple(_name(value) for value in values)
    check_counts(f"{path}: y", names, counts, (first + 1).tolist(), is_text)
    of_test = None if y_test is None else _labels(test, values, y_test)
    return replace(raw, task="classification", y=labels.astype(np.int64), y_test=of_test, class_names=names)


def _column(y: Array) -> Array:
    """Return [N, 1] as [N]."""
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _labels(path: Path, values: Array, y: Array) -> Array:
    """Return the place of each label among the values that training has.

    Raises:
        UserError: If one is not among them.
    """
    alike = (y.dtype.kind in "US") == (values.dtype.kind in "US")
    places = np.searchsorted(values, y).clip(0, len(values) - 1) if alike else np.zeros(len(y), dtype=np.int64)
    wrong = values[places] != y if alike else np.ones(len(y), dtype=bool)
    if wrong.any():
        at = int(wrong.argmax())
        raise UserError(f"{path}: row {at + 1}: class {_name(y[at])!r} is in no training row")
    return places.astype(np.int64)


def _name(value: Any) -> str:
    if isinstance(value, bytes | np.bytes_):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, str | bool | np.bool_) else plain(value)


def _pair(path: Path, target: Sequence[str]) -> tuple[Array, Array, Array | None, Array | None]:
    """Return x, y and, where the file has them, x and y to test on."""
    x_test = y_test = None
    if path.suffix.lower() == ".npy":
        x = read_npy(path)
        if target:
            y = read_npy(Path(target[0]))
        elif x.ndim == 2 and x.shape[1] >= 2:
            x, y = x[:, :-1], x[:, -1]
        else:
            raise UserError(f"{path}: x has shape {list(x.shape)}: `target='FILE.npy'` says where y is")
    else:
        arrays = _Npz(path)
        x = arrays[_named(path, arrays, ("x", "x_train"))]
        y = arrays[_named(path, arrays, (*target,) or ("y", "y_train"))]
        if {"x_test", "y_test"} <= arrays.keys():
            x_test, y_test = arrays["x_test"], arrays["y_test"]
    for name, one, other in (("x and y", x, y), ("x_test and y_test", x_test, y_test)):
        if one is None or other is None:
            continue
        if one.ndim < 2 or other.ndim < 1:
            raise UserError(f"{path}: x must be [N, …], got {list(one.shape)}, and y [N], got {list(other.shape)}")
        if len(one) != len(other):
            raise UserError(f"{path}: {name} have {len(one)} and {len(other)} rows: a target for each row is needed")
        if not len(one):
            raise UserError(f"{path}: {name} have no rows")
        if not one.size or not other.size:
            raise UserError(f"{path}: {name} are {list(one.shape)} and {list(other.shape)}: there is nothing in them")
    return x, y, x_test, y_test


def _named(path: Path, arrays: Mapping[str, Array], names: Sequence[str]) -> str:
    lower = {name.lower(): name for name in arrays}
    for name in names:
        if name.lower() in lower:
            return lower[name.lower()]
    raise UserError(f"{path}: {unlisted(names[0], list(arrays)).replace('column', 'array')}")


def _check_numbers(path: Path, name: str, array: Array) -> None:
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} is of {array.dtype}: numbers are needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0]
        where = f"row {at[0] + 1}" + (f", column {at[1] + 1}" if len(at) > 1 else "")
        raise UserError(f"{path}: {name} has {array[tuple(at)]} in {where}: mend it or leave the row out")


class _Npz(Mapping[str, Array]):
    """The arrays of a ``.npz`` file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as archive:
            self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Array:
        with self._opened() as archive, archive.open(f"{name}.npy") as file:
            return _array(f"{self.path}: {name}.npy", file, archive.getinfo(f"{name}.npy").file_size)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: no sound .npz: {error}") from error


def read_npy(path: Path) -> Array:
    """Return the array of a ``.npy`` file, its header checked before anything is allocated.

    Raises:
        UserError: If it is damaged, or holds objects.
    """
    if path.suffix.lower() != ".npy":
        raise UserError(f"{path}: a .npy file is needed here")
    try:
        with path.open("rb") as file:
            return _array(str(path), file, path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _array(where: str, file: BinaryIO | Any, size: int) -> Array:
    """Return an array from a file of so many bytes, its numbers as the machine and PyTorch have them."""
    begin = file.read(12)
    if begin[:6] != np.lib.format.MAGIC_PREFIX or begin[6:8] not in (b"\x01\x00", b"\x02\x00"):
        raise UserError(f"{where}: no sound .npy: it begins with {begin[:8]!r}")
    width = 2 if begin[6] == 1 else 4
    length = int.from_bytes(begin[8 : 8 + width], "little")
    if length > min(size, LARGEST_HEADER):
        raise UserError(f"{where}: no sound .npy: its header promises to be {length} bytes long, in a file of {size}")
    head = begin + file.read(max(0, 8 + width + length - len(begin)))
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        stream = io.BytesIO(head[8:])
        found: tuple[tuple[int, ...], bool, Any] = read(stream, max_header_size=LARGEST_HEADER)
        shape, fortran, dtype = found
    except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: no sound .npy: {' '.join(str(error).split())[:120]}") from error
    if dtype.hasobject:
        raise UserError(f"{where}: it holds Python objects, which would have to be unpickled: save numbers or text")
    there, promised = size - (8 + width + length), math.prod(shape) * dtype.itemsize
    if promised > there or min(shape, default=0) < 0 or (dtype.itemsize == 0 and math.prod(shape)):
        raise UserError(f"{where}: its header promises {promised} bytes of {dtype} {list(shape)}, the file has {there}")
    data = head[8 + width + length :] + file.read(promised - (len(head) - 8 - width - length))
    if len(data) < promised:
        raise UserError(f"{where}: it ends after {len(data)} of {promised} bytes")
    array = np.frombuffer(data[:promised], dtype)
    if dtype.kind == "f" and dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # infinite then, which is told with its row
            array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
