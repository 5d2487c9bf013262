"""The plots show the right numbers: they are read back from the figures and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from deltaprop.training import TrainConfig
from deltaprop.training.evaluate import Evaluation, evaluate
from deltaprop.training.report import plots
from deltaprop.training.setup import Setup, prepare


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The matplotlib figures that are rendered."""
    figures: list[Figure] = []
    draw = plots.render
    monkeypatch.setattr(plots, "render", lambda figure: figures.append(figure) or draw(figure))
    return figures


def evaluated(tmp_path: Path, **settings: Any) -> tuple[Setup, Evaluation]:
    setup = prepare(TrainConfig(run_dir=tmp_path / "run", hidden=(8,), **settings))
    test = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
    assert test is not None
    return setup, test


def test_the_confusion_matrix_has_true_classes_in_rows(tmp_path: Path, figures: list[Figure]):
    setup, test = evaluated(tmp_path, data="spirals")
    plots.confusion_matrix(setup, test)
    (axes,) = figures[0].axes
    shown = {tuple(map(int, reversed(text.get_position()))): int(text.get_text()) for text in axes.texts}
    y, predicted = setup.dataset.test.y, test.outputs.argmax(1)
    expected = {
        (i, j): count for i in range(3) for j in range(3) if (count := int(((y == i) & (predicted == j)).sum())) > 0
    }
    assert shown == expected
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")


def test_the_worst_samples_are_sorted_worst_first(tmp_path: Path, figures: list[Figure]):
    """The first tile has the lowest margin: the output of its true class minus the best other output."""
    setup, test = evaluated(tmp_path, data="digits")
    plots.worst_samples(setup, test)
    y, outputs = setup.dataset.test.y, test.outputs
    margins = [float(o[t] - torch.cat([o[:t], o[t + 1 :]]).max()) for o, t in zip(outputs, y, strict=True)]
    worst = int(np.argmin(margins))
    first = figures[0].axes[0].texts[0].get_text()
    assert first == f"{int(y[worst])} → {int(outputs[worst].argmax())}"


def test_the_decision_boundary_is_drawn_in_data_units(tmp_path: Path, figures: list[Figure]):
    setup, _ = evaluated(tmp_path, data="moons")
    plots.decision_boundary(setup)
    (axes,) = figures[0].axes
    points = np.concatenate([np.asarray(scatter.get_offsets()) for scatter in axes.collections[-2:]])
    raw = setup.dataset.input_scaling.invert(setup.dataset.test.x).numpy()
    np.testing.assert_allclose(points[np.lexsort(points.T)], raw[np.lexsort(raw.T)], atol=1e-6)


def test_points_are_scaled_before_prediction(tmp_path: Path):
    setup, test = evaluated(tmp_path, data="moons")
    raw = setup.dataset.input_scaling.invert(setup.dataset.test.x).double().numpy()
    np.testing.assert_allclose(plots._predict(setup, raw), test.outputs.numpy(), atol=1e-5)


def test_the_fitted_curve_is_in_target_units(tmp_path: Path, figures: list[Figure]):
    setup, test = evaluated(tmp_path, data="sine")
    plots.fitted_curve(setup)
    (axes,) = figures[0].axes
    (line,) = axes.lines
    x, y = line.get_xdata(), line.get_ydata()
    raw = setup.dataset.input_scaling.invert(setup.dataset.test.x).flatten().numpy()
    predictions = setup.dataset.target_scaling.invert(test.outputs).flatten().numpy()
    np.testing.assert_allclose(np.interp(raw, np.ravel(x), np.ravel(y)), predictions, atol=0.02)


def test_the_weight_plot_shows_the_first_layer(tmp_path: Path, figures: list[Figure]):
    setup, _ = evaluated(tmp_path, data="moons")
    plots.first_layer_weights(setup)
    image = figures[0].axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.asarray(image), setup.model[0].weight.detach().numpy())
