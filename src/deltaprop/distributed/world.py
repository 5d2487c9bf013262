"""The processes that train one model: which of them this is, whose rows are whose, and how they add what each has.

``torchrun`` starts them, and sets RANK, WORLD_SIZE and the address where they meet. A batch belongs to all: of its N
rows process r of W takes those from ⌊r N / W⌋ to ⌊(r + 1) N / W⌋. So what is computed depends on the batch alone, and
W changes only the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from deltaprop.errors import UserError

ANSWER_SECONDS = 300.0  # until a process that does not answer is given up


class LostError(RuntimeError):
    """Another process has ended, or does not answer; this one cannot go on alone."""


@dataclass(frozen=True)
class World:
    """The processes that train one model; ``World()`` is this process alone.

    Attributes:
        rank: The number of this process, from 0.
        size: W, how many there are.
        timeout: Seconds after which one that does not answer is given up.
    """

    rank: int = 0
    size: int = 1
    timeout: float = ANSWER_SECONDS

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

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by that of process 0, and return it.

        Raises:
            LostError: If another process has ended or does not answer.
        """
        if self.size > 1:
            with self.exchanging():
                dist.broadcast(tensor, 0)
        return tensor

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Raise LostError if an exchange in this block fails."""
        try:
            yield
        except RuntimeError as error:
            late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            what = f"has not answered for {self.timeout:g} s" if late else "has ended"
            raise LostError(f"another process {what}; process {self.rank} of {self.size} cannot go on alone") from error


def join(timeout: float = ANSWER_SECONDS) -> World:
    """Return the processes that ``torchrun`` has started, once they are connected; ``World()`` if it has started none.

    A default process group that is there already is used.

    Args:
        timeout: Seconds after which a process that does not answer is given up.

    Raises:
        UserError: If they cannot be connected.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World(timeout=timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the processes cannot be connected: {reason}; torchrun starts them") from error
    return World(dist.get_rank(), dist.get_world_size(), timeout)


def leave() -> None:
    """Disconnect this process. One that ends without it may be aborted by gloo's threads."""
    if dist.is_initialized():
        dist.destroy_process_group()


def refuse_several_processes() -> None:
    """Refuse what would be done in each of the processes that ``torchrun`` has started.

    Raises:
        UserError: If there are several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            f"torchrun has started {size} processes, each of which would train the same model: start one, or share the "
            "batches of a dp.ExplicitTrainer (docs/distributed.md)"
        )


def world_of(world: World | None) -> World:
    """Return the processes that a trainer works with: this one alone, unless they are given.

    Raises:
        UserError: If there are several and none are given: each would train a model of its own.
    """
    if world is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError(
            f"{dist.get_world_size()} processes are connected, and each would train a model of its own: pass "
            "world=deltaprop.distributed.join() to dp.ExplicitTrainer, or world=World() if that is what you want"
        )
    return world or World()
