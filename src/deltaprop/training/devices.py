"""Where a run computes, and with how many threads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch

from deltaprop.errors import UserError

# Measured over nets from 64-64-10 to 1024-2048-2048-10: above this, two threads took at most 0.7 of the time of one;
# below, they gain little and lose a hundredfold where another program holds a core.
WIDE_PRODUCT = 2**24


def pick_device(name: str) -> torch.device:
    """Return the device of a name: ``auto`` (CUDA, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: If this machine does not have it, or the name is none of these.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {name}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"--device {name}: no CUDA device is available to PyTorch here; take --device cpu or auto")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available to PyTorch here; take --device cpu or auto")
    return device


def describe_device(device: torch.device) -> str:
    """Return the device with its name where it has one."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def pick_threads(threads: str, sizes: Sequence[int], batch_size: int) -> int:
    """Return the number of CPU threads: the number given, or for ``auto`` a fixed rule.

    The rule: one thread, unless a layer's product N · n_in · n_out has at least 2^24 multiply-adds; then the machine's
    physical cores. It looks at sizes alone, never at a clock, so that the same seed gives the same bits: the number of
    threads changes the order of sums.
    """
    if threads != "auto":
        return int(threads)
    widest = max(batch_size * n_in * n_out for n_in, n_out in pairwise(sizes))
    if widest < WIDE_PRODUCT:
        return 1
    import joblib  # comes with scikit-learn; respects affinity and container limits

    return int(joblib.cpu_count(only_physical_cores=True))
