"""What keeps layers from learning at the end of a run: dead units, saturated units, or a δ that vanishes.

Measured on a sample of the training rows by the recursion that trains (``core/recursion.py``), without an update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltaprop.core import Elementwise
from deltaprop.core.recursion import Layer
from deltaprop.errors import counted, setting
from deltaprop.tracing.capture import capture_layers, delta_norm
from deltaprop.training.setup import Setup

SAMPLE = 1024  # training rows, evenly spaced
MOST = 0.9  # share of a layer's units, or of their values, from which on there is a note
FLAT = 0.005  # of the largest |σ'|: a value with less is saturated; leaky_relu's is never below 0.01
VANISHED = 1e-6  # of the norm of δ^L


def health_note(setup: Setup) -> str | None:
    """Return one line about the layer that learns least, and what to try; None if all layers learn.

    Args:
        setup: The setup of a run, its model trained.
    """
    part, objective, config = setup.dataset.train, setup.objective, setup.config
    rows = torch.linspace(0, len(part) - 1, min(SAMPLE, len(part)), dtype=torch.float64).round().long()
    x, y = part.inputs(rows.to(part.y.device)), part.y[rows.to(part.y.device)]
    layers = capture_layers(setup.model, objective.call, x, objective.targets(y, x.dtype))
    problem = find_problem(layers, config.activations, len(rows))
    if problem is None:
        return None
    number, text, remedies = problem
    lower = f"a lower {setting('lr')} (it is {config.rate:g})"
    return f"layer {number} learns little: {text}; try {', '.join([lower, *remedies])}"


def find_problem(
    layers: Sequence[Layer], activations: Sequence[str], rows: int
) -> tuple[int, str, tuple[str, ...]] | None:
    """Return the number of the worst layer, what is wrong with it and what may help; None if nothing is.

    Layers without a derivative anywhere, of the step function, are not trained at all, which is said at the start.

    Args:
        layers: All layers after back-propagation; the last is the output layer.
        activations: The activations of the hidden ones.
        rows: The number of rows.
    """
    hidden = [*zip(range(1, len(layers)), layers, activations, strict=False)]
    worst, found = 0.0, None
    for number, layer, name in hidden:
        share, text = _dead(layer, name, rows) if name in ("relu",) else _saturated(layer, name)
        if share >= MOST and share > worst:
            other = "leaky_relu" if name == "relu" else "relu"
            worst, found = share, (number, text, (setting("init", "kaiming"), f"or {setting('activation', other)}"))
    if found is not None or "step" in activations:
        return found
    top = delta_norm(layers[-1])
    for number, layer, _ in hidden:
        if top > 0 and delta_norm(layer) < VANISHED * top:
            ratio = delta_norm(layer) / top
            text = f"the norm of its δ is {ratio:.1g} of the output layer's"
            remedies = (setting("init", "kaiming"), f"or {setting('activation', 'relu')} with fewer layers")
            return number, text, remedies
    return None


def _dead(layer: Layer, name: str, rows: int) -> tuple[float, str]:
    """Return the share of units that are positive on no row."""
    dead = ~(layer.a > 0).any(dim=0)
    of = f"{int(dead.sum())} of its {counted(len(dead), f'{name} unit')} are positive on none of {rows} training rows"
    return float(dead.double().mean()), f"{of} (dead)"


def _saturated(layer: Layer, name: str) -> tuple[float, str]:
    """Return the share of values where σ' is nearly 0; 0 where σ' is a matrix, or 0 everywhere."""
    op, derivative = layer.activation, layer.derivative()
    if op is None or derivative is None or not issubclass(op, Elementwise):
        return 0.0, ""
    grid = torch.linspace(-8, 8, 1601, dtype=layer.z.dtype, device=layer.z.device)
    saved = op.forward(grid, *layer.constants) if op.from_output else grid
    largest = op.derivative(saved, *layer.constants).abs().max()
    share = float((derivative.abs() < FLAT * largest).double().mean())
    return share, f"{100 * share:.0f} % of the values of its {name} units are where σ' is nearly 0 (saturated)"
