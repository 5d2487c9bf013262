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

__version__ = "0.1.0"

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
    "sgd_update",
    "to_torch",
    "trace",
]
