"""Decide between two classes by a threshold on the probability of one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from deltaprop.data.columns import Numbers
from deltaprop.data.splits import Array, Rows
from deltaprop.errors import UserError, counted, listed, setting
from deltaprop.inference.model import Model

CHOSEN = {"f1": "highest F1", "balanced": "highest balanced accuracy"}  # on the validation rows


@dataclass(frozen=True)
class Threshold:
    """A row is of the positive class if the probability of that class is at least a value.

    Attributes:
        positive: The index of the positive class, 0 or 1.
        value: The least probability.
        chosen: How the value was chosen, a row of `CHOSEN`; empty if the user gave it.
        rows: The number of validation rows that it was chosen on.
    """

    positive: int
    value: float
    chosen: str = ""
    rows: int = 0

    def decide(self, model: Model, outputs: Tensor) -> Rows:
        """Return the class of each row, [N]."""
        is_positive = class_probability(model, outputs, self.positive) >= self.value
        return np.where(is_positive, self.positive, 1 - self.positive)

    def describe(self, model: Model) -> str:
        """Return the value and the class in words, and how the value was chosen."""
        chosen = f": {CHOSEN[self.chosen]} on {counted(self.rows, 'validation row')}" if self.chosen else ""
        return f"{self.value:.4g} for class {model.class_names[self.positive]!r}{chosen}"

    def to_json(self, model: Model) -> dict[str, Any]:
        """Return the threshold as JSON."""
        return {"class": model.class_names[self.positive], "probability": self.value, "chosen_by": self.chosen or None}


def class_probability(model: Model, outputs: Tensor, index: int) -> Numbers:
    """Return the probability of a class, [N], float64."""
    probability: Numbers = model.objective.probabilities(outputs.double().cpu())[:, index].numpy()
    return probability


def read_threshold(model: Model, value: str | None, positive: str | None) -> Threshold | None:
    """Return the threshold that the user asked for; None for none."""
    if value is not None:
        return find_threshold(model, value, positive)
    if positive is not None:
        raise UserError(f"{setting('positive', positive)}: it is used with {setting('threshold')}")
    return None


def find_threshold(model: Model, value: str | float, positive: str | None = None) -> Threshold:
    """Return a threshold for a model of two classes.

    Args:
        model: The model.
        value: A probability between 0 and 1; ``"f1"`` or ``"balanced"`` for the one with the highest F1 of the positive
            class, or balanced accuracy, on the validation rows of the run.
        positive: The name of the positive class; the second by default.

    Raises:
        UserError: If the model has no probabilities or not two classes, or the value is out of range.
    """
    where, names = setting("threshold", value), model.class_names
    if len(names) != 2:
        what = f"{len(names)} classes" if names else "numbers"
        raise UserError(f"{where}: a threshold is for two classes, and the model predicts {what}")
    if not model.objective.has_probabilities:
        raise UserError(f"{where}: the model was trained by the loss {model.objective.name}: it has no probabilities")
    if positive is not None and positive not in names:
        raise UserError(f"{setting('positive', positive)}: there is no such class (classes: {listed(names)})")
    index = 1 if positive is None else names.index(positive)
    if value in CHOSEN:
        if model.validation is None:
            raise UserError(
                f"{where}: the run folder has no outputs for validation rows, on which it would be chosen: give a "
                f"probability, or train again, with a {setting('val_fraction')} above 0"
            )
        outputs, labels = model.validation
        found = _best(class_probability(model, outputs, index), labels.numpy() == index, str(value))
        return Threshold(index, found, str(value), len(labels))
    number = float(value) if re.fullmatch(r"\d*\.?\d+([eE][+-]?\d+)?", str(value)) else -1.0
    if not 0 < number < 1:
        raise UserError(f"{where}: it must be a probability between 0 and 1, both excluded, or {' or '.join(CHOSEN)}")
    return Threshold(index, number)


def _best(probability: Numbers, is_positive: Array, by: str) -> float:
    """Return the threshold with the highest score on these rows; of equal ones the nearest to ½.

    Between two neighbouring probabilities the decisions are the same: their middle is tried.
    """
    values = np.unique(probability)
    tried = np.concatenate([[values[0] / 2], (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])
    tried = np.append(tried, 0.5)
    order = np.argsort(probability)
    positives = np.append(np.cumsum(is_positive[order][::-1])[::-1], 0)  # among the rows from each on
    first = np.searchsorted(probability[order], tried)  # the rows from here on are predicted positive
    right, predicted, total, rows = positives[first], len(order) - first, positives[0], len(order)
    if by == "f1":
        score = 2 * right / np.maximum(predicted + total, 1)
    else:
        recall = right / max(total, 1)
        score = recall + (rows - total - (predicted - right)) / max(rows - total, 1)
    best = tried[score >= score.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
