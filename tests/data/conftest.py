"""IDX files for the tests, written by code independent of the reader, and the real MNIST."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# The type codes of the IDX format (yann.lecun.com/exdb/mnist) by NumPy dtype.
CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}

MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"


def encode_idx(array: np.ndarray) -> bytes:
    """Return the IDX file of an array."""
    header = struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    """A function from an array to its IDX file."""
    return encode_idx


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes arrays as IDX files into a new folder: ``idx_folder({"train-images-...": array})``."""

    def write(files: dict[str, np.ndarray], name: str = "set") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file_name, array in files.items():
            data = encode_idx(array)
            (folder / file_name).write_bytes(gzip.compress(data) if file_name.endswith(".gz") else data)
        return folder

    return write


@pytest.fixture
def mnist() -> Path:
    """The folder of the four MNIST files; tests are skipped without it."""
    if not MNIST.is_dir():
        pytest.skip("needs the MNIST files in ../shared/data/mnist")
    return MNIST
