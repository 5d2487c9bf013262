"""Several processes against one: ``python -m benchmarks.scaling``.

Time of a step and bytes that a process sends, for each way to exchange gradients; beside them the bytes by theory and
the time by ``benchmarks.cost_model``. The ways take turns within one set of processes. Every process has one thread.

With ``--network 1gbit`` each process is a host of its own: a network namespace, connected by a bridge and limited by
the kernel's token bucket. That needs root, and ``ip`` and ``tc``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import deltaprop as dp
from benchmarks.cost_model import Cluster, Link, step
from benchmarks.report import Table, machine, versions, write
from deltaprop import functional as F
from deltaprop.distributed import World, join, leave, replicate
from deltaprop.training.devices import physical_cores
from deltaprop.training.engines import train_epoch

SIZES = ("784-30-10:10", "784-512-512-10:128", "784-2048-2048-10:64", "1024-2048-2048-10:256")
WAYS = ("sums", "factors", "ddp")
PROCESSES = (2, 4)
ROUNDS, STEPS = 3, 4  # turns of each way, and steps of a turn before the next agreement


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="layer sizes and batch, as 784-30-10:10")
    parser.add_argument("--processes", nargs="+", type=int, default=PROCESSES)
    parser.add_argument("--network", default="loopback", help="loopback, or a rate of tc, as 1gbit")
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps for each cell")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.sizes, arguments.seconds, arguments.threads)))
        return
    console = Console(width=120)
    console.print(f"{machine()}, {versions()}", highlight=False)
    alone, threaded = start(1, arguments), start(1, arguments, physical_cores())
    with_threads = f"÷ one with {physical_cores()} threads"
    columns = ["sizes, batch, processes", "way", "ms", "÷ one process", with_threads, "MB sent", "in theory", "÷ model"]
    table = Table(f"Processes over {arguments.network}, one thread each", columns)
    for count in arguments.processes:
        found = start(count, arguments)
        for size in arguments.sizes:
            for way in WAYS:
                table.rows.append(row(size, way, count, (alone, threaded), found, arguments.network))
    console.print(table.rich(), highlight=False)
    if arguments.write:
        words = [word for word in sys.argv[1:] if word != "--write"]
        write([table], " ".join(["python -m benchmarks.scaling", *words]))


def row(size: str, way: str, count: int, alone: tuple[Any, Any], found: Any, network: str) -> list[str]:
    """Return a row of the table."""
    sizes, batch = parsed(size)
    cell = found[size][way]
    theory = bytes_sent(sizes, batch, count, way)
    predicted = step(cluster_of(size, way, count, found, network), sizes, batch, count, as_model(way))
    return [
        f"{size.replace(':', ', ')}, {count}",
        way,
        f"{1e3 * cell['seconds']:.3g}",
        *(f"{cell['seconds'] / one[size][way]['seconds']:.2f}" for one in alone),
        f"{cell['bytes'] / 1e6:.3g}",
        f"{theory / 1e6:.3g}",
        f"{cell['seconds'] / predicted:.2f}",
    ]


def as_model(way: str) -> str:
    """Return the model's name of a way: DDP sums."""
    return "sums" if way == "ddp" else way


def parsed(size: str) -> tuple[list[int], int]:
    """Return layer sizes and batch size."""
    layers, batch = size.split(":")
    return [*map(int, layers.split("-"))], int(batch)


def bytes_sent(sizes: list[int], batch: int, count: int, way: str) -> float:
    """Return the bytes that a process sends in a step, in a ring."""
    share = 4 * (count - 1) / count
    biases = sum(sizes[1:])
    if way == "factors":
        return share * (batch * sum(n_in + n_out for n_in, n_out in pairwise(sizes)) + 2 * biases)
    return 2 * share * (sum(n_in * n_out for n_in, n_out in pairwise(sizes)) + biases)


def cluster_of(size: str, way: str, count: int, found: Any, network: str) -> Cluster:
    """Return what the model needs: the rate of a process that exchanges nothing, and the link by two sums."""
    sizes, batch = parsed(size)
    products = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
    alone = found[size]["ddp alone" if way == "ddp" else "sums alone"]["seconds"]
    flops = 2 * batch * (3 * products - sizes[0] * sizes[1]) / alone
    return Cluster(flops, found["memory"], Link(**found["link"]), overlaps=network != "loopback")


# --- the processes ---


def measure(sizes: list[str], seconds: float, threads: int) -> dict[str, Any]:
    """Return seconds and bytes of a step for each size and way, and what two sums and the memory take."""
    torch.set_num_threads(threads)
    world = join()
    found: dict[str, Any] = {"memory": memory_rate()}  # of all at once
    if world.size > 1:
        found["link"] = link_of(world, seconds)
    for size in sizes:
        steps = {way: steps_of(world, way, *parsed(size)) for way in WAYS}
        # Each by itself, but all at once: they share the memory, and the cores if there are more of them.
        steps |= {f"{way} alone": steps_of(World(), way, *parsed(size)) for way in ("sums", "ddp")}
        found[size] = {way: {"seconds": [], "bytes": []} for way in steps}
        for turn in range(ROUNDS + 1):
            for way, take in steps.items():
                cells = zip(("seconds", "bytes"), timed(world, take, STEPS, seconds / ROUNDS), strict=True)
                for name, value in cells:
                    if turn:  # the first is to warm up
                        found[size][way][name].append(value)
        for cell in found[size].values():
            cell.update({name: statistics.median(values) for name, values in cell.items()})
    leave()
    return found


