"""The book's three runs, trained by this library.

x [N, 784] are pixels divided by 256. The network gives z^L [N, 10]; σ, which gives the book's a^L, is part of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import deltaprop as dp
import deltaprop.functional as F
from deltaprop.data import load
from deltaprop.errors import UserError
from examples.nielsen import published
from examples.nielsen.draws import Draws

SIZES = [784, 30, 10]
BATCH = 10
SAMPLES = 1_500_000  # for each network of more_data: epochs · images


@dataclass(frozen=True)
class Part:
    """Images and their labels.

    Attributes:
        x: Pixels, [N, 784].
        y: Digits, [N].
        targets: The digits one-hot, [N, 10].
    """

    x: Tensor
    y: Tensor
    targets: Tensor

    def first(self, count: int) -> Part:
        """Return the first ``count`` images."""
        return Part(self.x[:count], self.y[:count], self.targets[:count])


@dataclass(frozen=True)
class Mnist:
    """The book's split: the first 50 000 training images, 10 000 validation images and 10 000 test images."""

    train: Part
    val: Part
    test: Part


def mnist(folder: Path, dtype: torch.dtype) -> Mnist:
    """Return MNIST with the book's split and scaling.

    Args:
        folder: The folder with the four IDX files.
        dtype: The dtype of pixels and targets; a pixel is value/256, which is exact in every dtype.

    Raises:
        UserError: If the folder holds other data.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; one with MNIST's four IDX files is needed")
    dataset = load(
        str(folder), seed=0, test_fraction=0.2, val_fraction=1 / 6, val_split="tail",
        scaling="pixel", pixel_scale=256, dtype=dtype,
    )  # fmt: skip
    parts = dataset.train, dataset.val, dataset.test
    shapes = [[len(part), dataset.n_inputs] for part in parts]
    if shapes != [[50_000, 784], [10_000, 784], [10_000, 784]] or len(dataset.class_names) != 10:
        counts = " + ".join(str(len(part)) for part in parts)
        raise UserError(f"{folder}: this is not MNIST: {counts} images of {dataset.n_inputs} pixels")
    return Mnist(*(
        Part(part.inputs(slice(None)), part.y, torch.nn.functional.one_hot(part.y, 10).to(dtype)) for part in parts
    ))  # fmt: skip


class Network:
    """The 784-30-10 sigmoid network, and its random generators.

    Args:
        dtype: The dtype of its parameters.
        engine: ``"explicit"`` or ``"autograd"``.
    """

    def __init__(self, dtype: torch.dtype, engine: str) -> None:
        self.engine = engine
        self.draws = Draws()
        self.model = dp.MLP(SIZES, "sigmoid", dtype=dtype)
        self.draws.default(self.model)  # the book's network draws its weights when it is created

    def epochs(self, part: Part, rows: list[int], count: int, *, lr: float, penalty: float = 0.0) -> Iterator[int]:
        """Train; yield the number of each epoch after it.

        Args:
            part: The images.
            rows: The row indices, in the order after the previous epoch; shuffled in place.
            count: The number of epochs.
            lr: η.
            penalty: λ of the book's cost C + λ/(2n) Σ w², n images, on weights only.
        """
        weights = [p for p in self.model.parameters() if p.ndim == 2]
        biases = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": penalty / len(rows)}, {"params": biases, "weight_decay": 0.0}]
        optimizer = dp.SGD(groups, lr=lr, momentum=0.0)
        train = {"explicit": explicit, "autograd": autograd}[self.engine](self.model, optimizer)
        for epoch in range(1, count + 1):
            self.draws.shuffle(rows)
            train(part, torch.tensor(rows))
            yield epoch

    @torch.no_grad()
    def right(self, part: Part) -> int:
        """Return the number of correct predictions; if several outputs round to 1, the first is the prediction."""
        return int((F.sigmoid(self.model(part.x)).argmax(dim=1) == part.y).sum())

    @torch.no_grad()
    def cost(self, part: Part) -> float:
        """Return −1/N Σ_n Σ_j [y ln a + (1 − y) ln(1 − a)]."""
        return float(F.binary_cross_entropy_per_sample(self.model(part.x), part.targets))


def explicit(model: dp.MLP, optimizer: dp.SGD) -> Callable[[Part, Tensor], object]:
    """Return a function that trains an epoch with the explicit engine."""
    trainer = dp.ExplicitTrainer(model, F.binary_cross_entropy_per_sample, optimizer)
    return lambda part, order: trainer.epoch(part.x, part.targets, BATCH, order=order)


def autograd(model: dp.MLP, optimizer: dp.SGD) -> Callable[[Part, Tensor], object]:
    """Return a function that trains an epoch with autograd and the hand-written backward passes."""

    def epoch(part: Part, order: Tensor) -> None:
        for rows in order.split(BATCH):
            loss = F.binary_cross_entropy_per_sample(model(part.x[rows]), part.targets[rows])  # FWD, C
            optimizer.zero_grad()
            loss.backward()  # BP1-BP4
            optimizer.step()  # SGD

    return epoch


# --- the runs ---


@dataclass(frozen=True)
class Row:
    """The numbers after an epoch or a run.

    Attributes:
        label: The epoch or run.
        ours: Counts of images, and costs, by name.
        published: The book's numbers, by name.
    """

    label: str
    ours: Mapping[str, float]
    published: Mapping[str, float]


def overfitting(data: Mnist, network: Network) -> Iterator[Row]:
    """Train on 1000 images until the network has memorized them: large weights, η 0.5, no penalty, 400 epochs."""
    network.draws.large(network.model)
    few, rows = data.train.first(1000), [*range(1000)]
    figures = published.overfitting()
    for epoch, theirs in zip(network.epochs(few, rows, len(figures), lr=0.5), figures, strict=True):
        ours = {
            "test cost": network.cost(data.test), "test right": network.right(data.test),
            "training cost": network.cost(few), "training right": network.right(few),
        }  # fmt: skip
        yield Row(f"{epoch}", ours, theirs)


def weight_initialization(data: Mnist, network: Network) -> Iterator[Row]:
    """Train from small and then from large weights: η 0.1, λ 5, 30 epochs each; the samples stay shuffled."""
    rows = [*range(len(data.train.x))]
    for name, figures in (("small", published.DEFAULT_WEIGHTS), ("large", published.LARGE_WEIGHTS)):
        if name == "large":
            network.draws.large(network.model)
        for epoch, right in zip(network.epochs(data.train, rows, 30, lr=0.1, penalty=5.0), figures, strict=True):
            ours = {"validation right": network.right(data.val)}
            yield Row(f"{name} {epoch}", ours, {"validation right": right})


def more_data(data: Mnist, network: Network) -> Iterator[Row]:
    """Train on more and more images, each time from large weights, for the same number of steps: η 0.5, λ/n 0.0001."""
    for size, right in published.MORE_DATA.items():
        network.draws.large(network.model)
        for _ in network.epochs(data.train, [*range(size)], SAMPLES // size, lr=0.5, penalty=size * 0.0001):
            pass
        yield Row(f"{size}", {"validation right": network.right(data.val)}, {"validation right": right})


RUNS: dict[str, Callable[[Mnist, Network], Iterator[Row]]] = {
    "overfitting": overfitting,
    "weight-initialization": weight_initialization,
    "more-data": more_data,
}
