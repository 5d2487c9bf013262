"""A model of the time of a step in several processes: arithmetic, memory, and messages of latency α and bandwidth β.

A product of [N, n_in] and [n_in, n_out] takes max(2 N n_in n_out / flops, bytes of W / memory bandwidth). In a ring of
W processes B bytes take W − 1 rounds of α + B/(W β) to be gathered or dealt out, and twice that to be summed. Where a
cluster has hosts of g processes, these do so first, by their faster links; each then needs 1/g of B from other hosts.
The recursion goes on while messages are under way; they wait for one another. ``benchmarks.scaling`` holds this model
to measured steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deltaprop.distributed.exchange import BUCKET_BYTES

WAYS = ("sums", "factors", "fsdp")


@dataclass(frozen=True)
class Link:
    """A connection: α seconds of latency a round, β bytes per second, and seconds that each message takes besides."""

    latency: float
    bandwidth: float
    message: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Processes and what connects them.

    Attributes:
        flops: Additions and multiplications per second of a process, in products.
        memory: Bytes per second that it reads from its memory.
        outer: Between hosts.
        inner: Within a host.
        host: Processes of a host; 1 for a flat ring.
        number: Bytes of a number.
        capacity: Bytes of memory of a process.
        overlaps: Whether a process computes while a message is under way.
    """

    flops: float
    memory: float
    outer: Link
    inner: Link = Link(0.0, 1.0)
    host: int = 1
    number: int = 4
    capacity: float = 64e9
    overlaps: bool = True

    def ring(self, size: int, nbytes: float, passes: int = 1) -> float:
        """Return the seconds until so many bytes are gathered or dealt out (one pass), or summed (two)."""
        inner = min(size, self.host)
        return _ring(inner, nbytes, passes, self.inner) + _ring(size // inner, nbytes / inner, passes, self.outer)

    def product(self, rows: float, n_in: int, n_out: int) -> float:
        """Return the seconds of a product with a weight."""
        return max(2 * rows * n_in * n_out / self.flops, n_in * n_out * self.number / self.memory)


def _ring(size: int, nbytes: float, passes: int, link: Link) -> float:
    rounds = passes * (size - 1) * (link.latency + nbytes / (size * link.bandwidth))
    return link.message + rounds if size > 1 else 0.0


# Hosts of eight GPUs by NVLink, each with 400 Gb/s to other hosts, bfloat16. Hosts of 16 cores, one process, float32.
H100 = Cluster(400e12, 3.35e12, Link(12e-6, 40e9), Link(5e-6, 360e9), host=8, number=2, capacity=80e9)
TEN_GIGABIT = Cluster(500e9, 100e9, Link(60e-6, 1.1e9))


class _Clock:
    """When the processes have computed so far, and when the last message will have arrived."""

    def __init__(self, overlaps: bool) -> None:
        self.computed = self.arrived = 0.0
        self.overlaps = overlaps

    def send(self, seconds: float) -> None:
        self.arrived = max(self.arrived, self.computed) + seconds
        if not self.overlaps:
            self.computed = self.arrived

    def wait(self) -> None:
        self.computed = max(self.computed, self.arrived)


def step(cluster: Cluster, sizes: Sequence[int], batch: int, processes: int, way: str) -> float:
    """Return the seconds of a step on a batch of all processes."""
    layers, rows = [*pairwise(sizes)], batch / processes
    clock, waiting = _Clock(cluster.overlaps), 0.0

    def gather(nbytes: float, passes: int = 1) -> None:
        clock.send(cluster.ring(processes, nbytes, passes))

    for n_in, n_out in layers:
        if way == "fsdp":
            gather(n_in * n_out * cluster.number)
            clock.wait()
        clock.computed += cluster.product(rows, n_in, n_out)  # FWD
    for number, (n_in, n_out) in reversed([*enumerate(layers)]):
        nbytes = n_in * n_out * cluster.number
        if way == "fsdp":
            gather(nbytes)
            clock.wait()
        if number:
            clock.computed += cluster.product(rows, n_in, n_out)  # BP2
        if way == "factors":
            gather(batch * (n_in + n_out) * cluster.number)
            continue
        clock.computed += cluster.product(rows, n_in, n_out)  # BP4
        waiting += nbytes
        if waiting >= BUCKET_BYTES or number == 0:
            gather(waiting, 1 if way == "fsdp" else 2)
            waiting = 0.0
    clock.wait()
    weights = sum(n_in * n_out for n_in, n_out in layers) * cluster.number
    if way == "factors":
        return clock.computed + sum(cluster.product(batch, *layer) for layer in layers)  # BP4 of all rows
    return clock.computed + 3 * weights / cluster.memory / (processes if way == "fsdp" else 1)  # SGD


def memory(cluster: Cluster, sizes: Sequence[int], batch: int, processes: int, way: str) -> float:
    """Return the bytes of a process for W, momentum and ∂C/∂W, for factors, and for a and δ of its rows."""
    numbers = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    rows = batch / processes
    kept = {
        "sums": 3 * sum(numbers),
        "factors": 2 * sum(numbers) + batch * sum(n_in + n_out for n_in, n_out in pairwise(sizes)),
        "fsdp": 3 * sum(numbers) / processes + 2 * max(numbers),
    }[way]
    return cluster.number * (kept + 2 * rows * sum(sizes))
