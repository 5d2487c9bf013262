"""The simplest predictions, which a model has to beat: the most frequent class, or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltaprop.data import Dataset
from deltaprop.training.evaluate import raw_targets

FEW_ROWS = 20  # below, the share right on the test rows says little


@dataclass(frozen=True)
class Baseline:
    """The figures of the simplest predictions on some rows.

    Attributes:
        majority: The most frequent class of the training rows; None for numbers.
        accuracy: The share of the rows that are of this class; None for numbers.
        rmse: The root of the mean squared deviation of the targets from their mean on these rows, in their own units;
            R² compares a model with it. None for classes.
    """

    majority: str | None = None
    accuracy: float | None = None
    rmse: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def is_beaten_by(self, accuracy: float | None, r2: float | None) -> bool:
        """Return whether a model is better; True also where none could be, or where R² is undefined."""
        if self.accuracy is not None and accuracy is not None:
            return accuracy > self.accuracy or self.accuracy == 1
        return r2 is None or r2 > 0


def classes_baseline(counts: Sequence[int], names: Sequence[str], tested: Sequence[int]) -> Baseline:
    """Return the baseline of some rows, of which ``tested`` are of each class, from the rows of each in training."""
    majority = max(range(len(counts)), key=counts.__getitem__)
    return Baseline(names[majority], tested[majority] / sum(tested))


def numbers_baseline(y: Tensor) -> Baseline:
    """Return the baseline of numbers [N, k], float64, in their own units."""
    return Baseline(rmse=float((y - y.mean(dim=0)).square().mean().sqrt()))


def test_baseline(dataset: Dataset) -> Baseline:
    """Return the baseline of the test rows of a data set."""
    if dataset.task == "regression":
        if dataset.grouped is not None:
            return Baseline(rmse=float(dataset.grouped.moments["test"].variance.mean() ** 0.5))
        return numbers_baseline(raw_targets(dataset.test, dataset.target_scaling))
    return classes_baseline(dataset.class_counts("train"), dataset.class_names, dataset.class_counts("test"))
