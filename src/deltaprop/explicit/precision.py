"""The precision of matrix products: float32, or a lower one that is faster on some processors, if the user sets it.

===========  ========================================================  ==============================================
 precision    on a CPU                                                  on CUDA
===========  ========================================================  ==============================================
 float32      PyTorch's own setting                                     PyTorch's own setting
 tf32         where oneDNN has it                                       factors rounded to 11 bits (Ampere and later)
 bf16         factors rounded to 8 bits, where oneDNN has it (AMX)      factors rounded to 8 bits (``RoundedFactors``)
===========  ========================================================  ==============================================

Only the factors of a product are rounded; sums, weights, δ, activations and updates are float32 in all of them. On a
CPU and for tf32 a setting of PyTorch does it, which is changed for the products alone.

On a CPU oneDNN computes products smaller than about 16 × 16 × 16 in float32 all the same, and all products if it has no
faster kernel: with AVX-512 BF16 but no AMX it accepts the setting and computes in float32 (oneDNN 3.12, an AMD EPYC).

The setting accepts any value, so a test product shows whether a device follows it.
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

ROUNDED = {"cuda"}  # devices for whose bf16 products PyTorch has no setting

_BITS = {"tf32": 11, "bf16": 8}  # bits of a factor, with the leading one


class MatmulPrecision(AbstractContextManager[None]):
    """Context manager that sets PyTorch's precision of products to tf32 or bf16; it can be entered again and again."""

    def __init__(self, precision: str, device_type: str) -> None:
        self._precision = precision
        backends: Any = torch.backends  # its stubs have no mkldnn.matmul
        self._products = backends.cuda.matmul if device_type == "cuda" else backends.mkldnn.matmul

    def __enter__(self) -> None:
        """Set the precision."""
        self._before = self._products.fp32_precision
        self._products.fp32_precision = self._precision

    def __exit__(self, *exception: object) -> None:
        """Restore the precision, inherited from the backend's if it was."""
        self._products.fp32_precision = "none"
        if self._products.fp32_precision != self._before:
            self._products.fp32_precision = self._before


class RoundedFactors(TorchFunctionMode):
    """Rounds the factors of each product to bf16, and sums in float32: for CUDA, where PyTorch has no setting for it.

    The products are those of ``core/linear.py``. W itself, its velocity, z, a, δ and the update stay float32 ("master
    weights"): a step of η ∂C/∂W is often too small for the 8 bits of a bf16 weight.

    On a CPU, for tests only, the rounded factors are multiplied in float32: the same except for the order of sums.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch, a matrix product with rounded factors."""
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
    dtype = left.dtype
    left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
    if left.is_cuda:
        return product(left, right, out_dtype=dtype, **options)
    return product(left.to(dtype), right.to(dtype), **options)


def products_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a reusable context manager in which matrix products have a precision."""
    if precision == "float32":
        return nullcontext()
    if precision == "bf16" and device.type in ROUNDED:
        return RoundedFactors()
    return MatmulPrecision(precision, device.type)


def check_precision(precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise a UserError for a precision that the device does not have, an unknown one, or weights not of float32."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "float32":
        return
    if dtype != torch.float32:
        raise UserError(f"`precision='{precision}'` is for weights of float32, got {dtype}")
    if device.type not in ("cpu", "cuda") or not _has(precision, device):
        raise UserError(f"`precision='{precision}'`: the {device.type} here does not support it; use float32")


def _has(precision: str, device: torch.device) -> bool:
    """Return whether a product rounds 1 + 2^−(b+2), which has too many bits and is not half-way, to 1."""
    if device.type == "cuda" and precision == "bf16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    fine = torch.full((64, 64), 1 + 2.0 ** (-_BITS[precision] - 2), device=device)
    with torch.no_grad(), products_in(precision, device):
        product = fine @ torch.eye(64, device=device)
    return bool((product == 1).all())
