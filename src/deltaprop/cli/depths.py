"""``deltaprop depths``: how much of the error signal reaches each layer of nets of several depths, over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from deltaprop.cli.console import terminal
from deltaprop.cli.files import PICTURES, OutputFile
from deltaprop.cli.parsing import optional, read_arguments
from deltaprop.data import check_source
from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig
from deltaprop.training.depths import VARIANTS, DepthResult, Variant, configured, draw, measure_depth

VARIANTS_FLAG = optional(
    "ACTIVATION:INIT ...", " ".join(f"{variant.activation}:{variant.init}" for variant in VARIANTS)
)


@dataclass(frozen=True)
class Arguments:
    """Trains networks of several depths and prints the norm of δ in each layer, before and after training."""

    data: str = "digits"  # Data set, as for deltaprop train.
    depths: tuple[int, ...] = (2, 3, 4)  # Number of hidden layers of each network.
    width: int = 30  # Neurons of each hidden layer.
    #: Kinds of networks: the activation of the hidden layers and the initialisation of the weights.
    arms: Annotated[tuple[str, ...], VARIANTS_FLAG] = ()
    lr: float = 0.1  # Learning rate η.
    batch_size: int = 16  # Samples per step.
    epochs: int = 20  # Passes through the training data.
    seed: int = 42  # Seed of the split, the initial weights and the order of samples.
    picture: Annotated[Path | None, optional("FILE", "")] = None  # Plot the norms to this .png, .svg or .pdf file.


def main(words: Sequence[str]) -> int:
    """Train each net, print its norms, and plot them if asked."""
    arguments = read_arguments(Arguments, "depths", words)
    variants = [_read_variant(word) for word in arguments.arms] or list(VARIANTS)
    depths = arguments.depths
    if not depths or min(depths) < 1:
        raise UserError(f"--depths must be positive whole numbers, got {' '.join(map(str, depths)) or 'none'}")
    picture = OutputFile("--picture", arguments.picture, PICTURES)
    config = TrainConfig(
        data=arguments.data, lr=arguments.lr, batch_size=arguments.batch_size, epochs=arguments.epochs,
        seed=arguments.seed, momentum=0.0, weight_decay=0.0, lr_schedule="constant", log_every=0, device="cpu",
    )  # fmt: skip
    if arguments.width < 1:
        raise UserError(f"--width must be at least 1, got {arguments.width}")
    check_source(arguments.data)
    for variant in variants:
        configured(config, variant, 1, 1).validate()  # before the first net is trained
    console = terminal()
    console.print("norm of δ in layer 1, 2, … to the output, before and after training", style="bold")
    results = []
    for variant in variants:
        console.print(str(variant))
        for depth in dict.fromkeys(depths):
            results.append(measure_depth(config, variant, depth, arguments.width))
            console.print(_format_result(results[-1]))
    if picture.path is not None:
        settings = f"{arguments.data}, {arguments.width} wide, η {arguments.lr:g}"
        picture.write_figure(draw(results, f"How much of the error reaches each layer ({settings})"))
        console.print(f"picture {picture.path}")
    return 0


def _read_variant(word: str) -> Variant:
    """Return the variant of a word such as relu:kaiming; the configuration checks its names."""
    activation, colon, init = word.partition(":")
    if not colon:
        raise UserError(f"--arms must be ACTIVATION:INIT, such as relu:kaiming, got {word!r}")
    return Variant(activation, init)


def _format_result(result: DepthResult) -> str:
    """Return the norms of a net in two lines, and how they change from layer to layer, from the output to layer 1."""
    before, after = ("".join(f"{norm:>8.2g}" for norm in norms) for norms in (result.norms[0], result.norms[-1]))
    first, *_, last = result.norms[0]
    change = "nothing passes"
    if first > 0 and last > 0 and math.isfinite(first) and math.isfinite(last):
        factor = (first / last) ** (1 / result.depth)
        change = f"× {factor:.2g}: {'vanishes' if factor < 0.5 else 'explodes' if factor > 2 else 'kept'}"
    end = f"loss {result.loss:.3g}" if result.accuracy is None else f"{100 * result.accuracy:.0f} % right"
    head = f"  {result.depth} hidden  "
    return f"{head}before{before}  {change}\n{'after'.rjust(len(head) + 5)} {after}  {end}"
