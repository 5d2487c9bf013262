"""Vanishing and exploding gradients: the norm of δ in each layer during training, for nets of several depths.

Source: Nielsen, Neural Networks and Deep Learning (2015), chapter 5, plots the same for sigmoid nets; Glorot and
Bengio, AISTATS 2010, and He et al., arXiv 1502.01852 (2015), give the initialisations that keep the norm.
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
from deltaprop.training.devices import set_threads
from deltaprop.training.engines import train_epoch
from deltaprop.training.evaluate import Metrics, evaluate, evaluate_groups
from deltaprop.training.loaders import make_loader
from deltaprop.training.report.plots import COLOURS
from deltaprop.training.report.tensorboard import PROBE_ROWS
from deltaprop.training.setup import make_optimizer, prepare

MARKERS = "os^DvP*X"


@dataclass(frozen=True)
class Variant:
    """A kind of net to compare.

    Attributes:
        activation: The activation of the hidden layers.
        init: The initialisation of the weights.
    """

    activation: str
    init: str

    def __str__(self) -> str:
        """Return both names."""
        return f"{self.activation}, {self.init}"


VARIANTS = (
    Variant("sigmoid", "torch"), Variant("relu", "torch"), Variant("relu", "kaiming"), Variant("relu", "normal"),
)  # fmt: skip


@dataclass(frozen=True)
class DepthResult:
    """The results of training one net.

    Attributes:
        variant: The kind of net.
        depth: Hidden layers.
        norms: The norm of δ (the mean over samples of ‖∂C_n/∂z^l‖) before training and after each epoch, by layer.
        accuracy: Accuracy on the validation rows after training; None in regression.
        loss: Loss on the validation rows after training.
    """

    variant: Variant
    depth: int
    norms: list[list[float]]
    accuracy: float | None
    loss: float


def configured(config: TrainConfig, variant: Variant, depth: int, width: int) -> TrainConfig:
    """Return a configuration with the net of a variant."""
    return dataclasses.replace(config, hidden=(width,) * depth, activation=(variant.activation,), init=variant.init)


def measure_depth(config: TrainConfig, variant: Variant, depth: int, width: int) -> DepthResult:
    """Train a net, and measure δ before training and after each epoch.

    Args:
        config: Data, η, batch size, epochs, seed; the net is that of the variant.
        variant: The kind of net.
        depth: Hidden layers.
        width: Neurons of each.

    Raises:
        UserError: If the configuration does not fit the data.
    """
    setup = prepare(configured(config, variant, depth, width))
    config, dataset = setup.config, setup.dataset
    optimizer = make_optimizer(setup.model, config)
    generator = torch.Generator().manual_seed(config.seed)
    loader = make_loader(setup)
    probe = loader.first_rows(PROBE_ROWS)

    def measure() -> list[float]:
        return [delta_norm(layer) for layer in capture_layers(setup.model, setup.objective.call, *probe)]

    with set_threads(setup.threads):
        norms = [measure()]
        for _ in range(config.total_epochs):
            for shard in loader.shards(loader.draw(generator), 0):
                train_epoch(setup.model, setup.objective, optimizer, shard.x, shard.y, shard.order, config.batch_size)
            norms.append(measure())
        evaluation: Metrics | None
        if dataset.grouped is not None:
            parts = evaluate_groups(setup.model, setup.objective, dataset.grouped, dataset.target_scaling)
            evaluation = parts["val"] or parts["test"]
        else:
            part = dataset.val if len(dataset.val) else dataset.test
            evaluation = evaluate(setup.model, setup.objective, part, dataset.target_scaling)
    assert evaluation is not None  # the test part always has rows
    return DepthResult(variant, depth, norms, evaluation.accuracy, evaluation.loss)


def draw(results: Sequence[DepthResult], title: str) -> Figure:
    """Return a figure with a row for each variant, a column for each depth, and a line for each layer.

    Args:
        results: The results, in any order.
        title: Title of the figure.
    """
    variants = list(dict.fromkeys(result.variant for result in results))
    depths = sorted({result.depth for result in results})
    figure = Figure(figsize=(1 + 3.1 * max(2, len(depths)), 1.2 + 2.15 * len(variants)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(variants), len(depths), sharex=True, sharey="row", squeeze=False)
    for result in results:
        axes = panels[variants.index(result.variant), depths.index(result.depth)]
        for layer, norms in enumerate(zip(*result.norms, strict=True)):
            last = layer == result.depth
            axes.semilogy(
                [norm if norm > 0 else float("nan") for norm in norms],  # 0 has no logarithm: the line ends
                color="black" if last else COLOURS[layer % len(COLOURS)],
                marker="." if last else MARKERS[layer % len(MARKERS)], ms=3, lw=1.2,
                label="output layer" if last else f"layer {layer + 1}",
            )  # fmt: skip
        score = f"loss {result.loss:.3g}" if result.accuracy is None else f"{100 * result.accuracy:.0f} % right"
        axes.set_title(f"{score} in the end", fontsize=9)
        problem = "" if all(result.norms[-1]) else "no δ passes: units are dead"
        if not all(map(math.isfinite, result.norms[-1])):
            problem = "values are not finite\nafter the first epochs"
        axes.text(0.5, 0.5, problem, transform=axes.transAxes, ha="center", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    for row, variant in enumerate(variants):
        panels[row, 0].set_ylabel(f"{variant.activation}, init {variant.init}\nnorm of δ", fontsize=9)
    for column, depth in enumerate(depths):
        top = panels[0, column]
        top.set_title(f"{depth} hidden layer{'' if depth == 1 else 's'}\n{top.get_title()}", fontsize=9)
        panels[-1, column].set_xlabel("epoch", fontsize=9)
        panels[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = {text: line for axes in panels.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    lines["output layer"] = lines.pop("output layer")  # moved to the end
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines), fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
