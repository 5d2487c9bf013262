"""The processes that train one model: which of them this is, whose rows are whose, and how they add what each has.

``torchrun`` starts them, and sets RANK, WORLD_SIZE and the address where they meet. A batch belongs to all: of its N
rows process r of W takes those from ⌊r N / W⌋ to ⌊(r + 1) N / W⌋. So what is computed depends on the batch alone, and
W changes only the order of sums.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deltaprop._torch_compat import default_store
from deltaprop.errors import UserError

T = TypeVar("T")
ANSWER_SECONDS = 300.0  # until a process that does not answer is given up
FAILED = "deltaprop/failed"  # a process that tells why it ends has set this in the store
SIGN_SECONDS = 2.0  # until the others, which have waited as long, have said so


class LostError(RuntimeError):
    """Another process has ended, or does not answer; this one cannot go on alone.

    Attributes:
        is_told: Whether a process that has met it before this one tells it.
    """

    is_told = False


@dataclass(frozen=True)
class World:
    """The processes that train one model; ``World()`` is this process alone.

    Attributes:
        rank: The number of this process, from 0.
        size: W, how many there are.
        timeout: Seconds after which one that does not answer is given up.
        local_rank: The number of this process among those of its machine.
        local_size: How many there are on this machine.
        store: Where they have met.
    """

    rank: int = 0
    size: int = 1
    timeout: float = ANSWER_SECONDS
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, repr=False, compare=False)

    def share(self, rows: int) -> slice:
        """Return which rows of a batch are this process's; none if there are more processes than rows."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def largest_share(self, rows: int) -> int:
        """Return the most rows of a batch that a process has."""
        return -(-rows // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, and return it.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size > 1:
            with self.exchanging():
                dist.all_reduce(tensor)
        return tensor

    def gather_rows(self, tensor: Tensor) -> None:
        """Complete a tensor, of whose rows each process has written its share.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size > 1:
            most = self.largest_share(len(tensor))
            own = tensor.new_zeros(most, *tensor.shape[1:])
            rows = self.share(len(tensor))
            own[: rows.stop - rows.start] = tensor[rows]
            of_all = [torch.empty_like(own) for _ in range(self.size)]
            with self.exchanging():
                dist.all_gather(of_all, own)
            for rank, part in enumerate(of_all):
                rows = replace(self, rank=rank).share(len(tensor))
                tensor[rows] = part[: rows.stop - rows.start]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by that of process 0, and return it.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size > 1:
            with self.exchanging():
                dist.broadcast(tensor, 0)
        return tensor

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes files and prints."""
        return self.rank == 0

    def largest(self, *numbers: float) -> list[float]:
        """Return the largest of each number that the processes have, so that all act alike.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size == 1:
            return list(numbers)
        of_all = torch.tensor(numbers, dtype=torch.float64)
        with self.exchanging():
            dist.all_reduce(of_all, dist.ReduceOp.MAX)
        return of_all.tolist()

    def of_each(self, data: bytes) -> list[bytes]:
        """Return the bytes of each process, by rank.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size == 1:
            return [data]
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        own = torch.frombuffer(bytearray(data + b"\0"), dtype=torch.uint8)  # a tensor is not made of nothing
        with self.exchanging():
            dist.all_gather(lengths, torch.tensor(len(own)))
            longest = max(int(length) for length in lengths)
            found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, torch.nn.functional.pad(own, (0, longest - len(own))))
        return [t[: int(n) - 1].numpy().tobytes() for t, n in zip(found, lengths, strict=True)]

    def of_first(self, data: bytes) -> bytes:
        """Return the bytes of process 0.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size == 1:
            return data
        length = self.broadcast(torch.tensor(len(data)))
        sent = torch.frombuffer(bytearray(data.ljust(int(length) + 1, b"\0")), dtype=torch.uint8)[: int(length) + 1]
        return self.broadcast(sent.clone()).numpy().tobytes()[: int(length)]

    def together(self, work: Callable[[], T]) -> T:
        """Return what some work returns, which each process does for itself; if it fails in one, it fails in all.

        Work may have parts that are done together: what fails there has failed in all. The first exchange within work
        must be such a part, for a process that fails before it tells so in that one's place.

        Raises:
            UserError: If it has raised one, here or in another process.
            LostError: If another process has ended or does not answer.
        """
        if self.size == 1:
            return work()
        error: UserError | None = None
        try:
            result = work()
        except UserError as caught:
            error = caught
            if error.is_shared:
                raise
        told = self.of_each(b"" if error is None else str(error).encode())
        for rank, text in enumerate(told):
            if text:
                error = error or UserError(text.decode() if rank == 0 else f"process {rank}: {text.decode()}")
        if error is not None:
            error.is_shared = True
            raise error
        return result

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Raise LostError if an exchange in this block fails; other errors are unchanged."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).lower()
            late = "timed out" in text or "timeout" in text
            if not isinstance(error, dist.DistError) and not late and "gloo" not in text:
                raise
            raise self._lost(late) from error

    def _lost(self, late: bool) -> LostError:
        """Return the error of a failed exchange: which process does not answer is known from those that say so."""
        who, is_told = "another process", False
        with suppress(RuntimeError):  # the store is gone with its process
            if self.store is not None:
                self.store.set_timeout(timedelta(seconds=SIGN_SECONDS))
                self.store.set(f"deltaprop/waits/{self.rank}", "")
                deadline, silent = time.monotonic() + SIGN_SECONDS, [r for r in range(self.size) if r != self.rank]
                while late and silent and time.monotonic() < deadline:
                    silent = [rank for rank in silent if not self.store.check([f"deltaprop/waits/{rank}"])]
                    time.sleep(0.01)
                if late and silent:
                    who = " and ".join(f"process {rank}" for rank in silent)
                is_told = self.store.check([FAILED]) or self.store.add("deltaprop/told", 1) > 1
        what = f"{'have' if ' and ' in who else 'has'} {f'not answered for {self.timeout:g} s' if late else 'ended'}"
        error = LostError(f"{who} {what}; process {self.rank} of {self.size} cannot go on alone")
        error.is_told = is_told
        return error


def is_one_of_several() -> bool:
    """Return whether ``torchrun``, or what sets RANK and WORLD_SIZE as it does, has started several processes."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def join(timeout: float = ANSWER_SECONDS) -> World:
    """Return the processes that ``torchrun`` has started, once they are connected; ``World()`` if it has started none.

    A default process group that is there already is used.

    Args:
        timeout: Seconds after which a process that does not answer is given up.

    Raises:
        LostError: If they cannot be connected.
    """
    if not dist.is_initialized():
        if not is_one_of_several():
            return World(timeout=timeout)
        from torch.distributed.rendezvous import rendezvous  # not in a PyTorch that is built without processes

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            with _signals_end_it():
                store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
                store = _of_this_start(store, rank, size, timeout)
                dist.init_process_group(
                    backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
                )
                # A process that ended before the others are connected would break their connections.
                dist.all_reduce(torch.zeros(()))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise LostError(f"the processes cannot be connected: {reason}; torchrun starts them") from error
    rank, size = dist.get_rank(), dist.get_world_size()
    # torchrun sets these two; without them all are taken to be on this machine.
    local = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(rank, size, timeout, *local, default_store())


