"""The worked example of a trace has the trace's values, and every sum it prints is right."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import core, trace
from deltaprop import functional as F
from deltaprop.tracing.trace import Trace
from deltaprop.tracing.worked_example import ExampleStep, as_text, is_tiny, select_entries, steps

F64 = torch.float64


def target(loss: str, rows: int, outputs: int) -> Tensor:
    return torch.randint(outputs, (rows,)) if loss == "cross_entropy" else torch.rand(rows, outputs, dtype=F64)


def sums(text: str) -> list[tuple[str, float, float]]:
    """Return (text, computed value, printed value) of each sum in a line."""
    triples = []
    text = text.partition("← ")[2] or text
    text = re.sub(r"\((\d+) more: (\S+)\)", r"(\2)", text)  # terms that are not written out
    *terms, result = text.partition(", the sum")[0].split(" = ")
    for term in terms:
        if not re.search(r"[·+/(|]|\d − ", term) or re.search(
            r"[^\W\d_](?<!ln)(?<!exp)(?<!max)(?<!tanh)\W", term + " "
        ):
            continue  # a name, a vector, or a function that is not evaluated here
        python = term.replace("−", "-").replace("·", "*").replace("²", "**2").replace("ln(", "log(")
        python = re.sub(r"\|(.*?)\|", r"abs(\1)", python)
        value = eval(python, {"__builtins__": {}, "log": math.log, "exp": math.exp, "max": max, "abs": abs,
                              "tanh": math.tanh})  # fmt: skip
        triples.append((term, value, float(result.replace("−", "-"))))
    return triples


def check(traced: Trace, lr: float = 0.5) -> int:
    """Check that every printed sum has its printed value; return the number of sums."""
    checked = 0
    for line in (line.text for step in steps(traced, lr) for part in step.parts for line in part.lines):
        for _, value, printed in sums(line):
            assert value == pytest.approx(printed, rel=3e-3, abs=3e-3 * max(abs(value), 0.1)), line
            checked += 1
    return checked


@pytest.mark.parametrize("loss", core.LOSSES)
def test_every_printed_sum_is_right(loss: str):
    """To the printed digits: z, a, the loss, its derivative, σ', δ, gradients and the update."""
    traced = trace(dp.MLP([2, 3, 2], "sigmoid"), loss, torch.rand(2, 2), target(loss, 2, 2))
    # z 2·5, a 2·3, σ' 2·3, δ 2·3, BP4 12, BP3 5, SGD 17, and at least 4 of the loss
    assert check(traced) >= 10 + 6 + 6 + 6 + 12 + 5 + 17 + 4


@pytest.mark.parametrize("activation", sorted(core.ACTIVATIONS))
def test_sums_are_right_for_every_activation(activation: str):
    traced = trace(dp.MLP([2, 3, 2], activation, activation), "mse_loss", torch.rand(2, 2), torch.rand(2, 2))
    assert check(traced) >= 45


def test_a_large_network_is_written_out_in_part_with_right_sums():
    traced = trace(dp.MLP([50, 40, 30], "tanh"), "cross_entropy", torch.rand(20, 50), torch.randint(30, (20,)))
    assert check(traced) >= 200
    selected = select_entries(traced)
    worst = traced.layers[-1].delta.norm(dim=1).argsort(descending=True)[:4]
    assert selected.rows == tuple(worst.tolist())
    assert [len(neurons) for neurons in selected.neurons] == [8, 8, 12]
    largest = traced.layers[0].delta.abs().mean(0).argsort(descending=True)[:8]
    assert set(selected.neurons[1]) == set(largest.tolist())
    text = "\n".join(as_text(steps(traced, 0.1)))
    assert "(42 more: " in text  # of 50 inputs
    assert "(16 more: " in text  # of 20 samples


def test_the_lines_of_a_small_network_by_hand():
    """A 2-1 network, one sample: z = 0.5·0.2 + (−1)·0.4 + 0.1 = −0.2, a = z, C = ½ (−0.2 − 1)² = 0.72."""
    model = dp.MLP([2, 1], dtype=F64)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        model[0].bias.fill_(0.1)
    traced = trace(model, "quadratic_loss", torch.tensor([[0.2, 0.4]]), torch.tensor([[1.0]]))
    lines = list(as_text(steps(traced, lr=0.5)))
    for line in (
        "  z¹[1] = 0.5·0.2 + (−1)·0.4 + 0.1 = −0.2",
        "  c[1] = 0.5·(−0.2 − 1)² = 0.72",
        "  δ¹[1] = −1.2",
        "  ∂C/∂W¹[1,2] = (−1.2)·0.4 = −0.48",
        "  W¹[1,2] ← −1 − 0.5·(−0.48) = −0.76",  # −1 + 0.24
        "  b¹[1] ← 0.1 − 0.5·(−1.2) = 0.7",
        # z = 0.62·0.2 + (−0.76)·0.4 + 0.7 = 0.52, C = ½ · 0.48² = 0.1152
        "  C was 0.72, and is 0.1152 after the step",
    ):
        assert line in lines


