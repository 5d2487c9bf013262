"""The regressor: numbers as targets, one or several a row."""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from torch import Tensor

from deltaprop.core import LOSSES
from deltaprop.data.scaling import check_targets_fit
from deltaprop.errors import UserError
from deltaprop.nn.modules import MLP
from deltaprop.sklearn.base import MLPEstimator, as_tensor


@dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, MLPEstimator):
    """A regressor for scikit-learn: an MLP with an output for each target, trained by the δ recursion.

    With ``loss="quadratic_loss"``, ``standardize=False`` and the same initial weights and order of rows, its weights
    equal those of ``sklearn.neural_network.MLPRegressor`` (``solver="sgd"``, ``alpha=0``) digit by digit.

    Parameters and attributes are those of :class:`MLPClassifier`, except for classes and these:

    Args:
        loss: ``"mse_loss"``, Σ ‖a − y‖² / (N n_L); ``"quadratic_loss"``, Σ ‖a − y‖² / 2N, which is scikit-learn's;
            ``"huber_loss"``, which is linear from |a − y| = 1; or ``"l1_loss"``.
        dtype: The dtype of the net; predictions are float64.
        standardize: Whether to standardise each column of X and of the targets to mean 0 and deviation 1, by the
            training rows; the loss is that of standardised targets then, and predictions are transformed back.
            scikit-learn's own estimator does not, and needs a Pipeline and a TransformedTargetRegressor for it.

    Attributes:
        target_scaling_: The :class:`~deltaprop.data.Scaling` of the targets.
        validation_scores_: R² on the held-out rows, as ``best_validation_score_``.
        out_activation_: ``"identity"``.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = MLPRegressor((10,), tol=1e-3, random_state=0).fit(X, y)
        >>> model.score(X, y) > 0.5
        True
    """

    loss: str = "mse_loss"

    _losses: ClassVar[tuple[str, ...]] = tuple(name for name, loss in LOSSES.items() if loss.takes_numbers)
    _output: ClassVar[str] = "identity"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: ArrayLike, y: ArrayLike, *, sample_weight: ArrayLike | None = None) -> Self:
        """Train one epoch on these rows.

        Args:
            X: Inputs, [N, n_0].
            y: Numbers, [N] or [N, n_L].
            sample_weight: As in ``fit``.

        Returns:
            The estimator.

        Raises:
            UserError: As ``fit``; or with early stopping.
        """
        return self._partial_fit(X, y, None, sample_weight)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the targets, [N] or [N, n_L], in their own units; computed in float64."""
        outputs = self._outputs(X)
        targets = self.target_scaling_.invert(outputs).numpy()
        return targets.ravel() if targets.shape[1] == 1 else targets

    def _net(self) -> MLP:
        """Return the net in float64: float32 rounds a target relative to its size, however little it varies."""
        if self._made_by["dtype"] == "float64":
            return self.model_
        net = copy.deepcopy(self.model_)
        return (net.cpu() if next(net.parameters()).device.type == "mps" else net).double()  # mps has no float64

    def _validated(self, X: Any, y: Any, first: bool, classes: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs, and targets [N, n_L]; raise a UserError if n_L is not that of the model."""
        x, y = self._checked(X, y, first, y_numeric=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = np.ascontiguousarray(y, dtype=np.float64).reshape(len(x), -1)
        if not first and y.shape[1] != self.n_outputs_:
            raise UserError(f"y must hold {self.n_outputs_} targets per row, as in the first call, got {y.shape[1]}")
        return x, y

    def _fit_targets(self, y: NDArray[Any], weights: NDArray[np.float64] | None) -> int:
        outputs = int(y.shape[1])
        if self.standardize:
            check_targets_fit(y, ["y"] if outputs == 1 else [f"column {at + 1} of y" for at in range(outputs)])
        self.target_scaling_ = self._scaling(y, weights)
        return outputs

    def _targets(self, y: NDArray[Any]) -> Tensor:
        like = self._layers[0].weight
        return self.target_scaling_.apply(as_tensor(y)).to(like.device, like.dtype)

    def _loss(self, y: NDArray[Any], all_rows: bool, by_row: bool) -> str:
        return self.loss

    def _score(self, outputs: Tensor, targets: Tensor, weights: NDArray[np.float64] | None) -> float:
        return float(
            r2_score(targets.cpu(), outputs.cpu(), sample_weight=weights)
        )  # the same with and without standardisation