def _of_this_start(store: Any, rank: int, size: int, timeout: float) -> Any:
    """Return a part of the store that nothing has been written to, the same for all processes.

    torchrun keeps its store over restarts, with the addresses of processes that have ended, and one that reads those
    waits in vain (pytorch issue 135712). So process 0 draws a new number, the others answer with a word of their own,
    and process 0 shows the words it has read: who finds its own there knows that the number is not an old one.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # not marked as exported

    if rank == 0:
        number = str(store.add("deltaprop/starts", 1))
        store.set("deltaprop/start", number)
        words = [store.get(f"deltaprop/{number}/{other}") for other in range(1, size)]
        store.set(f"deltaprop/{number}/words", b" ".join(words))
        return PrefixStore(f"deltaprop/{number}", store)
    word, deadline = uuid.uuid4().hex, time.monotonic() + timeout
    while time.monotonic() < deadline:
        number = store.get("deltaprop/start").decode()
        store.set(f"deltaprop/{number}/{rank}", word)
        if store.check([f"deltaprop/{number}/words"]) and word in store.get(f"deltaprop/{number}/words").decode():
            return PrefixStore(f"deltaprop/{number}", store)
        time.sleep(0.01)
    raise RuntimeError(f"process 0 has not answered for {timeout:g} s")


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let signals end this process at once: it waits in C++, where no handler written in Python is called."""
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if is_main}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave() -> None:
    """Disconnect this process. One that ends without it may be aborted by gloo's threads."""
    if dist.is_initialized():
        # A thread of gloo's may still be about to free the tensors of the last message, for which it needs Python's
        # lock; the group's end would wait for it with that lock held.
        time.sleep(0.05)
        dist.destroy_process_group()


@contextmanager
def joined(timeout: float = ANSWER_SECONDS) -> Iterator[World]:
    """Connect the processes that ``torchrun`` has started, as :func:`join`, until the end of the block."""
    was_connected = dist.is_initialized()
    world = join(timeout)
    try:
        yield world
    except Exception as error:
        if world.store is not None and not isinstance(error, LostError):
            with suppress(RuntimeError):
                world.store.set(FAILED, "")
        raise
    finally:
        if not was_connected:
            leave()


def world_of(world: World | None) -> World:
    """Return the processes that a trainer works with: this one alone, unless they are given.

    Raises:
        UserError: If there are several and none are given: each would train a model of its own.
    """
    if world is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError(
            f"{dist.get_world_size()} processes are connected, and each would train a model of its own: pass "
            "world=deltaprop.distributed.join() to dp.ExplicitTrainer, or, if that is what you want, "
            "world=deltaprop.distributed.World()"
        )
    return world or World()
