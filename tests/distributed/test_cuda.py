"""Processes with a GPU each, over NCCL: the weights of one process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltaprop.training import train
from tests.distributed.test_runs import CONFIG, assert_same_run

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two CUDA devices are needed"),
]


@pytest.mark.parametrize(
    "words",
    [["--engine", "explicit"], ["--engine", "autograd"], ["--engine", "autograd", "--parallel", "fsdp"]],
    ids=str,
)
def test_two_gpus_train_as_one(words: list[str], tmp_path: Path):
    train(dataclasses.replace(CONFIG, engine=words[1], device="cuda", run_dir=tmp_path / "one"))
    settings = ["--data", "moons", "--hidden", "6", "--dtype", "float64", "--epochs", "3", "--batch-size", "22"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    folder = ["--lr", "0.05", "--log-every", "0", "--device", "cuda", "--run-dir", str(tmp_path / "two")]
    subprocess.run([*command, *settings, *words, *folder], check=True, cwd=ROOT, capture_output=True)
    assert_same_run(tmp_path / "two", tmp_path / "one")
