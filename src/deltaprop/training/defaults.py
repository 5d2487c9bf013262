"""The values that ``auto`` stands for, once the data are loaded.

The recipe for tables and arrays of the user's own was chosen on one half of 60 tables and confirmed on the other
(docs/benchmarks.md): η 0.01 with momentum 0.9 and batches of 16, a cosine schedule, weight decay on weights alone, at
least 1000 steps; for classes the weights of the lowest validation loss. Images and the built-in data sets, which are
learnt almost without error, keep a constant η, no weight decay, 30 epochs and the final weights.

λ was settled on 50 other tables: 0.01 instead of 0.02 lowers the log loss of classes by 0.007 ± 0.004, and leaves
numbers as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from deltaprop.data import BUILTIN, Dataset
from deltaprop.training.config import TrainConfig

EPOCHS, FEWEST_STEPS = 30, 1000
TABLE_LR, TABLE_DECAY = 0.01, 0.01  # η and λ
MOST_DEVIATIONS = 20.0  # of a number from its mean: beyond them η is lower
VIEWS_EVERY = 5  # fewest epochs between two sets of views in TensorBoard, which cost more than a small table's epochs


def resolve_auto(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Return the configuration with a value for every ``auto`` that depends on the data, except η."""
    is_table = is_own_table(config.data, dataset)
    if config.lr_schedule == "auto":
        config = replace(config, lr_schedule="cosine" if is_table else "constant")
    if config.weight_decay == "auto":
        config = replace(config, weight_decay=TABLE_DECAY if is_table else 0.0)
    if config.epochs == "auto":
        steps = math.ceil(dataset.rows["train"] / config.batch_size)
        config = replace(config, epochs=usual_epochs(steps) if is_table else EPOCHS)
    if config.log_every == "auto":
        config = replace(config, log_every=max(VIEWS_EVERY, math.ceil(config.total_epochs / (3 if is_table else 6))))
    if config.weights == "auto":
        config = replace(config, weights=usual_weights(config.data, dataset))
    return config


def is_own_table(data: str, dataset: Dataset) -> bool:
    """Return whether these are a user's own table or arrays, and not images."""
    return data not in BUILTIN and dataset.image_shape is None


def usual_epochs(steps: int) -> int:
    """Return the number of epochs of ``steps`` steps each: at least 30, and at least 1000 steps.

    30 epochs of 200 rows are 390 steps, too few at η 0.01.

    Example:
        >>> usual_epochs(13), usual_epochs(100)
        (77, 30)
    """
    return max(EPOCHS, math.ceil(FEWEST_STEPS / steps))


def usual_weights(data: str, dataset: Dataset) -> Literal["best", "final"]:
    """Return the weights that ``weights="auto"`` stands for.

    On tables with classes those of the lowest validation loss are better, because the loss rises again where the
    accuracy does not; with numbers a few held-out rows select by chance.
    """
    is_best = is_own_table(data, dataset) and dataset.task == "classification" and dataset.rows["val"] > 0
    return "best" if is_best else "final"
