"""The packed matrix: what lies where, and when it is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltaprop.explicit.packing import WIDEST, Packed, in_tiles, padded, pays, stored_by_input


@pytest.mark.parametrize("by_input", [True, False])
class TestPacked:
    def test_holds_weights_and_biases(self, by_input: bool):
        linear = nn.Linear(3, 2)
        packed = Packed(linear, by_input)
        assert torch.equal(packed.weight, linear.weight)
        assert torch.equal(packed.bias, linear.bias)

    def test_one_product_with_a_one_beside_a_is_the_linear_layer(self, by_input: bool):
        linear, a = nn.Linear(3, 2), torch.randn(5, 3)
        wide = torch.cat([a, torch.ones(5, 1), torch.zeros(5, padded(3) - 4)], dim=1)
        torch.testing.assert_close(wide @ Packed(linear, by_input).right, linear(a).detach())

    def test_writes_back_what_was_learnt(self, by_input: bool):
        linear = nn.Linear(3, 2)
        packed = Packed(linear, by_input)
        packed.matrix.add_(1)
        expected = linear.weight.detach() + 1
        packed.write()
        torch.testing.assert_close(linear.weight.detach(), expected)
        assert linear.weight.is_contiguous()

    def test_reads_what_others_wrote(self, by_input: bool):
        linear = nn.Linear(3, 2)
        packed = Packed(linear, by_input)
        nn.init.constant_(linear.bias, 7.0)
        packed.read()
        assert packed.bias.tolist() == [7, 7]

    def test_takes_over_velocities_and_gives_them_back(self, by_input: bool):
        linear = nn.Linear(3, 2)
        packed = Packed(linear, by_input)
        weight, bias = torch.randn(2, 3), torch.randn(2)
        packed.carry((weight, bias))
        before = weight.clone()
        assert torch.equal(packed.velocity_parts()[0], weight)
        packed.velocity.mul_(2)
        packed.write()
        assert torch.equal(weight, 2 * before)


@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("n_out", [5, 7, 8, 10])
def test_a_product_in_whole_tiles_writes_the_ones_of_the_layer_above(n_out: int, by_input: bool):
    """z, then 1, then 0; whatever is learnt, and after another has written."""
    linear, a = nn.Linear(3, n_out), torch.randn(4, 3)
    packed = Packed(linear, by_input, in_tiles(n_out))
    wide = torch.cat([a, torch.ones(4, 1), torch.zeros(4, padded(3) - 4)], dim=1)
    packed.matrix.mul_(0.5).add_(1)
    for _ in range(2):
        packed.write()
        behind = (torch.arange(packed.width - n_out) == 0).float().expand(4, -1)
        torch.testing.assert_close(wide @ packed.right, torch.cat([linear(a).detach(), behind], dim=1))
        nn.init.constant_(linear.weight, 7.0)
        packed.read()


def test_tiles_are_of_eight_numbers():
    assert [in_tiles(n) for n in (1, 8, 30, 32)] == [8, 8, 32, 32]


def test_rows_start_at_multiples_of_64_bytes():
    assert [padded(n) for n in (1, 15, 16, 784)] == [16, 16, 32, 800]


def test_wide_layers_and_layers_without_bias_are_not_packed():
    assert pays(torch.empty(128, 784), torch.empty(128))
    assert not pays(torch.empty(10, 10), None)
    assert not pays(torch.empty(WIDEST + 1, 1), torch.empty(1))


def test_the_way_of_storing_follows_from_sizes_alone():
    assert stored_by_input(32, 64, 64, passes_back=False)
    assert stored_by_input(10, 30, 10, passes_back=True)
    assert not stored_by_input(10, 784, 30, passes_back=False)  # tall and thin, at a small batch
    assert not stored_by_input(16, 64, 128, passes_back=True)  # BP2 is the larger product
    assert not stored_by_input(32, 64, 60, passes_back=False, width=64)  # the update is to have whole tiles
