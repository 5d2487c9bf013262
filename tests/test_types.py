"""Type annotations of the public API: `mypy --strict` accepts right calls and refuses wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

RIGHT = """
import torch

import deltaprop as dp
from deltaprop import functional as F

z: torch.Tensor = torch.zeros(2, 3)
a: torch.Tensor = F.gelu(z, approximate="tanh")
b: torch.Tensor = F.huber_loss(a, z, "mean", 1.0)
net: torch.nn.Sequential = dp.MLP([3, 4, 2], torch.relu)
hidden: torch.nn.Module = net[:2]
gelu: torch.nn.Module = dp.nn.GELU(approximate="tanh")
optimizer: torch.optim.Optimizer = dp.SGD(net.parameters(), lr=0.1, momentum=0.9)
report: dp.GradientReport = dp.check_gradients(F.gelu, z)
result: dp.Result = dp.train(dp.TrainConfig(data="sine", hidden=(8,)))
model: dp.Model = dp.load(result.folder)
"""

WRONG = {
    'F.gelu(z, aproximate="tanh")': 'Unexpected keyword argument "aproximate" for "gelu"',
    'F.gelu(z, "tanh")': 'Too many positional arguments for "gelu"',
    "F.relu(1.0)": 'incompatible type "float"; expected "Tensor"',
    'dp.nn.GELU(aproximate="tanh")': 'Unexpected keyword argument "aproximate" for "GELU"',
    "dp.TrainConfig(epoch=3)": 'Unexpected keyword argument "epoch" for "TrainConfig"',
    "dp.SGD(lr=0.1)": 'Missing positional argument "params"',
    "F.sigmod": 'has no attribute "sigmod"',
    "dp.sigmoid": 'has no attribute "sigmoid"',
    "dp.nn.Relu": 'has no attribute "Relu"',
}


@pytest.mark.slow
def test_mypy_accepts_right_calls_and_refuses_each_wrong_one(tmp_path: Path):
    """One run of mypy for all: reading PyTorch's types takes most of its time."""
    api = pytest.importorskip("mypy.api", reason="mypy is in the extra `dev`")
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    head = "import torch\n\nimport deltaprop as dp\nfrom deltaprop import functional as F\n\nz = torch.zeros(2, 3)\n"
    wrong.write_text(head + "\n".join(WRONG) + "\n")
    output, errors, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(right), str(wrong)])
    assert not errors
    lines = output.splitlines()
    assert not [line for line in lines if line.startswith(str(right))]
    for number, (call, expected) in enumerate(WRONG.items(), start=head.count("\n") + 1):
        assert any(line.startswith(f"{wrong}:{number}: error") and expected in line for line in lines), (call, output)
