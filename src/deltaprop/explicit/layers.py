"""A layer at work: its parameters, the buffers of one batch size, and the products between them.

Every buffer is made once and written over at each step; every view of it (a transpose, the first rows for a last,
smaller batch) is made once too, for making a view costs as much as a small product.

Shapes: a_prev [N, n_{l−1}], z, a and δ [N, n_l], W [n_l, n_{l−1}], b [n_l].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaprop.explicit.packing import Packed, padded
from deltaprop.modules import Activation
from deltaprop.ops.kernels import Kernel, has_kernel, kernel


@dataclass
class Plan:
    """What is known of a layer before any batch.

    Attributes:
        linear: Its Parameters.
        sigma: Its activation; None where it has none.
        learns: Whether W learns, and whether b does.
        packed: Its packed matrix; None where it works on its Parameters.
    """

    linear: nn.Linear
    sigma: Activation | None
    learns: tuple[bool, bool]
    packed: Packed | None = None

    def __post_init__(self) -> None:
        """Find the kernels of the activation."""
        sigma = self.sigma
        self.kernel: Kernel | None = None
        if sigma is not None:
            self.kernel = kernel(sigma.op, tuple(getattr(sigma, name) for name in sigma.constants))

    @property
    def has_kernel(self) -> bool:
        """Whether its activation, if it has one, is computed by kernels that are known here."""
        return self.sigma is None or has_kernel(self.sigma.op)

    @property
    def outputs(self) -> int:
        """n_l."""
        return self.linear.out_features


class Buffers:
    """The memory of one layer for up to so many rows: a, δ, and z where a may not overwrite it.

    Args:
        plan: The layer.
        rows: The largest batch.
        wide: Whether the layer above is packed, and so reads [a, 1].
        differs: Whether anybody asks for δ.
        by_neuron: Whether z, a and δ lie in memory neuron by neuron, as the losses of a few classes like it best; no
            layer is above then.
    """

    def __init__(self, plan: Plan, rows: int, wide: bool, differs: bool, by_neuron: bool = False) -> None:
        like = plan.linear.weight
        self.by_neuron = by_neuron
        self._a_next, self._a = activations(rows, plan.outputs, wide, like)
        # z lies in memory as a does: gelu(contiguous, out=strided) writes to the wrong places on CPU (torch 2.13)
        overwritten = plan.kernel is None or plan.kernel.in_place
        self._z_next, self._z = (self._a_next, self._a) if overwritten else activations(rows, plan.outputs, wide, like)
        self._delta = torch.zeros(rows if differs else 0, plan.outputs, dtype=like.dtype, device=like.device)

    def first(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the memory of a batch of so many rows: z, a, both as wide as the layer above reads a, and δ."""
        memories = (self._z, self._a, self._z_next, self._a_next, self._delta)
        z, a, z_next, a_next, delta = (self._first(memory, rows) for memory in memories)
        return z, a, z_next, a_next, delta

    def _first(self, memory: Tensor, rows: int) -> Tensor:
        if not self.by_neuron or not len(memory):
            return memory[:rows]
        n = memory.shape[1]
        return memory.view(-1)[: rows * n].view(n, rows).t()


