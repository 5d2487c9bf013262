"""A trainer whose library has the activations of all tests, so that a few libraries serve them."""

from __future__ import annotations

from typing import Any

import deltaprop as dp
from deltaprop.compiled.source import distinct_activations
from deltaprop.core.recursion import Layer
from deltaprop.nn.layers import read_layers

NAMES = ("elu", "gelu", "identity", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "step", "tanh")


class SharedTrainer(dp.CompiledTrainer):
    """CompiledTrainer, with a library for more activations than the model has."""

    def _activations(self) -> list[Layer]:
        several = read_layers(dp.MLP([1] * (len(NAMES) + 2), list(NAMES)))
        constants = dp.MLP([1, 1, 1, 1], [dp.LeakyReLU(0.3), dp.Softplus(2.0, 3.0)])
        return distinct_activations([*several, *read_layers(constants), *super()._activations()])


explicit = dp.ExplicitTrainer


def compiled_trainer(model: Any, loss: Any, optimizer: Any, **options: Any) -> Any:
    """Return a compiled trainer, or an explicit one where the derivative of an activation is a matrix."""
    try:
        return SharedTrainer(model, loss, optimizer, **options)
    except dp.UserError as refused:
        if "softmax: its derivative is a matrix" not in str(refused):
            raise
        return explicit(model, loss, optimizer, **options)
