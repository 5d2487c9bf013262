"""Numbers that are no numbers: found at most 50 steps later, and never saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EVERY = 50  # steps, at most, until a NaN or an infinity is found


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every entry is finite. The answer is made on the device, and waited for once."""
    if not tensors:
        return True
    with torch.inference_mode():
        # A sum is finite only if its terms are; that finite terms may add up to ∞ is seen to below.
        if math.isfinite(torch.stack([t.sum() for t in tensors]).sum().item()):
            return True
        return all(bool(t.isfinite().all()) for t in tensors)


def name_non_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return in words where there are numbers that are not finite, layer by layer."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    places = []
    for at, name in enumerate(linears, start=1):
        wrong = [key for key, t in tensors.items() if key.split(".")[-2:-1] == [name] and not bool(t.isfinite().all())]
        kinds = sorted({"momentum" if key.startswith("momentum") else key.rpartition(".")[2] for key in wrong})
        if kinds:
            places.append(f"layer {at} ({', '.join(kinds)})")
    return "; ".join(places)
