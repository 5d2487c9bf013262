"""The random numbers of the book's runs: the initial weights, and the order of the samples.

The book's code ran under Python 2. The generators still draw the same numbers, but ``random.shuffle`` has changed, so
the old version is implemented here.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

SEED = 12345678


class Draws:
    """The two generators of a run, seeded once.

    Args:
        seed: The seed of both.
    """

    def __init__(self, seed: int = SEED) -> None:
        self._numbers, self._orders = np.random.RandomState(seed), random.Random(seed)

    def default(self, model: nn.Sequential) -> None:
        """Draw b ~ N(0, 1) for all layers, then W ~ N(0, 1/n_in) for all layers."""
        self._parameters(model, is_large=False)

    def large(self, model: nn.Sequential) -> None:
        """Draw b ~ N(0, 1) for all layers, then W ~ N(0, 1) for all layers."""
        self._parameters(model, is_large=True)

    def shuffle(self, rows: list[int]) -> None:
        """Shuffle in place, like ``random.shuffle`` of Python 2."""
        for last in range(len(rows) - 1, 0, -1):
            other = int(self._orders.random() * (last + 1))
            rows[last], rows[other] = rows[other], rows[last]

    def _parameters(self, model: nn.Sequential, *, is_large: bool) -> None:
        layers = [module for module in model if isinstance(module, nn.Linear)]
        with torch.no_grad():
            for layer in layers:
                layer.bias.copy_(torch.from_numpy(self._numbers.randn(layer.out_features)))
            for layer in layers:
                drawn = self._numbers.randn(layer.out_features, layer.in_features)
                layer.weight.copy_(torch.from_numpy(drawn if is_large else drawn / np.sqrt(layer.in_features)))
