"""Warms up the test process, whose forked children then start faster."""

from __future__ import annotations

import pytest
import torch

from deltaprop.training import train
from tests.training.faults.shim import small


@pytest.fixture(scope="session", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train once with each engine, so that late imports and caches need not be repeated in every child."""
    torch.set_num_threads(1)
    for engine in ("autograd", "explicit"):
        train(small(tmp_path_factory.mktemp("warm") / engine, engine=engine))
