"""SplitMix64's finaliser, which scrambles 64-bit numbers one to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# 2⁶⁴ by the golden ratio, odd, and the two factors.
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: NDArray[np.uint64]) -> None:
    """Scramble 64-bit values in place.

    Source:
        G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    values += _STEP
    values ^= values >> np.uint64(30)
    values *= _FIRST
    values ^= values >> np.uint64(27)
    values *= _SECOND
    values ^= values >> np.uint64(31)
