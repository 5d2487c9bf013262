"""What a run minimises: a loss by name, on the targets it needs, and the figures people judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deltaprop import functional as F
from deltaprop.errors import UserError


@dataclass(frozen=True)
class Loss:
    """A row of the table of losses.

    Attributes:
        call: C from outputs and targets, a mean over samples.
        labels: Whether it takes labels; if not, classes are given one-hot.
        numbers: Whether it makes sense for targets that are numbers.
        contains: Output activations that it already contains.
        unit: Of C.
    """

    call: Callable[[Tensor, Tensor], Tensor]
    labels: bool = False
    numbers: bool = True
    contains: tuple[str, ...] = ()
    unit: str = ""


LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss(
        F.cross_entropy, labels=True, numbers=False, contains=("softmax", "log_softmax"), unit="nats"
    ),
    "binary-cross-entropy": Loss(F.binary_cross_entropy_per_sample, numbers=False, contains=("sigmoid",), unit="nats"),
    "mse": Loss(F.mse_loss),
    "quadratic": Loss(F.quadratic_loss),
    "huber": Loss(F.huber_loss),
    "l1": Loss(F.l1_loss),
}


@dataclass(frozen=True)
class Objective:
    """The loss of a run, bound to its kind of targets.

    Attributes:
        name: The loss's name.
        loss: Its row of the table.
        task: Whether targets are classes or numbers.
        classes: How many classes; 0 for numbers.
    """

    name: str
    loss: Loss
    task: Literal["classification", "regression"]
    classes: int = 0

    def targets(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the targets that the loss takes: labels as they are or one-hot [N, C]; numbers as they are."""
        if self.task == "regression" or self.loss.labels:
            return y
        return torch.nn.functional.one_hot(y, self.classes).to(dtype)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return C."""
        return self.loss.call(outputs, targets)


def choose_objective(
    name: str, task: Literal["classification", "regression"], classes: int, output_activation: str
) -> Objective:
    """Return the objective for a task; ``auto`` takes cross-entropy for classes and mse for numbers.

    Raises:
        UserError: If the loss does not fit the task, or already contains the output activation.
    """
    if name == "auto":
        name = "cross-entropy" if task == "classification" else "mse"
    loss = LOSSES[name]
    if task == "regression" and not loss.numbers:
        raise UserError(f"--loss {name} needs classes, but the data has numbers as targets: take mse, huber or l1")
    check_output_activation(name, output_activation)
    return Objective(name, loss, task, classes)


def check_output_activation(name: str, output_activation: str) -> None:
    """Refuse an output activation that the loss already contains: applied twice, it would train wrongly.

    Raises:
        UserError: If it does.
    """
    if output_activation in LOSSES[name].contains:
        raise UserError(
            f"--output-activation {output_activation} with --loss {name}: the loss already contains it; "
            "leave --output-activation out"
        )
