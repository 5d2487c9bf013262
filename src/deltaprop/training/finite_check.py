"""Detect NaN and infinity within 50 steps, or one call of the compiled engine, so that they are never saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

EVERY = 50  # the most steps until a NaN or an infinity is detected, unless the engine takes more at once


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every entry is finite. It is computed on the device, which is waited for once."""
    if not tensors:
        return True
    with torch.inference_mode():
        # A sum is finite only if its terms are; finite terms whose sum overflows are checked one by one below.
        if math.isfinite(torch.stack([t.sum() for t in tensors]).sum().item()):
            return True
        return all(bool(t.isfinite().all()) for t in tensors)


def name_non_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return which of a checkpoint's tensors are not finite, such as ``"layer 1 (bias, momentum_buffer)"``."""
    names = [name.rpartition(".") for name, value in tensors.items() if not bool(value.isfinite().all())]
    places = []
    for number, layer in enumerate((n for n, m in model.named_modules() if isinstance(m, nn.Linear)), start=1):
        found = [(stem, parameter) for stem, _, parameter in names if stem.endswith(f".{layer}")]
        if found:
            kinds = {parameter if stem.startswith("model.") else stem.split(".")[1] for stem, parameter in found}
            places.append(f"layer {number} ({', '.join(sorted(kinds))})")
    return "; ".join(places)
