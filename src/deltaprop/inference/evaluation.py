"""How good a model is on data that it has not seen: scikit-learn's metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.classes import Targets, TargetValues
from deltaprop.data.columns import Progress, silent
from deltaprop.data.formats import find_format, unknown_format
from deltaprop.errors import UserError
from deltaprop.inference.model import Model
from deltaprop.training.evaluate import in_own_units

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The figures of a model on some rows.

    Attributes:
        rows: How many.
        loss: C, a mean over the rows; for numbers in the target's own units.
        figures: The figures of all rows, by name: accuracy, roc_auc, rmse, mae, r2, ….
        by_class: precision, recall, f1 and rows of each class, or rmse, mae and r2 of each of several targets.
        confusion: Rows of each class [true, predicted]; None for numbers.
        true: Labels [N], or numbers [N, k].
        predicted: The same.
        probability: Of the second of two classes, [N]; None where there is none.
        dropped: Rows left out because something was missing in them; None where that is not known.
        warnings: What the user should know.
    """

    rows: int
    loss: float
    figures: dict[str, float]
    by_class: dict[str, dict[str, float]]
    confusion: Array | None
    true: Array
    predicted: Array
    probability: Array | None
    dropped: int | None = 0
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON has them; what is undefined, as recall without a row, is null."""

        def plain(value: float) -> float | int | None:
            return value if isinstance(value, int) or math.isfinite(value) else None

        return {
            "rows": self.rows,
            "rows_left_out": self.dropped,
            "loss": plain(self.loss),
            **{name: plain(value) for name, value in self.figures.items()},
            "classes" if self.confusion is not None else "targets": {
                name: {figure: plain(value) for figure, value in row.items()} for name, row in self.by_class.items()
            },
            **({} if self.confusion is None else {"confusion": self.confusion.tolist()}),
            "warnings": [*self.warnings],
        }


def evaluate_file(
    model: Model, data: str | Path, *, delimiter: str | None = None, progress: Progress = silent
) -> EvaluationReport:
    """Return how good a model is on data with targets.

    Args:
        model: To evaluate.
        data: A table with the column of the target, arrays with y, or a folder with IDX files (of which its test part).
        delimiter: Of a CSV; by default that of the training data.
        progress: Told how far the reading is.

    Raises:
        UserError: If the data have no target, or a class that training has not seen.
    """
    path = Path(data)
    if find_format(path) is None:  # predict reads it as CSV
        raise unknown_format(path)
    kinds = Targets(model.objective.task, model.class_names)
    how = {} if delimiter is None else {"delimiter": delimiter}
    blocks = model.blocks(path, targets=kinds, n_targets=len(model.target_names), progress=progress, **how)
    outputs, targets = [], []
    for block in blocks.blocks():
        outputs.append(model.feed(block.x).cpu())
        targets.append(block.targets)
    y = np.concatenate(targets) if targets else np.empty((0, 1))
    if not len(y):
        raise UserError(f"{path}: there are no rows to evaluate on")
    labels = kinds.encode(TargetValues(blocks.target_columns, y, str(path), not blocks.dropped))
    return evaluation_report(model, torch.cat(outputs), labels, dropped=blocks.dropped, warnings=blocks.warnings)


def evaluation_report(
    model: Model, outputs: Tensor, y: Array, *, dropped: int | None = 0, warnings: Sequence[str] = ()
) -> EvaluationReport:
    """Return the figures of outputs beside what is true.

    Args:
        model: That gave them.
        outputs: [N, n_L].
        y: Labels [N], or numbers [N, k] in their own units.
        dropped: Rows that were left out; None where that is not known.
        warnings: To go with it.
    """
    if model.class_names:
        return _classes(model, outputs, y, dropped, tuple(warnings))
    return _numbers(model, outputs, y, dropped, tuple(warnings))


def _classes(
    model: Model, outputs: Tensor, y: Array, dropped: int | None, warnings: tuple[str, ...]
) -> EvaluationReport:
    from sklearn import metrics

    objective, names = model.objective, model.class_names
    labels = torch.from_numpy(y.astype(np.int64))
    predicted = objective.decide(outputs).numpy()
    loss = float(objective(outputs, objective.targets(labels, outputs.dtype)))
    every = np.arange(len(names))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        y, predicted, labels=every, zero_division=np.nan
    )
    figures = {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(np.nanmean(f1)),
        "balanced_accuracy": float(np.nanmean(recall)),
    }
    probability = None
    if len(names) == 2 and objective.has_probabilities:
        probability = objective.probabilities(outputs.double())[:, 1].numpy()
        figures["roc_auc"] = float(metrics.roc_auc_score(y, probability)) if 0 < y.sum() < len(y) else math.nan
    by_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(s)}
        for name, p, r, f, s in zip(names, precision, recall, f1, support, strict=True)
    }
    confusion = metrics.confusion_matrix(y, predicted, labels=every)
    return EvaluationReport(len(y), loss, figures, by_class, confusion, y, predicted, probability, dropped, warnings)


def _numbers(
    model: Model, outputs: Tensor, y: Array, dropped: int | None, warnings: tuple[str, ...]
) -> EvaluationReport:
    from sklearn import metrics

    predicted = model.in_units(outputs).numpy()
    scaled = model.target_scaling.apply(torch.from_numpy(y)).to(outputs.dtype)
    loss = float(in_own_units(model.objective, model.target_scaling)(outputs, scaled))

    def of(true: Array, found: Array) -> dict[str, float]:
        r2 = metrics.r2_score(true, found) if len(true) > 1 else math.nan
        return {
            "rmse": float(np.sqrt(np.square(true - found).mean())),
            "mae": float(np.abs(true - found).mean()),
            "r2": float(r2),
        }

    columns = {name: of(y[:, at], predicted[:, at]) for at, name in enumerate(model.target_names)}
    return EvaluationReport(
        len(y), loss, of(y, predicted), columns if len(columns) > 1 else {}, None, y, predicted, None, dropped, warnings
    )