def timed(world: World, take: Callable[[], object], steps: int, seconds: float) -> tuple[float, float]:
    """Return the seconds of a step, in the mean, and the bytes that a process sends for it.

    Not the median: a message takes 0.2 ms or 3, as the threads that carry it get a core.
    """
    began = time.perf_counter()
    take()
    rounds = int(max(1, seconds / world.largest(time.perf_counter() - began)[0]))
    before, began = bytes_out(world), time.perf_counter()
    for _ in range(rounds):
        take()
    taken = time.perf_counter() - began
    return taken / rounds / steps, (bytes_out(world) - before) / rounds / steps


def bytes_out(world: World) -> float:
    """Return the bytes that a process has sent so far, when all have come to this point."""
    if world.size == 1:
        return 0.0
    dist.barrier()
    name = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    sent = int(Path(f"/sys/class/net/{name}/statistics/tx_bytes").read_text())
    dist.barrier()
    return sent / world.size if name == "lo" else sent


def link_of(world: World, seconds: float) -> dict[str, float]:
    """Return the link of the model, from small and large messages between products, as in a step."""
    x, weight, much = torch.randn(10, 784), torch.randn(300, 784), torch.zeros(2**20)
    few = torch.zeros(2**14)  # 4 bytes take much less time than 64 KB, and 64 KB hardly more than 4
    of_all = [torch.zeros_like(few) for _ in range(world.size)]

    def taken(send: Callable[[], object]) -> float:
        return timed(world, lambda: (torch.mm(x, weight.T), send()), 1, seconds)[0]

    nothing, gathered = taken(lambda: None), taken(lambda: dist.all_gather(of_all, few))
    little, large = taken(lambda: dist.all_reduce(few)), taken(lambda: dist.all_reduce(much))
    rounds = world.size - 1
    bandwidth = 2 * rounds / world.size * (much.nbytes - few.nbytes) / (large - little)
    gather = gathered - nothing - rounds * few.nbytes / bandwidth
    both = little - nothing - 2 * rounds / world.size * few.nbytes / bandwidth
    latency = min(max(both - gather, 0.0), both) / rounds
    return {"latency": latency, "bandwidth": bandwidth, "message": both - 2 * rounds * latency}


def memory_rate() -> float:
    """Return the bytes per second of an addition in memory."""
    total, one = torch.zeros(2**24), torch.ones(2**24)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        total.add_(one)
        times.append(time.perf_counter() - began)
    return 3 * total.nbytes / statistics.median(times)


def steps_of(world: World, way: str, sizes: list[int], batch: int) -> Callable[[], object]:
    """Return a function that takes a few steps."""
    torch.manual_seed(0)
    model = dp.MLP(sizes)
    optimizer = dp.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(STEPS * batch, sizes[0]), torch.randint(sizes[-1], (STEPS * batch,))
    if way != "ddp":
        trainer = dp.ExplicitTrainer(model, "cross_entropy", optimizer, world=world, exchange=way)
        return lambda: trainer.epoch(x, y, batch)
    network = replicate(model) if world.size > 1 else model
    order = torch.arange(len(x))
    return lambda: train_epoch(network, F.cross_entropy, optimizer, x, y, order, batch, world=world)


def start(count: int, arguments: argparse.Namespace, threads: int = 1) -> dict[str, Any]:
    """Return what process 0 of so many has measured."""
    options = ["--threads", str(threads), "--sizes", *arguments.sizes, "--seconds", str(arguments.seconds)]
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", *options]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with hosts(count, "loopback" if count == 1 else arguments.network) as prefixes:
        running = []
        for rank, (prefix, settings) in enumerate(prefixes):
            several = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": port} if count > 1 else {}
            environment = {**os.environ, **several, **settings, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen([*prefix, *command], env=environment, stdout=subprocess.PIPE, text=True))
        said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process failed")
    found: dict[str, Any] = json.loads(said[0])
    return found


@contextmanager
def hosts(count: int, rate: str) -> Iterator[list[tuple[list[str], dict[str, str]]]]:
    """Give the words that start a process on each host, and its environment; a host is a network namespace."""
    if rate == "loopback":
        yield [([], {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"})] * count
        return

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True)

    names = [f"dp{os.getpid()}-{number}" for number in range(count)]
    bridge = f"dp{os.getpid()}"
    limit = f"root tbf rate {rate} burst 256kb latency 100ms"
    try:
        ip(f"link add {bridge} type bridge")
        ip(f"link set {bridge} up")
        for number, name in enumerate(names):
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {bridge} up")
            ip(f"-n {name} addr add 10.77.0.{number + 1}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
            subprocess.run(["tc", "-n", name, *f"qdisc add dev eth0 {limit}".split()], check=True)
            subprocess.run(["tc", *f"qdisc add dev {name} {limit}".split()], check=True)
        settings = {
            "MASTER_ADDR": "10.77.0.1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }
        yield [(["ip", "netns", "exec", name], settings) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", bridge], check=False)


if __name__ == "__main__":
    main()
