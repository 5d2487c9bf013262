"""Backpropagation as one loop: the page of the textbook that the whole library is about.

Nothing here but the equations, in the order in which a step takes them. Each call is one of them, computed into a
buffer that the layer already has:

==================  ==============================================  ===========================================
 call                equation                                        computed in
==================  ==============================================  ===========================================
 ``linear``          FWD: z^l = a^{l−1} (W^l)ᵀ + b^l                 ``layers.py``; ``packing.py``
 ``activate``        FWD: a^l = σ(z^l)                               ``layers.py``, ``ops/kernels.py``
 ``differentiate``   BP1, left factor: ∂C/∂a^L                       ``losses.py``
 ``bend``            BP1, BP2: δ^l = ∂C/∂a^l ⊙ σ'(z^l)               ``layers.py``, ``ops/kernels.py``
 ``pass_back``       BP2, left factor: ∂C/∂a^{l−1} = δ^l W^l         ``layers.py``
 ``descend``         BP3, BP4, SGD: θ ← θ − η ∂C/∂θ                  ``updates.py``
==================  ==============================================  ===========================================

Shapes: a^l, z^l and δ^l are [N, n_l]; W^l is [n_l, n_{l−1}], b^l is [n_l].
"""

from __future__ import annotations

from collections.abc import Sequence

from deltaprop.explicit.layers import Layer
from deltaprop.explicit.losses import Loss


def feed_forward(layers: Sequence[Layer]) -> None:
    """Compute z^l and a^l for l = 1 … L. Layer 1 has been shown the batch."""
    for layer in layers:
        layer.linear()  # FWD: z^l = a^{l−1} (W^l)ᵀ + b^l
        layer.activate()  # FWD: a^l = σ(z^l)


def back_propagate(layers: Sequence[Layer], loss: Loss) -> None:
    """Compute δ^l for l = L … 1; each layer learns as soon as nothing else needs the weights that FWD used.

    Args:
        layers: The lowest one that learns and all above it; below it nobody asks for δ.
        loss: It has been shown the batch's targets.
    """
    lowest, top = layers[0], layers[-1]
    loss.differentiate(top)  # BP1, left factor: ∂C/∂a^L
    for layer in reversed(layers):
        layer.bend()  # BP1, BP2: δ^l = ∂C/∂a^l ⊙ σ'(z^l)
        if layer is not lowest:
            layer.pass_back()  # BP2, left factor: ∂C/∂a^{l−1} = δ^l W^l
        layer.descend()  # BP3, BP4, SGD: W^l ← W^l − η (δ^l)ᵀ a^{l−1},  b^l ← b^l − η Σ_n δ^l_n
