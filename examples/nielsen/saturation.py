"""Saturated output neurons: ``python -m examples.nielsen.saturation RUN``.

RUN is the folder of a run of recipes/nielsen-quadratic-100.toml, or of another network with sigmoid outputs.

With the quadratic cost δ^L = (a − y) ⊙ σ'(z^L). Weights from N(0, 1) for 100 inputs make z^L of an output neuron large
for every image, and the first steps make it larger: at z = −15 its output is 0 for its own digit too, completely wrong,
but σ' = a (1 − a) is nearly 0, and so is δ. It may take many epochs to recover. With cross-entropy δ^L = a − y: the
larger the error, the faster it learns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltaprop.cli.errors import guarded
from deltaprop.errors import UserError
from deltaprop.tracing.capture import capture_layers
from deltaprop.training.load_run import load_run

# Loss and output activation of networks whose a^L is σ(z^L).
NETS = (("quadratic", "sigmoid"), ("binary-cross-entropy", "none"))


@dataclass(frozen=True)
class Unit:
    """Means of an output neuron over the images of its own class.

    Attributes:
        images: Number of images.
        right: Share of correct predictions.
        z: z^L.
        wrong: |a − y| = 1 − a.
        slope: σ'(z) = a (1 − a).
        delta: |δ| of an image without 1/N: |a − y| σ'(z) with the quadratic cost.
    """

    images: int
    right: float
    z: float
    wrong: float
    slope: float
    delta: float


def units(z: Tensor, delta: Tensor, y: Tensor) -> list[Unit]:
    """Return the means of each output neuron over the images of its class.

    Args:
        z: z^L of the sigmoid outputs, [N, n_L].
        delta: δ^L, including the 1/N of the mean loss, [N, n_L].
        y: Classes, [N].
    """
    a, result = z.sigmoid(), []
    for unit in range(a.shape[1]):
        own = y == unit
        mine = a[own, unit]
        result.append(
            Unit(
                int(own.sum()),
                float((a[own].argmax(dim=1) == unit).double().mean()),
                float(z[own, unit].mean()),
                float((1 - mine).mean()),
                float((mine * (1 - mine)).mean()),
                float(delta[own, unit].abs().mean()) * len(a),
            )
        )
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Print the means of each output neuron of a run over the images of its digit; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.nielsen.saturation", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run: sigmoid outputs and quadratic cost, or cross-entropy")
    run: Path = parser.parse_args(words).run
    torch.set_num_threads(1)
    try:
        setup = load_run(run)
        if (
            setup.objective.task != "classification"
            or (setup.objective.name, setup.config.output_activation) not in NETS
        ):
            actual = f"{setup.objective.name} on output activation {setup.config.output_activation}"
            raise UserError(f"{run}: its loss is {actual}; quadratic on sigmoid or binary-cross-entropy expected")
    except UserError as error:
        print(f"python -m examples.nielsen.saturation: {error}", file=sys.stderr)
        return 2
    test = setup.dataset.test
    x = test.inputs(slice(None))
    last = capture_layers(setup.model, setup.objective.call, x, setup.objective.targets(test.y, x.dtype))[-1]
    print(f"{run}: {setup.objective.name}. Means of each output neuron over the test images of its digit;")
    print("|δ| = |a − y|" + (" σ'(z)" if setup.objective.name == "quadratic" else ""))
    print("digit  images  right %      z  |a − y|   σ'(z)      |δ|")
    for digit, unit in enumerate(units(last.z, last.delta, test.y)):
        shares = f"{100 * unit.right:7.2f}  {unit.z:5.1f}  {unit.wrong:7.4f}"
        print(f"{digit:>5}  {unit.images:>6}  {shares}  {unit.slope:.1e}  {unit.delta:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
