"""∂C/∂θ of a batch that several processes share: each has the sum over its own rows, and SGD needs that over all.

BP3 and BP4 are sums over samples, so the gradient of the batch is the sum of the processes' gradients; the 1/N of a
mean is that of the whole batch, and stays in δ^L. There are two ways to get it:

- ``sums``: each process computes its part of ∂C/∂W, [n_l, n_{l−1}], and the parts are added on their way. In a ring of
  W processes each sends 2 (W − 1)/W of n_l n_{l−1} numbers (Patarasuk & Yuan 2009).
- ``factors``: ∂C/∂W = (δ^l)ᵀ a^{l−1}. Its factors, [N, n_l] and [N, n_{l−1}], are gathered, of which each process sends
  (W − 1)/W. Every process then computes the product of the whole batch, directly into θ or v. (Sufficient-factor
  broadcasting: Xie, Kim, Zhou, Ho, Kumar, Yu & Xing 2016. Chosen layer by layer: Poseidon, Zhang et al. 2017.)

The exchange of a layer begins as soon as its δ is there, and goes on while the recursion computes the layers below. The
update waits for all of it: after an exchange that fails, θ and v are those before the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deltaprop.core.linear import add_scaled
from deltaprop.distributed.world import World
from deltaprop.errors import unknown_name

EXCHANGES = ("auto", "sums", "factors")
BUCKET_BYTES = 2**20  # small gradients are sent together: a message takes time besides that of its bytes
MOST_FACTOR_ROWS, LEAST_FACTOR_NUMBERS = 1024, 2**18  # rows of a batch, and numbers of W, for factors

Gradient = Callable[..., Tensor]


def prefers_factors(rows: int, n_in: int, n_out: int, way: str) -> bool:
    """Return whether a layer's factors are exchanged, and not the sums of its ∂C/∂W.

    ``auto`` exchanges the factors where they are less than a quarter of the numbers, N (n_in + n_out) against
    2 n_in n_out, and N ≤ 1024: every process then computes the product of all N rows, W times that of its own. Below
    2^18 numbers of W, 1 MiB in float32, it does not: those sums are sent together with others, in one message.

    Args:
        rows: N, rows of the whole batch.
        n_in: Inputs of the layer.
        n_out: Outputs of the layer.
        way: A row of ``EXCHANGES``.
    """
    if way == "auto":
        is_large, is_thin = n_in * n_out >= LEAST_FACTOR_NUMBERS, 2 * rows * (n_in + n_out) < n_in * n_out
        return rows <= MOST_FACTOR_ROWS and is_large and is_thin
    return way == "factors"


class Exchange:
    """Adds up the gradients of a step over all processes; a ``use_gradient`` of the recursion.

    Args:
        world: The processes.
        way: A row of ``EXCHANGES``.
        dtype: Data type of what is sent; by default that of the gradients. bfloat16 halves the bytes, and rounds: the
            sums at each addition, or the factors.

    Raises:
        UserError: If there is no such way.
    """

    def __init__(self, world: World, way: str = "auto", dtype: torch.dtype | None = None) -> None:
        if way not in EXCHANGES:
            raise unknown_name("exchange", way, EXCHANGES)
        self.world, self.way, self.dtype = world, way, dtype
        self._memory: dict[tuple[str, int], Tensor] = {}  # by use and parameter; fresh memory takes longer to write
        self._begin(0, 0)

    def clear(self) -> None:
        """Free the memory that is kept from step to step."""
        self._memory.clear()

    def _begin(self, rows: int, largest: int) -> None:
        self._rows, self._largest = rows, largest
        self._arrivals: list[Callable[[], object]] = []  # each waits for a message
        self._gradients: list[tuple[Tensor, Gradient]] = []
        self._bucket: list[Tensor] = []

    def step(
        self,
        rows: int,
        largest: int,
        back_propagate: Callable[[Exchange], object],
        update: Callable[[Tensor, Gradient], object],
    ) -> None:
        """Take a step of gradient descent by the gradients of all processes.

        Args:
            rows: N, rows of the whole batch.
            largest: The most of them that a process has.
            back_propagate: Calls its argument with each parameter and its gradient, in the same order everywhere.
            update: Updates a parameter by its gradient; called once all gradients are there.

        Raises:
            LostError: If another process has ended or does not answer; no parameter has changed then.
        """
        self._begin(rows, largest)
        try:
            back_propagate(self)
            self._send_waiting()
            with self.world.exchanging():
                for wait in self._arrivals:
                    wait()
            for param, gradient in self._gradients:
                update(param, gradient)
        finally:
            self._begin(0, 0)

    def __call__(self, param: Tensor, gradient: Gradient) -> None:
        """Begin to exchange a gradient: a formula of ``core/linear.py`` with δ, or with δ and a_prev."""
        assert isinstance(gradient, partial)
        if param.dim() == 2 and prefers_factors(self._rows, param.shape[1], param.shape[0], self.way):
            self._gradients.append((param, partial(gradient.func, *self._gather(param, *gradient.args))))
            return
        part = gradient(self._kept("sum", param, param.shape, param.dtype), beta=0)  # over the rows of this process
        self._gradients.append((param, partial(_given, part)))
        if part.nbytes >= BUCKET_BYTES:
            self._send([part])
            return
        self._bucket.append(part)
        if sum(t.nbytes for t in self._bucket) >= BUCKET_BYTES:
            self._send_waiting()

    def _kept(self, use: str, param: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory that is kept from step to step, of a tensor with at most so many rows before."""
        found = self._memory.get((use, id(param)))
        if found is None or len(found) < shape[0] or found.shape[1:] != shape[1:] or found.dtype != dtype:
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                found = self._memory[use, id(param)] = torch.empty(shape, dtype=dtype, device=param.device)
        return found[: shape[0]]

    def _send_waiting(self) -> None:
        waiting, self._bucket = self._bucket, []
        if waiting:
            self._send(waiting)

    def _send(self, parts: list[Tensor]) -> None:
        """Begin to sum gradients, in one message."""
        dtype = self.dtype or parts[0].dtype
        is_one = len(parts) == 1 and parts[0].dtype == dtype
        flat = parts[0] if is_one else torch.cat([part.flatten() for part in parts]).to(dtype)
        with self.world.exchanging():
            message: Any = dist.all_reduce(flat, async_op=True)

        def wait() -> None:
            message.wait()
            if not is_one:
                for part, of_all in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                    part.copy_(of_all.view_as(part))

        self._arrivals.append(wait)

    def _gather(self, param: Tensor, delta: Tensor, a_prev: Tensor) -> tuple[Tensor, Tensor]:
        """Begin to gather δ and a_prev, in one message; return memory that will have the rows of all processes."""
        most, columns = self._largest, [delta.shape[1], a_prev.shape[1]]
        sent = self.dtype or delta.dtype
        own = self._kept("own", param, (most, sum(columns)), sent)
        for of_own, factor in zip(own[: len(delta)].split(columns, 1), (delta, a_prev), strict=True):
            of_own.copy_(factor)
        own[len(delta) :].zero_()  # the share of another process may be larger
        of_all = self._kept("all", param, (self.world.size * most, sum(columns)), sent)
        with self.world.exchanging():
            message: Any = dist.all_gather([*of_all.split(most)], own, async_op=True)
        factors = of_all if sent == delta.dtype else self._kept("factors", param, of_all.shape, delta.dtype)

        def wait() -> None:
            message.wait()
            if factors is not of_all:
                factors.copy_(of_all)

        self._arrivals.append(wait)
        of_delta, of_a_prev = factors.split(columns, 1)
        return of_delta, of_a_prev


def _given(gradient: Tensor, into: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """Return a gradient that is there already, or add it to a tensor, as the formulas of ``core/linear.py`` do."""
    return gradient if into is None else add_scaled(gradient, into, beta, alpha)
