"""A judgement as a picture: for classes the confusion matrix, for two the ROC curve too; for numbers two scatters."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from deltaprop.inference.evaluation import EvaluationReport
from deltaprop.inference.model import Model
from deltaprop.training.report.plots import COLOURS, MOST_POINTS, draw_confusion


def evaluation_figure(model: Model, found: EvaluationReport) -> Figure:
    """Return the picture of a judgement."""
    if found.confusion is None:
        return _numbers(model, found)
    two = found.probability is not None
    side = min(12.0, max(5.2, 0.42 * len(model.class_names) + 2))
    figure = _figure(side + (4.8 if two else 0), side)
    left: Any = figure.subplots(1, 2, width_ratios=[side, 4.8]) if two else [figure.subplots()]
    right = int(np.trace(found.confusion))
    draw_confusion(left[0], found.confusion, model.class_names, f"{right} of {found.rows} right")
    if two:
        left[0].set_aspect("auto")  # both fill their height, so that titles and axes are level
        _roc(left[1], model, found)
    return figure


def _roc(axes: Any, model: Model, found: EvaluationReport) -> None:
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], c="0.7", lw=1, ls="--")
    if 0 < found.true.sum() < len(found.true):
        false, true, _ = roc_curve(found.true, found.probability)
        axes.plot(false, true, c=COLOURS[0], lw=1.8)
        title = f"ROC of {model.class_names[1]!r}: area {found.figures['roc_auc']:.4f}"
    else:
        title = "ROC: the rows are of one class alone"
    axes.set(title=title, xlabel="false positive rate", ylabel="true positive rate")


def _numbers(model: Model, found: EvaluationReport) -> Figure:
    names = model.target_names
    figure = _figure(9.6, 4.4 * len(names))
    panels = figure.subplots(len(names), 2, squeeze=False)
    for at, name in enumerate(names):
        true, predicted = found.true[:MOST_POINTS, at], found.predicted[:MOST_POINTS, at]
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        axes, residuals = panels[at]
        axes.plot([low, high], [low, high], c="black", lw=0.8)
        axes.scatter(true, predicted, s=10, c=COLOURS[0], alpha=0.6, edgecolors="none")
        figures = found.by_class.get(name, found.figures)
        axes.set(title=f"{name}: R² {figures['r2']:.3f}", xlabel="true", ylabel="predicted")
        residuals.hist(predicted - true, bins=40, color=COLOURS[4])
        residuals.axvline(0, c="black", lw=0.8)
        residuals.set(title=f"rmse {figures['rmse']:.4g}", xlabel="predicted − true", ylabel="rows")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure
