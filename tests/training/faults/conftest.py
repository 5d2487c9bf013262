"""What the faults share: a process that has done once what its children will do."""

from __future__ import annotations

import pytest
import torch

from deltaprop.training import train
from tests.training.faults.shim import small


@pytest.fixture(scope="session", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run once here: what is imported late and looked up once, a child need not do again."""
    torch.set_num_threads(1)
    for engine in ("autograd", "explicit"):
        train(small(tmp_path_factory.mktemp("warm") / engine, engine=engine))
