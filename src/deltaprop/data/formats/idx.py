"""The IDX file format of MNIST and its relatives, and folders that hold a data set in it.

An IDX file is two zero bytes, one byte for the element type, one for the rank, one big-endian 32-bit size per
dimension, and then the elements, big-endian, in row order.

Source:
    Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", section "The IDX file format",
    yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from deltaprop.data.formats.idx_files import find_idx_files
from deltaprop.data.raw_data import RawData
from deltaprop.data.splits import Array
from deltaprop.errors import UserError

ELEMENT_TYPES: dict[int, np.dtype[np.generic]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20  # bytes read at once
_MAX_RANK = 32  # NumPy 1's limit; files in use have 1 to 4
_MAX_CLASSES = 1 << 16  # three times ImageNet-21k; above it a label is damage, and a name per class would fill memory


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Return the array in an IDX file, plain or compressed by gzip, in the machine's byte order.

    Compression is detected by the first two bytes, not from the name. Memory grows with the data that the file holds,
    not with what its header declares.

    Args:
        path: The file.

    Raises:
        UserError: If the file cannot be read, is not a whole IDX file, or is more than one.
    """
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{path}: a {'folder' if stat.S_ISDIR(info.st_mode) else 'device'}, an IDX file expected")
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if not compressed:
                return _read_array(file, path, size=info.st_size)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_array(unpacked, path, size=None)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_array(stream: IO[bytes] | gzip.GzipFile, path: Path, size: int | None) -> Array:
    """Return the array in ``stream``; ``size`` is its length in bytes, None where it is compressed."""
    dtype, shape = _read_header(stream, path)
    promised = math.prod(shape) * dtype.itemsize  # Python's integers: no overflow to a small number
    header = f"{_sizes(shape)} {dtype.name}, {promised} bytes"
    data = bytearray()
    if size is None or size - stream.tell() >= promised:
        # One byte more than promised is asked for: it shows what should not be there, and takes a gzip stream to its
        # end, where its checksum is tested.
        while chunk := stream.read(min(_CHUNK, promised + 1 - len(data))):
            data += chunk
    if len(data) < promised:
        n_bytes = len(data) if size is None else size - stream.tell()
        raise UserError(f"{path}: truncated IDX data: the header declares {header}, the file holds {n_bytes}")
    if len(data) > promised:
        raise UserError(f"{path}: bytes left over after the data that the header declares ({header})")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_header(stream: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Return the element type and the shape."""
    start = stream.read(4)
    if any(start[:2]):
        raise UserError(f"{path}: not an IDX file: it begins with the bytes {start[:2].hex(' ')}, not 00 00")
    if len(start) < 4:
        raise UserError(f"{path}: truncated IDX header: {len(start)} bytes, at least 8 expected")
    code, rank = start[2], start[3]
    if code not in ELEMENT_TYPES:
        known = ", ".join(f"0x{known:02x}" for known in ELEMENT_TYPES)
        raise UserError(f"{path}: unknown IDX element type 0x{code:02x} (known: {known})")
    if not 1 <= rank <= _MAX_RANK:
        raise UserError(f"{path}: IDX header with {rank} dimensions, 1 to {_MAX_RANK} expected")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise UserError(f"{path}: truncated IDX header: {4 + len(sizes)} bytes, {4 + 4 * rank} expected")
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise UserError(f"{path}: holds no elements: its header says {_sizes(shape)}")
    return ELEMENT_TYPES[code], shape


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def load_idx_folder(folder: str | os.PathLike[str]) -> RawData:
    """Return the data set in a folder of IDX files: MNIST, Fashion-MNIST, EMNIST and others of that format.

    Args:
        folder: Holds the files that `find_idx_files` looks for. Images are ``[N, rows, columns]`` or of another rank
            from 2 on; labels are integers from 0, shape ``[N]``.

    Returns:
        The data set, named after the folder, with ``x_test`` None where the folder has no test files. There are as
        many classes as the largest training label plus one.

    Raises:
        UserError: If the files are not there (`find_idx_files`), are damaged (`read_idx`) or do not belong together.
    """
    files = find_idx_files(folder)
    x, y = _read_pair(files["train-images"], files["train-labels"])
    x_test, y_test = None, None
    if "test-images" in files:
        x_test, y_test = _read_pair(files["test-images"], files["test-labels"])
        if (x_test.shape[1:], x_test.dtype) != (x.shape[1:], x.dtype):
            raise UserError(
                f"{files['test-images']}: images of {_sizes(x_test.shape[1:])} {x_test.dtype}, "
                f"those to train on are {_sizes(x.shape[1:])} {x.dtype}"
            )
    return RawData(
        name=Path(folder).resolve().name, task="classification", x=x, y=y, x_test=x_test, y_test=y_test,
        class_names=tuple(str(label) for label in range(int(y.max()) + 1)),
        pictures=True, full_scale=255.0 if x.dtype == np.uint8 else None,
    )  # fmt: skip


def _read_pair(image_path: Path, label_path: Path) -> tuple[Array, Array]:
    """Return images ``[N, ...]`` and labels ``[N]`` after checking their shapes and values."""
    labels = read_idx(label_path)  # first, being small
    if labels.ndim != 1:
        raise UserError(f"{label_path}: {_sizes(labels.shape)} numbers, labels expected: one dimension")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{label_path}: labels of type {labels.dtype}, integers expected")
    for bad in (labels.min(), labels.max()):
        if not 0 <= bad < _MAX_CLASSES:
            raise UserError(f"{label_path}: label {bad}, labels run from 0 to at most {_MAX_CLASSES - 1}")
    images = read_idx(image_path)
    if images.ndim < 2:
        raise UserError(f"{image_path}: {_sizes(images.shape)} numbers, images expected: two dimensions or more")
    if len(images) != len(labels):
        raise UserError(f"{image_path}: {len(images)} images, but {len(labels)} labels in {label_path}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        first = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0])
        raise UserError(f"{image_path}: image {first} has a value that is not a finite number")
    return images, labels


@dataclass(frozen=True)
class IdxFolder:
    """A folder with IDX files, offering what `ArrayFile` does.

    Attributes:
        path: The folder.
    """

    path: Path

    def inputs(self) -> Array:
        """Return the images of the test part, or of the only part."""
        return self.evaluation_part()[0]

    def evaluation_part(self) -> tuple[Array, Array]:
        """Return images and labels of the test part, or of the only part."""
        raw = load_idx_folder(self.path)
        return (raw.x, raw.y) if raw.x_test is None or raw.y_test is None else (raw.x_test, raw.y_test)
