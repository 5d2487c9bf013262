"""Deformed pictures: by SciPy's Gaussian and interpolation, seeded, the same in every dtype."""

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
    """Return some of 12 by 9 pixels, bright in the middle."""
    x = torch.rand(N, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x[:, :2], x[:, -2:], x[:, :, :2], x[:, :, -2:] = 0, 0, 0, 0
    return x.flatten(1)


def deformation(kind: Any) -> Deformation:
    return Deformation(kind, SHAPE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places_by_hand(kind: str, seed: int) -> np.ndarray:
    """Return where to look, [N, rows, columns, 2], down and across from the first pixel: by loops, and SciPy's filter.

    The same numbers are drawn, in the same order: a turn and two stretches of each picture, then the noise.
    """
    drawn, (rows, columns) = generator(seed), SHAPE
    uniform = lambda *shape: (torch.rand(shape, dtype=torch.float64, generator=drawn) * 2 - 1).numpy()  # noqa: E731
    found = np.empty((N, rows, columns, 2))
    turn, wide, high = uniform(3, N) if kind != "elastic" else np.zeros((3, N))
    for n in range(N):
        cos, sin = math.cos(math.radians(15 * turn[n])), math.sin(math.radians(15 * turn[n]))
        for i in range(rows):
            for j in range(columns):
                down, across = i - (rows - 1) / 2, j - (columns - 1) / 2
                right = (1 + 0.15 * wide[n]) * (cos * across - sin * down)
                below = (1 + 0.15 * high[n]) * (sin * across + cos * down)
                found[n, i, j] = below + (rows - 1) / 2, right + (columns - 1) / 2
    if kind != "affine":
        noise, size = uniform(N, 2, rows, columns), 9 / 28
        sigma, alpha = 4 * size, 34 * size**2
        for n in range(N):
            across, down = (ndimage.gaussian_filter(noise[n, k], sigma, mode="constant", truncate=8) for k in (0, 1))
            found[n, :, :, 0] += alpha * down
            found[n, :, :, 1] += alpha * across
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_by_hand(kind: str):
    """Turned, stretched and pulled about as the docstring says; bilinear between pixels, 0 beyond the edge."""
    found = deformation(kind)(pictures(), generator()).view(N, *SHAPE)
    for n, places in enumerate(places_by_hand(kind, 0)):
        expected = ndimage.map_coordinates(
            np.pad(pictures()[n].view(SHAPE).numpy(), 1), np.moveaxis(places, -1, 0) + 1, order=1, mode="constant"
        )
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-9)
    assert not torch.allclose(found.flatten(1), pictures(), atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_turn_stretch_and_pull_they_are_as_they_were(kind: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("ALPHA", "TURN", "STRETCH"):
        monkeypatch.setattr(augment, name, 0.0)
    torch.testing.assert_close(deformation(kind)(pictures(), generator()), pictures(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pictures_and_another_others(kind: str):
    deform = deformation(kind)
    assert torch.equal(deform(pictures(), generator(3)), deform(pictures(), generator(3)))
    assert not torch.allclose(deform(pictures(), generator(3)), deform(pictures(), generator(4)), atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_deformed_another_way(kind: str):
    alike = pictures()[:1].expand(N, -1)
    found = deformation(kind)(alike, generator())
    assert all(not torch.allclose(found[0], other, atol=0.01) for other in found[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_they_are_the_same_but_for_rounding(kind: str):
    """The same is drawn, and where to look worked out in float64."""
    found = deformation(kind)(pictures().float(), generator())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), deformation(kind)(pictures(), generator()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_at_a_time_are_drawn_one_after_the_other(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Five pictures, two at a time."""
    monkeypatch.setattr(augment, "IMAGES_AT_ONCE", 2)
    together = deformation(kind)(pictures(), generator())
    one_after_the_other, drawn = deformation(kind), generator()
    parts = [one_after_the_other(some, drawn) for some in pictures().split(2)]
    assert torch.equal(together, torch.cat(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_products_for_training_do_not_reach_it(kind: str, monkeypatch: pytest.MonkeyPatch):
    """The switch of ``--precision`` is the whole process's, and so that of the thread that deforms: of float32."""
    seen = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append((a.dtype, b.dtype)) or matmul(a, b))
    deformation(kind)(pictures().float(), generator())
    assert set(seen) == {(torch.float64, torch.float64)}


def test_what_is_given_is_left_as_it_was():
    x = pictures()
    deformation("affine-elastic")(x, generator())
    assert torch.equal(x, pictures())


def test_the_usual_field_pulls_a_pixel_of_mnist_by_a_pixel_or_so():
    """The deviation of a smoothed field: α / √3 / (2 √π σ) = 34 / 1.732 / (3.545 · 4) = 1.38 pixels, inside."""
    deform = Deformation("elastic", (28, 28))
    still = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="xy"), dim=-1) - 13.5
    pulled = deform._places(400, generator()) - still
    assert float(pulled[:, 12:16, 12:16].std()) == pytest.approx(1.38, rel=0.05)
