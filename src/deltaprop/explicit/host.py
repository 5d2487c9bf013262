"""Whether a device is the processor that runs Python too."""

from __future__ import annotations

import torch


def on_host(device: torch.device) -> bool:
    """Return whether tensors of a device can be asked for a number without waiting, and lie in this processor's cache.

    Elsewhere (CUDA, mps) Python runs ahead of the device: a question makes it wait, and what costs time is to launch
    each operation.
    """
    return device.type == "cpu"
