"""A trace in TensorBoard: its steps as text, each quantity as an image and a histogram, norms layer by layer."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deltaprop.tracing.record import LayerRecord
from deltaprop.tracing.summary import architecture, quantities, verdict
from deltaprop.tracing.trace import Trace
from deltaprop.tracing.worked_example import as_text, steps
from deltaprop.training.report.plots import Picture, color_scale, new_figure, render

MOST_ROWS = 32  # samples of the batch that an image shows
TITLES = {"z": "z", "a": "a", "sigma_prime": "σ'(z)", "delta": "δ", "grad_weight": "∂C/∂W"}


def write_trace(trace: Trace, lr: float, folder: Path) -> None:
    """Write the events of a trace into a run folder; the x axis of the charts is the layer, from 1.

    Args:
        trace: Trace of a batch.
        lr: Learning rate η of the update.
        folder: Run folder for these events alone.
    """
    with SummaryWriter(str(folder), purge_step=0) as writer:
        text = "\n".join(f"    {line}" for line in as_text(steps(trace, lr)))  # indented: a code block in Markdown
        writer.add_text("trace/steps", f"{architecture(trace)}\n\n{text}", 0)
        rows = [f"| {q.symbol} | {q.equation} | {q.shape} | {q.norm} | {q.autograd} | {q.differences} |"
                for q in quantities(trace)]  # fmt: skip
        head = ["| | equation | shape | norm | autograd differs by | differences by |", "| --- " * 6 + "|"]
        writer.add_text("trace/quantities", "\n".join([f"{verdict(trace)}\n", *head, *rows]), 0)
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
            for name, tensor in _tensors(layer).items():
                writer.add_histogram(f"{name}/layer{at}", tensor, 0)
            writer.add_image(f"trace/layer{at}", picture(at, layer), 0, dataformats="HWC")


def _tensors(layer: LayerRecord) -> dict[str, Tensor]:
    """Return the quantities of a layer by name; a and σ'(z) only if it has an activation."""
    tensors = {"z": layer.z, "delta": layer.delta, "grad_weight": layer.grad_weight, "grad_bias": layer.grad_bias}
    if layer.activation:
        tensors |= {"a": layer.a, "sigma_prime": layer.derivative}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def picture(at: int, layer: LayerRecord) -> Picture:
    """Return z, a, σ'(z), δ (one row per sample) and ∂C/∂W (one row per neuron) of a layer, in two columns."""
    tensors = _tensors(layer)
    shown = [name for name in TITLES if name in tensors]
    rows = -(-len(shown) // 2)
    figure, panels = new_figure(6.4, 0.4 + 2.3 * rows, rows, 2)
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, name in zip(panels, shown, strict=False):
        is_weight = name == "grad_weight"
        values = (tensors[name] if is_weight else tensors[name][:MOST_ROWS]).numpy()
        height, width = values.shape
        extent = (0.5, width + 0.5, height + 0.5, 0.5)  # neurons and samples are counted from 1
        colors = color_scale(tensors[name].numpy())
        image = axes.imshow(values, aspect="auto", interpolation="nearest", extent=extent, **colors)
        axes.set_title(TITLES[name], fontsize=11)
        axes.set_xlabel("neuron below" if is_weight else "neuron", fontsize=9)
        axes.set_ylabel("neuron" if is_weight else "sample", fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        figure.colorbar(image, ax=axes)
    figure.suptitle(f"layer {at}{f': {layer.activation}' if layer.activation else ''}", fontsize=11)
    return render(figure)
