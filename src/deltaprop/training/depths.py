"""Vanishing and exploding gradients made visible: the norm of δ in each layer, over training, for nets of some depths.

Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 5, draws the same of sigmoid nets; Glorot and Bengio,
AISTATS 2010, and He et al., arXiv 1502.01852 (2015), give the initialisations that keep the norm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deltaprop.tracing.capture import capture_layers, delta_norm
from deltaprop.training.config import TrainConfig
from deltaprop.training.data_loader import DataLoader
from deltaprop.training.devices import set_threads
from deltaprop.training.engines import train_epoch
from deltaprop.training.evaluate import evaluate
from deltaprop.training.report.plots import COLOURS
from deltaprop.training.report.tensorboard import PROBE_ROWS
from deltaprop.training.setup import make_optimizer, prepare

MARKERS = "os^DvP*X"


@dataclass(frozen=True)
class Variant:
    """A way to build a net.

    Attributes:
        activation: Of the hidden layers.
        init: How weights are drawn.
    """

    activation: str
    init: str

    def __str__(self) -> str:
        """Return both names."""
        return f"{self.activation}, {self.init}"


VARIANTS = (
    Variant("sigmoid", "torch"),
    Variant("relu", "torch"),
    Variant("relu", "kaiming"),
    Variant("relu", "normal"),
)


@dataclass(frozen=True)
class DepthResult:
    """What was seen of one net.

    Attributes:
        arm: How it was built.
        depth: Hidden layers.
        norms: The norm of δ (the mean over samples of ‖∂C_n/∂z^l‖) before training and after each epoch, by layer.
        accuracy: On the validation part in the end; None where targets are numbers.
        loss: On the validation part in the end.
    """

    arm: Variant
    depth: int
    norms: list[list[float]]
    accuracy: float | None
    loss: float


def configured(config: TrainConfig, arm: Variant, depth: int, width: int) -> TrainConfig:
    """Return a configuration with the net of an arm."""
    return dataclasses.replace(config, hidden=(width,) * depth, activation=(arm.activation,), init=arm.init)


def watch(config: TrainConfig, arm: Variant, depth: int, width: int) -> DepthResult:
    """Train a net of some depth, and look at δ before training and after each epoch.

    Args:
        config: Data, η, batch size, epochs, seed; the net is that of the arm.
        arm: How to build it.
        depth: Hidden layers.
        width: Neurons of each.

    Raises:
        UserError: If the configuration does not fit the data.
    """
    config = configured(config, arm, depth, width)
    setup = prepare(config)
    optimizer = make_optimizer(setup.model, config)
    generator = torch.Generator().manual_seed(config.seed)
    feed = DataLoader(setup.dataset.train, setup.objective, config.batch_size)
    probe = feed.first(PROBE_ROWS)

    def look() -> list[float]:
        return [delta_norm(layer) for layer in capture_layers(setup.model, setup.objective.call, *probe)]

    with set_threads(setup.threads):
        norms = [look()]
        for _ in range(config.epochs):
            for chunk in feed.chunks(feed.draw(generator), 0):
                train_epoch(setup.model, setup.objective, optimizer, chunk.x, chunk.y, chunk.order, config.batch_size)
            norms.append(look())
        held = setup.dataset.val if len(setup.dataset.val) else setup.dataset.test
        found = evaluate(setup.model, setup.objective, held, setup.dataset.target_scaling)
    assert found is not None  # the test part always has rows
    return DepthResult(arm, depth, norms, found.accuracy, found.loss)


def draw(found: Sequence[DepthResult], title: str) -> Figure:
    """Return the picture: a row for each way to build a net, a column for each depth, a line for each layer.

    Args:
        found: All nets, in any order.
        title: Above all.
    """
    arms = list(dict.fromkeys(watched.arm for watched in found))
    depths = sorted({watched.depth for watched in found})
    figure = Figure(figsize=(1 + 3.1 * max(2, len(depths)), 1.2 + 2.15 * len(arms)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(arms), len(depths), sharex=True, sharey="row", squeeze=False)
    for watched in found:
        axes = panels[arms.index(watched.arm), depths.index(watched.depth)]
        for layer, norms in enumerate(zip(*watched.norms, strict=True)):
            last = layer == watched.depth
            axes.semilogy(
                [norm if norm > 0 else float("nan") for norm in norms],  # no logarithm of 0: the line ends
                color="black" if last else COLOURS[layer % len(COLOURS)],
                marker="." if last else MARKERS[layer % len(MARKERS)], ms=3, lw=1.2,
                label="output layer" if last else f"layer {layer + 1}",
            )  # fmt: skip
        right = "" if watched.accuracy is None else f"{100 * watched.accuracy:.0f} % right in the end"
        axes.set_title(right or f"loss {watched.loss:.3g} in the end", fontsize=9)
        if any(not math.isfinite(norm) for norm in watched.norms[-1]):
            axes.text(
                0.5, 0.5, "no finite numbers\nafter the first epochs", transform=axes.transAxes, ha="center", fontsize=8
            )
        elif not all(watched.norms[-1]):
            axes.text(0.5, 0.5, "no δ passes: units are dead", transform=axes.transAxes, ha="center", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    for row, arm in enumerate(arms):
        panels[row, 0].set_ylabel(f"{arm.activation}, init {arm.init}\nnorm of δ", fontsize=9)
    for column, depth in enumerate(depths):
        top = panels[0, column]
        top.set_title(f"{depth} hidden layer{'' if depth == 1 else 's'}\n{top.get_title()}", fontsize=9)
        panels[-1, column].set_xlabel("epoch", fontsize=9)
        panels[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = {text: line for axes in panels.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    lines["output layer"] = lines.pop("output layer")  # the last of them
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines), fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
