"""A classifier and a regressor for scikit-learn, trained by the δ recursion, explicit or compiled.

Parameters have the names of ``sklearn.neural_network`` if they have the same meaning, and other names if not. The
fitted :class:`~deltaprop.MLP` is the attribute ``model_``; it can be saved and used like any other.
"""

from deltaprop.sklearn.classifier import MLPClassifier
from deltaprop.sklearn.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
