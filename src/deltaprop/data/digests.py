"""A 64-bit digest of each row, by which rows that a model was trained on are recognised in other data.

A row is what the network is given: its scaled inputs and its target, in the dtype of the network. So the same row has
the same digest from every kind of file, and so have two rows that the network cannot tell apart.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.dataset import Dataset, Part
from deltaprop.data.splitmix import mix
from deltaprop.data.store import ROWS_AT_ONCE

Digests: TypeAlias = NDArray[np.uint64]

MOST_DIGESTS = 10**6  # whose digests are stored: 8 MB

_BITS = {torch.float32: ("<f4", 2), torch.float64: ("<f8", 1)}  # and the number of values in 64 bits
_START = np.uint64(0x243F6A8885A308D3)  # the first digits of π after the point, in base 16


def row_digests(x: Tensor, y: Tensor) -> Digests:
    """Return a digest of each row, [N]: h ← mix(h ⊕ w) for its words w of 64 bits, from left to right.

    All rows at once, column by column; −0 counts as 0, and every NaN is one value. Two different rows have the same
    digest with a probability of about 2⁻⁶⁴.

    Args:
        x: Scaled inputs [N, n], float32 or float64.
        y: Class labels [N], or scaled targets [N, k].

    Example:
        >>> one, other = torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.0, 1.0]])
        >>> bool(row_digests(one, torch.tensor([2])) == row_digests(other, torch.tensor([2])))
        True
        >>> bool(row_digests(one, torch.tensor([2])) == row_digests(one, torch.tensor([3])))
        False
    """
    return add_targets(input_digests(x), y, x.dtype)


def input_digests(x: Tensor) -> Digests:
    """Return the digests of inputs [N, n], to which :func:`add_targets` adds the targets."""
    digests = np.full(len(x), _START, dtype=np.uint64)
    for word in _words(x):
        digests ^= word
        mix(digests)
    return digests


def add_targets(digests: Digests, y: Tensor, dtype: torch.dtype) -> Digests:
    """Return the digests of rows with these inputs and targets; ``dtype`` is that of the inputs."""
    digests = digests.copy()
    for word in _words((y.to(dtype) if y.is_floating_point() else y.long()).reshape(len(y), -1)):
        digests ^= word
        mix(digests)
    return digests


def _words(values: Tensor) -> NDArray[np.uint64]:
    """Return the bits of the values, [words, N]: two float32 values in a word, else one."""
    array = values.detach().cpu().numpy()
    if array.dtype.kind == "i":
        return np.ascontiguousarray(array.astype("<i8").view("<u8").T)
    dtype, per_word = _BITS[values.dtype]
    width = -(-array.shape[1] // per_word) * per_word
    padded = np.zeros((len(array), width), dtype=dtype)
    padded[:, : array.shape[1]] = array
    padded += 0  # −0 becomes 0
    padded[np.isnan(padded)] = np.nan
    return np.ascontiguousarray(padded.view("<u8").T)


def part_digests(part: Part) -> Digests:
    """Return the digests of the rows of one part of a data set, [N]."""
    blocks = [np.empty(0, dtype=np.uint64)]
    for start in range(0, len(part), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        blocks.append(row_digests(part.inputs(some), part.y[some]))
    return np.concatenate(blocks)


def digestible_rows(dataset: Dataset) -> int | None:
    """Return the number of training and validation rows; None if they are too many, or on disk, which rounds them."""
    count = dataset.rows["train"] + dataset.rows["val"]
    on_disk = dataset.table is not None and dataset.table.storage in ("disk", "groups")
    return None if on_disk or count > MOST_DIGESTS else count


def is_among(digests: Digests, known: Digests) -> NDArray[np.bool_]:
    """Return whether each digest is one of the known ones, [N]."""
    found: NDArray[np.bool_] = np.isin(digests, known)
    return found


def encode_digests(digests: Digests) -> bytes:
    """Return digests as the content of a file: little-endian, with one more, over all of them, at the end."""
    return np.append(digests, _checksum(digests)).astype("<u8").tobytes()


def decode_digests(content: bytes, count: int) -> Digests | None:
    """Return the ``count`` digests of a file; None if it is damaged."""
    if len(content) != 8 * (count + 1):
        return None
    values = np.frombuffer(content, "<u8").astype(np.uint64)
    return values[:-1] if values[-1] == _checksum(values[:-1]) else None


def _checksum(digests: Digests) -> np.uint64:
    """Return a digest of digests, which depends on their order."""
    places = np.arange(1, len(digests) + 1, dtype=np.uint64)
    mix(places)
    places ^= digests
    mix(places)
    total = places.sum(dtype=np.uint64, keepdims=True)  # an array: a scalar would warn of the overflow
    mix(total)
    return np.uint64(total[0])