def test_steps_are_in_the_order_of_training():
    traced = steps(trace(dp.MLP([2, 3, 1], "tanh"), "quadratic_loss", torch.rand(1, 2), torch.rand(1, 1)), 0.1)
    names = ["input", "forward 1", "forward 2", "loss C", "δ²", "δ¹", "gradients", "update"]
    assert [step.name for step in traced] == names
    tags = [[part.tag for part in step.parts] for step in traced]
    assert tags == [
        ["INPUT"],
        ["FWD"],
        ["FWD"],
        ["C"],
        ["BP1", "BP1"],
        ["BP2"],
        ["BP3", "BP4", "BP3", "BP4"],
        ["SGD", "SGD", "C"],
    ]


def test_every_line_names_its_neuron_and_row():
    traced = steps(trace(dp.MLP([2, 3, 1], "tanh"), "quadratic_loss", torch.rand(2, 2), torch.rand(2, 1)), 0.1)

    def neurons_and_rows(step: ExampleStep) -> set[tuple[int | None, int | None]]:
        return {(line.neuron, line.row) for part in step.parts for line in part.lines}

    assert neurons_and_rows(traced[1]) == {(j, n) for j in range(3) for n in range(2)}
    assert neurons_and_rows(traced[-1]) == {(0, None), (1, None), (2, None), (None, None)}


@pytest.mark.parametrize(
    ("options", "y", "expected"),
    [
        ({"label_smoothing": 0.2}, torch.tensor([1, 0]), "cross_entropy, label_smoothing=0.2"),
        ({"weight": torch.tensor([1.0, 2.0])}, torch.tensor([1, 0]), "cross_entropy, weight=[1, 2]"),
        ({}, torch.tensor([[0.2, 0.8], [1.0, 0.0]]), "cross_entropy"),
        ({}, torch.tensor([1, -100]), "cross_entropy"),
    ],
    ids=["smoothed", "weighted", "probabilities", "ignored"],
)
def test_a_loss_with_options_is_printed_by_value_without_a_formula(options: dict, y: Tensor, expected: str):
    model, x = dp.MLP([2, 2], dtype=F64), torch.rand(2, 2, dtype=F64)
    traced = trace(model, functools.partial(F.cross_entropy, **options), x, y)
    text = "\n".join(as_text(steps(traced, 0.1)))
    assert expected in text
    assert check(traced) > 0
    reference = float(nn.functional.cross_entropy(model(x), y, **{k: v.double() if isinstance(v, Tensor) else v
                                                              for k, v in options.items()}).detach())  # fmt: skip
    assert traced.loss == pytest.approx(reference)
    assert re.search(r"^  C = .*\d$", text, re.MULTILINE)


def test_which_networks_are_tiny():
    assert is_tiny(trace(dp.MLP([2, 3, 1]), "mse_loss", torch.rand(2, 2), torch.rand(2, 1)))
    assert not is_tiny(trace(dp.MLP([2, 3, 1]), "mse_loss", torch.rand(3, 2), torch.rand(3, 1)))
    assert not is_tiny(trace(dp.MLP([9, 9, 1]), "mse_loss", torch.rand(1, 9), torch.rand(1, 1)))


# --- every line has the value of its own sample, neuron and weight ---

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def printed_value(text: str) -> float:
    """Return the number at the end of a line."""
    return float(text.replace("−", "-").rpartition(" = ")[2])


def expected_value(traced: Trace, part_layer: int | None, text: str, row: int | None, lr: float) -> float | None:
    """Return the trace's value of the quantity at the start of a line, or None if there is no quantity."""
    match = re.match(r"(∂C/∂[aWb]|σ'\(z|[zaδWb])([⁰¹²³⁴⁵⁶⁷⁸⁹])\)?\[(\d+)(?:,(\d+))?\] (?:=|←)", text)
    if match is None:
        return None
    name, layer, j = match[1], int(match[2].translate(SUPERSCRIPTS)), int(match[3]) - 1
    assert layer == part_layer
    k = int(match[4]) - 1 if match[4] else None
    record = traced.layers[layer - 1]
    table = {"z": record.z, "a": record.a, "δ": record.delta, "σ'(z": record.derivative,
             "∂C/∂a": traced.grad_of_a(layer)}  # fmt: skip
    if name in table:
        assert row is not None
        return float(table[name][row, j])
    if name == "∂C/∂W":
        return float(record.grad_weight[j, k])
    if name == "∂C/∂b":
        return float(record.grad_bias[j])
    if name == "W":
        return float(record.weight[j, k] - lr * record.grad_weight[j, k])
    return float(record.bias[j] - lr * record.grad_bias[j])


