"""Each kernel is its formula in ``ops/activations.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deltaprop import ops
from deltaprop.explicit.layers import activations
from deltaprop.ops.kernels import _ROWS, kernel

CASES = [
    *((name, ()) for name in ops.ACTIVATIONS),
    ("leaky_relu", (0.3,)),
    ("leaky_relu", (-0.5,)),
    ("elu", (0.5,)),
    ("elu", (-1.5,)),
    ("gelu", ("tanh",)),
    ("softplus", (3.0, 1.5)),
    ("softmax", (0,)),
    ("log_softmax", (0,)),
]


def test_a_new_row_of_the_table_needs_no_kernel():
    """But there is none for what is not in the table."""
    assert set(_ROWS) <= set(ops.ACTIVATIONS.values())


@pytest.mark.parametrize("wide", [False, True], ids=["contiguous", "in [a, 1]"])
@pytest.mark.parametrize(("name", "constants"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kernel_is_the_formula(name: str, constants: tuple[Any, ...], wide: bool, dtype: torch.dtype):
    """Around 0, at 0, and far out; a float32 gelu written to strided memory is wrong in PyTorch if z is contiguous."""
    op = ops.ACTIVATIONS[name]
    z = torch.cat([torch.randn(6, 5, dtype=dtype), torch.zeros(1, 5, dtype=dtype), 40 * torch.randn(2, 5, dtype=dtype)])
    grad_a = torch.randn_like(z)
    expected_a = op.forward(z, *constants)
    expected_delta = op.delta(grad_a, expected_a if op.from_output else z, *constants)
    k = kernel(op, constants)
    ours = memory(z, wide)
    a = ours if k.in_place else memory(torch.zeros_like(z), wide)
    k.forward(ours, a)
    delta = grad_a.clone()
    k.bend(delta, a if k.in_place else ours)
    tolerance = {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(a, expected_a, **tolerance)
    torch.testing.assert_close(delta, expected_delta, **tolerance)


def test_an_activation_without_a_kernel_is_computed_by_its_formula():
    class Cube(ops.Elementwise):
        """a = z³;  σ'(z) = 3 z²."""

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z**3

        @staticmethod
        def slope(z: Tensor) -> Tensor:
            return 3 * z**2

    k = kernel(Cube)
    z, a, delta = torch.tensor([[2.0]]), torch.zeros(1, 1), torch.tensor([[0.5]])
    k.forward(z, a)
    k.bend(delta, z)
    assert (a.item(), delta.item()) == (8, 6)  # 2³, 0.5 · 3 · 2²


def memory(t: Tensor, wide: bool) -> Tensor:
    """Return a copy of t as a layer holds it."""
    into = activations(len(t), t.shape[1], wide, t)[1]
    return into.copy_(t)
