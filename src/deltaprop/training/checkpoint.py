"""Checkpoints: everything a run needs to go on, in one file that is sound or refused.

It is a safetensors file. Its tensors are weights, momentum buffers, the best weights so far, the generator's state and
the sum of the epoch's losses; everything else is JSON in its metadata. Beside it there stands the SHA-256 of the whole
file, the digest's own 64 characters taken as zeros: every bit counts, those of the header too. (Without it safetensors
takes a flip among the numbers for numbers.)

Nothing is unpickled. The header is checked before anything is allocated: its length against the file's, the tensors'
bytes against the file's, their dtypes and shapes against what the run must have.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deltaprop.training.atomic_files import write_whole

FORMAT = 1
MOST_HEADER = 2**22  # bytes; a header of a net of a thousand layers takes a fifth of it
BLANK = b"0" * 64
PLACE = b'"sha256":"'  # within a string of the JSON the quotes would be escaped
WIDTHS = {"F64": 8, "F32": 4, "I64": 8, "U8": 1}
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


class DamagedError(Exception):
    """A file that is no sound checkpoint, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """What is kept of a run.

    Attributes:
        tensors: By name.
        state: All else, as JSON has it.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def encode(checkpoint: Checkpoint) -> bytes:
    """Return the bytes of a checkpoint, its digest within."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    state = json.dumps({"format": FORMAT, **checkpoint.state}, allow_nan=False)
    raw = safetensors.torch.save(tensors, {"state": state, "sha256": BLANK.decode()})
    start = raw.index(PLACE + BLANK) + len(PLACE)
    return raw[:start] + hashlib.sha256(raw).hexdigest().encode() + raw[start + len(BLANK) :]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    write_whole(path, encode(checkpoint))


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint from its header alone; its digest is not looked at.

    Raises:
        DamagedError: If the file cannot be a checkpoint.
    """
    with _opened(path) as (handle, size):
        header, _ = _header(handle, size)
    return _state(header)


def load(
    path: Path,
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]] | None = None,
    is_complete: Callable[[Collection[str]], bool] = lambda names: True,
) -> Checkpoint:
    """Return a checkpoint whose digest is right.

    Args:
        path: The file.
        expected: Dtype and shape of each tensor that it may hold, by name; nothing else is allocated.
        is_complete: Whether tensors of these names are all that are needed.

    Raises:
        DamagedError: If it is damaged, or is none.
    """
    with _opened(path) as (handle, size):
        header, raw_header = _header(handle, size)
        if expected is not None:
            _check_tensors(header, expected)
        if not is_complete(_tensors(header)):
            raise DamagedError("damaged: tensors are missing in it")
        _check_digest(handle, size, raw_header)
    state = _state(header)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedError(f"damaged: {error}") from error
    return Checkpoint(tensors, state)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Give the handle of a file and its size, for as long as it is open."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe is not waited for
    except FileNotFoundError as error:
        raise DamagedError("there is no such file") from error
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}") from error
    try:
        if not path.is_file():
            raise DamagedError("is no file")
        yield handle, os.fstat(handle).st_size
    finally:
        os.close(handle)


def _header(handle: int, size: int) -> tuple[dict[str, Any], bytes]:
    """Return the header as JSON has it and as it stands, once it fits the file."""
    length = int.from_bytes(_read(handle, 8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER):
        raise DamagedError(f"damaged or no checkpoint: a header of {length} bytes in a file of {size}")
    raw = _read(handle, length)
    try:
        header = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"damaged: its header is no JSON ({type(error).__name__})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise DamagedError("no checkpoint: it has no metadata")
    end = 0
    for name, entry in sorted(_tensors(header).items(), key=lambda item: _span(item[0], item[1])):
        begin, stop = _span(name, entry)
        count = math.prod(entry["shape"])
        if begin != end or stop - begin != count * WIDTHS[entry["dtype"]]:
            raise DamagedError(f"damaged: tensor {name!r} does not fit its place")
        end = stop
    if end != size - 8 - length:
        raise DamagedError(f"damaged: its tensors take {end} bytes, the file has {size - 8 - length} for them")
    return header, raw


def _tensors(header: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor lies, once its entry is well formed."""
    fits = isinstance(entry, dict) and entry.get("dtype") in WIDTHS
    for key in ("shape", "data_offsets"):
        numbers = entry.get(key) if fits else None
        fits = fits and isinstance(numbers, list) and len(numbers) <= 2  # of matrices
        fits = fits and all(type(number) is int and 0 <= number < 2**62 for number in numbers or [])
    if not fits or len(entry["data_offsets"]) != 2:
        raise DamagedError(f"damaged: the entry of tensor {name[:80]!r}")
    return entry["data_offsets"][0], entry["data_offsets"][1]


def _check_tensors(header: dict[str, Any], expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Refuse tensors that are not the run's."""
    for name, entry in _tensors(header).items():
        dtype, shape = expected.get(name, (None, ()))
        if dtype is None or DTYPES[dtype] != entry["dtype"] or tuple(entry["shape"]) != shape:
            raise DamagedError(f"not of this net: tensor {name[:80]!r} of {entry['dtype']} {entry['shape']}")


def _check_digest(handle: int, size: int, raw_header: bytes) -> None:
    """Refuse a file whose SHA-256 is not the one it names; in little memory."""
    if raw_header.count(PLACE) != 1:
        raise DamagedError("damaged: it names no SHA-256")
    start = raw_header.index(PLACE) + len(PLACE)
    named = raw_header[start : start + len(BLANK)]
    digest = hashlib.sha256((len(raw_header)).to_bytes(8, "little"))
    digest.update(raw_header[:start] + BLANK + raw_header[start + len(BLANK) :])
    left = size - 8 - len(raw_header)
    while left:
        chunk = _piece(handle, min(left, 2**20))
        if not chunk:
            raise DamagedError("damaged: it ends too early")
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest().encode() != named:
        raise DamagedError("damaged: its SHA-256 is not the one it names")


def _state(header: dict[str, Any]) -> dict[str, Any]:
    try:
        state = json.loads(header["__metadata__"]["state"], parse_constant=_no_number)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"damaged: its state is no JSON ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        made = state.get("format") if isinstance(state, dict) else None
        raise DamagedError(f"of format {str(made)[:20]}, and this is deltaprop of format {FORMAT}")
    return state


def _read(handle: int, length: int) -> bytes:
    """Return so many bytes, or what there is."""
    found = b""
    while len(found) < length and (chunk := _piece(handle, length - len(found))):
        found += chunk
    return found


def _piece(handle: int, most: int) -> bytes:
    """Return the next bytes of a file; a disk that cannot read them has a damaged one."""
    try:
        return os.read(handle, most)
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}") from error


def _no_number(name: str) -> float:
    """Refuse what JSON does not have and Python reads all the same.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no number")
