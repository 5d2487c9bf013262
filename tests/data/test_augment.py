"""Deformed pictures, compared with SciPy's Gaussian and interpolation; seeded, the same in every dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from deltaprop.data import Deformation, augment

KINDS = ("affine", "elastic", "affine-elastic")
SHAPE = (12, 9)
N = 5


def pictures(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return N random pictures of 12 by 9 pixels with a dark border of 2 pixels, [N, 108]."""
    x = torch.rand(N, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x[:, :2], x[:, -2:], x[:, :, :2], x[:, :, -2:] = 0, 0, 0, 0
    return x.flatten(1)


def deformation(kind: Any) -> Deformation:
    return Deformation(kind, SHAPE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions_by_hand(kind: str, seed: int) -> np.ndarray:
    """Return the sampling positions by loops and SciPy's filter, [N, rows, columns, 2]: down and across, in pixels.

    The same numbers are drawn in the same order: a rotation and two stretches for each picture, then the noise.
    """
    drawn, (rows, columns) = generator(seed), SHAPE
    uniform = lambda *shape: (torch.rand(shape, dtype=torch.float64, generator=drawn) * 2 - 1).numpy()  # noqa: E731
    deformed = np.empty((N, rows, columns, 2))
    turn, wide, high = uniform(3, N) if kind != "elastic" else np.zeros((3, N))
    for n in range(N):
        cos, sin = math.cos(math.radians(15 * turn[n])), math.sin(math.radians(15 * turn[n]))
        for i in range(rows):
            for j in range(columns):
                down, across = i - (rows - 1) / 2, j - (columns - 1) / 2
                right = (1 + 0.15 * wide[n]) * (cos * across - sin * down)
                below = (1 + 0.15 * high[n]) * (sin * across + cos * down)
                deformed[n, i, j] = below + (rows - 1) / 2, right + (columns - 1) / 2
    if kind != "affine":
        noise, size = uniform(N, 2, rows, columns), 9 / 28
        sigma, alpha = 4 * size, 34 * size**2
        for n in range(N):
            across, down = (ndimage.gaussian_filter(noise[n, k], sigma, mode="constant", truncate=8) for k in (0, 1))
            deformed[n, :, :, 0] += alpha * down
            deformed[n, :, :, 1] += alpha * across
    return deformed


@pytest.mark.parametrize("kind", KINDS)
def test_deformed_pictures_by_hand(kind: str):
    """Rotated, stretched and displaced as documented; bilinear between pixels, 0 beyond the edge."""
    deformed = deformation(kind)(pictures(), generator()).view(N, *SHAPE)
    for n, positions in enumerate(positions_by_hand(kind, 0)):
        expected = ndimage.map_coordinates(
            np.pad(pictures()[n].view(SHAPE).numpy(), 1), np.moveaxis(positions, -1, 0) + 1, order=1, mode="constant"
        )
        np.testing.assert_allclose(deformed[n].numpy(), expected, atol=1e-9)
    assert not torch.allclose(deformed.flatten(1), pictures(), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_rotation_stretch_and_displacement_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("ALPHA", "TURN", "STRETCH"):
        monkeypatch.setattr(augment, name, 0.0)
    torch.testing.assert_close(deformation(kind)(pictures(), generator()), pictures(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pictures_and_another_seed_does_not(kind: str):
    deform = deformation(kind)
    assert torch.equal(deform(pictures(), generator(3)), deform(pictures(), generator(3)))
    assert not torch.allclose(deform(pictures(), generator(3)), deform(pictures(), generator(4)), atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_deformed_differently(kind: str):
    alike = pictures()[:1].expand(N, -1)
    deformed = deformation(kind)(alike, generator())
    assert all(not torch.allclose(deformed[0], other, atol=0.01) for other in deformed[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_differs_from_float64_only_by_rounding(kind: str):
    """The random numbers and positions are the same: both are computed in float64."""
    deformed = deformation(kind)(pictures().float(), generator())
    assert deformed.dtype == torch.float32
    torch.testing.assert_close(deformed.double(), deformation(kind)(pictures(), generator()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_a_batch_gives_the_same_pictures(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Five pictures, two in each call, from one generator."""
    monkeypatch.setattr(augment, "IMAGES_AT_ONCE", 2)
    together = deformation(kind)(pictures(), generator())
    deform, drawn = deformation(kind), generator()
    parts = [deform(some, drawn) for some in pictures().split(2)]
    assert torch.equal(together, torch.cat(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_in_float64_whatever_the_precision_setting(kind: str, monkeypatch: pytest.MonkeyPatch):
    """``--precision`` sets a process-wide switch for float32 products; it must not affect the deformation."""
    dtypes = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: dtypes.append((a.dtype, b.dtype)) or matmul(a, b))
    deformation(kind)(pictures().float(), generator())
    assert set(dtypes) == {(torch.float64, torch.float64)}


def test_the_input_is_not_modified():
    x = pictures()
    deformation("affine-elastic")(x, generator())
    assert torch.equal(x, pictures())


def test_the_default_displacement_of_mnist_pixels_by_hand():
    """The smoothed field's standard deviation, away from edges: α / √3 / (2 √π σ) = 34 / 1.732 / (3.545 · 4) = 1.38."""
    deform = Deformation("elastic", (28, 28))
    identity = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="xy"), dim=-1) - 13.5
    displacement = deform._places(400, generator()) - identity
    assert float(displacement[:, 12:16, 12:16].std()) == pytest.approx(1.38, rel=0.05)
