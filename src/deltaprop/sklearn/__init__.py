"""scikit-learn's face: a classifier and a regressor that the explicit driver trains.

They take the names and meanings of ``sklearn.neural_network`` where they mean the same thing, and a name of their own
where they do not. Inside is an :class:`~deltaprop.MLP`, ``model_``, to be looked into, saved and used like any.
"""

from deltaprop.sklearn.classifier import MLPClassifier
from deltaprop.sklearn.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
