"""A trained model as an estimator of scikit-learn: in its metrics, inspection and calibration.

The estimator is fitted from the beginning. A clone of it is not, and its ``fit`` trains the network of the run again.
"""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if

from deltaprop.data.frames import frame_table
from deltaprop.data.splits import Array
from deltaprop.errors import UserError


class RunEstimator(BaseEstimator):
    """What the classifier and the regressor of a run share.

    Args:
        model: The :class:`~deltaprop.inference.Model`; its settings are those of ``fit``.

    Attributes:
        model_: The model that predicts.
        n_features_in_: The number of its columns.
        feature_names_in_: Their names, if it was trained on a table.
    """

    model_: Any  # a Model, as is the parameter; its module imports this one

    def __init__(self, model: Any) -> None:
        self.model = model

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_clone__(self) -> Self:
        return type(self)(self.model)  # the model is shared: it never changes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        encoding = self.model.encoding
        if encoding is not None:
            tags.input_tags.string = tags.input_tags.categorical = bool(encoding.categories)
            tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = not self.model.class_names and len(self.model.target_names) > 1
        return tags

    def _use(self, model: Any) -> Self:
        """Predict with a model."""
        self.model_ = model
        if model.encoding is None:
            self.n_features_in_ = len(model.input_scaling.mean)
        else:
            names = [*dict.fromkeys(column.source or column.name for column in model.encoding.inputs)]
            self.n_features_in_, self.feature_names_in_ = len(names), np.array(names, dtype=object)
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Train the network of the run again on these rows, with its settings; the run itself does not change.

        Args:
            X: A table with the columns of the run (a DataFrame, a dict), or an array [N, n] if it was trained on one.
            y: Labels, [N], or numbers, [N] or [N, k].

        Raises:
            UserError: If the data do not fit.
        """
        return self._use(self.model.retrained(_as_columns(X, self.model), y))

    def predict(self, X: Any) -> Array:
        """Return the class of each row, [N], or its numbers, [N] or [N, k]."""
        predicted: Array = self._fitted.predict(_as_columns(X, self._fitted))
        return predicted

    @property
    def _fitted(self) -> Any:
        if not hasattr(self, "model_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is a clone that is not fitted yet: call fit")
        return self.model_


class RunClassifier(ClassifierMixin, RunEstimator):
    """The classifier of a run, which ``dp.load(run).as_sklearn()`` returns.

    Attributes:
        classes_: The classes, [C], sorted, in the order of the probabilities.
    """

    @property
    def classes_(self) -> Array:
        """The classes, [C], sorted, as scikit-learn requires: whole numbers, False and True, or text."""
        names = np.sort(self._fitted.classes)
        return np.array([False, True]) if names.tolist() == ["False", "True"] else names

    def predict(self, X: Any) -> Array:
        """Return the class of each row, [N]."""
        labels = super().predict(X)
        return labels == "True" if self.classes_.dtype.kind == "b" else labels

    @available_if(lambda self: self.model.objective.has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, [N, C], in the order of ``classes_``."""
        probabilities: Array = self._fitted.predict_proba(_as_columns(X, self._fitted))
        return probabilities[:, np.argsort(self._fitted.classes)]


class RunRegressor(RegressorMixin, RunEstimator):
    """The regressor of a run, which ``dp.load(run).as_sklearn()`` returns."""


def estimator_of(model: Any) -> RunClassifier | RunRegressor:
    """Return a fitted estimator that predicts with a model."""
    return (RunClassifier if model.class_names else RunRegressor)(model)._use(model)


def _as_columns(X: Any, model: Any) -> Any:
    """Return a table, also of an array with the columns of the run in their order; an array if it was trained on one.

    Raises:
        UserError: If an array has another number of columns.
    """
    if model.encoding is None:
        return X
    names = [*dict.fromkeys(column.source or column.name for column in model.encoding.inputs)]
    if isinstance(X, np.ndarray) and (X.ndim != 2 or X.shape[1] != len(names)):
        raise UserError(f"X must be [N, {len(names)}], the columns of the run, got {list(X.shape)}")
    return frame_table(X, names).table
