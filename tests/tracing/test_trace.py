"""A trace has the textbook's values, by hand and compared with autograd and finite differences; it reports errors."""

from __future__ import annotations

import dataclasses
import functools
import html
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import deltaprop as dp
from deltaprop import UserError, core, trace
from deltaprop import functional as F
from deltaprop.tracing.format import number
from deltaprop.tracing.record import Comparison
from deltaprop.tracing.summary import quantities, verdict
from deltaprop.tracing.worked_example import is_tiny, steps

F64 = torch.float64


def target(loss: str, rows: int, outputs: int) -> Tensor:
    return torch.randint(outputs, (rows,)) if loss == "cross_entropy" else torch.rand(rows, outputs, dtype=F64)


def test_every_value_by_hand():
    """BP1 to BP4 on a 3-4-2 sigmoid network with the quadratic cost, N = 6."""
    x, y = torch.randn(6, 3, dtype=F64), torch.rand(6, 2, dtype=F64)
    model = dp.MLP([3, 4, 2], "sigmoid", "sigmoid", dtype=F64)
    traced = trace(model, "quadratic_loss", x, y)
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    a1 = 1 / (1 + torch.exp(-(x @ w1.T + b1)))
    a2 = 1 / (1 + torch.exp(-(a1 @ w2.T + b2)))
    delta2 = (a2 - y) / 6 * a2 * (1 - a2)  # BP1
    delta1 = a1 * (1 - a1) * (delta2 @ w2)  # BP2
    first, second = traced.layers
    assert_close(traced.input, x)
    assert traced.loss == pytest.approx(float(((a2 - y) ** 2).sum() / 12))
    assert_close(traced.grad_a, (a2 - y) / 6)
    for layer, a_prev, a, delta in ((first, x, a1, delta1), (second, a1, a2, delta2)):
        assert_close(layer.a, a)
        assert_close(layer.derivative, a * (1 - a))
        assert_close(layer.delta, delta)
        assert_close(layer.grad_weight, delta.T @ a_prev)  # BP4
        assert_close(layer.grad_bias, delta.sum(0))  # BP3
        assert layer.delta_norm == pytest.approx(float(delta.norm(dim=1).sum()))
    assert traced.ok
    assert traced.sizes == [3, 4, 2]


@pytest.mark.parametrize("loss", core.LOSSES)
@pytest.mark.parametrize("activation", sorted(core.ACTIVATIONS))
def test_autograd_and_finite_differences_agree(activation: str, loss: str):
    traced = trace(dp.MLP([5, 6, 4, 3], activation), loss, torch.randn(7, 5), target(loss, 7, 3))
    assert traced.ok, [c for c in traced.comparisons if not c.ok]
    assert {c.beside for c in traced.comparisons} == {"autograd", "differences"}
    assert (traced.layers[0].derivative is None) == ("softmax" in activation)
    assert traced.layers[-1].derivative is not None  # no activation: σ' = 1


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 3, bias=False))),
        dp.MLP([5, 4, 3], bias=False),
        dp.MLP([5, 3]).requires_grad_(False),
    ],
    ids=["PyTorch's", "no bias", "frozen"],
)
def test_any_sequential_is_traced_and_not_modified(model: nn.Sequential):
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    traced = trace(model, nn.functional.cross_entropy, torch.randn(7, 5), torch.randint(3, (7,)))
    assert traced.ok
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert (p.requires_grad, p.grad, p.dtype) == (before[name][1], None, torch.float32)


def test_options_of_the_loss_are_used():
    model, x, y = dp.MLP([5, 3], dtype=F64), torch.randn(7, 5, dtype=F64), torch.arange(7) % 3
    traced = trace(model, functools.partial(F.cross_entropy, label_smoothing=0.2), x, y)
    assert traced.loss == pytest.approx(float(nn.functional.cross_entropy(model(x), y, label_smoothing=0.2).detach()))
    assert traced.ok


