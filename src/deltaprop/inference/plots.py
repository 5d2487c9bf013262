"""Plot an evaluation: the confusion matrix and, for two classes, the ROC curve; for numbers predictions and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from deltaprop.inference.evaluation import EvaluationReport
from deltaprop.inference.model import Model
from deltaprop.training.report.plots import COLOURS, MOST_POINTS, draw_confusion


def evaluation_figure(model: Model, report: EvaluationReport) -> Figure:
    """Return the figure of an evaluation."""
    figure = Figure(dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    if report.confusion is None:
        _plot_numbers(figure, model, report)
        return figure
    two = report.probability is not None
    side = min(12.0, max(5.2, 0.42 * len(model.class_names) + 2))
    figure.set_size_inches(side + (4.8 if two else 0), side)
    panels = figure.subplots(1, 2 if two else 1, squeeze=False, width_ratios=[side, 4.8] if two else None)[0]
    right = int(np.trace(report.confusion))
    draw_confusion(panels[0], report.confusion, model.class_names, f"{right} of {report.rows} right")
    if two:
        panels[0].set_aspect("auto")  # both fill their height, so that titles and axes are aligned
        _plot_roc(panels[1], model, report)
    return figure


def _plot_roc(axes: Any, model: Model, report: EvaluationReport) -> None:
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], c="0.7", lw=1, ls="--")
    if 0 < report.true.sum() < len(report.true):
        false, true, _ = roc_curve(report.true, report.probability)
        axes.plot(false, true, c=COLOURS[0], lw=1.8)
        title = f"ROC of {model.class_names[1]!r}: area {report.figures['roc_auc']:.4f}"
    else:
        title = "ROC: the rows are of one class alone"
    axes.set(title=title, xlabel="false positive rate", ylabel="true positive rate")


def _plot_numbers(figure: Figure, model: Model, report: EvaluationReport) -> None:
    names = model.target_names
    figure.set_size_inches(9.6, 4.4 * len(names))
    panels = figure.subplots(len(names), 2, squeeze=False)
    for at, name in enumerate(names):
        true, predicted = report.true[:MOST_POINTS, at], report.predicted[:MOST_POINTS, at]
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        axes, residuals = panels[at]
        axes.plot([low, high], [low, high], c="black", lw=0.8)
        axes.scatter(true, predicted, s=10, c=COLOURS[0], alpha=0.6, edgecolors="none")
        figures = report.by_class.get(name, report.figures)
        axes.set(title=f"{name}: R² {figures['r2']:.3f}", xlabel="true", ylabel="predicted")
        residuals.hist(predicted - true, bins=40, color=COLOURS[4])
        residuals.axvline(0, c="black", lw=0.8)
        residuals.set(title=f"rmse {figures['rmse']:.4g}", xlabel="predicted − true", ylabel="rows")
