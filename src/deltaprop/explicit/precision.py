"""How exact the products of matrices are: float32, or less where the processor is then faster. Never by itself.

===========  ========================================================  ==============================================
 precision    on a CPU                                                  on CUDA
===========  ========================================================  ==============================================
 float32      as PyTorch is set up                                      as PyTorch is set up
 tf32         where oneDNN has it                                       factors rounded to 11 bits (Ampere and later)
 bf16         factors rounded to 8 bits, where oneDNN has it (AMX)      factors rounded to 8 bits (``RoundedFactors``)
===========  ========================================================  ==============================================

Sums are float32 in all of them, and so are weights, δ, activations and updates: what is rounded are the factors of a
product, as it is made. On a CPU and for tf32 it is a switch of PyTorch's, which is set for the products alone and set
back after them.

On a CPU oneDNN leaves products smaller than about 16 × 16 × 16 in float32 all the same, and all of them where it knows
no quicker way: with AVX-512 BF16 but no AMX it takes the switch and computes in float32 (oneDNN 3.12, an AMD EPYC).

Whether a device does what the switch says is found out by a product that shows it: the switch itself takes any value.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deltaprop.errors import UserError, unknown_name

PRECISIONS = ("float32", "tf32", "bf16")

ROUNDED = {"cuda"}  # devices whose bf16 products PyTorch has no switch for

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


class RoundedFactors(TorchFunctionMode):
    """Rounds the factors of each product to bf16, and sums it in float32: for CUDA, where PyTorch has no switch for it.

    The products are those of ``core/linear.py``, as they stand there. W itself, its velocity, z, a, δ and the update
    stay float32 ("master weights"): a step of η ∂C/∂W is often too small for the 8 bits of a bf16 weight.

    On a CPU, where only tests go, the rounded factors are multiplied in float32: the same numbers but for the order of
    sums.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch's; a product of matrices with rounded factors."""
        options = {name: value for name, value in (kwargs or {}).items() if value is not None}
        if func is torch.nn.functional.linear:
            a_prev, weight, bias = args
            z = _rounded_product(torch.mm, a_prev, weight.t(), **options)
            return z if bias is None else z.add_(bias)
        if func is torch.matmul:
            return _rounded_product(torch.mm, *args, **options)
        if func is torch.addmm:
            into, left, right = args
            return _rounded_product(partial(torch.addmm, into), left, right, **options)
        return func(*args, **(kwargs or {}))


def _rounded_product(product: Callable[..., Tensor], left: Tensor, right: Tensor, **options: Any) -> Tensor:
    """Return a product with its factors rounded to bf16."""
    dtype = left.dtype
    left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
    if left.is_cuda:
        return product(left, right, out_dtype=dtype, **options)
    return product(left.to(dtype), right.to(dtype), **options)


def products_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context, for use as often as one likes, in which products of matrices are of a precision."""
    if precision == "float32":
        return nullcontext()
    if precision == "bf16" and device.type in ROUNDED:
        return RoundedFactors()
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
