"""A trace in TensorBoard: the worked example, the summary table, and scalars, histograms and pictures by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import deltaprop as dp
from deltaprop.tracing.worked_example import as_text, steps
from deltaprop.training.report.tensorboard_trace import picture, write_trace


@pytest.fixture(scope="module")
def trace() -> dp.Trace:
    return dp.trace(dp.MLP([4, 6, 5, 3], "sigmoid"), "cross_entropy", torch.rand(8, 4), torch.randint(3, (8,)))


@pytest.fixture(scope="module")
def events(trace: dp.Trace, tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("trace")
    write_trace(trace, 0.5, folder)
    assert len(list(folder.iterdir())) == 1
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def test_the_worked_example_is_written_verbatim(events: EventAccumulator, trace: dp.Trace):
    written = text(events, "trace/steps")
    for line in as_text(steps(trace, 0.5)):
        assert f"    {line}\n" in written + "\n"


def test_every_quantity_has_a_row(events: EventAccumulator):
    rows = text(events, "trace/quantities").splitlines()
    assert rows[0].startswith("ok: ")
    assert sum(row.startswith("| ") for row in rows) == 1 + 1 + 6 + 6 + 5  # header and rule; the last layer has no σ'
    assert "| δ¹ | (δ² W²) ⊙ σ'(z¹) | [8, 6] |" in "\n".join(rows)


def test_scalars_use_the_layer_as_step(events: EventAccumulator, trace: dp.Trace):
    norms = events.Scalars("by_layer/delta_norm")
    assert [event.step for event in norms] == [1, 2, 3]
    assert [event.value for event in norms] == pytest.approx([layer.delta_norm for layer in trace.layers])
    assert [event.step for event in events.Scalars("by_layer/saturated")] == [1, 2]  # layer 3 has no σ'
    assert {tag.rpartition("/")[2] for tag in events.Tags()["scalars"]} == {
        "delta_norm", "grad_weight_norm", "mean_abs_a", "saturated", "error_beside_autograd",
        "error_beside_differences",
    }  # fmt: skip


def test_each_scalar_has_the_right_value(events: EventAccumulator, trace: dp.Trace):
    for name, expected in {
        "grad_weight_norm": lambda at, layer: float(layer.grad_weight.norm()),
        "mean_abs_a": lambda at, layer: float(layer.a.abs().mean()),
        "error_beside_autograd": lambda at, layer: trace.error(at, "autograd"),
        "error_beside_differences": lambda at, layer: trace.error(at, "differences"),
    }.items():
        values = [event.value for event in events.Scalars(f"by_layer/{name}")]
        assert values == pytest.approx(
            [expected(at, layer) for at, layer in enumerate(trace.layers, 1)], rel=1e-6, abs=1e-30
        ), name


def test_each_histogram_holds_its_quantity(events: EventAccumulator, trace: dp.Trace):
    layer = trace.layers[0]
    for name, tensor in {"z": layer.z, "a": layer.a, "sigma_prime": layer.derivative, "delta": layer.delta,
                         "grad_weight": layer.grad_weight, "grad_bias": layer.grad_bias}.items():  # fmt: skip
        (event,) = events.Histograms(f"{name}/layer1")
        value = event.histogram_value
        assert (value.min, value.max, value.num) == pytest.approx(
            (float(tensor.min()), float(tensor.max()), tensor.numel())
        )


def test_a_picture_has_a_row_for_each_sample(trace: dp.Trace, monkeypatch: pytest.MonkeyPatch):
    shown: dict[str, Any] = {}

    def imshow(self: Any, values: Any, **options: Any) -> Any:
        shown[len(shown)] = (values.shape, options["extent"])
        return real(self, values, **options)

    real = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", imshow)
    picture(1, trace.layers[0])
    assert [shape for shape, _ in shown.values()] == [(8, 6)] * 4 + [(6, 4)]  # z, a, σ', δ, and ∂C/∂W
    assert shown[0][1] == (0.5, 6.5, 8.5, 0.5)  # counted from 1


def test_histograms_and_pictures_of_every_layer(events: EventAccumulator):
    names = {"z", "a", "sigma_prime", "delta", "grad_weight", "grad_bias"}
    hidden = {f"{name}/layer{at}" for name in names for at in (1, 2)}
    output = {f"{name}/layer3" for name in names - {"a", "sigma_prime"}}
    assert set(events.Tags()["histograms"]) == hidden | output
    assert set(events.Tags()["images"]) == {"trace/layer1", "trace/layer2", "trace/layer3"}


def test_a_picture_is_not_blank(trace: dp.Trace):
    for at, layer in enumerate(trace.layers, start=1):
        image = picture(at, layer)
        assert image.shape[2] == 3
        assert image.std() > 10
