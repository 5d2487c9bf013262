"""Plots of a run: first-layer weights, misclassified samples and what the model predicts.

A picture is an array [height, width, 3] of bytes. Figures are drawn without pyplot, which has global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor, nn

from deltaprop.data import Dataset
from deltaprop.data.splits import Array
from deltaprop.errors import rounded
from deltaprop.training.evaluate import Evaluation, raw_targets
from deltaprop.training.setup import Setup

Picture = NDArray[np.uint8]

# Colours of Okabe and Ito, which are distinguishable with colour vision deficiency.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
TILES = 36
WORST_ROWS, WORST_INPUTS = 14, 6  # shown of a table
MOST_POINTS = 5000  # test samples in one picture
UNMEASURED: dict[str, Any] = {"in_layout": False}  # texts within axes: to measure them took half of the drawing time


def pictures(setup: Setup, test: Evaluation) -> dict[str, Picture]:
    """Return the pictures that suit the data of a run, by name."""
    dataset = setup.dataset
    is_numeric = dataset.table is None or not dataset.table.encoding.categories
    result = {"first_layer_weights": first_layer_weights(setup)}
    if dataset.task == "classification":
        result["confusion_matrix"] = confusion_matrix(setup, test)
        result["worst_samples"] = worst_samples(setup, test)
        if dataset.n_inputs == 2 and is_numeric:
            result["decision_boundary"] = decision_boundary(setup)
    elif dataset.n_inputs == 1 and dataset.n_outputs == 1 and is_numeric:
        result["fitted_curve"] = fitted_curve(setup)
    else:
        result["predicted_against_true"] = predicted_against_true(setup, test)
    return result


def first_layer_weights(setup: Setup) -> Picture:
    """Return W¹: a tile for each neuron if the inputs are pixels, else the matrix."""
    weight = _array(next(module for module in setup.model if isinstance(module, nn.Linear)).weight)
    colours = color_scale(weight)
    shape = setup.dataset.image_shape
    if shape is None:
        figure, (axes,) = new_figure(5.5, 4.2)
        image = axes.imshow(weight, aspect="auto", interpolation="nearest", **colours)
        axes.set(title="First-layer weights W¹", xlabel="input", ylabel="neuron")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.colorbar(image)
        return render(figure)
    shown = min(TILES, len(weight))
    title = f"First-layer weights of {shown} of {len(weight)} neurons"
    return _tiles([row.reshape(shape) for row in weight[:shown]], [""] * shown, title, colours)


def confusion_matrix(setup: Setup, test: Evaluation) -> Picture:
    """Return the confusion matrix of the test part."""
    names = setup.dataset.class_names
    true, predicted = _array(setup.dataset.test.y), _array(setup.objective.decide(test.outputs))
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (true, predicted), 1)
    figure, (axes,) = new_figure(5.5, 5.2)
    draw_confusion(axes, counts, names, f"Test: {int(np.trace(counts))} of {counts.sum()} right")
    return render(figure)


def draw_confusion(axes: Axes, counts: Array, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix.

    Args:
        axes: Axes to draw on.
        counts: Number of samples, [true, predicted].
        names: Names of the classes; numbers and names are omitted for more than 20 classes.
        title: Title of the axes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), color=colour, fontsize=8, ha="center", va="center", **UNMEASURED)
        long = max(map(len, names)) * len(names) > 60  # names side by side would overlap
        shown = [shortened(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(names)), shown)
    axes.set(title=title, xlabel="predicted", ylabel="true")


def worst_samples(setup: Setup, test: Evaluation) -> Picture:
    """Return the test samples whose true class has the lowest output relative to the highest other output."""
    y = setup.dataset.test.y
    scores = setup.objective.scores(test.outputs)
    others = scores.scatter(1, y.unsqueeze(1), -torch.inf).amax(dim=1)
    margin = scores.gather(1, y.unsqueeze(1)).squeeze(1) - others
    names, shape = setup.dataset.class_names, setup.dataset.image_shape
    order = margin.argsort()[: WORST_ROWS if shape is None else TILES]
    predicted = scores[order].argmax(1)
    labels = [f"{shortened(names[t])} → {shortened(names[p])}" for t, p in zip(y[order], predicted, strict=True)]
    wrong = int((margin[order] < 0).sum())
    title = f"Worst-classified test samples: true → predicted, {wrong} of these {len(order)} wrong"
    x = _test_inputs(setup.dataset, order)
    if shape is not None:
        return _tiles([row.reshape(shape) for row in x], labels, title, {"cmap": "gray_r"}, wrong)
    figure, (axes,) = new_figure(6, 5)
    axes.axis("off")
    axes.set_title(title)
    header = ["true → predicted", *map(shortened, _input_names(setup.dataset)[:WORST_INPUTS])]
    cells = [[label, *(rounded(v) for v in row[:WORST_INPUTS])] for label, row in zip(labels, x, strict=True)]
    widths = np.array([max(map(len, column)) + 2 for column in zip(header, *cells, strict=True)])
    table = axes.table(cells, colLabels=header, colWidths=widths / widths.sum(), loc="center", cellLoc="center")
    table.scale(1, 1.25)
    table.auto_set_font_size(False)  # tries every size for every cell, in half of the time of the picture
    table.set_fontsize(7)
    table.set_in_layout(False)
    return render(figure)


def decision_boundary(setup: Setup) -> Picture:
    """Return the predicted class of each point of the plane, with the test samples."""
    dataset = setup.dataset
    x = _test_inputs(dataset)
    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.15 * (high - low)
    sides = [np.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*sides)], axis=1)
    best = _array(setup.objective.decide(_predict(setup, grid))).reshape(200, 200)
    classes = len(dataset.class_names)
    colours = [COLOURS[i % len(COLOURS)] for i in range(classes)]
    figure, (axes,) = new_figure(5.5, 5)
    axes.contourf(*sides, best, levels=np.arange(classes + 1) - 0.5, colors=colours, alpha=0.25)
    for index in range(classes):  # class by class: contours between non-adjacent levels would coincide
        axes.contour(*sides, best == index, levels=[0.5], colors="black", linewidths=0.6)
    markers = "osD^vP*X"
    for index, name in enumerate(dataset.class_names):
        rows = _array(dataset.test.y[:MOST_POINTS]) == index
        style: dict[str, Any] = {"c": colours[index], "marker": markers[index % 8], "edgecolors": "white", "lw": 0.4}
        axes.scatter(x[rows, 0], x[rows, 1], s=16, label=name, **style)
    axes.legend(loc="upper right", fontsize=8)
    x_name, y_name = _input_names(dataset)
    axes.set(title="Decision boundary and test samples", xlabel=x_name, ylabel=y_name)
    return render(figure)


def fitted_curve(setup: Setup) -> Picture:
    """Return the function that the model computes, with the test samples."""
    dataset = setup.dataset
    x = _test_inputs(dataset)
    y = _array(raw_targets(dataset.test, dataset.target_scaling)[:MOST_POINTS])
    grid = np.linspace(x.min(), x.max(), 400)[:, None]
    fitted = _array(dataset.target_scaling.in_own_units(_predict(setup, grid)))
    figure, (axes,) = new_figure(6, 4)
    axes.scatter(x, y, s=12, c=COLOURS[4], label="test samples")
    axes.plot(grid, fitted, c=COLOURS[5], lw=2, label="network")
    axes.legend(fontsize=8)
    y_name = "y" if dataset.table is None else dataset.table.encoding.targets[0]
    axes.set(title="Fitted curve, in the units of the data", xlabel=_input_names(dataset)[0], ylabel=y_name)
    return render(figure)


def predicted_against_true(setup: Setup, test: Evaluation) -> Picture:
    """Return predictions against targets of the test part, in the units of the data."""
    scaling = setup.dataset.target_scaling
    true = _array(raw_targets(setup.dataset.test, scaling)[:MOST_POINTS])
    predicted = _array(scaling.in_own_units(test.outputs[:MOST_POINTS]))
    figure, (axes,) = new_figure(5, 5)
    axes.scatter(true, predicted, s=12, c=COLOURS[0])
    axes.axline((float(true.min()), float(true.min())), slope=1, c="black", lw=0.8)
    axes.set(title="Predicted against true", xlabel="true", ylabel="predicted")
    return render(figure)


def _test_inputs(dataset: Dataset, rows: slice | Tensor = slice(MOST_POINTS)) -> Array:
    """Return inputs of the test part in the units of the data."""
    return _array(dataset.input_scaling.invert(dataset.test.inputs(rows)))


def _input_names(dataset: Dataset) -> Sequence[str]:
    if dataset.table is not None:
        return dataset.table.encoding.names
    return ["x"] if dataset.n_inputs == 1 else [f"x{number}" for number in range(1, dataset.n_inputs + 1)]


@torch.no_grad()
def _predict(setup: Setup, x: Array) -> Tensor:
    """Return the outputs for inputs in the units of the data."""
    weight = next(setup.model.parameters())
    inputs = torch.as_tensor(x, dtype=weight.dtype, device=weight.device)
    outputs: Tensor = setup.model(setup.dataset.input_scaling.apply(inputs))
    return outputs


def shortened(name: str, most: int = 16) -> str:
    """Return a name, cut if it is long."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _tiles(tiles: list[Array], labels: list[str], title: str, colours: dict[str, Any], marked: int = 0) -> Picture:
    """Return tiles in a grid on one pair of axes (many axes are slow), their labels above, the first ones in colour."""
    columns = 9 if len(tiles) > 18 else 6
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape
    gap, head = max(width // 8, 1), max(height // 4, 2) if any(labels) else 0
    canvas = np.full((rows * (height + gap + head), columns * (width + gap)), np.nan)
    figure, (axes,) = new_figure(6.6, 6.6 * canvas.shape[0] / canvas.shape[1] + 0.4)
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        top = index // columns * (height + gap + head) + head
        left = index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
        if label:
            colour = "black" if index >= marked else COLOURS[5]
            style: dict[str, Any] = {"fontsize": 8, "color": colour, "ha": "center", "va": "bottom", **UNMEASURED}
            axes.text(left + width / 2, top - 0.5 - 0.1 * head, label, **style)
    axes.imshow(canvas, interpolation="nearest", **colours)
    axes.axis("off")
    axes.set_title(title, fontsize=10)
    return render(figure)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure, its size in inches, and its axes."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False).flat]


def color_scale(values: Array) -> dict[str, Any]:
    """Return the arguments of ``imshow`` that centre the colours on 0; from 0 upwards if no value is negative."""
    limit = float(np.abs(values).max()) or 1.0
    if (values >= 0).all():
        return {"cmap": "Blues", "vmin": 0, "vmax": limit}
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}


def render(figure: Figure) -> Picture:
    """Return the pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
