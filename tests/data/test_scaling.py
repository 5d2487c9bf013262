"""Scaling: by hand, and columns whose deviation is 0 or not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from deltaprop.data import Scaling
from deltaprop.data.scaling import Moments
from deltaprop.errors import UserError


def test_standard_by_hand():
    """Column 1, 2, 3, 4: mean 10/4 = 2.5, variance (2.25 + 0.25 + 0.25 + 2.25)/4 = 1.25, so 1 is −1.5/√1.25."""
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    scaling = Scaling.standard(x)
    assert_close(scaling.mean, torch.tensor([2.5], dtype=torch.float64))
    assert_close(scaling.scale, torch.tensor([1.25**0.5], dtype=torch.float64))
    assert_close(scaling.apply(x)[0], torch.tensor([-1.5 / 1.25**0.5]))


def test_each_column_has_its_own_fit():
    """More columns than one block has (64): column c holds −c and c, so its deviation is c."""
    c = torch.arange(1, 151, dtype=torch.float64)
    scaling = Scaling.standard(torch.stack([-c, c]))
    assert_close(scaling.mean, torch.zeros(150, dtype=torch.float64))
    assert_close(scaling.scale, c)


@pytest.mark.parametrize(
    ("mean", "scale", "uniform"), [((1, 1), (2, 2), True), ((1, 0), (2, 2), False), ((1, 1), (2, 3), False)]
)
def test_is_uniform_if_all_columns_are_scaled_alike(mean: tuple[float, ...], scale: tuple[float, ...], uniform: bool):
    assert Scaling(*(torch.tensor(numbers, dtype=torch.float64) for numbers in (mean, scale))).is_uniform == uniform


def test_fit_of_bytes_does_not_wrap_around():
    """Bytes 200 and 250 sum to 450, past 255: mean 225, deviation 25."""
    scaling = Scaling.standard(torch.tensor([[200], [250]], dtype=torch.uint8))
    assert_close(scaling.mean, torch.tensor([225.0], dtype=torch.float64))
    assert_close(scaling.scale, torch.tensor([25.0], dtype=torch.float64))


def test_fit_is_in_float64():
    """1e6 ± 1 in float32: beside its square, 1e12, the deviation 1 is lost in 24 bits."""
    scaling = Scaling.standard(torch.tensor([[1e6 - 1], [1e6 + 1]], dtype=torch.float32))
    assert_close(scaling.scale, torch.tensor([1.0], dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 + 0.1, -7.0])
def test_constant_column_gets_scale_1(value):
    """It becomes 0, and a later value 3 above becomes 3; a naive sum of 1001 times 0.1 would be rounded."""
    scaling = Scaling.standard(torch.full((1001, 1), value, dtype=torch.float64))
    assert scaling.scale.item() == 1.0
    assert_close(scaling.apply(torch.tensor([[value + 3.0]], dtype=torch.float64)).item(), 3.0)


def test_deviation_whose_square_underflows_gets_scale_1():
    """5e-324 is the smallest positive float64; its square is 0, which would give a division by 0."""
    scaling = Scaling.standard(torch.tensor([[0.0], [5e-324]], dtype=torch.float64))
    assert scaling.scale.item() == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_standard_refuses_columns_without_a_finite_deviation(bad):
    """1e300 is finite, its square is not; the message gives the column's index from 0."""
    x = torch.tensor([[0.0, 0.0], [1.0, bad]], dtype=torch.float64)
    with pytest.raises(UserError, match=r"^column 1 cannot be standardised: [^\n]*$"):
        Scaling.standard(x)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 2)])
def test_standard_refuses_other_shapes(shape):
    """No rows to fit, or not two-dimensional."""
    with pytest.raises(UserError, match=r"must be \[N, n\] with at least one row"):
        Scaling.standard(torch.zeros(shape))


def test_pixels_divides_by_full_scale():
    """0, 51, 255 of 255 are 0, 1/5, 1."""
    scaling = Scaling.pixels(3, 255.0)
    assert_close(scaling.apply(torch.tensor([[0.0, 51.0, 255.0]])), torch.tensor([[0.0, 0.2, 1.0]]))


def test_identity_changes_nothing():
    """The bits are the same."""
    x = torch.tensor([[0.1, -3.0]])
    assert torch.equal(Scaling.identity(2).apply(x), x)


def test_invert_undoes_apply():
    """(x − 3)/2 and back, with 3 and 2 exact in binary: no rounding."""
    scaling = Scaling(torch.tensor([3.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    x = torch.tensor([[5.0], [-1.0]])
    assert torch.equal(scaling.apply(x), torch.tensor([[1.0], [-2.0]]))
    assert torch.equal(scaling.invert(scaling.apply(x)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_keep_their_dtype(dtype):
    """The output has the input's float dtype, in both directions."""
    scaling = Scaling.pixels(1, 2.0)
    x = torch.ones(1, 1, dtype=dtype)
    assert scaling.apply(x).dtype == scaling.invert(x).dtype == dtype


def test_integers_become_float64():
    """1/2 is not rounded to the integer 0."""
    half = Scaling.pixels(1, 2.0).apply(torch.tensor([[1]]))
    assert_close(half, torch.tensor([[0.5]], dtype=torch.float64))


def test_to_moves_both_tensors():
    """Every machine has the meta device as a second one."""
    moved = Scaling.identity(2).to("meta")
    assert moved.mean.device.type == moved.scale.device.type == "meta"


@pytest.mark.parametrize("cut", [1, 7, 50, 200])
def test_moments_of_blocks_are_those_of_scikit_learn(cut: int):
    """Also of columns without a value in the first, in a middle, or in the last block, which are NaN there."""
    x = np.random.default_rng(0).normal(1e6, 3, (200, 5))
    x[:120, 1] = x[60:, 2] = x[50:150, 3] = np.nan
    x[:, 4] = 7.1
    moments = Moments(5)
    for start in range(0, 200, cut):
        moments.add(x[start : start + cut])
    whole = StandardScaler().fit(x)
    np.testing.assert_array_equal(moments.count, (~np.isnan(x)).sum(axis=0))
    np.testing.assert_allclose(moments.mean, whole.mean_, rtol=1e-14)
    np.testing.assert_allclose(moments.variance, whole.var_, rtol=2e-9 if cut < 200 else 2e-15, atol=1e-15)
    if cut == 200:
        assert moments.mean.tolist() == whole.mean_.tolist()


def test_a_column_without_a_value_has_mean_0_and_variance_0():
    moments = Moments(1)
    moments.add(np.full((3, 1), np.nan))
    assert (moments.mean.tolist(), moments.variance.tolist()) == ([0], [0])
