"""The mathematics: every formula of the library once. Imports torch alone (and ``_torch_compat``).

``ACTIVATIONS`` and ``LOSSES`` are the tables that everybody reads: a new one is one class and one row here. It then
has a module or works by name in the drivers, in ``deltaprop train`` and in every test over the table.
"""

from __future__ import annotations

from deltaprop.core import activations as _a
from deltaprop.core import losses as _l
from deltaprop.core.activations import Activation, Elementwise
from deltaprop.core.casting import Cast
from deltaprop.core.function import primitive
from deltaprop.core.linear import Linear
from deltaprop.core.losses import ElementwiseLoss, Loss

ACTIVATIONS: dict[str, type[Activation]] = {
    "step": _a.Step,
    "identity": _a.Identity,
    "relu": _a.ReLU,
    "leaky_relu": _a.LeakyReLU,
    "elu": _a.ELU,
    "gelu": _a.GELU,
    "silu": _a.SiLU,
    "softplus": _a.Softplus,
    "sigmoid": _a.Sigmoid,
    "tanh": _a.Tanh,
    "softmax": _a.Softmax,
    "log_softmax": _a.LogSoftmax,
}

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": _l.CrossEntropy,
    "binary_cross_entropy_with_logits": _l.BinaryCrossEntropy,
    "binary_cross_entropy_per_sample": _l.BinaryCrossEntropyPerSample,
    "mse_loss": _l.MSE,
    "quadratic_loss": _l.Quadratic,
    "huber_loss": _l.Huber,
    "l1_loss": _l.L1,
}

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "Activation",
    "Cast",
    "Elementwise",
    "ElementwiseLoss",
    "Linear",
    "Loss",
    "primitive",
]
