"""The problem that every peer solves: the same weights, batches and η."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import deltaprop as dp

LR = 0.01


@dataclass(frozen=True)
class Problem:
    """An MLP with plain SGD, and fixed batches; its loss is cross-entropy or, with one output, mse.

    Attributes:
        sizes: [n_0, …, n_L].
        x: Inputs of all batches, [B N, n_0].
        y: Labels, [B N], or numbers, [B N, 1].
        batch_size: N.
        weights: The initial W^1, b^1, W^2, b^2, ….
        activation: The activation of the hidden layers.
    """

    sizes: tuple[int, ...]
    x: Tensor
    y: Tensor
    batch_size: int
    weights: tuple[Tensor, ...]
    activation: str = "relu"

    @property
    def loss(self) -> str:
        """The name of the loss in ``torch.nn.functional``, and here."""
        return "cross_entropy" if self.sizes[-1] > 1 else "mse_loss"

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batches in order."""
        return list(zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True))

    def model(self) -> dp.MLP:
        """Return a deltaprop model with these weights."""
        model = dp.MLP(self.sizes, self.activation)
        with torch.no_grad():
            for p, weight in zip(model.parameters(), self.weights, strict=True):
                p.copy_(weight)
        return model


def make_problem(sizes: tuple[int, ...], batch_size: int, batches: int, activation: str = "relu") -> Problem:
    """Return the problem with these sizes, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = dp.MLP(sizes, activation, init="xavier")
    x = torch.rand(batches * batch_size, sizes[0], generator=generator)
    y = torch.randint(sizes[-1], (len(x),), generator=generator)
    if sizes[-1] == 1:
        y = torch.rand(len(x), 1, generator=generator)
    return Problem(sizes, x, y, batch_size, tuple(p.detach().clone() for p in model.parameters()), activation)
