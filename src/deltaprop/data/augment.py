"""Random deformations of pictures while a network trains: each epoch sees other ones.

Shapes: x [N, n], rows · columns = n pixels of a picture; a field [N, rows, columns, 2] holds for each pixel of the new
picture its place in the old one, across and down, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Augment: TypeAlias = Literal["none", "affine", "elastic", "affine-elastic"]

SIZE = 28  # pixels: the pictures of MNIST, to which SIGMA and ALPHA refer
SIGMA = 4.0  # pixels: of the Gaussian that smooths an elastic field
ALPHA = 34.0  # pixels: factor of the smoothed field
TURN = 15.0  # degrees: largest rotation, either way
STRETCH = 0.15  # of the size: largest change, either way, of width and height each
IMAGES_AT_ONCE = 256  # pictures: their fields take sixteen times their own memory, and stay in a core's cache


@dataclass(frozen=True, eq=False)
class Deformation:
    """Deforms pictures at random, a batch at a time, on their device.

    *elastic*: a field of U(−1, 1), smoothed by a Gaussian of σ = 4 pixels and multiplied by α = 34, for pictures of
    28 by 28; of other sizes so that they look the same: σ grows with the size, α with its square. *affine*: a rotation
    by up to 15°, width and height each stretched by up to 15 %, about the centre. Between pixels it is bilinear; beyond
    the edge a pixel is 0, as the background of MNIST is.

    Fields are computed in float64 (on mps, which has none, in float32): products in float32 depend on ``precision``
    while another thread trains.

    Args:
        kind: ``"affine"``, ``"elastic"``, or ``"affine-elastic"``, one field on the other.
        image_shape: (rows, columns).

    Source:
        P. Simard, D. Steinkraus and J. Platt, "Best practices for convolutional neural networks applied to visual
        document analysis", ICDAR 2003 (elastic, σ and α); D. Cireşan et al., "Deep, big, simple neural nets for
        handwritten digit recognition", Neural Computation 22, 2010 (turns and stretches, their bounds).

    Example:
        >>> deform = Deformation("affine-elastic", (28, 28))
        >>> deform(torch.rand(3, 784), torch.Generator().manual_seed(0)).shape
        torch.Size([3, 784])
    """

    kind: Augment
    image_shape: tuple[int, int]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return deformed pictures, [N, n], of the same dtype and on the same device.

        Args:
            x: Pixels, all scaled alike, the background 0.
            generator: On the device of x; the deformations depend on nothing else.
        """
        rows, columns = self.image_shape
        half = torch.tensor([max(columns - 1, 1) / 2, max(rows - 1, 1) / 2], device=x.device)
        deformed = torch.empty_like(x)
        for pictures, out in zip(x.split(IMAGES_AT_ONCE), deformed.split(IMAGES_AT_ONCE), strict=True):
            grid = self._places(len(pictures), generator) / half  # −1 and 1 are the outer pixels' centres
            images = pictures.view(-1, 1, rows, columns)
            out.copy_(torch.nn.functional.grid_sample(images, grid.to(x.dtype), align_corners=True).view_as(out))
        return deformed

    def _places(self, n: int, generator: torch.Generator) -> Tensor:
        """Return the field of n pictures, in pixels from the centre, [n, rows, columns, 2]."""
        device, (rows, columns) = generator.device, self.image_shape
        like = torch.empty(0, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        down, across = (torch.arange(size).to(like) - (size - 1) / 2 for size in (rows, columns))
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1).expand(n, -1, -1, -1)
        if self.kind != "elastic":
            angle, across, down = _uniform(like, (3, n), generator)
            cos, sin = (angle * math.radians(TURN)).cos(), (angle * math.radians(TURN)).sin()
            across, down = 1 + STRETCH * across, 1 + STRETCH * down  # rotated, and then stretched
            matrix = torch.stack([cos * across, -sin * across, sin * down, cos * down], dim=1).view(-1, 1, 2, 2)
            places = places @ matrix.mT
        if self.kind != "affine":
            noise = _uniform(like, (n, 2, rows, columns), generator)
            size = min(rows, columns) / SIZE
            smooth = _gaussian(rows, SIGMA * size, like) @ noise @ _gaussian(columns, SIGMA * size, like).T
            places = places + ALPHA * size**2 * smooth.movedim(1, -1)
        return places


def _uniform(like: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return U(−1, 1) of a shape."""
    return torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator) * 2 - 1


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the matrix [size, size] that smooths a line of pixels by a Gaussian, with 0 beyond its ends.

    Row i holds exp(−(i − j)²/(2 σ²)), divided by the sum of the whole bell.
    """
    reach = math.ceil(6 * sigma)
    total = sum(math.exp(-(at**2) / (2 * sigma**2)) for at in range(-reach, reach + 1))
    at = torch.arange(size).to(like)
    return torch.exp(-((at[:, None] - at[None, :]) ** 2) / (2 * sigma**2)) / total
