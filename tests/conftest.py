"""What every test starts from: one thread, a fixed seed, a compiler without a past."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Let pass the one warning that PyTorch 2.13 gives by itself: its forward mode and compiler still load scripts."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script.* is deprecated:DeprecationWarning:torch.jit")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread: the tensors are tiny, and the workers of pytest-xdist would fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


# Where there is no CUDA device, one test says so (core/test_cuda.py) instead of thousands.
_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn: the same cases run on all of them."""
    return request.param


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler that has seen no other test: its cache counts recompilations, and refuses the ninth."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
