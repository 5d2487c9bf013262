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

from deltaprop import functional
from deltaprop.errors import UserError
from deltaprop.explicit import ExplicitTrainer
from deltaprop.initialization import initialize
from deltaprop.modules import (
    ELU,
    GELU,
    MLP,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Step,
    Tanh,
    from_torch,
    to_torch,
)
from deltaprop.optim import SGD, sgd_update
from deltaprop.perceptron import Perceptron, PerceptronFit
from deltaprop.verify.gradients import check_gradients
from deltaprop.verify.report import Check, GradientReport
from deltaprop.verify.trace import Trace, trace

if TYPE_CHECKING:
    from deltaprop.estimators import MLPClassifier, MLPRegressor
    from deltaprop.trained import Model, load

__version__ = "0.2.0.dev0"

# Brought in when they are first asked for: scikit-learn, and what reads a run, take longer to import than all the rest.
_LATER = {
    "MLPClassifier": "deltaprop.estimators",
    "MLPRegressor": "deltaprop.estimators",
    "Model": "deltaprop.trained",
    "load": "deltaprop.trained",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "ELU",
    "GELU",
    "MLP",
    "SGD",
    "Check",
    "ExplicitTrainer",
    "GradientReport",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "Perceptron",
    "PerceptronFit",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Step",
    "Tanh",
    "Trace",
    "UserError",
    "check_gradients",
    "from_torch",
    "functional",
    "initialize",
    "load",
    "sgd_update",
    "to_torch",
    "trace",
]
