"""The simplest predictions, which a model has to beat: the most frequent class, or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
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


def classes_baseline(counts: Sequence[int], names: Sequence[str], labels: Tensor) -> Baseline:
    """Return the baseline of labels [N], from the rows of each class in training."""
    majority = max(range(len(counts)), key=counts.__getitem__)
    return Baseline(names[majority], float((labels == majority).double().mean()))


def numbers_baseline(y: Tensor) -> Baseline:
    """Return the baseline of numbers [N, k], float64, in their own units."""
    return Baseline(rmse=float((y - y.mean(dim=0)).square().mean().sqrt()))


def class_counts(dataset: Dataset) -> list[int]:
    """Return the number of training rows of each class."""
    counts: list[int] = torch.bincount(dataset.train.y, minlength=len(dataset.class_names)).tolist()
    return counts


def test_baseline(dataset: Dataset) -> Baseline:
    """Return the baseline of the test rows of a data set."""
    if dataset.task == "regression":
        return numbers_baseline(raw_targets(dataset.test, dataset.target_scaling))
    return classes_baseline(class_counts(dataset), dataset.class_names, dataset.test.y)