def test_a_wrong_derivative_is_reported(monkeypatch: pytest.MonkeyPatch):
    """Both autograd and finite differences disagree with a δ that lacks σ'."""
    monkeypatch.setattr(core.ACTIVATIONS["tanh"], "delta", staticmethod(lambda grad_a, saved: grad_a))
    traced = trace(dp.MLP([3, 4, 2], "tanh"), "mse_loss", torch.randn(5, 3), torch.rand(5, 2))
    errors = {(c.layer, c.quantity, c.beside) for c in traced.comparisons if not c.ok}
    assert (1, "delta", "autograd") in errors
    assert (1, "grad_weight", "differences") in errors
    assert not traced.ok


def test_slope_is_deprecated_for_derivative():
    traced = trace(dp.MLP([2, 1]), "mse_loss", torch.rand(1, 2), torch.rand(1, 1))
    with pytest.warns(DeprecationWarning, match="LayerRecord.slope is LayerRecord.derivative now"):
        assert traced.layers[0].slope is traced.layers[0].derivative


def test_a_saturated_share():
    """σ' is about 0 at ±20, at its largest (¼) at 0, and 18 % of that at 3: two of four entries are saturated."""
    model = dp.MLP([1, 1], output_activation="sigmoid", bias=False)
    nn.init.constant_(model[0].weight, 20.0)
    traced = trace(model, "quadratic_loss", torch.tensor([[1.0], [-1.0], [0.0], [0.15]]), torch.zeros(4, 1))
    assert traced.layers[0].saturated == 0.5


def test_the_loss_after_a_step():
    """It equals the loss after a step of PyTorch's SGD."""
    model, x, y = dp.MLP([5, 4, 3], "tanh", dtype=F64), torch.randn(7, 5, dtype=F64), torch.arange(7) % 3
    traced = trace(model, "cross_entropy", x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert traced.loss_after(0.3) == pytest.approx(float(nn.functional.cross_entropy(model(x), y).detach()), rel=1e-12)
    assert traced.loss_after(0) == pytest.approx(traced.loss, rel=1e-14)


def test_grad_of_a_is_autograds():
    """∂C/∂a of each layer, the left factor of BP1 and BP2, equals autograd's."""
    model, x, y = dp.MLP([5, 4, 3], "softmax", dtype=F64), torch.randn(7, 5, dtype=F64), torch.arange(7) % 3
    traced = trace(model, "cross_entropy", x, y)
    a1 = model[1](model[0](x))
    a2 = model[2](a1)
    for layer, grad_a in enumerate(torch.autograd.grad(nn.functional.cross_entropy(a2, y), (a1, a2)), start=1):
        assert_close(traced.grad_of_a(layer), grad_a)


# Quantity → number of comparisons: 1 with autograd only, 2 with finite differences too.
N_COMPARISONS = {"z": 1, "a": 1, "derivative": 1, "delta": 2, "grad_weight": 2, "grad_bias": 2}


def test_every_quantity_is_compared():
    traced = trace(dp.MLP([5, 6, 3], "tanh", "sigmoid"), "mse_loss", torch.randn(4, 5), torch.rand(4, 3))
    for layer in (1, 2):
        names = [c.quantity for c in traced.comparisons if c.layer == layer]
        expected = N_COMPARISONS | {"grad_a": 1} if layer == 2 else N_COMPARISONS
        assert {name: names.count(name) for name in names} == expected
    assert [c.quantity for c in traced.comparisons if c.layer == 0] == ["loss"]
    by_differences = [c.quantity for c in traced.comparisons if c.beside == "differences"]
    assert sorted(set(by_differences)) == ["delta", "grad_bias", "grad_weight"]


def errors_of(monkeypatch: pytest.MonkeyPatch, method: str, relative_error: float) -> set[tuple[int, str, str]]:
    """Return the failed comparisons if a method of tanh has this relative error."""
    real = getattr(core.ACTIVATIONS["tanh"], method)
    perturbed = staticmethod(lambda *arguments: real(*arguments) * (1 + relative_error))
    with monkeypatch.context() as patch:
        patch.setattr(core.ACTIVATIONS["tanh"], method, perturbed)
        traced = trace(dp.MLP([5, 6, 3], "tanh"), "mse_loss", torch.randn(4, 5), torch.rand(4, 3))
    return {(c.layer, c.quantity, c.beside) for c in traced.comparisons if not c.ok}


def test_autograd_detects_a_millionth_and_differences_a_thousandth(monkeypatch: pytest.MonkeyPatch):
    assert (1, "delta", "autograd") in errors_of(monkeypatch, "delta", 1e-6)
    errors = errors_of(monkeypatch, "delta", 1e-3)
    assert {(1, name, "differences") for name in ("delta", "grad_weight", "grad_bias")} <= errors
    assert (1, "derivative", "autograd") in errors_of(monkeypatch, "derivative", 1e-6)
    errors = errors_of(monkeypatch, "forward", 1e-6)
    assert (1, "a", "autograd") in errors
    assert (2, "z", "autograd") in errors


def test_the_loss_after_a_step_uses_the_options_of_the_loss():
    model, x, y = dp.MLP([5, 3], dtype=F64), torch.randn(7, 5, dtype=F64), torch.arange(7) % 3
    traced = trace(model, functools.partial(F.cross_entropy, label_smoothing=0.3), x, y)
    assert traced.loss_after(0) == pytest.approx(traced.loss, rel=1e-14)


def test_the_summary_table(monkeypatch: pytest.MonkeyPatch):
    """Norms over all entries, the largest error of each method, and the saturated share of each layer."""
    model = dp.MLP([2, 4, 1], "sigmoid", bias=False, dtype=F64)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[20.0, 20.0], *[[0.1, 0.1]] * 3]))  # one neuron of four is saturated
    traced = trace(model, "quadratic_loss", torch.ones(3, 2), torch.zeros(3, 1))
    rows = {q.symbol: q for q in quantities(traced)}
    first = traced.layers[0]
    assert rows["z¹"].norm == number(float(first.z.norm()))
    assert (rows["z¹"].equation, rows["z¹"].shape) == ("a⁰ (W¹)ᵀ", "[3, 4]")
    assert rows["σ'(z¹)"].equation == "a (1 − a)"
    assert rows["z¹"].differences == ""
    assert rows["δ²"].differences != ""
    summary = str(traced)
    assert is_tiny(traced) is False
    (line,) = [line for line in summary.splitlines() if line.startswith("1 sigmoid")]
    assert line.split()[2:] == [f"{float(first.a.abs().mean()):.3g}", "25", "%", f"{first.delta_norm:.3g}"]
    comparisons = tuple(
        Comparison(layer, "delta", method, error, True)
        for layer, method, error in ((1, "autograd", 3e-15), (2, "autograd", 2e-16), (1, "differences", 4e-9))
    )
    comparisons += (Comparison(1, "z", "autograd", 0.0, True),)
    with_errors = dataclasses.replace(traced, comparisons=comparisons)
    assert verdict(with_errors) == "ok: PyTorch's autograd agrees to 3e-15, central differences to 4e-09"
    assert {q.symbol: (q.autograd, q.differences) for q in quantities(with_errors)}["δ¹"] == ("3e-15", "4e-09")


