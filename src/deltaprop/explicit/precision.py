"""How exact the products of matrices are: float32, or less where the processor is then faster. Never by itself.

===========  ========================================================  ==============================================
 precision    on a CPU                                                  on CUDA
===========  ========================================================  ==============================================
 float32      as PyTorch is set up                                      as PyTorch is set up
 tf32         where oneDNN has it                                       factors rounded to 11 bits (Ampere and later)
 bf16         factors rounded to 8 bits, where oneDNN has it (AMX)      factors rounded to 8 bits (``mixed.py``)
===========  ========================================================  ==============================================

Sums are float32 in all of them, and so are weights, δ, activations and updates: what is rounded are the factors of a
product, as it is made. On a CPU and for tf32 it is a switch of PyTorch's, which is set for the products alone and set
back after them.

On a CPU oneDNN leaves products smaller than about 16 × 16 × 16 in float32 all the same, and all of them where it knows
no quicker way: with AVX-512 BF16 but no AMX it takes the switch and computes in float32 (oneDNN 3.12, an AMD EPYC).

Whether a device does what the switch says is found out by a product that shows it: the switch itself takes any value.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from deltaprop.errors import UserError, unknown_name

PRECISIONS = ("float32", "tf32", "bf16")

_BITS = {"tf32": 11, "bf16": 8}  # of a factor, the leading one counted


class Switch(AbstractContextManager[None]):
    """Sets PyTorch's switch within a ``with``, again and again.

    Args:
        precision: tf32 or bf16.
        device_type: cpu or cuda.
    """

    def __init__(self, precision: str, device_type: str) -> None:
        self._precision = precision
        backends: Any = torch.backends  # its stubs have no mkldnn.matmul
        self._products = backends.cuda.matmul if device_type == "cuda" else backends.mkldnn.matmul

    def __enter__(self) -> None:
        """Switch over."""
        self._before = self._products.fp32_precision
        self._products.fp32_precision = self._precision

    def __exit__(self, *exception: object) -> None:
        """Switch back, to follow the setting above it again if it did."""
        self._products.fp32_precision = "none"
        if self._products.fp32_precision != self._before:
            self._products.fp32_precision = self._before


def products_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context, for use as often as one likes, in which products of matrices are of a precision.

    For bf16 on CUDA there is no switch: the driver rounds the factors itself.
    """
    if precision == "float32" or (device.type == "cuda" and precision == "bf16"):
        return nullcontext()
    return Switch(precision, device.type)


def check_precision(precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a precision that the device does not have, in which everything would be float32 without a word.

    Raises:
        UserError: If it does not have it, the name is unknown, or the model is not of float32.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "float32":
        return
    if dtype != torch.float32:
        raise UserError(f"precision {precision} is for weights of float32, got {dtype}")
    if device.type not in ("cpu", "cuda") or not _has(precision, device):
        raise UserError(f"precision {precision}: the {device.type} here has no such products; take float32")


def _has(precision: str, device: torch.device) -> bool:
    """Return whether 1 + 2^−(b+2), too fine for b bits and not half-way, comes out of a product as 1."""
    if device.type == "cuda" and precision == "bf16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    fine = torch.full((64, 64), 1 + 2.0 ** (-_BITS[precision] - 2), device=device)
    with torch.no_grad(), products_in(precision, device):
        product = fine @ torch.eye(64, device=device)
    return bool((product == 1).all())
