"""Time several functions in interleaved rounds of random order; medians and quartiles."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable


def interleave(runs: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of one call of each function, one measurement per round.

    Args:
        runs: The functions; each is called twice before, to warm up.
        rounds: The number of measurements of each. The order is random in each round, since a function may profit from
            what the previous one leaves in the caches.
        seconds: The approximate time of a measurement; faster calls are repeated.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    figures: dict[str, list[float]] = {name: [] for name in runs}
    rng = random.Random(0)
    for _ in range(rounds):
        for name in rng.sample(list(runs), len(runs)):
            run = runs[name]
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            figures[name].append((time.perf_counter() - start) / repeats[name])
    return figures


def quartiles(figures: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, _, high = statistics.quantiles(figures, n=4)
    return low, statistics.median(figures), high
