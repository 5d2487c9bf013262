"""The classifier: cross-entropy over a logit for each class."""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from deltaprop import functional as F
from deltaprop.errors import UserError
from deltaprop.sklearn.base import MLPEstimator, as_tensor
from deltaprop.sklearn.labels import plain_labels


@dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, MLPEstimator):
    """A classifier for scikit-learn: an MLP with a logit for each class, trained by the δ recursion.

    It minimises cross-entropy by stochastic gradient descent. With three classes or more, ``standardize=False``, and
    the same initial weights and order of rows, its weights equal those of ``sklearn.neural_network.MLPClassifier``
    (``solver="sgd"``, ``alpha=0``) digit by digit after each step, and it stops at the same epoch.

    Args:
        hidden_layer_sizes: n_1 … n_{L−1}; a number for one hidden layer, () for none.
        activation: Activation of the hidden layers: a name of ``core.ACTIVATIONS``, or scikit-learn's ``"logistic"``
            for sigmoid.
        batch_size: Rows per step; ``"auto"`` for min(16, N).
        learning_rate: ``"cosine"``: in ``fit`` η falls to nearly 0 along half a period of the cosine, over
            ``max_iter`` epochs; or ``"constant"``, as in every ``partial_fit``.
        learning_rate_init: The learning rate η, at the beginning.
        max_iter: The maximum number of epochs; None for 30, or as many as 1000 steps take.
        shuffle: Whether to shuffle the rows in each epoch.
        random_state: Seed of initial weights, order and held-out rows, or a NumPy ``RandomState`` to draw it from;
            None for another one each time. NumPy's and PyTorch's global generators are neither read nor changed.
        tol: An epoch improves if it lowers the best loss (with early stopping raises the best score) by at least this.
            The loss stops the training of a constant η only: with a cosine schedule the last epochs count most.
        verbose: Whether to print the loss of each epoch.
        warm_start: Whether ``fit`` starts from the present weights and scaling.
        momentum: μ.
        nesterovs_momentum: Whether to use Nesterov's momentum.
        early_stopping: Whether to hold rows out, score each epoch on them, and keep the best weights.
        validation_fraction: The fraction of the rows to hold out for early stopping, of each class in proportion.
        n_iter_no_change: Stop after more than this number of epochs without improvement.
        weight_decay: λ: λ W is added to ∂C/∂W. (scikit-learn's ``alpha`` is first divided by the rows of the batch.)
        init: Initialization of the weights; a name for :func:`~deltaprop.initialize`.
        dtype: ``"float32"`` or ``"float64"``, of the net and its outputs.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``; ``"auto"`` for the best available.
        standardize: Whether to standardise each column of X to mean 0 and deviation 1, by the training rows
            (``partial_fit``: by those of the first call); a column of only 0 and 1 stays as it is. scikit-learn's own
            estimator does not, and needs a Pipeline with a StandardScaler for it.
        class_weight: Weight of the rows of each class: a dictionary, ``"balanced"`` for N / (C n_c), or None for equal
            weights. The loss of a batch is Σ w c / Σ w, as with scikit-learn's ``sample_weight``.
        loss: ``"cross_entropy"``, in nats.

    Attributes:
        classes_: The labels, sorted, [C].
        model_: The :class:`~deltaprop.MLP`, from standardised inputs to logits.
        input_scaling_: The :class:`~deltaprop.data.Scaling` of the inputs.
        coefs_: W of each layer as scikit-learn has it, [n_in, n_out], of the net on standardised inputs.
        intercepts_: b of each layer, [n_out].
        loss_: The mean loss of the last epoch, of each batch before its step.
        best_loss_: The smallest loss of an epoch; None with early stopping.
        loss_curve_: The loss of each epoch; a warm start or a ``partial_fit`` appends to it.
        validation_scores_: With early stopping the accuracy on the held-out rows after each epoch; else None.
        best_validation_score_: The score of the weights that were kept; None without early stopping.
        n_iter_: The number of epochs of the last call.
        engine_: What trained in the last call: ``"compiled"`` for at least 2^15 steps, if there is a C++ compiler, else
            ``"explicit"``.
        n_layers_: The number of layers, inputs and outputs included.
        n_outputs_: C; for two classes 2, where scikit-learn has 1.
        out_activation_: ``"softmax"``.
        n_features_in_: n_0.
        feature_names_in_: The names of X's columns, if all have one.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = MLPClassifier((10,), tol=1e-3, random_state=0).fit(X, y)
        >>> model.score(X, y) > 0.95
        True
    """

    class_weight: Mapping[Any, float] | str | None = None
    loss: str = "cross_entropy"

    _losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    _output: ClassVar[str] = "softmax"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False  # a softmax gives one class a row
        return tags

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train one epoch on these rows.

        Args:
            X: Inputs, [N, n_0].
            y: Labels, [N].
            classes: All labels of this and of later calls; the first call needs them.
            sample_weight: As in ``fit``.

        Returns:
            The estimator.

        Raises:
            UserError: As ``fit``; if ``classes`` are missing or have changed, or with early stopping or balanced
                weights.
        """
        if classes is None and not hasattr(self, "model_"):
            raise UserError("the first partial_fit needs classes: all labels of this and of later calls")
        return self._partial_fit(X, y, classes, sample_weight)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of the largest logit, [N]."""
        indices = self._outputs(X).argmax(dim=1).numpy()
        labels: NDArray[Any] = self.classes_[indices]
        return labels

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the probability of each class, [N, C], in the order of ``classes_``."""
        return torch.softmax(self._outputs(X), dim=1).numpy()

    def predict_log_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logarithms of the probabilities, [N, C], nats; finite even where a probability rounds to 0."""
        return torch.log_softmax(self._outputs(X), dim=1).numpy()

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logits, [N, C]; for two classes their difference, [N], positive for the second class."""
        z = self._outputs(X)
        return (z[:, 1] - z[:, 0] if z.shape[1] == 2 else z).numpy()

    def _validated(self, X: Any, y: Any, first: bool, classes: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs, and labels as indices of ``classes_``; raise a UserError for labels that do not fit."""
        y, classes = exact_integers(y), exact_integers(classes)
        x, y = self._checked(X, plain_labels(y), first)
        if y.ndim == 2 and y.shape[1] > 1:
            instead = "for several (multilabel) take sklearn.multioutput.MultiOutputClassifier"
            raise UserError(f"y must hold one label per row, got {list(y.shape)}; {instead}")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        labels = np.unique(y if classes is None else plain_labels(classes))
        if first:
            if len(labels) < 2:
                raise UserError(f"y must hold two classes or more, got one class: {labels.tolist()[0]!r}")
            self.classes_ = labels
        elif classes is not None and not np.array_equal(labels, self.classes_):
            raise UserError(f"classes must be those of the first call, {self.classes_.tolist()}, got {labels.tolist()}")
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise UserError(f"labels must be among the classes {self.classes_.tolist()}, got {unknown.tolist()}")
        return x, np.searchsorted(self.classes_, y)

    def _fit_targets(self, y: NDArray[Any], weights: NDArray[np.float64] | None) -> int:
        return len(self.classes_)

    def _targets(self, y: NDArray[Any]) -> Tensor:
        return as_tensor(y).to(self._layers[0].weight.device)

    def _loss(self, y: NDArray[Any], all_rows: bool, by_row: bool) -> Callable[..., Tensor]:
        if self.class_weight is None or by_row:
            return F.cross_entropy
        like = self._layers[0].weight
        weights = torch.from_numpy(self._class_weights(y, np.ones(len(y)), all_rows)).to(like.device, like.dtype)
        return partial(F.cross_entropy, weight=weights)

    def _class_factors(self, y: NDArray[Any], weights: NDArray[np.float64], all_rows: bool) -> NDArray[np.float64]:
        if self.class_weight is None:
            return np.ones(len(y))
        factors: NDArray[np.float64] = self._class_weights(y, weights, all_rows)[y]
        return factors

    def _class_weights(self, y: NDArray[Any], weights: NDArray[np.float64], all_rows: bool) -> NDArray[np.float64]:
        """Return the weight of each class, [C]; ``"balanced"`` is Σ w / (C Σ w of its rows)."""
        by_class: NDArray[np.float64]
        if self.class_weight == "balanced":
            if not all_rows:
                raise UserError("class_weight='balanced' needs all rows at once: give partial_fit a dictionary")
            totals = np.bincount(y, weights, minlength=len(self.classes_))
            by_class = weights.sum() / (np.count_nonzero(totals) * np.where(totals > 0, totals, 1.0))
            return by_class
        by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[y])
        if not (by_class > 0).all():
            raise UserError(f"class_weight must be above 0 for each class, got {by_class.tolist()}")
        return by_class

    def _score(self, outputs: Tensor, targets: Tensor, weights: NDArray[np.float64] | None) -> float:
        right = (outputs.argmax(dim=1) == targets).double().cpu().numpy()
        return float(np.average(right, weights=weights))


def exact_integers(labels: Any) -> Any:
    """Return labels as they are, or Python integers beyond ±2^53 as int64 or uint64, where NumPy may take float64.

    Raises:
        UserError: If neither holds them all.
    """
    values: list[Any] = [*labels] if isinstance(labels, list | tuple) else []
    if isinstance(labels, np.ndarray) and labels.dtype == object:
        values = labels.ravel().tolist()
    whole = bool(values) and all(isinstance(value, int | np.integer) for value in values)
    if not whole or max(abs(int(value)) for value in values) <= 2**53:
        return labels
    for dtype in (np.int64, np.uint64):
        with contextlib.suppress(OverflowError):
            return np.array([int(value) for value in values], dtype=dtype)
    least, most = min(map(int, values)), max(map(int, values))
    raise UserError(f"labels from {least} to {most} fit in neither int64 nor uint64: give them as text")
