"""The mathematics: every formula of the library once. Imports torch alone (and ``_torch_compat``).

``ACTIVATIONS`` and ``LOSSES`` list the definitions by name. A new one is one class and one row here: its module, the
engines, ``deltaprop train`` and the tests over the table follow from the row.
"""

from __future__ import annotations

from deltaprop.core import activations as _a
from deltaprop.core.activations import Activation, Elementwise
from deltaprop.core.casting import Cast
from deltaprop.core.function import primitive
from deltaprop.core.linear import Linear
from deltaprop.core.losses import (
    L1,
    MSE,
    BinaryCrossEntropy,
    BinaryCrossEntropyPerSample,
    CrossEntropy,
    ElementwiseLoss,
    Huber,
    Loss,
    Quadratic,
)

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
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy_with_logits": BinaryCrossEntropy,
    "binary_cross_entropy_per_sample": BinaryCrossEntropyPerSample,
    "mse_loss": MSE,
    "quadratic_loss": Quadratic,
    "huber_loss": Huber,
    "l1_loss": L1,
}

__all__ = [
    "ACTIVATIONS", "L1", "LOSSES", "MSE", "Activation", "BinaryCrossEntropy", "BinaryCrossEntropyPerSample", "Cast",
    "CrossEntropy", "Elementwise", "ElementwiseLoss", "Huber", "Linear", "Loss", "Quadratic", "primitive",
]  # fmt: skip
