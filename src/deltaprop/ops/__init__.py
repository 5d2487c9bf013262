"""Every formula of the library once, and the callables made of them. Imports torch alone.

``ACTIVATIONS`` is the table: a new activation is one class in ``activations.py`` and one row here. It then has a module
and works by name in ``MLP``, in ``train.py --activation`` and in every test over the table.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deltaprop.ops import activations as _a
from deltaprop.ops.activations import Activation, Elementwise
from deltaprop.ops.cross_entropy import CrossEntropy, SoftCrossEntropy, cross_entropy, smooth
from deltaprop.ops.linear import Linear
from deltaprop.ops.losses import L1, MSE, BinaryCrossEntropy, Huber, Quadratic, ResidualLoss
from deltaprop.ops.primitive import primitive
from deltaprop.ops.stack import Sigma, stack

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

activation: dict[str, Callable[..., Tensor]] = {name: primitive(op) for name, op in ACTIVATIONS.items()}
linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = primitive(Linear)
mse: Callable[..., Tensor] = primitive(MSE)
l1: Callable[..., Tensor] = primitive(L1)
huber: Callable[..., Tensor] = primitive(Huber)
quadratic: Callable[..., Tensor] = primitive(Quadratic)
binary_cross_entropy: Callable[..., Tensor] = primitive(BinaryCrossEntropy)
soft_cross_entropy: Callable[..., tuple[Tensor, Tensor]] = primitive(SoftCrossEntropy)

__all__ = [
    "ACTIVATIONS",
    "L1",
    "MSE",
    "Activation",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Elementwise",
    "Huber",
    "Linear",
    "Quadratic",
    "ResidualLoss",
    "Sigma",
    "SoftCrossEntropy",
    "activation",
    "binary_cross_entropy",
    "cross_entropy",
    "huber",
    "l1",
    "linear",
    "mse",
    "primitive",
    "quadratic",
    "smooth",
    "soft_cross_entropy",
    "stack",
]
