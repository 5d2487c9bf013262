"""The library's own operations, each with inputs to check it on: four samples, away from the kinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from deltaprop import functional as F
from deltaprop.core import ACTIVATIONS, LOSSES, primitive


def library_ops() -> Iterator[tuple[Callable[..., Tensor], tuple[Any, ...]]]:
    """Yield every activation, the linear layer and every loss, with their arguments."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return t + 0.1 * t.sign()  # no entry at a kink

    z, y, labels = normal(4, 3), torch.rand(4, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    for name, op in ACTIVATIONS.items():
        yield primitive(op), (z, -1) if "softmax" in name else (z,)
    yield F.linear, (normal(4, 3), normal(5, 3), normal(5))
    for name, definition in LOSSES.items():
        yield getattr(F, name), (z, labels if definition.takes_labels else y)
    yield cross_entropy_of_probabilities, (z, torch.softmax(normal(4, 3), 1))


def cross_entropy_of_probabilities(input: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy for targets that are class probabilities, with a name of its own in the report."""
    return F.cross_entropy(input, target)
