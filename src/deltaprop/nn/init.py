"""Initial weights and biases, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from deltaprop.errors import unknown_name


def _fill(weight: Callable[[Tensor], Tensor], bias: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear], None]:
    def fill(layer: nn.Linear) -> None:
        weight(layer.weight)
        if layer.bias is not None:
            bias(layer.bias)

    return fill


INITS: dict[str, Callable[[nn.Linear], None]] = {
    "torch": nn.Linear.reset_parameters,
    "xavier": _fill(nn.init.xavier_uniform_, nn.init.zeros_),
    "kaiming": _fill(partial(nn.init.kaiming_normal_, nonlinearity="relu"), nn.init.zeros_),
    "lecun": _fill(lambda weight: nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1])), nn.init.normal_),
    "normal": _fill(nn.init.normal_, nn.init.normal_),
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