def test_a_tiny_delta_is_compared_relative_to_its_own_size(monkeypatch: pytest.MonkeyPatch):
    """After ten sigmoid layers δ¹ is about 1e-9; an error of 1 % is reported, although it is only 1e-11."""
    model = dp.MLP([4, *[10] * 10, 1], "sigmoid")
    x, y = torch.randn(5, 4), torch.rand(5, 1)
    traced = trace(model, "quadratic_loss", x, y)
    assert traced.ok
    assert traced.layers[0].delta.abs().max() < 1e-7
    assert not next(c for c in traced.comparisons if (c.layer, c.beside) == (1, "differences")).resolved
    first = id(model[0])
    real = core.ACTIVATIONS["sigmoid"].delta
    calls: list[int] = []

    def delta(grad_a: Tensor, saved: Tensor) -> Tensor:
        calls.append(first)
        return real(grad_a, saved) * (1.01 if len(calls) == 10 else 1.0)  # layer 1 comes last

    monkeypatch.setattr(core.ACTIVATIONS["sigmoid"], "delta", staticmethod(delta))
    errors = {(c.layer, c.quantity, c.beside) for c in trace(model, "quadratic_loss", x, y).comparisons if not c.ok}
    assert (1, "delta", "autograd") in errors


def test_the_loss_and_its_gradient_are_compared(monkeypatch: pytest.MonkeyPatch):
    """With PyTorch's loss: a loss that is 5 too large is reported, although its gradient is right."""
    real = F.mse_loss
    monkeypatch.setattr(F, "mse_loss", lambda a, y: real(a, y) + 5)
    traced = trace(dp.MLP([3, 2]), "mse_loss", torch.randn(5, 3), torch.rand(5, 2))
    assert [(c.layer, c.quantity) for c in traced.comparisons if not c.ok] == [(0, "loss")]
    assert not traced.ok


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_wide_networks_with_many_kinks_are_ok(activation: str, seed: int):
    """128 rows through 200 units: for every weight some kink is within the step h of the finite difference."""
    torch.manual_seed(seed)
    x, y = torch.randn(128, 64), torch.randint(10, (128,))
    traced = trace(dp.MLP([64, 200, 200, 10], activation), "cross_entropy", x, y)
    assert traced.ok, [c for c in traced.comparisons if not c.ok]


