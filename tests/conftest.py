"""What every test starts from: one thread, a fixed seed, a compiler without a past."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Let pass the one warning that PyTorch 2.13 gives by itself: its forward mode and compiler still load scripts."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script.* is deprecated:DeprecationWarning:torch.jit")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time where `-n` alone is given: what the tests of a file share, such as runs, is made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread: the tensors are tiny, and the workers of pytest-xdist would fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_seeds_for_devices_that_are_not_there() -> Iterator[None]:
    """``torch.manual_seed`` notes a traceback for each kind of device that is not in use: 1 ms, a thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        for devices in (torch.cuda, torch.xpu, torch.mtia):
            if not devices.is_available():
                patch.setattr(devices, "manual_seed_all", lambda seed: None)
        yield


_frozen = 0  # how many modules there were


@pytest.fixture(autouse=True)
def _few_objects_to_collect() -> None:
    """What imports have made, up to a million objects, is left out of garbage collections, which then take no time."""
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


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
