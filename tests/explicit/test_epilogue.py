"""Bias and relu within the product: the same layer, in one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaprop as dp
from deltaprop.explicit import epilogue
from deltaprop.explicit.layers import Buffers, Plan
from deltaprop.ops.kernels import kernel


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_linear_and_then_relu(device: str, dtype: torch.dtype):
    linear = nn.Linear(7, 5, dtype=dtype, device=device)
    plan = Plan(linear, dp.ReLU(), (True, True))
    with torch.no_grad():
        layer = epilogue.EpilogueLayer(plan, Buffers(plan, 6, wide=False, differs=True), 6, None)
        x = torch.randn(6, 7, dtype=dtype, device=device)
        layer.see(x, None)
        layer.linear()
        layer.activate()
    torch.testing.assert_close(layer.a, torch.relu(linear(x)).detach())
    assert (layer.a == 0).any()  # the gate was closed somewhere


@pytest.mark.parametrize(
    ("sigma", "bias", "device_type", "takes"),
    [
        (dp.ReLU(), True, "cpu", True),
        (dp.ReLU(), False, "cpu", False),
        (dp.Tanh(), True, "cpu", False),
        (None, True, "cpu", False),
        (dp.ReLU(), True, "cuda", False),
    ],
    ids=str,
)
def test_which_layers_it_is_for(
    sigma: nn.Module | None, bias: bool, device_type: str, takes: bool, monkeypatch: pytest.MonkeyPatch
):
    """The layer lies on the CPU, which is or is not a device that has it."""
    monkeypatch.setattr(epilogue, "DEVICES", {device_type})
    assert epilogue.takes(Plan(nn.Linear(2, 2, bias=bias), sigma, (True, bias))) is takes


def test_relu_may_write_over_z():
    """Which is where the call puts a."""
    assert kernel(dp.ops.ACTIVATIONS["relu"]).in_place
