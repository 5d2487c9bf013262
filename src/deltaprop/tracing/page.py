"""A trace as one HTML page: the network as a graph, and the steps of the worked example to walk through.

The page is one file that needs no network connection and no library. Without JavaScript it still shows every step.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from torch import Tensor

from deltaprop._version import __version__
from deltaprop.tracing.format import number
from deltaprop.tracing.record import TraceRecord
from deltaprop.tracing.summary import architecture, quantities, verdict
from deltaprop.tracing.worked_example import Selection, select_entries, steps


def html_page(trace: TraceRecord, lr: float = 0.5) -> str:
    """Return the page.

    Args:
        trace: The trace of a batch.
        lr: The learning rate η of the update.
    """
    from jinja2 import Environment  # slow to import, and needed by nothing else here

    template = resources.files("deltaprop.tracing").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(template)
    shown = select_entries(trace)
    example = steps(trace, lr, shown)
    return page.render(
        trace=trace,
        title=architecture(trace),
        verdict=verdict(trace),
        samples=shown.rows,
        steps=example,
        partly=any(len(neurons) < size for neurons, size in zip(shown.neurons, trace.sizes, strict=True)),
        quantities=quantities(trace),
        version=__version__,
        data={
            "steps": [{"kind": step.kind, "layer": step.layer} for step in example],
            "layers": [_layer(trace, at, lr, shown) for at in range(len(trace.layers) + 1)],
            "target": _target(trace, shown),
            "loss": _short(trace.loss),
            "loss_after": _short(trace.loss_after(lr)),
        },
    )


def _layer(trace: TraceRecord, at: int, lr: float, shown: Selection) -> dict[str, Any]:
    """Return what the picture shows of layer ``at``, 0 being the input: its neurons, and the weights below them."""
    neurons, rows = list(shown.neurons[at]), list(shown.rows)
    content: dict[str, Any] = {"size": trace.sizes[at], "shown": neurons}
    if at == 0:
        return content | {"activation": "", "a": _short(trace.input[rows][:, neurons])}
    layer, below = trace.layers[at - 1], list(shown.neurons[at - 1])
    new_weight, new_bias = layer.updated(lr)
    content["activation"] = layer.activation
    content |= {name: _short(getattr(layer, name)[rows][:, neurons]) for name in ("z", "a", "delta")}
    weight, gradient, new_weight = (t[neurons][:, below] for t in (layer.weight, layer.grad_weight, new_weight))
    content |= {"weight": _short(weight), "grad_weight": _short(gradient), "new_weight": _short(new_weight)}
    for name, values in (("size_of_weight", weight.abs()), ("size_of_gradient", gradient.abs())):
        content[name] = (values / max(float(values.max()), 1e-30)).tolist()  # relative to the largest
    if new_bias is not None and layer.grad_bias is not None:
        content |= {"grad_bias": _short(layer.grad_bias[neurons]), "new_bias": _short(new_bias[neurons])}
    return content


def _target(trace: TraceRecord, shown: Selection) -> list[list[str]] | None:
    """Return y for each output that is shown; a label as 1 there and 0 elsewhere."""
    neurons, y = list(shown.neurons[-1]), trace.target[list(shown.rows)]
    if trace.loss_name == "cross_entropy" and y.dim() == 1 and not y.is_floating_point():
        return [["1" if j == int(label) else "0" for j in neurons] for label in y]
    if y.dim() == 2 and y.shape[1] == trace.sizes[-1]:
        return _short(y[:, neurons])  # type: ignore[no-any-return]  # nested lists of str
    return None


def _short(values: Any) -> Any:
    """Return numbers short enough for a neuron: three significant digits; of a tensor as nested lists."""
    if isinstance(values, Tensor):
        values = values.tolist()
    return [_short(v) for v in values] if isinstance(values, list) else number(values, 3).replace("e−0", "e−")
