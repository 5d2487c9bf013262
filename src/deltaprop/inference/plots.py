"""Plot an evaluation: the confusion matrix, ROC curve and reliability diagram; for numbers predictions and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from deltaprop.errors import rounded
from deltaprop.inference.calibration import BINS
from deltaprop.inference.evaluation import EvaluationReport
from deltaprop.inference.model import Model
from deltaprop.training.report.plots import COLOURS, MOST_POINTS, draw_confusion
from deltaprop.training.seen_rows import EQUAL


def evaluation_figure(model: Model, report: EvaluationReport) -> Figure:
    """Return the figure of an evaluation."""
    figure = Figure(dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    if report.seen is not None and report.seen.total:
        figure.suptitle(f"{report.seen.total} of {report.rows} rows are {EQUAL}", fontsize=10)
    if report.confusion is None:
        _plot_numbers(figure, model, report)
        return figure
    more = [draw for draw, has in ((_plot_roc, report.probability), (_plot_reliability, report.calibration))
            if has is not None]  # fmt: skip
    side = min(12.0, max(5.2, 0.42 * len(model.class_names) + 2))
    widths = [side, *[4.8] * len(more)]
    figure.set_size_inches(sum(widths), side)
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    right = int(np.trace(report.confusion))
    draw_confusion(panels[0], report.confusion, model.class_names, f"{right} of {report.rows} right")
    if more:
        panels[0].set_aspect("auto")  # all fill their height, so that titles and axes are aligned
    for draw, axes in zip(more, panels[1:], strict=True):
        draw(axes, model, report)
    return figure


def _plot_reliability(axes: Any, model: Model, report: EvaluationReport) -> None:
    """Draw the share of right predictions in each bin of confidence, and the number of its rows."""
    calibration = report.calibration
    assert calibration is not None
    filled = np.flatnonzero(calibration.rows)
    accuracy, left = calibration.accuracy[filled], filled / BINS
    axes.bar(left, accuracy, 1 / BINS, align="edge", color=COLOURS[0], alpha=0.55, edgecolor="white", lw=0.6)
    axes.plot([0, 1], [0, 1], c="0.5", lw=1, ls="--")
    axes.scatter(calibration.confidence[filled], accuracy, s=14, c="black", zorder=3)
    for at, rows in zip(left, calibration.rows[filled], strict=True):
        axes.text(at + 0.5 / BINS, 0.015, str(rows), rotation=90, ha="center", va="bottom", fontsize=8)
    axes.set(
        title=f"Reliability: ECE {calibration.ece:.4f}", xlim=(0, 1), ylim=(0, 1.02),
        xlabel="probability of the predicted class (number: rows)", ylabel="share of right predictions",
    )  # fmt: skip


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
        residuals.set(title=f"rmse {rounded(figures['rmse'])}", xlabel="predicted − true", ylabel="rows")
