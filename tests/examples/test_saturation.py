"""A saturated output: its predictions are wrong, but its δ is small."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop.training import TrainConfig, train
from examples.nielsen.saturation import main, units


def test_by_hand():
    """Two outputs, three images, δ = (a − y) a (1 − a) / 3: the second output is 0.1 for its only image."""
    a = torch.tensor([[0.5, 0.2], [0.9, 0.1], [0.8, 0.1]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    delta = (a - torch.nn.functional.one_hot(y, 2)) * a * (1 - a) / 3
    first, second = units(a.logit(), delta, y)
    assert (first.images, first.right) == (2, 1.0)
    assert first.z == pytest.approx(math.log(9) / 2)  # a = 1/2 at 0, 9/10 at log 9
    assert first.wrong == pytest.approx((0.5 + 0.1) / 2)
    assert first.slope == pytest.approx((0.25 + 0.09) / 2)
    assert first.delta == pytest.approx((0.5 * 0.25 + 0.1 * 0.09) / 2)
    assert (second.images, second.right) == (1, 0.0)
    assert (second.wrong, second.delta) == pytest.approx((0.9, 0.9 * 0.09))


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that trains on the digits with a loss and returns the run folder."""

    def trained(loss: str) -> Path:
        output = "sigmoid" if loss == "quadratic" else "none"
        config = TrainConfig(
            hidden=(100,), activation=("sigmoid",), output_activation=output, loss=loss, init="normal", lr=0.5,
            momentum=0.0, batch_size=10, epochs=2, log_every=0, engine="explicit", run_dir=tmp_path / loss,
        )  # fmt: skip
        return train(config).folder

    return trained


@pytest.mark.parametrize("loss", ["quadratic", "binary-cross-entropy"])
def test_a_run_is_reported_digit_by_digit(loss: str, run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]):
    """|δ| is |a − y| with cross-entropy, and less with the quadratic cost."""
    assert main([str(run(loss))]) == 0
    lines = capsys.readouterr().out.splitlines()[-10:]
    for digit, line in enumerate(lines):
        cells = line.split()
        assert int(cells[0]) == digit
        wrong, delta = float(cells[4]), float(cells[6])
        if loss == "quadratic":
            assert delta < wrong / 2  # σ' is at most 1/4
        else:
            assert delta == pytest.approx(wrong, rel=0.06, abs=5e-5)  # rounding of the printed digits


@pytest.mark.parametrize(
    "settings",
    [{"loss": "mse"}, {"loss": "quadratic"}, {"loss": "quadratic", "output_activation": "softmax"},
     {"loss": "quadratic", "data": "sine"}, {"loss": "quadratic", "output_activation": "sigmoid", "data": "sine"}],
    ids=str,
)  # fmt: skip
def test_a_network_without_sigmoid_class_outputs_is_refused(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = train(TrainConfig(**settings, epochs=1, log_every=0, run_dir=tmp_path / "run")).folder
    assert main([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"its loss is {settings['loss']} on output activation" in err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
