"""Fixtures of all tests: one thread, a fixed seed, an empty compiler cache."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deltaprop.compiled import build


def pytest_configure(config: pytest.Config) -> None:
    """Ignore a warning of PyTorch 2.13's own: its forward mode and its compiler still use ``torch.jit.script``."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script.* is deprecated:DeprecationWarning:torch.jit")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute whole files if only `-n` is given, so that fixtures shared within a file are made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: the tensors are tiny, and the workers of pytest-xdist would compete for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_seeding_of_missing_devices() -> Iterator[None]:
    """Do not seed missing devices: ``torch.manual_seed`` stores a traceback for each, 1 ms per test."""
    with pytest.MonkeyPatch.context() as patch:
        for devices in (torch.cuda, torch.xpu, torch.mtia):
            if not devices.is_available():
                patch.setattr(devices, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_signal_is_ignored() -> None:
    """Undo what nohup, or a shell that starts pytest in the background, hands down: an ignored signal stays ignored."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _the_same_signals() -> Iterator[None]:
    """Fail a test after which a signal is handled otherwise: the processes that later tests start inherit it."""

    def handlers() -> list[Any]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) if hasattr(signal, "pthread_sigmask") else None
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        return [*map(signal.getsignal, numbers), blocked, sys.unraisablehook]

    before = handlers()
    yield
    assert handlers() == before


_frozen = 0  # number of imported modules at the last gc.freeze


@pytest.fixture(autouse=True)
def _few_objects_to_collect() -> None:
    """Exclude the objects made by imports, up to a million, from garbage collection, which makes it fast."""
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _built_libraries(pytestconfig: pytest.Config) -> Iterator[None]:
    """Keep what the compiled engine builds from run to run, shared by the workers of pytest-xdist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "default_cache", lambda: pytestconfig.cache.mkdir("deltaprop"))
        yield


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip without a C++ compiler, but not in continuous integration."""
    try:
        build.find_toolchain()
    except build.BuildError as error:
        if os.environ.get("DELTAPROP_COMPAT"):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["autograd", "explicit", "compiled"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    if request.param == "compiled":
        request.getfixturevalue("compiler")
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seed PyTorch, so that a test draws the same random numbers whatever ran before it."""
    torch.manual_seed(0)


# Without a CUDA device one test is skipped (core/test_cuda.py) instead of thousands.
_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each available device: the same cases run on all of them."""
    return request.param


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Reset the compiler: its cache counts recompilations across tests and refuses the ninth."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
