"""Draw the pictures of the README and docs: ``python docs/make_pictures.py [path/to/mnist]``. Takes some seconds.

The picture of deformed digits is drawn only if the folder of MNIST's files is given.

The TensorBoard screenshot in the same folder shows the run
``python train.py --hidden 30 30 30 --activation sigmoid --init xavier --lr 0.5 --momentum 0 --log-every 1``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deltaprop.data import Deformation, load
from deltaprop.tracing.capture import capture_layers, delta_norm
from deltaprop.training import TrainConfig
from deltaprop.training.engines import train_epoch
from deltaprop.training.report.plots import COLOURS, decision_boundary
from deltaprop.training.setup import make_optimizer, prepare

# Each line of code is in src/deltaprop/core (linear.py, activations.py, sgd.py), which a test checks.
SGD = "add_gradient(param, 1 - lr * weight_decay, -lr * sign)"
LINES = [
    (r"$z^l = a^{l-1}\,(W^l)^{\top} + b^l$", "linear(a_prev, weight, bias, out=out)", "FWD"),
    (
        r"$\delta^l = \partial C/\partial a^l\,\odot\,\sigma'(z^l)$",
        "grad_a * cls.derivative(saved, *constants)",
        "BP1, BP2",
    ),
    (r"$\partial C/\partial a^{l-1} = \delta^l\,W^l$", "torch.matmul(delta, weight, out=out)", "BP2"),
    (r"$\partial C/\partial b^l = \Sigma_n\,\delta^l_n$", "rows(delta).sum(0)", "BP3"),
    (
        r"$\partial C/\partial W^l = (\delta^l)^{\top}\,a^{l-1}$",
        "torch.addmm(start, rows(delta).T, rows(a_prev)",
        "BP4",
    ),
    (
        r"$\theta \leftarrow \theta - \eta\;\partial C/\partial\theta$",
        "add_gradient(param, 1 - lr * weight_decay, -lr * sign)",
        "SGD",
    ),
]


def delta_norms(activation: str, epochs: int) -> list[list[float]]:
    """Return the norm of δ of each layer after each epoch, for four hidden layers of 30 on the digits."""
    config = TrainConfig(hidden=(30, 30, 30, 30), activation=(activation,), init="xavier", lr=0.5, momentum=0.0)
    setup = prepare(config)
    optimizer = make_optimizer(setup.model, setup.config)
    generator = torch.Generator().manual_seed(0)
    train, norms = setup.dataset.train, []
    for _ in range(epochs):
        norms.append(
            list(map(delta_norm, capture_layers(setup.model, setup.objective.call, train.x[:256], train.y[:256])))
        )
        order = torch.randperm(len(train), generator=generator)
        train_epoch(setup.model, setup.objective, optimizer, train.x, train.y, order, config.batch_size)
    return norms


def overview(path: Path) -> None:
    """Write the picture of the README: the equations, a trained network, and the norm of δ layer by layer."""
    config = TrainConfig(data="spirals", lr=0.05, momentum=0.9, lr_schedule="constant", batch_size=16, epochs=30)
    setup = prepare(config)
    optimizer = make_optimizer(setup.model, setup.config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(config.epochs):
        order = torch.randperm(len(setup.dataset.train), generator=generator)
        train = setup.dataset.train
        train_epoch(setup.model, setup.objective, optimizer, train.x, train.y, order, config.batch_size)

    figure = Figure(figsize=(13.5, 4.3), dpi=110, layout="constrained")
    page, plane, chart = figure.subplots(1, 3, width_ratios=[1, 1, 1])
    page.axis("off")
    page.set_title("the equations and their code", fontsize=11)
    for index, (formula, code, tag) in enumerate(LINES):
        top = 0.97 - index * 0.168
        page.text(0.04, top, formula, fontsize=14, va="top", transform=page.transAxes)
        page.text(0.96, top, tag, fontsize=9, va="top", ha="right", color="0.45", transform=page.transAxes)
        code += ", …)" if code.count("(") > code.count(")") else ""
        page.text(0.04, top - 0.085, code, fontsize=9.5, va="top", family="monospace", color=COLOURS[0],
                  transform=page.transAxes)  # fmt: skip
    plane.imshow(decision_boundary(setup))
    plane.axis("off")
    plane.set_title("a network trained with them", fontsize=11)
    norms = delta_norms("sigmoid", 30)
    for layer, values in enumerate(zip(*norms, strict=True), start=1):
        chart.semilogy(values, color=COLOURS[(layer - 1) % 6], marker="os^Dv"[layer - 1], ms=3, label=f"layer {layer}")
    chart.set_title("how much of the error reaches each layer", fontsize=11)
    chart.set(xlabel="epoch (four hidden sigmoid layers)", ylabel="norm of δ", ylim=(1.5e-4, 3))
    chart.legend(fontsize=8, ncols=3, loc="lower center")
    FigureCanvasAgg(figure)
    figure.savefig(path)


def deformed(path: Path, folder: str) -> None:
    """Write the picture of deformed digits: each digit unchanged, and three times with each deformation."""
    dataset = load(folder, scaling="pixel")
    shape = dataset.image_shape
    assert shape is not None
    firsts = [int((dataset.train.y == digit).nonzero()[0]) for digit in range(10)]
    x = dataset.train.x[firsts]
    parts = [("as they are", [x])]
    for kind in ("affine", "elastic", "affine-elastic"):
        deform, generator = Deformation(kind, shape), torch.Generator().manual_seed(0)
        parts.append((f"--augment {kind}, three epochs", [deform(x, generator) for _ in range(3)]))
    figure = Figure(figsize=(5.6, 6.6), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(len(parts), 1, height_ratios=[len(rows) for _, rows in parts])
    for axes, (name, rows) in zip(panels, parts, strict=True):
        strips = [digits.view(10, *shape).transpose(0, 1).flatten(1) for digits in rows]  # side by side
        axes.imshow(torch.cat(strips).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, loc="left", fontsize=9)
        axes.spines[:].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", nargs="?", help="folder of MNIST's IDX files")
    mnist = parser.parse_args().mnist
    torch.set_num_threads(1)
    pictures = Path(__file__).parent / "pictures"
    overview(pictures / "overview.png")
    if mnist is not None:
        deformed(pictures / "deformed.png", mnist)
