"""``deltaprop depths``: how much of the error signal reaches each layer, for nets of some depths, over training."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deltaprop.cli.files import check_file, write_file
from deltaprop.cli.parsing import read_flags
from deltaprop.data import check_source
from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig
from deltaprop.training.depths import VARIANTS, DepthResult, Variant, configured, draw, measure_depth

DESCRIPTION = """Watch gradients vanish and explode: the norm of δ in each layer, before training and in its course, for
nets of 2, 3 and 4 hidden layers: of sigmoid, of relu, of relu with an initialisation that keeps the norm, and of relu
with weights that are too large.

--picture draws it. Exit codes: 0 done, 2 wrong input."""

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Arguments:
    """What to watch.

    Attributes:
        data: What to learn, as for deltaprop train.
        depths: Hidden layers of each net.
        width: Neurons of each hidden layer.
        arms: ACTIVATION:INIT, ways to build a net; by default sigmoid:torch relu:torch relu:kaiming relu:normal.
        lr: Learning rate η.
        batch_size: Samples per step.
        epochs: Passes through the training data.
        seed: Of the split, the initial weights and the order of samples.
        picture: A file for the picture: .png, .svg or .pdf.
    """

    data: str = "digits"
    depths: tuple[int, ...] = (2, 3, 4)
    width: int = 30
    arms: tuple[str, ...] = ()
    lr: float = 0.1
    batch_size: int = 16
    epochs: int = 20
    seed: int = 42
    picture: Path | None = None


def main(words: Sequence[str]) -> int:
    """Train, tell, draw, and return 0.

    Raises:
        UserError: If the flags do not fit each other or the data.
    """
    arguments = read_flags(Arguments, "depths", words, DESCRIPTION)
    arms = [read_arm(word) for word in arguments.arms] or list(VARIANTS)
    if not arguments.depths or min(arguments.depths) < 1:
        given = " ".join(map(str, arguments.depths)) or "none"
        raise UserError(f"--depths must be positive whole numbers, got {given}")
    check_file("--picture", arguments.picture)
    if arguments.picture is not None and arguments.picture.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {arguments.picture}: the name must end in {', '.join(FORMATS)}")
    config = TrainConfig(
        data=arguments.data, lr=arguments.lr, batch_size=arguments.batch_size, epochs=arguments.epochs,
        seed=arguments.seed, momentum=0.0, log_every=0, device="cpu",
    )  # fmt: skip
    if arguments.width < 1:
        raise UserError(f"--width must be at least 1, got {arguments.width}")
    check_source(arguments.data)
    for arm in arms:
        configured(config, arm, 1, 1).validate()  # before the first is trained
    console = Console(highlight=False)
    console.print("norm of δ in layer 1, 2, … to the output, before training and after it", style="bold")
    found = []
    for arm in arms:
        console.print(str(arm))
        for depth in dict.fromkeys(arguments.depths):
            found.append(measure_depth(config, arm, depth, arguments.width))
            for line in lines_of(found[-1]):
                console.print(line, markup=False, soft_wrap=True)
    if arguments.picture is not None:
        of = f"{arguments.data}, {arguments.width} wide, η {arguments.lr:g}"
        title = f"How much of the error reaches each layer ({of})"
        picture = io.BytesIO()
        draw(found, title).savefig(picture, format=arguments.picture.suffix[1:].lower())
        write_file("--picture", arguments.picture, picture.getvalue())
        console.print(f"picture {arguments.picture}", markup=False)
    return 0


def read_arm(word: str) -> Variant:
    """Return the variant that a word such as relu:kaiming stands for; its names are checked with the configuration.

    Raises:
        UserError: If it has no colon.
    """
    activation, colon, init = word.partition(":")
    if not colon:
        raise UserError(f"--arms must be ACTIVATION:INIT, such as relu:kaiming, got {word!r}")
    return Variant(activation, init)


def lines_of(result: DepthResult) -> list[str]:
    """Return what was seen of a net, in two lines."""
    before, after = ("".join(f"{norm:>8.2g}" for norm in norms) for norms in (result.norms[0], result.norms[-1]))
    end = f"loss {result.loss:.3g}" if result.accuracy is None else f"{100 * result.accuracy:.0f} % right"
    return [
        f"  {result.depth} hidden  before{before}  {in_words(result.norms[0])}",
        f"  {' ' * len(str(result.depth))}         after {after}  {end}",
    ]


def in_words(norms: Sequence[float]) -> str:
    """Return by what factor the norm changes from layer to layer, downwards from the output to layer 1."""
    first, last = norms[0], norms[-1]
    if not (first > 0 and last > 0 and math.isfinite(first) and math.isfinite(last)):
        return "nothing passes"
    factor = (first / last) ** (1 / (len(norms) - 1))
    return f"× {factor:.2g}: {'vanishes' if factor < 0.5 else 'explodes' if factor > 2 else 'kept'}"