@pytest.mark.parametrize(("sizes", "rows"), [([3, 4, 2], 3), ([20, 15, 14], 9)], ids=["small", "large"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax"])
def test_each_line_has_the_value_of_its_own_sample_and_neuron(activation: str, sizes: list[int], rows: int):
    traced = trace(dp.MLP(sizes, activation), "mse_loss", torch.randn(rows, sizes[0]), torch.rand(rows, sizes[-1]))
    counted = 0
    for step in steps(traced, 0.3):
        for part in step.parts:
            for line in part.lines:
                expected = expected_value(traced, part.layer, line.text, line.row, 0.3)
                if expected is None:
                    continue
                assert printed_value(line.text) == pytest.approx(expected, rel=1e-3), line.text
                neuron = int(re.search(r"\[(\d+)", line.text)[1]) - 1  # type: ignore[index]
                assert line.neuron == neuron, line.text
                assert (line.row is None) == (step.kind in ("gradients", "update"))
                counted += 1
    assert counted > 80


def test_inputs_and_targets_are_those_of_their_sample():
    traced = trace(
        dp.MLP([2, 2]), "mse_loss", torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.tensor([[0.5, 0], [0.7, 1]])
    )
    lines = steps(traced, 0.1)[0].parts[0].lines
    assert [line.text for line in lines] == ["a⁰ = [0.1, 0.2]    y = [0.5, 0]", "a⁰ = [0.3, 0.4]    y = [0.7, 1]"]
    labels = trace(dp.MLP([2, 3]), "cross_entropy", torch.rand(2, 2), torch.tensor([2, -100]))
    texts = [line.text.partition("    ")[2] for line in steps(labels, 0.1)[0].parts[0].lines]
    assert texts == ["y = 2, which is neuron 3", "y = -100, which is ignored"]


def test_losses_are_those_of_their_sample():
    """The cost of each output is ½ (a − y)² of its own a and y."""
    traced = trace(dp.MLP([2, 3, 2], "tanh"), "quadratic_loss", torch.randn(2, 2), torch.rand(2, 2))
    lines = [line for line in steps(traced, 0.1)[3].parts[0].lines if line.row is not None]
    assert [line.row for line in lines] == [0, 0, 1, 1]
    costs = 0.5 * (traced.layers[-1].a - traced.target) ** 2
    assert [printed_value(line.text) for line in lines] == pytest.approx(costs.reshape(-1).tolist(), rel=1e-3)


EQUATIONS = {
    "quadratic_loss": ("C = ½ Σ (a − y)²/N,  quadratic_loss", "∂C/∂a = (a − y)/N, the derivative of the loss"),
    "mse_loss": ("C = Σ (a − y)²/M over all M entries,  mse_loss", "∂C/∂a = 2 (a − y)/M, the derivative of the loss"),
    "l1_loss": ("C = Σ |a − y|/M over all M entries,  l1_loss",
                "∂C/∂a = sign(a − y)/M, the derivative of the loss"),
    "huber_loss": ("C = Σ h(a − y)/M, h(r) = ½ r² up to |r| = d and then d (|r| − ½ d),  huber_loss",
                   "∂C/∂a = (a − y)/M, a − y clipped to ±d, the derivative of the loss"),
    "cross_entropy": ("C = −Σ log p_y/N, p = exp(a)/Σ exp(a),  cross_entropy",
                      "∂C/∂a = (p − y)/N, y one-hot, the derivative of the loss"),
    "binary_cross_entropy_with_logits": (
        "C = −Σ [y log s + (1 − y) log(1 − s)]/M, s = 1/(1 + e^−a),  binary_cross_entropy_with_logits",
        "∂C/∂a = (s − y)/M, the derivative of the loss"),
    "binary_cross_entropy_per_sample": (
        "C = −Σ [y log s + (1 − y) log(1 − s)]/N, s = 1/(1 + e^−a),  binary_cross_entropy_per_sample",
        "∂C/∂a = (s − y)/N, the derivative of the loss"),
}  # fmt: skip


@pytest.mark.parametrize("loss", core.LOSSES)
def test_equations_of_the_losses(loss: str):
    """The equations as text; the sums in their lines are checked by the other tests."""
    traced = steps(trace(dp.MLP([2, 2]), loss, torch.rand(2, 2), target(loss, 2, 2)), 0.1)
    assert (traced[2].parts[0].equation, traced[3].parts[0].equation) == EQUATIONS[loss]


def test_equations_of_the_page():
    """The equations of DESIGN and docs/equations.md, in the order of a step."""
    traced = steps(trace(dp.MLP([2, 3, 1], "tanh"), "mse_loss", torch.rand(1, 2), torch.rand(1, 1)), 0.25)
    assert [part.equation for step in traced for part in step.parts if step.kind not in ("loss", "input")] == [
        "z¹ = a⁰ (W¹)ᵀ + b¹,  a¹ = tanh(z¹)",
        "z² = a¹ (W²)ᵀ + b²,  a² = z²",
        "∂C/∂a = 2 (a − y)/M, the derivative of the loss",
        "δ² = ∂C/∂a²",
        "δ¹ = (δ² W²) ⊙ σ'(z¹)",
        "∂C/∂b² = Σₙ δ²",
        "∂C/∂W² = (δ²)ᵀ a¹",
        "∂C/∂b¹ = Σₙ δ¹",
        "∂C/∂W¹ = (δ¹)ᵀ a⁰",
        "θ ← θ − η ∂C/∂θ, η = 0.25, layer 1",
        "θ ← θ − η ∂C/∂θ, η = 0.25, layer 2",
        "the same batch after the update",
    ]
    words = [step.words for step in traced]
    assert words[1] == "Each neuron computes a weighted sum of its inputs plus a bias and applies tanh: a = tanh z."
    assert words[4] == "δ of the output layer, ∂C/∂z, is the derivative of the loss with respect to a."
    assert words[5] == (
        "δ of the layer above is propagated back through its weights, times the derivative of tanh, σ'(z) = 1 − a²."
    )
    assert words[6].endswith("Both are summed over the samples.")


def test_the_largest_inputs_are_selected():
    """The inputs with the largest |a⁰| are selected."""
    x = torch.full((6, 20), 0.01)
    x[:, [3, 7, 11, 12, 15, 16, 17, 19]] = 2.0
    traced = trace(dp.MLP([20, 4, 3]), "cross_entropy", x, torch.randint(3, (6,)))
    assert select_entries(traced).neurons[0] == (3, 7, 11, 12, 15, 16, 17, 19)


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0, 800.0])
@pytest.mark.parametrize("loss", core.LOSSES)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_sums_are_right_despite_cancellation(activation: str, loss: str, scale: float):
    """For saturated outputs the error is small relative to the printed number, however small that is."""
    model = dp.MLP([2, 2, 2], activation, dtype=F64)
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].weight.mul_(scale)
    y = torch.tensor([0, 1]) if loss == "cross_entropy" else torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    traced = trace(model, loss, torch.tensor([[1.0, 0.9], [-0.8, 1.0]], dtype=F64), y)
    for step in steps(traced, 0.5)[:-1]:
        if step.kind in ("loss", "delta"):
            for line in (line.text for part in step.parts for line in part.lines):
                if line.startswith(("σ'", "c", "∂C/∂a", "C =")):
                    for _, value, printed in sums(line):
                        assert value == pytest.approx(printed, rel=0.02, abs=1e-12), line


def test_constants_of_an_activation_are_printed():
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2), nn.Linear(2, 1), nn.ELU(2.5))
    words = [step.words for step in steps(trace(model, "mse_loss", torch.rand(1, 2), torch.rand(1, 1)), 0.1)]
    assert "negative_slope = 0.2" in words[1]
    assert "alpha = 2.5" in words[2]


def test_class_probabilities_as_targets_have_no_formula_of_labels():
    y = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    traced = steps(trace(dp.MLP([2, 2]), "cross_entropy", torch.rand(2, 2), y), 0.1)
    assert traced[2].parts[0].equation == "cross_entropy"
    assert "p − 1" not in traced[3].parts[0].equation


def test_a_step_that_is_too_large_is_reported():
    traced = trace(dp.MLP([2, 1]), "quadratic_loss", torch.rand(1, 2), torch.rand(1, 1))
    last = [list(as_text(steps(traced, lr)))[-1] for lr in (0.1, 50.0)]
    assert "too large" not in last[0]
    assert last[1].endswith(": the step was too large, a smaller η reduces C")
