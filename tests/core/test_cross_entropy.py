"""Cross-entropy of labels: higher derivatives, hooks, export, and refused labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradgradcheck

from deltaprop import functional as F

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"ignore_index": 1},
    {"weight": torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)},
]
Z, Y = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4


@pytest.fixture
def z() -> Tensor:
    return Z.clone().requires_grad_()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_create_graph_changes_no_gradient_and_gives_right_second_derivatives(z: Tensor, options: dict[str, Any]):
    plain, graphed = (
        torch.autograd.grad(F.cross_entropy(2 * z, Y, **options), z, create_graph=graph)[0] for graph in (False, True)
    )
    torch.testing.assert_close(graphed, plain, rtol=1e-13, atol=1e-15)
    assert gradgradcheck(lambda z: F.cross_entropy(2 * z, Y, **options), (z,), check_batched_grad=True)


def test_batched_gradients(z: Tensor):
    many = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (batched,) = torch.autograd.grad(F.cross_entropy(z, Y), z, many, is_grads_batched=True)
    (one,) = torch.autograd.grad(F.cross_entropy(z, Y), z)
    torch.testing.assert_close(batched, many.view(-1, 1, 1) * one, rtol=1e-13, atol=1e-15)


def test_forward_mode_over_backward(z: Tensor):
    c = F.cross_entropy(z, Y)
    (one,) = torch.autograd.grad(c, z, retain_graph=True)
    with forward_ad.dual_level():
        grad_output = forward_ad.make_dual(torch.ones_like(c), torch.full_like(c, 3.0))
        tangent = forward_ad.unpack_dual(torch.autograd.grad(c, z, grad_output)[0]).tangent
    torch.testing.assert_close(tangent, 3 * one)  # backward is linear


@pytest.mark.parametrize("graph", [False, True])
def test_a_hook_on_the_logits_is_called_once(z: Tensor, graph: bool):
    """With and without create_graph."""
    logits = 2 * z
    seen: list[Tensor] = []
    logits.register_hook(seen.append)
    torch.autograd.grad(F.cross_entropy(logits, Y), z, create_graph=graph)
    assert len(seen) == 1


def test_logits_may_be_modified_in_place_after_the_loss(z: Tensor):
    """As in PyTorch, log p is saved and not z."""
    (expected,) = torch.autograd.grad(F.cross_entropy(2 * z, Y), z)
    logits = 2 * z
    c = F.cross_entropy(logits, Y)
    logits.sub_(1000.0)
    assert torch.equal(torch.autograd.grad(c, z)[0], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_with_a_dynamic_batch_size():
    """No check of a size becomes a guard."""

    class Loss(torch.nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(z, y)

    rows = torch.export.Dim("rows", min=2, max=2**20)
    program = torch.export.export(Loss(), (Z, Y), dynamic_shapes=({0: rows}, {0: rows}))
    z, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 4
    torch.testing.assert_close(program.module()(z, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_refused(label: int):
    with pytest.raises(IndexError):
        F.cross_entropy(Z, torch.full((6,), label))
