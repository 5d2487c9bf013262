"""Bias and relu within the product of FWD, where the library has it: cuBLASLt on CUDA.

z is written once, and not read again to add b and once more for relu. A bias alone is PyTorch's ``addmm`` there, which
does it by itself. On a CPU it would be the product and then a pass over z, as without it.
"""

from __future__ import annotations

import torch

from deltaprop import ops
from deltaprop.explicit.layers import Layer, Plan

DEVICES = {"cuda"}


def takes(plan: Plan) -> bool:
    """Return whether a layer is one for it: with a bias and a relu, on CUDA."""
    weight, bias, sigma = plan.linear.weight, plan.linear.bias, plan.sigma
    relu = sigma is not None and sigma.op is ops.ACTIVATIONS["relu"]
    return relu and bias is not None and weight.device.type in DEVICES


class EpilogueLayer(Layer):
    """A layer with a bias and a relu in one call."""

    def linear(self) -> None:
        """FWD: a = relu(a_prev Wᵀ + b), where z would be: relu may overwrite it."""
        torch._addmm_activation(self.bias, self.a_prev, self.right, out=self.z)  # type: ignore[arg-type]  # has a bias

    def activate(self) -> None:
        """Nothing: it is done."""
