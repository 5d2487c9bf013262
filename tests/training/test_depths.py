"""The norm of δ by layer for networks of several depths: its values against the theory, and its plot."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import pytest
import torch

from deltaprop.tracing.capture import capture_layers, delta_norm
from deltaprop.training import TrainConfig, train
from deltaprop.training.depths import DepthResult, Variant, draw, measure_depth
from deltaprop.training.setup import prepare


def measured(activation: str, init: str, depth: int = 3, **settings: object) -> DepthResult:
    return measure_depth(
        TrainConfig(epochs=1, lr=0.1, momentum=0.0, device="cpu", **settings), Variant(activation, init), depth, 30
    )


def ratio(norms: list[float]) -> float:
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


def test_initial_delta_ratios_match_the_theory():
    """The ratio per layer with relu is √(n/2 · Var w): N(0, 1) √15 = 3.9; He 1; U(±1/√n), Var 1/3n, √(1/6) = 0.41.

    With the sigmoid σ' is at most ¼, at z = 0: ¼ √(1/3) = 0.14.
    """
    for activation, init, expected in (("relu", "normal", 3.87), ("relu", "kaiming", 1), ("relu", "torch", 0.41),
                                       ("sigmoid", "torch", 0.144)):  # fmt: skip
        assert ratio(measured(activation, init).norms[0]) == pytest.approx(expected, rel=0.2), (
            activation,
            init,
        )


def test_norms_are_recorded_before_and_after_each_epoch():
    config = TrainConfig(epochs=2, lr=0.1, momentum=0.0, hidden=(30, 30), activation=("tanh",), init="xavier")
    result = measure_depth(config, Variant("tanh", "xavier"), 2, 30)
    assert [len(norms) for norms in result.norms] == [3, 3, 3]
    setup = prepare(config)
    train = setup.dataset.train
    views = capture_layers(setup.model, setup.objective.call, train.x[:256], train.y[:256])
    assert result.norms[0] == pytest.approx([delta_norm(view) for view in views])
    assert result.norms[2] != result.norms[1] != result.norms[0]


def test_training_and_evaluation_match_a_run_with_the_same_settings():
    """The same initial weights, order and metrics as a run of the same configuration."""
    config = TrainConfig(epochs=2, lr=0.1, momentum=0.0, hidden=(30,), activation=("tanh",), init="xavier", log_every=0)
    with tempfile.TemporaryDirectory() as folder:
        result = train(dataclasses.replace(config, run_dir=Path(folder) / "run"))
    depth_result = measure_depth(config, Variant("tanh", "xavier"), 1, 30)
    assert depth_result.accuracy == result.metrics["val_accuracy"]
    assert depth_result.loss == pytest.approx(result.metrics["val_loss"], rel=1e-6)


def test_regression_and_one_hot_targets_are_supported():
    assert measured("tanh", "xavier", data="sine").accuracy is None
    assert measured("tanh", "xavier", loss="quadratic").accuracy is not None


def test_the_plot_has_a_panel_per_network_and_a_line_per_layer(tmp_path: Path):
    results = [DepthResult(Variant("relu", init), depth, [[0.1] * (depth + 1), [0.0, *[0.2] * depth]], 0.4, 1.0)
             for init in ("torch", "kaiming") for depth in (2, 3)]  # fmt: skip
    figure = draw(results, "a title")
    panels = figure.axes
    assert [len(axes.lines) for axes in panels] == [3, 4, 3, 4]
    assert panels[0].get_title() == "2 hidden layers\n40 % right in the end"
    assert panels[2].get_ylabel() == "relu, init kaiming\nnorm of δ"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "layer 1",
        "layer 2",
        "layer 3",
        "output layer",
    ]
    first = panels[0].lines[1]
    assert first.get_label() == "layer 2"
    before, after = panels[0].lines[0].get_ydata()
    assert before == 0.1
    assert math.isnan(after)  # the final δ of layer 1 is 0 and has no logarithm
    assert list(first.get_ydata()) == [0.1, 0.2]
    styles = {(line.get_color(), line.get_marker()) for line in panels[1].lines}
    assert len(styles) == 4  # colour and marker both differ
    figure.savefig(tmp_path / "p.png")  # a norm of 0 gives no warning


def test_the_callers_random_state_is_unchanged():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measured("relu", "kaiming", 1)
    assert torch.equal(torch.get_rng_state(), before)
