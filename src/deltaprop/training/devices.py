"""The device of a run, and its number of CPU threads."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

from deltaprop.compiled.trainer import SHARED
from deltaprop.distributed import World
from deltaprop.errors import UserError, setting

# Measured (docs/benchmarks.md): above this two threads take 0.5 to 0.85 of the time of one on an idle machine (1.5 in
# one of eighteen cases), and 1.3 to 6 times as long if another program uses one of two cores. At a quarter of it they
# take 0.7 to 1.2 when idle, which is not worth that risk. `threads='tune'` measures instead.
WIDE_PRODUCT = 2**24


def pick_device(name: str, world: World | None = None) -> torch.device:
    """Return the device named ``auto`` (CUDA, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Of several processes on a machine each takes the CUDA device of its own number.

    Raises:
        UserError: If this machine does not have it, or the name is unknown.
    """
    if name in ("auto", "cuda") and world is not None and world.size > 1 and torch.cuda.is_available():
        name = f"cuda:{world.local_rank}"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"`device` must be auto, cpu, cuda, cuda:N or mps, got {name}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            what = "no CUDA device is available to PyTorch here; take `device='cpu'` or auto"
            raise UserError(f"{setting('device', name)}: {what}")
        if device.index is not None and device.index >= count:
            what = f"this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}"
            raise UserError(f"{setting('device', name)}: {what}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("`device='mps'`: not available to PyTorch here; take `device='cpu'` or auto")
    return device


def describe_device(device: torch.device) -> str:
    """Return the device, for CUDA with the name of the GPU."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def pick_threads(
    threads: str, sizes: Sequence[int], batch_size: int, engine: str = "explicit", processes: int = 1
) -> int:
    """Return the number of CPU threads: the number given, or for ``auto`` a fixed rule.

    The rule: one thread, unless a layer's product N · n_in · n_out has at least 2^24 multiply-adds, with the compiled
    engine 2^21, whose threads share all of a step; then the machine's physical cores, which its processes divide. It
    depends on sizes alone, never on time, so that the same seed gives the same bits: the number of threads changes the
    order of sums.
    """
    if threads != "auto":
        return int(threads)
    widest = max(batch_size * n_in * n_out for n_in, n_out in pairwise(sizes))
    return 1 if widest < (SHARED if engine == "compiled" else WIDE_PRODUCT) else max(1, physical_cores() // processes)


def physical_cores() -> int:
    """Return the number of physical cores that this process may use."""
    import joblib  # comes with scikit-learn; respects affinity and container limits

    return int(joblib.cpu_count(only_physical_cores=True))


def tune_threads(run: Callable[[], object], cores: int, seconds: float = 2.0) -> dict[int, float]:
    """Return the median seconds of some work with 1, 2, 4, … threads, and with one per core.

    The numbers take turns, so that other programs on the machine slow each of them down alike. If they use the cores,
    two threads may take a hundred times as long as one.

    Args:
        run: The work, a few steps; called once with each number of threads before timing.
        cores: The most threads to try.
        seconds: Time after which no new round begins, but for the first three.
    """
    counts = sorted({*(2**k for k in range(cores.bit_length()) if 2**k <= cores), cores})
    taken: dict[int, list[float]] = {count: [] for count in counts}
    began = time.perf_counter()
    for number in range(21):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        for count in counts:
            with set_threads(count):
                if number == 0:
                    run()
                start = time.perf_counter()
                run()
                taken[count].append(time.perf_counter() - start)
    return {count: statistics.median(times) for count, times in taken.items()}


def fastest(timed: dict[int, float]) -> int:
    """Return the fewest threads whose time is within 5 % of the best."""
    best = min(timed.values())
    return min(count for count, seconds in timed.items() if seconds <= 1.05 * best)


@contextmanager
def set_threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads, and restore it on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
