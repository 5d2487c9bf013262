"""Time peers beside each other: rounds in rotated order, medians and quartiles, ratios within the run."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable


def interleave(runs: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of one call of each, a figure a round.

    Args:
        runs: What is timed; each is called twice beforehand, to warm up.
        rounds: How many figures of each. The order is drawn anew for each round: who follows whom is left to chance,
            for what one leaves in the caches the next may find.
        seconds: About how long a figure is measured; a call that is quicker is repeated.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    figures: dict[str, list[float]] = {name: [] for name in runs}
    chance = random.Random(0)
    for _ in range(rounds):
        for name in chance.sample(list(runs), len(runs)):
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
