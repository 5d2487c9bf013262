"""The fastest that a step could be on this machine: its arithmetic at the measured rate, or W's way through the cache.

A step multiplies and adds 3 N Σ n_in n_out times, less the N n_0 n_1 of ∂C/∂x, which nobody needs. And each W is read
for FWD, read again and written for its update and, but for the first, read for BP2. Whatever takes longer is the limit.
Both rates are measured on one core, by loops in C++ that do nothing else.
"""

from __future__ import annotations

import ctypes
import time
from itertools import pairwise

import torch

from deltaprop.compiled.build import load_library

SOURCE = """
#include <cstdint>
#if defined(__AVX512F__)
constexpr int BYTES = 64, SUMS = 24;
#else
constexpr int BYTES = 32, SUMS = 12;
#endif
typedef float vec __attribute__((vector_size(BYTES)));

// Multiplies and adds in registers; returns how often.
extern "C" int64_t multiply_add(int64_t rounds, float* out) {
    vec sum[SUMS] = {}, a = {}, b = {};
    for (int i = 0; i < BYTES / 4; i++) a[i] = out[0], b[i] = out[1];
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sum[i] += a * b;
        asm volatile("" : "+x"(a));
    }
    for (int i = 0; i < SUMS; i++) out[0] += sum[i][0];
    return rounds * SUMS * (BYTES / 4);
}

// Reads floats; returns how many bytes.
extern "C" int64_t read(int64_t rounds, float* numbers, int64_t count) {
    vec sum[8] = {};
    for (int64_t round = 0; round < rounds; round++)
        for (int64_t i = 0; i < count; i += 8 * BYTES / 4)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) sum[j] += *(const vec*)(numbers + i + j * BYTES / 4);
    for (int j = 0; j < 8; j++) numbers[0] += sum[j][0];
    return rounds * count * 4;
}
"""
L2_BYTES = 2**18  # in the second cache of any processor of today, and not in the first


def measured_rates() -> tuple[float, float]:
    """Return multiply-adds and bytes per second, the best of several attempts."""
    library = load_library(SOURCE)
    numbers = torch.zeros(L2_BYTES // 4 + 16)
    start = (numbers.data_ptr() + 63) // 64 * 64
    calls = {
        "multiply_add": (ctypes.c_int64(2_000_000), ctypes.c_void_p(start)),
        "read": (ctypes.c_int64(400), ctypes.c_void_p(start), ctypes.c_int64(L2_BYTES // 4)),
    }
    best = {}
    for name, arguments in calls.items():
        function = getattr(library, name)
        function.restype = ctypes.c_int64
        for _ in range(7):
            begin = time.perf_counter()
            done = function(*arguments)
            best[name] = max(best.get(name, 0.0), done / (time.perf_counter() - begin))
    return best["multiply_add"], best["read"]


def limits(sizes: list[int], batch_size: int, rates: tuple[float, float]) -> dict[str, float]:
    """Return the seconds that a step takes at least, by what limits it."""
    each = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    multiply_adds = batch_size * (3 * sum(each) - each[0])
    read_or_written = 4 * (4 * sum(each) - each[0])
    return {
        f"limit: arithmetic, {rates[0] / 1e9:.0f} · 10⁹ multiply-adds/s": multiply_adds / rates[0],
        f"limit: each W through the cache, {rates[1] / 1e9:.0f} GB/s": read_or_written / rates[1],
    }
