"""A trace as one HTML page: the network as a graph, and the steps of the textbook's page to walk through.

The page stands alone: no network, no library, one file. Without JavaScript every step is there to read.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from torch import Tensor

from deltaprop._version import __version__
from deltaprop.tracing.record import LayerRecord, TraceRecord
from deltaprop.tracing.summary import described, quantities, verdict
from deltaprop.tracing.worked_example import Shown, choose, steps


def html_page(trace: TraceRecord, lr: float = 0.5) -> str:
    """Return the page.

    Args:
        trace: Of a batch through a net.
        lr: The learning rate η of the update.
    """
    from jinja2 import Environment  # of no use to `import deltaprop`

    template = resources.files("deltaprop.tracing").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(template)
    shown = choose(trace)
    found = steps(trace, lr, shown)
    return page.render(
        title=described(trace),
        about=trace.about,
        verdict=verdict(trace),
        rows=len(trace.input),
        samples=shown.rows,
        steps=found,
        partly=any(len(kept) < size for kept, size in zip(shown.neurons, trace.sizes, strict=True)),
        quantities=quantities(trace),
        version=__version__,
        data={
            "steps": [{"kind": step.kind, "layer": step.layer} for step in found],
            "layers": [_input(trace, shown), *[_layer(trace, at, lr, shown) for at in range(1, len(trace.layers) + 1)]],
            "target": _target(trace, shown),
            "loss": _short(trace.loss),
            "loss_after": _short(trace.loss_after(lr)),
        },
    )


def _input(trace: TraceRecord, shown: Shown) -> dict[str, Any]:
    kept = list(shown.neurons[0])
    return {
        "size": trace.sizes[0],
        "shown": kept,
        "activation": "",
        "a": _numbers(trace.input[list(shown.rows)][:, kept]),
    }


def _layer(trace: TraceRecord, at: int, lr: float, shown: Shown) -> dict[str, Any]:
    """Return what the picture shows of a layer: the neurons that are kept, and the weights between them."""
    layer: LayerRecord = trace.layers[at - 1]
    kept, below, rows = list(shown.neurons[at]), list(shown.neurons[at - 1]), list(shown.rows)
    weight, gradient = layer.weight[kept][:, below], layer.grad_weight[kept][:, below]
    found = {
        "size": trace.sizes[at],
        "shown": kept,
        "activation": layer.activation,
        "z": _numbers(layer.z[rows][:, kept]),
        "a": _numbers(layer.a[rows][:, kept]),
        "delta": _numbers(layer.delta[rows][:, kept]),
        "weight": _numbers(weight),
        "size_of_weight": _sizes(weight),
        "size_of_gradient": _sizes(gradient),
        "grad_weight": _numbers(gradient),
        "new_weight": _numbers(layer.updated(lr)[0][kept][:, below]),
    }
    updated = layer.updated(lr)[1]
    if updated is not None and layer.grad_bias is not None:
        found["grad_bias"] = [_short(value) for value in layer.grad_bias[kept].tolist()]
        found["new_bias"] = [_short(value) for value in updated[kept].tolist()]
    return found


def _target(trace: TraceRecord, shown: Shown) -> list[list[str]] | None:
    """Return y for each output that is shown; a label as 1 there and 0 elsewhere."""
    kept, y = list(shown.neurons[-1]), trace.target[list(shown.rows)]
    if trace.loss_name == "cross_entropy" and y.dim() == 1 and not y.is_floating_point():
        return [["1" if j == int(label) else "0" for j in kept] for label in y]
    if y.dim() == 2 and y.shape[1] == trace.sizes[-1]:
        return _numbers(y[:, kept])
    return None


def _sizes(values: Tensor) -> list[list[float]]:
    """Return |entry| relative to the largest."""
    found: list[list[float]] = (values.abs() / max(float(values.abs().max()), 1e-30)).tolist()
    return found


def _numbers(values: Any) -> list[list[str]]:
    return [[_short(value) for value in row] for row in values.tolist()]


def _short(value: float) -> str:
    """Return a number that fits into a neuron: three digits that count."""
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−") if value else "0"
