"""Backpropagation written by hand in PyTorch: as readable as the textbook, proved to the digit.

::

    import deltaprop as dp
    import deltaprop.functional as F

    model = dp.MLP([784, 30, 10], activation="sigmoid")
    optimizer = dp.SGD(model.parameters(), lr=0.5)
    loss = F.cross_entropy(model(x), y)
    loss.backward()   # every backward method written here
    optimizer.step()
"""

import importlib
from typing import TYPE_CHECKING, Any

from deltaprop import _old_names, core, functional, nn
from deltaprop._version import __version__ as __version__
from deltaprop.errors import UserError
from deltaprop.explicit import ExplicitTrainer
from deltaprop.gradcheck.check import check_gradients
from deltaprop.gradcheck.report import Check, GradientReport
from deltaprop.nn import (
    ELU,
    GELU,
    MLP,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    Perceptron,
    PerceptronFit,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Step,
    Tanh,
    from_torch,
    initialize,
    to_torch,
)
from deltaprop.optim import SGD, sgd_update
from deltaprop.tracing.trace import Trace, trace

if TYPE_CHECKING:
    from deltaprop.compiled import CompiledTrainer
    from deltaprop.inference import Model, load
    from deltaprop.sklearn import MLPClassifier, MLPRegressor
    from deltaprop.training import Result, TrainConfig, train

# Imported on first use: scikit-learn, and what trains or loads a run, take longer to import than all the rest.
_LATER = {
    "CompiledTrainer": "deltaprop.compiled",
    "MLPClassifier": "deltaprop.sklearn",
    "MLPRegressor": "deltaprop.sklearn",
    "Model": "deltaprop.inference",
    "Result": "deltaprop.training",
    "TrainConfig": "deltaprop.training",
    "load": "deltaprop.inference",
    "train": "deltaprop.training",
}


if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        if name in ("compiled", "data", "inference", "sklearn", "testing", "training") or name in _old_names.MOVED:
            return importlib.import_module(f"deltaprop.{name}")
        if any(name == activation.__name__ for activation in core.ACTIVATIONS.values()):
            return getattr(nn, name)  # an activation that was registered at run time
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "nn", "testing"])


__all__ = [
    "ELU", "GELU", "MLP", "SGD", "Check", "CompiledTrainer", "ExplicitTrainer", "GradientReport", "Identity",
    "LeakyReLU", "Linear", "LogSoftmax", "MLPClassifier", "MLPRegressor", "Model", "Perceptron", "PerceptronFit",
    "ReLU", "Result", "SiLU", "Sigmoid", "Softmax", "Softplus", "Step", "Tanh", "Trace", "TrainConfig", "UserError",
    "check_gradients", "from_torch", "functional", "initialize", "load", "sgd_update", "to_torch", "trace", "train",
]  # fmt: skip
