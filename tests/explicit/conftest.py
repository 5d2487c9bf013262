"""A default trainer."""

from __future__ import annotations

import pytest

import deltaprop as dp
from tests.explicit.compare import F64


@pytest.fixture
def trainer() -> dp.ExplicitTrainer:
    """A trainer of a small network with momentum."""
    model = dp.MLP([5, 7, 3], "tanh", dtype=F64)
    return dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=0.9))