def activations(rows: int, n: int, wide: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return memory for activations as the layer above reads it, and the part of it that holds a, [rows, n].

    Args:
        rows: Rows.
        n: Neurons.
        wide: Whether the layer above reads [a, 1, 0 …], padded for alignment.
        like: Has the dtype and the device.
    """
    memory = torch.zeros(rows, padded(n) if wide else n, dtype=like.dtype, device=like.device)
    if wide:
        memory[:, n] = 1
    return memory, memory[:, :n]


class Layer:
    """One layer on batches of N rows.

    Attributes:
        below: The layer below; None for the first.
        a_prev: What FWD multiplies, [N, n_{l−1}]; [a_prev, 1, 0 …] where the layer is packed.
        z: [N, n_l]; the memory of a where a may overwrite it.
        a: [N, n_l].
        delta: δ, [N, n_l]; ∂C/∂a until it is bent.
        descend: What the layer learns by, made by ``updates.update``; nothing until it is set.
    """

    def __init__(self, plan: Plan, buffers: Buffers, rows: int, below: Layer | None) -> None:
        self.plan = plan
        self.below = below
        self.z, self.a, self.z_next, self.a_next, self.delta = buffers.first(rows)
        self.a_t, self.delta_t = self.a.t(), self.delta.t()
        # Tensors on the Parameters' memory, not the Parameters: these pass faster through PyTorch's front door.
        bias: Tensor | None = plan.linear.bias
        self.weight: Tensor = plan.linear.weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.right = self.weight.t()
        self.ones = self.delta.new_ones(len(self.delta))
        self._forward = None if plan.kernel is None else plan.kernel.forward
        self._bend = None if plan.kernel is None else plan.kernel.bend
        self._saved = self.a if plan.kernel is not None and plan.kernel.in_place else self.z
        self.descend: Callable[[], object] = _nothing
        if below is not None:
            self.see(below.a, None)

    def see(self, a_prev: Tensor, a_prev_t: Tensor | None) -> None:
        """Take a_prev, and its transpose where it is needed, as what comes next."""
        self.a_prev, self.a_prev_t = a_prev, a_prev_t

    def linear(self) -> None:
        """FWD: z = a_prev Wᵀ + b."""
        if self.bias is None:
            torch.mm(self.a_prev, self.right, out=self.z)
        else:
            torch.addmm(self.bias, self.a_prev, self.right, out=self.z)

    def activate(self) -> None:
        """FWD: a = σ(z)."""
        if self._forward is not None:
            self._forward(self.z, self.a)

    def bend(self) -> None:
        """BP1, BP2: δ = ∂C/∂a ⊙ σ'(z), where ∂C/∂a lies."""
        if self._bend is not None:
            self._bend(self.delta, self._saved)

    def pass_back(self) -> None:
        """BP2, left factor: ∂C/∂a_prev = δ W, into the δ of the layer below."""
        torch.mm(self.delta, self.weight, out=self.below.delta)  # type: ignore[union-attr]  # not of the first layer

    def add_weight_gradient(self, target: Tensor, beta: float, alpha: float) -> None:
        """BP4: target ← β target + α δᵀ a_prev."""
        if beta == 1:  # PyTorch takes 0.2 µs to read a number
            target.addmm_(self.delta_t, self.a_prev, alpha=alpha)
        else:
            target.addmm_(self.delta_t, self.a_prev, beta=beta, alpha=alpha)

    def add_bias_gradient(self, target: Tensor, beta: float, alpha: float) -> None:
        """BP3: target ← β target + α Σ_n δ_n, the sum being the product δᵀ 1."""
        if beta == 1:
            target.addmv_(self.delta_t, self.ones, alpha=alpha)
        else:
            target.addmv_(self.delta_t, self.ones, beta=beta, alpha=alpha)


class PackedLayer(Layer):
    """A layer whose W and b are one matrix: BP3 is the last column of BP4 (``packing.py``)."""

    def __init__(self, plan: Plan, packed: Packed, buffers: Buffers, rows: int, below: Layer | None) -> None:
        super().__init__(plan, buffers, rows, below)
        self.weight, self.bias, self.right = packed.weight, packed.bias, packed.right
        self.packed, self.by_input = packed, packed.by_input
        self.z_written = self.z_next[:, : packed.width]
        if below is not None:
            self.see(below.a_next, below.a_next.t())

    def linear(self) -> None:
        """FWD: z = [a_prev, 1] [W, b]ᵀ, and behind it the 1 of the layer above."""
        torch.mm(self.a_prev, self.right, out=self.z_written)

    def add_weight_gradient(self, target: Tensor, beta: float, alpha: float) -> None:
        """BP3, BP4: target ← β target + α δᵀ [a_prev, 1], target being stored as the matrix is."""
        if not self.by_input:
            super().add_weight_gradient(target, beta, alpha)
        elif beta == 1:
            target.addmm_(self.a_prev_t, self.delta, alpha=alpha)  # type: ignore[arg-type]  # it was shown
        else:
            target.addmm_(self.a_prev_t, self.delta, beta=beta, alpha=alpha)  # type: ignore[arg-type]  # so too


def _nothing() -> None:
    """Learn nothing, as a frozen layer does."""
