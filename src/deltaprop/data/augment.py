"""Pictures deformed while a net learns from them: each epoch sees each of them another way.

Shapes: x [N, n], rows · columns = n pixels of a picture; a field [N, rows, columns, 2] says for each pixel of the new
picture how many pixels to the right and down of it to look in the old one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from deltaprop.data.scaling import Scaling

Augment: TypeAlias = Literal["none", "affine", "elastic", "affine-elastic"]

SIZE = 28  # pixels: of the pictures that these are for, those of MNIST
SIGMA = 4.0  # pixels: of the Gaussian that smooths an elastic field
ALPHA = 34.0  # pixels: what the smoothed field is multiplied by
TURN = 15.0  # degrees, at most, either way
STRETCH = 0.15  # of the size, at most, either way, of width and height each


@dataclass(frozen=True, eq=False)
class Deformation:
    """Deforms pictures at random, all of a batch at once, where they are.

    *elastic*: a field of U(−1, 1), smoothed by a Gaussian of σ = 4 pixels and multiplied by α = 34, for pictures of
    28 by 28; of other sizes so that they look the same: σ grows with the size, α with its square. *affine*: a turn by
    up to 15°, width and height each stretched by up to 15 %, about the centre. Between pixels it is bilinear; beyond
    the edge a pixel is 0, as the background of MNIST is.

    Args:
        kind: Which of the two, or both, one field on the other.
        image_shape: (rows, columns).
        scaling: Of the pixels: what is deformed are raw ones.

    Source:
        P. Simard, D. Steinkraus and J. Platt, "Best practices for convolutional neural networks applied to visual
        document analysis", ICDAR 2003 (elastic, σ and α); D. Cireşan et al., "Deep, big, simple neural nets for
        handwritten digit recognition", Neural Computation 22, 2010 (turns and stretches, their bounds).

    Example:
        >>> deform = Deformation("affine-elastic", (28, 28), Scaling.pixels(784, 255))
        >>> deform(torch.rand(3, 784), torch.Generator().manual_seed(0)).shape
        torch.Size([3, 784])
    """

    kind: Augment
    image_shape: tuple[int, int]
    scaling: Scaling

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return other pictures, [N, n], of the same dtype and on the same device.

        Args:
            x: Scaled pixels.
            generator: On the device of x; what is drawn hangs on it alone.
        """
        raw = x if self._commutes else self.scaling.invert(x)
        pictures = raw.view(len(x), 1, *self.image_shape)
        grid = self._places(x, generator) / self._half(x)  # −1 and 1 are the outer pixels' centres
        deformed = torch.nn.functional.grid_sample(pictures, grid, align_corners=True).view_as(x)
        return deformed if self._commutes else self.scaling.apply(deformed)

    def _places(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return where to look for each pixel, in pixels from the centre, [N, rows, columns, 2]: across, then down."""
        rows, columns = self.image_shape
        down, across = (torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2 for size in (rows, columns))
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1).expand(len(x), -1, -1, -1)
        if self.kind != "elastic":
            turn, *stretches = _uniform(x, (3, len(x)), generator)
            places = _turned(places, turn * math.radians(TURN), [1 + STRETCH * stretch for stretch in stretches])
        if self.kind != "affine":
            noise = _uniform(x, (len(x), 2, rows, columns), generator)
            size = min(rows, columns) / SIZE
            smooth = _gaussian(rows, SIGMA * size, x) @ noise @ _gaussian(columns, SIGMA * size, x).T
            places = places + ALPHA * size**2 * smooth.movedim(1, -1)
        return places

    def _half(self, x: Tensor) -> Tensor:
        rows, columns = self.image_shape
        return torch.tensor([max(columns - 1, 1) / 2, max(rows - 1, 1) / 2], dtype=x.dtype, device=x.device)

    @cached_property
    def _commutes(self) -> bool:
        """Whether scaled pixels may be deformed as they are: 0 stays 0, and all have the same scale."""
        return self.scaling.is_uniform and not self.scaling.mean.any()


def _uniform(x: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return U(−1, 1) of a shape."""
    return torch.rand(shape, dtype=x.dtype, device=x.device, generator=generator) * 2 - 1


def _turned(places: Tensor, angle: Tensor, stretches: Sequence[Tensor]) -> Tensor:
    """Return places [N, rows, columns, 2] that are turned by an angle [N], and then stretched, across and down, [N]."""
    cos, sin = angle.cos(), angle.sin()
    across, down = stretches
    matrix = torch.stack([cos * across, -sin * across, sin * down, cos * down], dim=1).view(-1, 1, 2, 2)
    return places @ matrix.mT


def _gaussian(size: int, sigma: float, x: Tensor) -> Tensor:
    """Return the matrix [size, size] that smooths a line of pixels by a Gaussian, with 0 beyond its ends.

    Row i holds exp(−(i − j)²/(2 σ²)), over the sum of the whole bell.
    """
    reach = math.ceil(6 * sigma)
    whole = sum(math.exp(-(at**2) / (2 * sigma**2)) for at in range(-reach, reach + 1))
    at = torch.arange(size, dtype=x.dtype, device=x.device)
    return torch.exp(-((at[:, None] - at[None, :]) ** 2) / (2 * sigma**2)) / whole
