"""The choice of device and number of threads, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import joblib
import pytest
import torch

from deltaprop import UserError
from deltaprop.distributed import World
from deltaprop.training import Result
from deltaprop.training.devices import fastest, pick_device, pick_threads, tune_threads

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def test_cpu_is_always_available():
    assert pick_device("cpu") == torch.device("cpu")


@NO_CUDA
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_refused_when_unavailable(name: str):
    with pytest.raises(UserError, match=f"`device='{name}'`: no CUDA device is available"):
        pick_device(name)


@NO_CUDA
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an mps device here")
def test_auto_selects_the_cpu_without_an_accelerator():
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="`device='mps'`: not available"):
        pick_device("mps")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_beyond_the_last_is_refused():
    assert pick_device("auto").type == "cuda"
    with pytest.raises(UserError, match="this machine has"):
        pick_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "tpu", "CPU", ""])
def test_an_unknown_device_is_refused(name: str):
    with pytest.raises(UserError, match="`device` must be auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


def test_auto_threads_follow_the_widest_product():
    """2^24 multiply-adds: 784 · 214 · 100 = 16 777 600 is just above 16 777 216, 784 · 213 · 100 just below."""
    cores = joblib.cpu_count(only_physical_cores=True)
    assert pick_threads("auto", [784, 213, 10], 100) == 1
    assert pick_threads("auto", [784, 214, 10], 100) == cores
    assert pick_threads("auto", [10, 784, 214], 100) == cores


def test_auto_threads_of_the_compiled_engine_share_smaller_products():
    """2^21 multiply-adds: 64 · 256 · 128."""
    cores = joblib.cpu_count(only_physical_cores=True)
    assert pick_threads("auto", [256, 128, 10], 64, "compiled") == cores
    assert pick_threads("auto", [255, 128, 10], 64, "compiled") == 1


def test_an_explicit_number_of_threads_is_used():
    assert pick_threads("3", [2, 2], 1) == 3


def test_the_processes_of_a_machine_divide_its_cores():
    cores = joblib.cpu_count(only_physical_cores=True)
    assert [pick_threads("auto", [784, 214, 10], 100, processes=n) for n in (1, cores, 2 * cores)] == [cores, 1, 1]


def test_each_process_takes_the_cuda_device_of_its_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(pick_device(name, World(5, 8, 60.0, 1, 4))) for name in ("auto", "cuda")] == ["cuda:1", "cuda:1"]
    with pytest.raises(UserError, match=r"`device='cuda:2'`: this machine has 2 CUDA device\(s\), cuda:0 to cuda:1"):
        pick_device("auto", World(2, 4, 60.0, 2, 4))


class TestTuning:
    def test_tries_powers_of_two_and_all_cores(self):
        assert list(tune_threads(lambda: None, 6, seconds=0)) == [1, 2, 4, 6]
        assert list(tune_threads(lambda: None, 1, seconds=0)) == [1]

    def test_work_runs_with_the_number_of_threads_being_timed(self):
        """Two threads are made slower, as on a machine whose cores are busy."""
        seen = set()

        def work() -> None:
            seen.add(torch.get_num_threads())
            time.sleep(0.2 * (torch.get_num_threads() == 2))

        timed = tune_threads(work, 2, seconds=0)
        assert seen == {1, 2}
        assert fastest(timed) == 1
        assert timed[2] > 0.2 > timed[1]

    def test_the_number_of_threads_is_restored(self):
        before = torch.get_num_threads()
        tune_threads(lambda: None, 4, seconds=0)
        assert torch.get_num_threads() == before

    def test_more_threads_are_chosen_only_if_faster(self):
        assert fastest({1: 1.0, 2: 0.96, 4: 0.97}) == 1
        assert fastest({1: 1.0, 2: 0.7, 4: 0.69}) == 2
        assert fastest({1: 1.0, 2: 0.7, 4: 0.4}) == 4


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_a_tuned_run_equals_a_run_with_that_number_of_threads(run: Callable[..., Result], engine: str):
    """Tuning on a copy changes neither weights nor order nor velocities."""
    tuned = run(threads="tune", engine=engine)
    resolved = json.loads((tuned.folder / "config.json").read_text())["resolved"]
    assert str(resolved["threads"]) in resolved["threads_tuned"]
    given = run(threads=str(resolved["threads"]), engine=engine)
    assert (tuned.folder / "model.safetensors").read_bytes() == (given.folder / "model.safetensors").read_bytes()
