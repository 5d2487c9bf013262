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

    Raises:
        UserError: If there is no such way.
    """

    def __init__(self, world: World, way: str = "auto") -> None:
        if way not in EXCHANGES:
            raise unknown_name("exchange", way, EXCHANGES)
        self.world, self.way = world, way
        self._begin(0)

    def _begin(self, rows: int) -> None:
        self._rows = rows
        self._messages: list[Any] = []
        self._gradients: list[tuple[Tensor, Gradient]] = []
        self._bucket: list[Tensor] = []
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the factor, and that of all processes

    def step(
        self, rows: int, back_propagate: Callable[[Exchange], object], update: Callable[[Tensor, Gradient], object]
    ) -> None:
        """Take a step of gradient descent by the gradients of all processes.

        Args:
            rows: N, rows of the whole batch.
            back_propagate: Calls its argument with each parameter and its gradient, in the same order everywhere.
            update: Updates a parameter by its gradient; called once all gradients are there.

        Raises:
            LostError: If another process has ended or does not answer; no parameter has changed then.
        """
        self._begin(rows)
        try:
            back_propagate(self)
            if self._bucket:
                self._send_bucket()
            with self.world.exchanging():
                for message in self._messages:
                    message.wait()
            for param, gradient in self._gradients:
                update(param, gradient)
        finally:
            self._begin(0)

    def __call__(self, param: Tensor, gradient: Gradient) -> None:
        """Begin to exchange a gradient: a formula of ``core/linear.py`` with δ, or with δ and a_prev."""
        assert isinstance(gradient, partial)
        if param.dim() == 2 and prefers_factors(self._rows, param.shape[1], param.shape[0], self.way):
            self._gradients.append((param, partial(gradient.func, *map(self._gather, gradient.args))))
            return
        part = gradient()  # the sum over the rows of this process
        self._gradients.append((param, partial(_given, part)))
        if part.nbytes >= BUCKET_BYTES:
            self._send(lambda: dist.all_reduce(part, async_op=True))
            return
        self._bucket.append(part)
        if sum(t.nbytes for t in self._bucket) >= BUCKET_BYTES:
            self._send_bucket()

    def _send(self, begin: Callable[[], Any]) -> None:
        with self.world.exchanging():
            self._messages.append(begin())

    def _send_bucket(self) -> None:
        parts, self._bucket = self._bucket, []
        flat = torch.cat([part.flatten() for part in parts])
        self._send(lambda: _Bucket(dist.all_reduce(flat, async_op=True), flat, parts))

    def _gather(self, factor: Tensor) -> Tensor:
        """Return memory that will have the factor's rows of all processes, with rows of 0 where a share is smaller."""
        if id(factor) not in self._gathered:
            most = self.world.largest_share(self._rows)
            own = factor.new_zeros(most, factor.shape[1])
            own[: len(factor)] = factor
            of_all = factor.new_empty(self.world.size * most, factor.shape[1])
            self._gathered[id(factor)] = factor, of_all
            self._send(lambda: dist.all_gather([*of_all.split(most)], own, async_op=True))
        return self._gathered[id(factor)][1]


def _given(gradient: Tensor, into: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """Return a gradient that is there already, or add it to a tensor, as the formulas of ``core/linear.py`` do."""
    return gradient if into is None else add_scaled(gradient, into, beta, alpha)


class _Bucket:
    """Several gradients that are sent as one message."""

    def __init__(self, message: Any, flat: Tensor, parts: list[Tensor]) -> None:
        self.message, self.flat, self.parts = message, flat, parts

    def wait(self) -> None:
        self.message.wait()
        for part, of_all in zip(self.parts, self.flat.split([part.numel() for part in self.parts]), strict=True):
            part.copy_(of_all.view_as(part))
