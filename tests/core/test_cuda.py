"""If a CUDA device is available, the whole table also runs on it: every case has a twin marked ``cuda``."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the table of cases runs on the CPU alone")
def test_the_table_runs_on_cuda(request: pytest.FixtureRequest):
    twins = [item for item in request.session.items if item.get_closest_marker("cuda") and "cuda" in item.name]
    assert len(twins) > 1
