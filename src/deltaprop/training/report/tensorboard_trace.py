"""A trace in TensorBoard: its steps as text, each quantity as a picture and a histogram, norms layer by layer."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deltaprop.tracing.record import LayerRecord
from deltaprop.tracing.summary import architecture, quantities, verdict
from deltaprop.tracing.trace import Trace
from deltaprop.tracing.worked_example import as_text, steps
from deltaprop.training.report.plots import DIVERGING, Picture, drawn

MOST_ROWS = 32  # of a batch that a picture shows


def write_trace(trace: Trace, lr: float, folder: Path) -> None:
    """Write the events of a trace into a folder.

    The x axis of the charts is the layer: 1 is the first.

    Args:
        trace: Of a batch.
        lr: The learning rate η of the update.
        folder: A run folder of its own.
    """
    with SummaryWriter(str(folder), purge_step=0) as writer:
        text = "\n".join(f"    {line}" for line in as_text(steps(trace, lr)))  # as it stands: a block of code
        writer.add_text("trace/steps", f"{architecture(trace)}\n\n{text}", 0)
        writer.add_text("trace/quantities", table(trace), 0)
        for at, layer in enumerate(trace.layers, start=1):
            figures = {
                "delta_norm": layer.delta_norm,
                "grad_weight_norm": float(layer.grad_weight.norm()),
                "mean_abs_a": float(layer.a.abs().mean()),
                "saturated": layer.saturated,
                "error_beside_autograd": trace.error(at, "autograd"),
                "error_beside_differences": trace.error(at, "differences"),
            }
            for name, value in figures.items():
                if value is not None:
                    writer.add_scalar(f"by_layer/{name}", value, at)
            for name, tensor in spread(layer).items():
                writer.add_histogram(f"{name}/layer{at}", tensor, 0)
            writer.add_image(f"trace/layer{at}", picture(at, layer), 0, dataformats="HWC")


def table(trace: Trace) -> str:
    """Return the quantities as a table in Markdown."""
    rows = [f"| {q.symbol} | {q.equation} | {q.shape} | {q.norm} | {q.autograd} | {q.differences} |"
            for q in quantities(trace)]  # fmt: skip
    head = "| | equation | shape | norm | autograd differs by | differences by |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([f"{verdict(trace)}\n", head, *rows])


def spread(layer: LayerRecord) -> dict[str, Tensor]:
    """Return the quantities of a layer by name; a layer without an activation has neither a nor σ'(z) of its own."""
    found: dict[str, Tensor | None] = {"z": layer.z, "delta": layer.delta, "grad_weight": layer.grad_weight}
    if layer.activation:
        found |= {"a": layer.a, "sigma_prime": layer.derivative}
    found["grad_bias"] = layer.grad_bias
    return {name: tensor for name, tensor in found.items() if tensor is not None}


TITLES = {"z": "z", "a": "a", "sigma_prime": "σ'(z)", "delta": "δ", "grad_weight": "∂C/∂W"}


def picture(at: int, layer: LayerRecord) -> Picture:
    """Return z, a, σ'(z), δ (a row for each sample) and ∂C/∂W (a row for each neuron) of a layer, two in a row."""
    shown = {title: spread(layer)[name] for name, title in TITLES.items() if name in spread(layer)}
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(6.4, 0.4 + 2.3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, (title, tensor) in zip(panels, shown.items(), strict=False):
        limit = float(tensor.abs().max()) or 1.0
        values = tensor if title == "∂C/∂W" else tensor[:MOST_ROWS]
        colours = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
        if bool((tensor >= 0).all()):
            colours = {"cmap": "Blues", "vmin": 0, "vmax": limit}
        height, width = values.shape
        extent = (0.5, width + 0.5, height + 0.5, 0.5)  # neurons and samples are counted from 1
        image = axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", extent=extent, **colours)
        across, down = ("neuron below", "neuron") if title == "∂C/∂W" else ("neuron", "sample")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(across, fontsize=9)
        axes.set_ylabel(down, fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        figure.colorbar(image, ax=axes)
    figure.suptitle(f"layer {at}{f': {layer.activation}' if layer.activation else ''}", fontsize=11)
    return drawn(figure)
