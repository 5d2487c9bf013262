"""Evaluate a trained model on data with targets, by scikit-learn's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaprop.data.classes import Targets, TargetValues
from deltaprop.data.columns import Progress, silent
from deltaprop.data.formats import find_format, unknown_format
from deltaprop.data.splits import Array
from deltaprop.data.table import ReadOptions
from deltaprop.errors import UserError
from deltaprop.inference.calibration import Calibration, calibrate
from deltaprop.inference.intervals import LEVEL
from deltaprop.inference.model import Model
from deltaprop.inference.seen_rows import RowMatcher, SeenRows
from deltaprop.inference.thresholds import Threshold
from deltaprop.training.baseline import Baseline, classes_baseline, numbers_baseline
from deltaprop.training.seen_rows import TrainingRows

PER_CLASS = {"precision": "precision", "recall": "recall", "f1": "f1-score"}  # and scikit-learn's name


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationReport:
    """The metrics of a model on some rows.

    Attributes:
        rows: The number of rows.
        loss: C, a mean over the rows; for numbers in the target's own units.
        figures: The metrics of all rows, by name: accuracy, roc_auc, ece, rmse, mae, r2, ….
        by_class: precision, recall, f1 and rows of each class, or rmse, mae and r2 of each of several targets.
        true: Labels [N], or numbers [N, k].
        predicted: The predictions, of the same shape.
        confusion: Counts [true, predicted] of each class; None for numbers.
        probability: Probability of the second of two classes, [N]; None if there is none.
        calibration: Confidence and accuracy, bin by bin; None without probabilities.
        threshold: What decides between two classes; None for the larger probability.
        intervals: Share of the rows within the interval of level 0.9, and its width, of each target; None for classes.
        no_intervals: Why there are none, for numbers.
        dropped: Number of rows left out because of missing inputs; None if unknown.
        unlabelled: Number of rows left out because their target is missing.
        rare: Number of rows left out because training left out their class.
        warnings: Warnings for the user.
        baseline: What the simplest predictions reach on these rows; None if the rows of each class in training are
            unknown, as for runs of older versions.
        seen: What is known of rows that the model was trained or validated on; None if that was not asked for.
        others: The metrics of the other rows, if some are such rows and some are not.
    """

    rows: int
    loss: float
    figures: dict[str, float]
    by_class: dict[str, dict[str, float]]
    true: Array
    predicted: Array
    confusion: Array | None = None
    probability: Array | None = None
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    intervals: dict[str, dict[str, float]] | None = None
    no_intervals: str = ""
    dropped: int | None = 0
    unlabelled: int = 0
    rare: int = 0
    warnings: tuple[str, ...] = ()
    baseline: Baseline | None = None
    seen: SeenRows | None = None
    others: EvaluationReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as JSON; an undefined one, such as the recall of a class without rows, is null."""
        left_out = {
            "rows_left_out": self.dropped, "rows_without_target": self.unlabelled, "rows_of_left_out_classes": self.rare
        }  # fmt: skip
        overall = {"rows": self.rows, **left_out, "loss": self.loss, **self.figures}
        by_class = {name: _finite(row) for name, row in self.by_class.items()}
        details: dict[str, Any] = {"targets": by_class}
        if self.confusion is not None:
            details = {"classes": by_class, "confusion": self.confusion.tolist()}
        if self.intervals is not None or self.no_intervals:
            details["intervals"] = {"level": LEVEL, "targets": self.intervals, "reason": self.no_intervals or None}
        baseline = None if self.baseline is None else self.baseline.to_json()
        found: dict[str, Any] = {**_finite(overall), "baseline": baseline, **details, "warnings": [*self.warnings]}
        if self.seen is not None:
            found |= {"rows_seen": self.seen.total, "same_file": self.seen.same_file or None, "others": None}
        if self.others is not None:
            found["others"] = self.others.to_json()
            for name in (*left_out, "warnings"):  # known of all rows together
                del found["others"][name]
        return found


def _finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


def evaluate_file(
    model: Model,
    data: str | Path,
    *,
    known: TrainingRows | None = None,
    threshold: Threshold | None = None,
    reading: ReadOptions | None = None,
    progress: Progress = silent,
) -> EvaluationReport:
    """Evaluate a model on data with targets.

    Args:
        model: The model.
        data: A table with the target column, arrays with y, or a folder of IDX files (of which the test part is used).
        known: The rows that the model was trained on, to recognise them.
        threshold: Decides between two classes; by default the larger probability does.
        reading: How a table is read; by default as the training data.
        progress: Called with (description, bytes done, total).

    Raises:
        UserError: If the data has no targets, or a class that is not in the training data.
    """
    path = Path(data)
    if find_format(path) is None:  # predict reads it as CSV
        raise unknown_format(path)
    merges = model.config.rare_classes == "merge"
    targets = Targets(model.objective.task, model.class_names, model.classes_left_out, merges=merges)
    options = {} if reading is None else {"reading": reading}
    blocks = model.blocks(path, targets=targets, n_targets=len(model.target_names), progress=progress, **options)
    matcher = None if known is None else RowMatcher(model, known, blocks)
    outputs, values = [], []
    for block in blocks.blocks():
        if matcher is not None:
            matcher.add(block.x)
        outputs.append(model.feed(block.x).cpu())
        values.append(block.targets)
    y: Array = np.concatenate(values) if values else np.empty((0, 1))
    if not len(y):
        why = ": the target is missing in every row" if blocks.unlabelled else ""
        raise UserError(f"{path}: there are no rows to evaluate on{why}")
    is_numbered = not blocks.dropped and not blocks.unlabelled
    labels = targets.encode(TargetValues(blocks.target_columns, y, str(path), is_numbered))
    used = labels >= 0 if model.class_names else np.ones(len(labels), dtype=np.bool_)
    if not used.any():
        raise UserError(f"{path}: there are no rows to evaluate on: training left out all their classes")
    both = torch.cat(outputs)[torch.from_numpy(used)], labels[used]
    report = evaluation_report(model, *both, threshold, dropped=blocks.dropped, warnings=blocks.warnings)
    report = replace(report, unlabelled=blocks.unlabelled, rare=int((~used).sum()))
    if matcher is None:
        return report
    seen = matcher.match(labels, path)
    seen = seen if seen.mask is None else seen._replace(mask=seen.mask[used])
    return _with_seen_rows(model, report, seen, *both)


