"""Products in bf16 beside weights in float32, for devices whose products PyTorch has no switch for: CUDA.

The factors of each product are copied to bf16 buffers, and the product is summed up in float32 straight into the
float32 buffer that the recursion reads. W itself, its velocity, z, a, δ and the update stay float32 ("master weights"):
a step of η ∂C/∂W is often too small for the 8 bits of a bf16 weight.

Without a product of bf16 factors into float32 (on a CPU) the rounded factors are multiplied in float32: the same
numbers but for the order of sums, and slower than no rounding at all. Only tests go that way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaprop.explicit.layers import Buffers, Layer, Plan

DEVICES = {"cuda"}


class MixedLayer(Layer):
    """A layer whose products have bf16 factors."""

    def __init__(self, plan: Plan, buffers: Buffers, rows: int, below: Layer | None) -> None:
        weight = plan.linear.weight
        self._a_prev16 = weight.new_zeros(rows, weight.shape[1], dtype=torch.bfloat16)
        self._delta16 = weight.new_zeros(rows, weight.shape[0], dtype=torch.bfloat16)
        self._weight16 = torch.zeros_like(weight, dtype=torch.bfloat16)
        super().__init__(plan, buffers, rows, below)

    def linear(self) -> None:
        """FWD: z = a_prev Wᵀ + b."""
        self._a_prev16.copy_(self.a_prev)
        self._weight16.copy_(self.weight)
        _product(self._a_prev16, self._weight16.t(), self.z)
        if self.bias is not None:
            self.z.add_(self.bias)

    def bend(self) -> None:
        """BP1, BP2: δ = ∂C/∂a ⊙ σ'(z), in float32; and its copy as a factor."""
        super().bend()
        self._delta16.copy_(self.delta)

    def pass_back(self) -> None:
        """BP2, left factor: ∂C/∂a_prev = δ W."""
        _product(self._delta16, self._weight16, self.below.delta)  # type: ignore[union-attr]  # not of the first layer

    def add_weight_gradient(self, target: Tensor, beta: float, alpha: float) -> None:
        """BP4: target ← β target + α δᵀ a_prev."""
        delta_t, a_prev = self._delta16.t(), self._a_prev16
        if target.device.type == "cuda":
            torch.addmm(target, delta_t, a_prev, out_dtype=target.dtype, beta=beta, alpha=alpha, out=target)
        else:
            target.addmm_(delta_t.to(target.dtype), a_prev.to(target.dtype), beta=beta, alpha=alpha)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.device.type == "cuda":
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)