def test_an_activation_without_a_torch_module_is_not_compared_with_itself():
    traced = trace(dp.MLP([3, 4, 2], "step"), "mse_loss", torch.randn(5, 3), torch.rand(5, 2))
    assert {c.quantity for c in traced.comparisons if c.beside == "autograd"} == {"loss", "grad_a"}
    assert "PyTorch has no such modules" in str(traced)


def test_frozen_layers_stay_in_the_update():
    model = dp.MLP([3, 4, 2], "tanh", dtype=F64)
    model[0].requires_grad_(False)
    x, y = torch.randn(5, 3, dtype=F64), torch.rand(5, 2, dtype=F64)
    traced = trace(model, "mse_loss", x, y)
    assert torch.equal(traced.layers[0].updated(0.5)[0], model[0].weight)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    assert traced.loss_after(0.5) == pytest.approx(float(nn.functional.mse_loss(model(x), y).detach()), rel=1e-12)


def test_str_is_the_worked_example_or_the_summary():
    tiny = str(trace(dp.MLP([2, 1]), "mse_loss", torch.rand(1, 2), torch.rand(1, 1)))
    assert "FWD  z¹ = a⁰ (W¹)ᵀ + b¹" in tiny
    assert tiny.splitlines()[-1].startswith("ok: ")
    large = str(trace(dp.MLP([9, 8, 3], "tanh"), "mse_loss", torch.rand(5, 9), torch.rand(5, 3)))
    assert "δ¹      (δ² W²) ⊙ σ'(z¹)" in large
    assert max(map(len, large.splitlines())) <= 110


def test_a_notebook_shows_the_html_page():
    traced = trace(dp.MLP([2, 1]), "mse_loss", torch.rand(1, 2), torch.rand(1, 1))
    assert html.unescape(traced._repr_html_().partition('srcdoc="')[2].partition('" style')[0]) == traced.html()