def _with_seen_rows(
    model: Model, report: EvaluationReport, seen: SeenRows, outputs: Tensor, y: Array
) -> EvaluationReport:
    """Return a report that also tells of rows that the model was trained on, and has the metrics of the others."""
    others = None
    if seen.mask is not None and seen.mask.any() and not seen.mask.all():
        new = ~seen.mask
        others = evaluation_report(model, outputs[torch.from_numpy(new)], y[new], report.threshold)
    return replace(report, seen=seen, others=others)


def evaluation_report(
    model: Model,
    outputs: Tensor,
    y: Array,
    threshold: Threshold | None = None,
    *,
    dropped: int | None = 0,
    warnings: Sequence[str] = (),
) -> EvaluationReport:
    """Compare the outputs of a model with the true targets.

    Args:
        model: The model that computed the outputs.
        outputs: [N, n_L].
        y: Labels [N], or numbers [N, k] in their own units.
        threshold: Decides between two classes; by default the larger probability does.
        dropped: Number of rows that were left out; None if unknown.
        warnings: Warnings to include in the report.
    """
    metrics, objective = _classification_metrics, model.objective
    if model.class_names:
        loss = float(objective(outputs, objective.targets(torch.from_numpy(y.astype(np.int64)), outputs.dtype)))
    else:
        metrics, loss = _regression_metrics, float(objective(model.in_units(outputs), torch.from_numpy(y)))
    about: dict[str, Any] = {"rows": len(y), "loss": loss, "true": y, "dropped": dropped, "warnings": tuple(warnings)}
    baseline = _baseline(model, y)
    return EvaluationReport(**about, baseline=baseline, **metrics(model, outputs, y, threshold))


def _baseline(model: Model, y: Array) -> Baseline | None:
    """Return what the simplest predictions reach on labels [N] or numbers [N, k]."""
    if not model.class_names:
        return numbers_baseline(torch.from_numpy(y).double())
    if not model.class_counts:
        return None
    tested = np.bincount(y.astype(np.int64), minlength=len(model.class_names)).tolist()
    return classes_baseline(model.class_counts, model.class_names, tested)


def _classification_metrics(model: Model, outputs: Tensor, y: Array, threshold: Threshold | None) -> dict[str, Any]:
    from sklearn import metrics

    objective, every = model.objective, range(len(model.class_names))
    predicted = objective.decide(outputs).numpy() if threshold is None else threshold.decide(model, outputs)
    by_index = metrics.classification_report(y, predicted, labels=every, zero_division=np.nan, output_dict=True)
    by_class = {
        name: {**{figure: float(by_index[str(at)][key]) for figure, key in PER_CLASS.items()},
               "rows": int(by_index[str(at)]["support"])}
        for at, name in enumerate(model.class_names)
    }  # fmt: skip
    figures = {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(by_index["macro avg"]["f1-score"]),
        "balanced_accuracy": float(by_index["macro avg"]["recall"]),
    }
    probability, calibration = None, None
    if objective.has_probabilities:
        probabilities = objective.probabilities(outputs.double()).numpy()
        calibration = calibrate(probabilities, y)
        if len(every) == 2:
            probability = probabilities[:, 1]
            figures["roc_auc"] = float(metrics.roc_auc_score(y, probability)) if 0 < y.sum() < len(y) else math.nan
        figures["ece"] = calibration.ece
    confusion = metrics.confusion_matrix(y, predicted, labels=every)
    report = {"predicted": predicted, "probability": probability, "confusion": confusion, "calibration": calibration}
    report |= {"threshold": threshold}
    return {"figures": figures, "by_class": by_class, **report}


def _regression_metrics(model: Model, outputs: Tensor, y: Array, threshold: Threshold | None) -> dict[str, Any]:
    from sklearn import metrics

    predicted = model.in_units(outputs).numpy()

    def figures(true: Array, predicted: Array) -> dict[str, float]:
        return {
            "rmse": float(np.sqrt(np.square(true - predicted).mean())),  # over all entries, whatever their units
            "mae": float(np.abs(true - predicted).mean()),
            "r2": float(metrics.r2_score(true, predicted)) if len(true) > 1 else math.nan,
        }

    columns = {name: figures(y[:, at], predicted[:, at]) for at, name in enumerate(model.target_names)}
    by_column = columns if len(columns) > 1 else {}
    report = {"figures": figures(y, predicted), "by_class": by_column, "predicted": predicted}
    return {**report, **_interval_metrics(model, predicted, y)}


def _interval_metrics(model: Model, predicted: Array, y: Array) -> dict[str, Any]:
    """Return coverage and width of the intervals of each target, or why there are none."""
    try:
        radius = model.interval_radius(LEVEL)
    except UserError as error:
        return {"no_intervals": str(error)}
    inside = (np.abs(y - predicted) <= radius).mean(axis=0)
    rows = zip(model.target_names, inside, radius, strict=True)
    return {"intervals": {name: {"coverage": float(share), "width": float(2 * half)} for name, share, half in rows}}
