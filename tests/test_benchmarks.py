"""The benchmarks compare what is comparable: every peer takes the same steps."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers import PEERS
from benchmarks.problem import Problem, make_problem
from benchmarks.timing import interleave, quartiles

# torch.compile takes a minute to compile, and JAX is an extra.
QUICK = [name for name in PEERS if name not in ("torch.compile", "JAX jit", "the products alone")]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A small problem of five batches."""
    return make_problem((12, 8, 4), batch_size=6, batches=5)


@pytest.mark.parametrize("name", QUICK)
def test_peers_end_at_the_same_weights(problem: Problem, name: str):
    """After two passes in float32, to rounding; and they have moved."""
    ends = []
    for peer in (PEERS["autograd"], PEERS[name]):
        run, weights = peer(problem)
        run()
        run()
        ends.append(weights())
    for ours, theirs, start in zip(*ends, problem.weights, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
        assert np.abs(theirs - start.numpy()).max() > 1e-5


def test_every_round_times_every_peer_and_nobody_is_always_first():
    calls: list[str] = []
    figures = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, seconds=0)
    assert [len(f) for f in figures.values()] == [4, 4]
    assert calls == ["a", "a", "b", "b", *"abbaabba"]


def test_quartiles():
    """Of 1 … 7: 2, 4 and 6."""
    assert quartiles([7.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0]) == (2, 4, 6)
