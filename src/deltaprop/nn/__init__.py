"""Modules: the library's linear layer and activations as ``nn.Module``, the MLP, and Rosenblatt's perceptron.

An MLP is an ``nn.Sequential``; its state dict is that of the same layers of ``torch.nn``.
"""

from typing import TYPE_CHECKING, Any

from deltaprop.nn import modules
from deltaprop.nn.init import INITS, initialize
from deltaprop.nn.modules import (
    ELU,
    GELU,
    MLP,
    Activation,
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
    activation_module,
    from_torch,
    to_torch,
)
from deltaprop.nn.perceptron import Perceptron, PerceptronFit

__all__ = [
    "ELU", "GELU", "INITS", "MLP", "Activation", "Identity", "LeakyReLU", "Linear", "LogSoftmax", "Perceptron",
    "PerceptronFit", "ReLU", "SiLU", "Sigmoid", "Softmax", "Softplus", "Step", "Tanh", "activation_module",
    "from_torch", "initialize", "to_torch",
]  # fmt: skip


if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        if name.startswith("_") or name in vars(modules):  # what modules.py itself imports is not ours to give
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(modules, name)  # the module of an activation that was registered at run time
