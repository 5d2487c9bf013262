"""Initial weights and biases, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from deltaprop.errors import unknown_name


def _torch(layer: nn.Linear) -> None:
    layer.reset_parameters()


def _xavier(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    _bias(layer, nn.init.zeros_)


def _kaiming(layer: nn.Linear) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    _bias(layer, nn.init.zeros_)


def _lecun(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    _bias(layer, nn.init.normal_)


def _normal(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight)
    _bias(layer, nn.init.normal_)


def _bias(layer: nn.Linear, fill: Callable[[Tensor], Tensor]) -> None:
    if layer.bias is not None:
        fill(layer.bias)


INITS: dict[str, Callable[[nn.Linear], None]] = {
    "torch": _torch,
    "xavier": _xavier,
    "kaiming": _kaiming,
    "lecun": _lecun,
    "normal": _normal,
}


def initialize(module: nn.Module, name: str) -> nn.Module:
    """Initialise every linear layer of a module in place, from PyTorch's global generator.

    =========  =================================================  ==========================================
     name       weights                                            biases
    =========  =================================================  ==========================================
     torch      U(−1/√n_in, 1/√n_in), PyTorch's default            the same
     xavier     U(−√(6/(n_in + n_out)), √(6/(n_in + n_out)))       0
     kaiming    N(0, 2/n_in)                                       0
     lecun      N(0, 1/n_in)                                       N(0, 1)
     normal     N(0, 1)                                            N(0, 1)
    =========  =================================================  ==========================================

    Args:
        module: Anything that holds ``torch.nn.Linear`` layers, ours or PyTorch's.
        name: A row of the table.

    Returns:
        The module.

    Raises:
        UserError: If the name is unknown.

    Source:
        xavier: Glorot & Bengio, AISTATS 2010; kaiming: He et al., arXiv 1502.01852 (2015); lecun and normal: Nielsen,
        Neural Networks and Deep Learning (2015), chapter 3, "Weight initialization".
    """
    if name not in INITS:
        raise unknown_name("initialisation", name, INITS)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            INITS[name](layer)
    return module
