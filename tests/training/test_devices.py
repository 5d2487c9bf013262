"""Devices and threads: chosen by rules, refused with reasons."""

from __future__ import annotations

import joblib
import pytest
import torch

from deltaprop import UserError
from deltaprop.training.devices import pick_device, pick_threads

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def test_cpu_is_always_there():
    assert pick_device("cpu") == torch.device("cpu")


@NO_CUDA
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_refused_where_there_is_none(name: str):
    with pytest.raises(UserError, match=f"--device {name}: no CUDA device is available"):
        pick_device(name)


@NO_CUDA
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an mps device here")
def test_auto_takes_the_cpu_where_there_is_nothing_else():
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device mps: not available"):
        pick_device("mps")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_beyond_the_last_is_refused():
    assert pick_device("auto").type == "cuda"
    with pytest.raises(UserError, match="this machine has"):
        pick_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "tpu", "CPU", ""])
def test_an_unknown_device_is_refused(name: str):
    with pytest.raises(UserError, match="--device must be auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


def test_auto_threads_follow_the_widest_product():
    """2^24 multiply-adds: 784 · 214 · 100 = 16 777 600 is just above 16 777 216, 784 · 213 · 100 just below."""
    cores = joblib.cpu_count(only_physical_cores=True)
    assert pick_threads("auto", [784, 213, 10], 100) == 1
    assert pick_threads("auto", [784, 214, 10], 100) == cores
    assert pick_threads("auto", [10, 784, 214], 100) == cores


def test_a_number_of_threads_is_taken_as_given():
    assert pick_threads("3", [2, 2], 1) == 3
