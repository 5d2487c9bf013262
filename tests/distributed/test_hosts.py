"""Processes on two hosts, which are network namespaces on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import hosts
from tests.distributed.test_runs import assert_same_run

ROOT = Path(__file__).parents[2]
can_make_hosts = os.name == "posix" and os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts, reason="network namespaces need root, and the programs ip and tc"),
]


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_two_hosts_train_as_one_process(engine: str, tmp_path: Path):
    """Nothing is said of threads: the processes are not on one machine."""
    settings = ["--data", "moons", "--engine", engine, "--hidden", "8", "--dtype", "float64", "--epochs", "3"]
    command = [str(ROOT / "train.py"), *settings, "--batch-size", "22", "--log-every", "0", "--run-dir"]
    subprocess.run([sys.executable, *command, str(tmp_path / "one")], check=True, capture_output=True)
    with hosts(2, "100mbit") as prefixes:
        started = [
            subprocess.Popen(
                [
                    *prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                    "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{settings['MASTER_ADDR']}:29511", "--rdzv-id", "two",
                    "--rdzv-conf", f"is_host={int(host == 0)}",  # elsewhere known by the machine's name
                    "--local-addr", f"10.77.0.{host + 1}", *command, str(tmp_path / "two"),
                ],
                env={**os.environ, "GLOO_SOCKET_IFNAME": settings["GLOO_SOCKET_IFNAME"]},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for host, (prefix, settings) in enumerate(prefixes)
        ]  # fmt: skip
        said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "threads, is usually faster" not in "".join(said)
    assert sorted("test " in text for text in said) == [False, True]  # which of them is process 0 depends on the time
    assert_same_run(tmp_path / "two", tmp_path / "one")
