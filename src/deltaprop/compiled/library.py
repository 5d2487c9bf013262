"""The structs that ``epoch.cpp`` takes, and the call of its function."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from deltaprop.errors import UserError


class Options(ctypes.Structure):
    """The options of a parameter's update."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "momentum", "dampening", "weight_decay")),
        *((name, ctypes.c_int64) for name in ("nesterov", "maximize", "first_step")),
    )


class Param(ctypes.Structure):
    """A parameter and its momentum buffer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "velocity")),
        ("options", Options),
        ("learns", ctypes.c_int64),
    )


class LayerSpec(ctypes.Structure):
    """A layer."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_in", "n_out", "activation")),
        ("gemm", ctypes.c_void_p),
        ("weight", Param),
        ("bias", Param),
    )


class Batches(ctypes.Structure):
    """Inputs and targets, and memory for what is computed."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "order", "targets", "grad_entries", "output_weights", "constants")),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
        *((name, ctypes.c_void_p) for name in ("losses", "outputs")),
    )


def address(tensor: Tensor | None) -> int | None:
    """Return where the numbers of a tensor begin; None, a null pointer, for none."""
    return None if tensor is None else tensor.data_ptr()


def call_train(
    library: ctypes.CDLL, layers: Sequence[LayerSpec], lowest: int, batch_size: int, threads: int,
    tensors: dict[str, Tensor | None],
) -> None:  # fmt: skip
    """Train on some batches.

    Args:
        library: A library of :func:`~deltaprop.compiled.source.source_for` these layers.
        layers: The layers, from the first.
        lowest: The lowest trained layer.
        batch_size: Rows per batch; the last has the rest.
        threads: The number of threads.
        tensors: The members of :class:`Batches`, contiguous.

    Raises:
        torch.OutOfMemoryError: If there is not enough memory; nothing has changed then.
        UserError: If the threads cannot be started; likewise.
    """
    order = tensors["order"]
    assert order is not None
    assert all(t is None or (t.is_contiguous() and t.device.type == "cpu") for t in tensors.values())
    data = Batches(rows=len(order), size=batch_size, **{name: address(t) for name, t in tensors.items()})
    specs = (LayerSpec * len(layers))(*layers)
    function = library.train
    function.restype, function.argtypes = (
        ctypes.c_int64,
        (ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p, ctypes.c_int64),
    )
    failure = function(specs, len(layers), lowest, ctypes.byref(data), threads)
    if failure == 1:
        raise torch.OutOfMemoryError("not enough memory for the activations of a batch")
    if failure == 2:
        raise UserError(f"{threads} threads cannot be started here: torch.set_num_threads(1) takes one")