@pytest.mark.parametrize(
    ("model", "loss", "x", "y", "message"),
    [
        (nn.Linear(2, 2), "mse_loss", torch.rand(3, 2), torch.rand(3, 2), "takes an nn.Sequential .* got Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "mse_loss", torch.rand(3, 2), torch.rand(3, 2), r"\(Dropout\)"),
        (
            nn.Sequential(*[nn.Linear(2, 2)] * 2),
            "mse_loss",
            torch.rand(3, 2),
            torch.rand(3, 2),
            "is in the network twice",
        ),
        (dp.MLP([2, 2]), "mse_los", torch.rand(3, 2), torch.rand(3, 2), "unknown loss 'mse_los': did you mean"),
        (dp.MLP([2, 2]), nn.functional.nll_loss, torch.rand(3, 2), torch.rand(3, 2), "no δ for the loss nll_loss"),
        (dp.MLP([2, 2]), "mse_loss", torch.rand(3, 3), torch.rand(3, 2), r"inputs must be \[N, 2\].*got \[3, 3\]"),
        (dp.MLP([2, 2]), "mse_loss", torch.rand(0, 2), torch.rand(0, 2), r"N at least 1, got \[0, 2\]"),
        (dp.MLP([2, 2]), "cross_entropy", torch.rand(3, 2), torch.full((3,), 7), "cross_entropy does not take outputs"),
        (dp.MLP([2, 2]), "mse_loss", [[1.0, 2.0]], torch.rand(1, 2), "must be tensors, got list and Tensor"),
        (dp.MLP([2, 2]), [1], torch.rand(1, 2), torch.rand(1, 2), "the loss must be a function or its name, got list"),
        (nn.Sequential(nn.LazyLinear(2)), "mse_loss", torch.rand(1, 2), torch.rand(1, 2), "lazy layers"),
        (dp.MLP([2, 2]), "mse_loss", torch.rand(1, 2) + 1j, torch.rand(1, 2), "real numbers"),
        (dp.MLP([2, 2]), "mse_loss", torch.rand(3, 2), torch.rand(3, 1), "does not take .* broadcast"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(0)), "mse_loss", torch.rand(3, 2), torch.rand(3, 2), "dim 1 or −1"),
        (
            dp.MLP([2, 2]),
            "cross_entropy",
            torch.rand(2, 2),
            torch.tensor([-100, -100]),
            "the loss of this batch is nan",
        ),
        (dp.MLP([2, 2]), "mse_loss", torch.rand(1, 2), torch.full((1, 2), 1e300, dtype=F64), "loss .* is inf"),
        (dp.MLP([2, 2], output_activation="softmax"), "cross_entropy", torch.rand(1, 2), torch.tensor([0]), "twice"),
        (
            dp.MLP([2, 2]),
            "mse_loss",
            torch.full((1, 2), torch.nan),
            torch.rand(1, 2),
            "must be finite numbers, got NaN",
        ),
        (
            dp.MLP([2, 2]),
            functools.partial(F.mse_loss, reduction="none"),
            torch.rand(3, 2),
            torch.rand(3, 2),
            "the loss must be one number",
        ),
    ],
)
def test_invalid_models_losses_and_data_are_refused_in_one_line(
    model: Any, loss: Any, x: Tensor, y: Tensor, message: str
):
    with pytest.raises(UserError, match=message) as error:
        trace(model, loss, x, y)
    assert "\n" not in str(error.value)


class LogCosh(core.ElementwiseLoss):
    """C = Σ log cosh(a − y)/M over all M entries;  ∂C/∂a = tanh(a − y)/M."""

    @staticmethod
    def value(a: Tensor, y: Tensor) -> Tensor:
        return torch.cosh(a - y).log()

    @staticmethod
    def derivative(a: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(a - y)


class Hinge(core.Loss):
    """C = Σ max(0, 1 − a y)/M over all M entries;  ∂C/∂a = −y/M where a y < 1, else 0."""

    @classmethod
    def forward(cls, a: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return (1 - a * y).clamp(min=0).mean()

    @staticmethod
    def saved(a: Tensor, output: Tensor) -> Tensor:
        return a

    @classmethod
    def denominator(cls, a: Tensor, y: Tensor, reduction: str) -> int:
        return a.numel()

    @classmethod
    def grad_input(cls, grad_loss: Any, a: Tensor, targets: tuple[Tensor, ...], reduction: str) -> Tensor:
        (y,) = targets
        return grad_loss / a.numel() * -y * (1 - a * y).sign().clamp(min=0)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @classmethod
    def backward(cls, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        a, y = ctx.saved_tensors
        return cls.grad_input(grad_output, a, (y,), "mean"), None, None

    @classmethod
    def jvp(cls, ctx: Any, a_dot: Tensor, *_: None) -> Tensor:
        a, y = ctx.saved_tensors
        return (cls.grad_input(1.0, a, (y,), "mean") * a_dot).sum()


@pytest.mark.parametrize("loss_class", [LogCosh, Hinge])
def test_an_added_loss_is_traced_with_the_equations_of_its_docstring(
    loss_class: type[core.Loss], monkeypatch: pytest.MonkeyPatch
):
    """The reference is autograd through its forward; the equations are those of its docstring."""
    monkeypatch.setitem(core.LOSSES, "added_loss", loss_class)
    traced = trace(dp.MLP([2, 3, 1], "tanh"), "added", torch.randn(4, 2), torch.randn(4, 1).sign())
    assert traced.ok
    text = str(traced)
    assert "C = " in text
    lines = [part.equation for step in steps(traced, 0.1) for part in step.parts]
    cost, _, derivative = str(loss_class.__doc__).rstrip(".").partition(";  ")
    assert f"{cost},  added_loss" in lines
    assert f"{derivative}, the derivative of the loss" in lines
