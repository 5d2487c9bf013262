"""The objective of a run: a loss by name, the targets that it needs, and decisions and probabilities from outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from deltaprop import functional as F
from deltaprop.core import LOSSES, Loss
from deltaprop.errors import UserError, setting
from deltaprop.loss_spec import short_name


def losses() -> dict[str, str]:
    """Return the losses that a run can minimise: the row of ``core.LOSSES`` by the name on the command line.

    Binary cross-entropy as a mean over outputs is left out: it is the one per sample divided by their number.
    """
    return {short_name(row): row for row in LOSSES if row != "binary_cross_entropy_with_logits"}


@dataclass(frozen=True)
class Objective:
    """The loss of a run, for its kind of targets.

    Attributes:
        name: The name of the loss.
        loss: The definition of the loss.
        task: Whether targets are classes or numbers.
        call: C from outputs and targets, class weights included.
        classes: The number of classes; 0 in regression.
        one_logit: Whether two classes share one output, which is high for the second.
        output_activation: The activation of the output layer.
    """

    name: str
    loss: type[Loss]
    task: Literal["classification", "regression"]
    call: Callable[[Tensor, Tensor], Tensor]
    classes: int = 0
    one_logit: bool = False
    output_activation: str = "none"

    def targets(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the targets as the loss takes them: labels [N], one-hot [N, C], 0 and 1 [N, 1], or numbers."""
        if self.task == "regression" or (self.loss.takes_labels and not self.is_weighted):
            return y
        if self.one_logit:
            return y.unsqueeze(1).to(dtype)
        return torch.nn.functional.one_hot(y, self.classes).to(dtype)

    def scores(self, outputs: Tensor) -> Tensor:
        """Return a score for each class, [N, C]; the prediction is the class with the largest."""
        if not self.one_logit:
            return outputs
        is_logit = self.name == "binary-cross-entropy" or self.output_activation == "tanh"
        above = outputs - (0.0 if is_logit else 0.5)
        return torch.cat([-above, above], dim=1)

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the predicted class, [N]."""
        return self.scores(outputs).argmax(dim=1)

    @property
    def has_probabilities(self) -> bool:
        """Whether the model predicts probabilities: not in regression, nor with a loss such as mse."""
        if self.task == "regression":
            return False
        return self.name in ("cross-entropy", "binary-cross-entropy") or self.output_activation == "softmax"

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, [N, C], if the model predicts some.

        Cross-entropy: the softmax of the outputs. Binary cross-entropy: σ, for several outputs σ_j / Σ σ.
        """
        if self.name == "cross-entropy":
            return torch.softmax(outputs, dim=1)
        if self.name == "binary-cross-entropy":
            if self.one_logit:
                return torch.cat([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=1)
            # σ_j / Σ σ by log σ, which is finite where all σ round to 0
            return torch.softmax(torch.nn.functional.logsigmoid(outputs), dim=1)
        return outputs

    @property
    def is_weighted(self) -> bool:
        """Whether the loss has class weights."""
        return isinstance(self.call, partial)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return C."""
        return self.call(outputs, targets)


def choose_objective(
    name: str,
    task: Literal["classification", "regression"],
    classes: int,
    output_activation: str,
    *,
    one_logit: bool = False,
    class_weights: Tensor | None = None,
) -> Objective:
    """Return the objective for a task; ``auto`` takes cross-entropy for classes and mse for numbers.

    Args:
        name: The name of the loss, or ``"auto"``.
        task: Whether targets are classes or numbers.
        classes: The number of classes; 0 in regression.
        output_activation: The activation of the output layer.
        one_logit: Whether two classes share one output; ``auto`` is then binary cross-entropy.
        class_weights: The weight of each class in the loss, [C]; by default all are equal.

    Raises:
        UserError: If the loss does not fit the task, or already contains the output activation.
    """
    if name == "auto":
        name = "mse" if task == "regression" else "binary-cross-entropy" if one_logit else "cross-entropy"
    row = losses()[name]
    loss = LOSSES[row]
    if task == "regression" and not loss.takes_numbers:
        raise UserError(f"{setting('loss', name)} needs classes, but the target is numeric: take mse, huber or l1")
    check_output_activation(name, output_activation)
    if one_logit and (task == "regression" or classes != 2):
        raise UserError(f"`one_logit` is for two classes, and the data has {classes or 'a numeric target'}")
    if one_logit and loss.takes_labels:
        raise UserError(
            f"`one_logit` with {setting('loss', name)}, which needs an output per class: take binary-cross-entropy"
        )
    call: Callable[[Tensor, Tensor], Tensor] = getattr(F, row)
    if class_weights is not None:
        call = _weighted(name, one_logit, class_weights)
    return Objective(name, loss, task, call, classes, one_logit, output_activation)


def _weighted(name: str, one_logit: bool, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss with class weights: C = 1/N Σ_n w_{y_n} C_n.

    Cross-entropy then takes one-hot targets: with labels it would be divided by the sum of the weights in the batch, so
    that a batch of one would have no weight at all.
    """
    if name == "cross-entropy":
        return partial(F.cross_entropy, weight=weights)
    if name == "binary-cross-entropy" and one_logit:
        # weight applies to both classes, pos_weight to the second in addition
        return partial(F.binary_cross_entropy_with_logits, weight=weights[:1], pos_weight=weights[1:] / weights[:1])
    raise UserError(
        "`class_weight='balanced'` is for `loss='cross-entropy'`, or binary-cross-entropy with `one_logit`, "
        f"not for {name}"
    )


def balanced(counts: Sequence[int]) -> list[float]:
    """Return class weights that give all classes the same total weight: N / (C n_c).

    Source:
        G. King and L. Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9, 2001; scikit-learn's
        ``class_weight="balanced"``.

    Example:
        >>> balanced([1, 3])
        [2.0, 0.6666666666666666]
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def check_output_activation(name: str, output_activation: str) -> None:
    """Check that the loss does not already contain the output activation, which would then be applied twice.

    Raises:
        UserError: If it does.
    """
    if output_activation in LOSSES[losses()[name]].contains:
        raise UserError(
            f"{setting('output_activation', output_activation)} with {setting('loss', name)}: "
            "the loss already contains it; leave `output_activation` out"
        )
