"""The packed bias column: a layer's weights and biases as one matrix, for small layers.

With a constant 1 at the end of a_prev, the bias is a weight like any other: z = [a_prev, 1] [W, b]ᵀ. One product then
does FWD, and one does BP3, BP4 and the update. A product of a small layer takes a few microseconds, hardly more than
the call itself, so a call less each way is a gain that grows as layers shrink.

The matrix is a private copy, good for one epoch: the Parameters are read when it begins and written when it ends. In
between they are behind; so where somebody looks at them between steps, layers are not packed.

Two more things that calls to the BLAS were measured to like (one thread of an Ice Lake Xeon, PyTorch 2.13 with MKL):

- rows that start at multiples of 64 bytes. K = n_{l−1} + 1 is padded with zeros to a multiple of 16; the padding of
  a_prev is 0, so the padding of the matrix stays 0;
- products without a transposed right factor, up to three times faster. So the matrix is stored as [K, n_l], "by
  input", and FWD is a plain product; but "by output", [n_l, K], where BP2 or the update would lose more: where the
  product of BP2 is the larger one, and in layers that are tall and thin at small batches.

And one that MKL likes on an AMD EPYC: results whose rows are whole tiles of 8 numbers. [10, 784] × [784, 31] takes
16 µs, × [784, 32] 9. So FWD writes on into the columns behind a, where the layer above reads [a, 1, 0 …], and writes
just that: behind the rows of W the matrix has one that is 0 but for a bias of 1 (an infinite a_prev makes a NaN of it,
one step before it makes such of the weights), and then rows of 0. They never learn, and such a matrix is stored by
output, so that the product of the update has whole tiles too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDEST = 2**17  # weights; above this the private copy costs more memory and copying than a call saves
ALIGNMENT = 16  # numbers: 64 bytes of float32
TILE = 8


def padded(n: int) -> int:
    """Return the width of [a, 1] with its padding."""
    return -(-(n + 1) // ALIGNMENT) * ALIGNMENT


def pays(weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether to pack a layer."""
    return bias is not None and weight.numel() <= WIDEST


def in_tiles(n: int) -> int:
    """Return the width of a result of n columns in whole tiles."""
    return -(-n // TILE) * TILE


def stored_by_input(rows: int, n_in: int, n_out: int, passes_back: bool, width: int | None = None) -> bool:
    """Return whether [K, n_l] is the better way to store it: a rule from sizes alone, as the order of sums hangs on it.

    Args:
        rows: N.
        n_in: n_{l−1}.
        n_out: n_l.
        passes_back: Whether BP2 runs through this layer.
        width: How many columns FWD writes; n_l by default.
    """
    if (passes_back and n_out > n_in) or (width or n_out) > n_out:
        return False
    return rows >= 32 or n_in < 8 * n_out


class Packed:
    """[W, b] of one layer as a matrix, and its velocity.

    Args:
        linear: The layer.
        by_input: How to store it.
        width: How many columns FWD writes, n_l by default; more for the [a, 1, 0 …] that a packed layer above reads.

    Attributes:
        matrix: What learns, [K, n_l] if ``by_input``, else [n_l, K].
        weight: W within it, [n_l, n_{l−1}].
        bias: b within it, [n_l].
        right: The right factor of FWD, [K, width].
        width: As given.
        velocity: As the matrix; None without momentum.
    """

    def __init__(self, linear: nn.Linear, by_input: bool, width: int | None = None) -> None:
        self._public = (linear.weight.detach(), linear.bias.detach())
        self.by_input = by_input
        n_out, n_in = linear.weight.shape
        k, self.width = padded(n_in), width or n_out
        self._whole = linear.weight.new_zeros((k, self.width) if by_input else (self.width, k))
        self.right = self._whole if by_input else self._whole.t()
        self.matrix = self._whole[:, :n_out] if by_input else self._whole[:n_out]
        self._ones = self.right[n_in, n_out:][:1]  # what gives the layer above its 1; none where FWD writes no more
        self.weight, self.bias = self.parts(self.matrix)
        self.velocity: Tensor | None = None
        self._carried: tuple[Tensor | None, ...] | None = None
        self.carry((None, None))
        self.read()

    def parts(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return W and b, or what stands in their places, within a matrix stored as this one."""
        n_in = self._public[0].shape[1]
        if self.by_input:
            return matrix[:n_in].t(), matrix[n_in]
        return matrix[:, :n_in], matrix[:, n_in]

    def carry(self, velocities: tuple[Tensor | None, ...]) -> None:
        """Carry these velocities of W and b too, from what they are now; None where there is no momentum."""
        if self._carried is not None and list(map(id, velocities)) == list(map(id, self._carried)):
            return
        if self._carried is not None:
            self.write()
        self._carried = velocities
        self._pairs = list(zip(self._public, (self.weight, self.bias), strict=True))
        self.velocity = None
        if any(velocity is not None for velocity in velocities):
            self.velocity = torch.zeros_like(self.matrix)
            within = [(v, part) for v, part in zip(velocities, self.parts(self.velocity), strict=True) if v is not None]
            for public, private in within:
                private.copy_(public)
            self._pairs += within

    def velocity_parts(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the velocities of W and b within ours."""
        return (None, None) if self.velocity is None else self.parts(self.velocity)

    def read(self) -> None:
        """Take over W, b and their velocities as somebody has written them."""
        self._whole.zero_()  # the padding may have caught a NaN, by 0 · NaN
        self._ones.fill_(1)
        if self.velocity is not None:
            self.velocity.zero_()
        for public, private in self._pairs:
            private.copy_(public)

    def write(self) -> None:
        """Bring W, b and their velocities up to date."""
        for public, private in self._pairs:
            public.copy_(private)
