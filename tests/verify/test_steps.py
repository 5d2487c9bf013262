"""The steps of a trace have its numbers, and every sum that they write is right."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import functional as F
from deltaprop import ops, trace
from deltaprop.verify.steps import Step, as_text, choose, is_tiny, steps
from deltaprop.verify.trace import LOSSES, Trace

F64 = torch.float64


def target(loss: str, rows: int, outputs: int) -> Tensor:
    return torch.randint(outputs, (rows,)) if loss == "cross_entropy" else torch.rand(rows, outputs, dtype=F64)


def sums(text: str) -> list[tuple[str, float, float]]:
    """Return each sum of a line, what it comes to, and what the line says it comes to."""
    found = []
    text = text.partition("← ")[2] or text
    text = re.sub(r"\((\d+) more: (\S+)\)", r"(\2)", text)  # what is not written out
    *terms, result = text.partition(", the sum")[0].split(" = ")
    for term in terms:
        if not re.search(r"[·+/(|]|\d − ", term) or re.search(
            r"[^\W\d_](?<!ln)(?<!exp)(?<!max)(?<!tanh)\W", term + " "
        ):
            continue  # a name, a vector, or a function that is not computed here
        python = term.replace("−", "-").replace("·", "*").replace("²", "**2").replace("ln(", "log(")
        python = re.sub(r"\|(.*?)\|", r"abs(\1)", python)
        value = eval(python, {"__builtins__": {}, "log": math.log, "exp": math.exp, "max": max, "abs": abs,
                              "tanh": math.tanh})  # fmt: skip
        found.append((term, value, float(result.replace("−", "-"))))
    return found


def check(found: Trace, lr: float = 0.5) -> int:
    """Hold every sum of the steps to what it says; return how many there were."""
    checked = 0
    for line in (line.text for step in steps(found, lr) for part in step.parts for line in part.lines):
        for _, value, said in sums(line):
            assert value == pytest.approx(said, rel=3e-3, abs=3e-3 * max(abs(value), 0.1)), line
            checked += 1
    return checked


@pytest.mark.parametrize("loss", LOSSES)
def test_every_sum_is_right(loss: str):
    """To the digits it is written with: z, a, the loss, its slope, σ', δ, gradients and the update."""
    found = trace(dp.MLP([2, 3, 2], "sigmoid"), loss, torch.rand(2, 2), target(loss, 2, 2))
    # z 2·5, a 2·3, σ' 2·3, δ 2·3, BP4 12, BP3 5, SGD 17, and those of the loss
    assert check(found) >= 10 + 6 + 6 + 6 + 12 + 5 + 17 + 4


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_every_activation_has_its_sums(activation: str):
    found = trace(dp.MLP([2, 3, 2], activation, activation), "mse_loss", torch.rand(2, 2), torch.rand(2, 2))
    assert check(found) >= 45


def test_a_large_net_is_written_out_in_part_and_its_sums_stay_right():
    found = trace(dp.MLP([50, 40, 30], "tanh"), "cross_entropy", torch.rand(20, 50), torch.randint(30, (20,)))
    assert check(found) >= 200
    shown = choose(found)
    worst = found.layers[-1].delta.norm(dim=1).argsort(descending=True)[:4]
    assert shown.rows == tuple(worst.tolist())
    assert [len(neurons) for neurons in shown.neurons] == [8, 8, 12]
    best = found.layers[0].delta.abs().mean(0).argsort(descending=True)[:8]
    assert set(shown.neurons[1]) == set(best.tolist())
    text = "\n".join(as_text(steps(found, 0.1)))
    assert "(42 more: " in text  # of 50 inputs
    assert "(16 more: " in text  # of 20 samples


def test_the_numbers_of_the_trace():
    """2-1 net, one sample, by hand: z = 0.5·0.2 + (−1)·0.4 + 0.1 = −0.2, a = z, C = ½ (−0.2 − 1)² = 0.72."""
    model = dp.MLP([2, 1], dtype=F64)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        model[0].bias.fill_(0.1)
    found = trace(model, "quadratic_loss", torch.tensor([[0.2, 0.4]]), torch.tensor([[1.0]]))
    lines = list(as_text(steps(found, lr=0.5)))
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


def test_the_order_is_that_of_a_step():
    found = steps(trace(dp.MLP([2, 3, 1], "tanh"), "quadratic_loss", torch.rand(1, 2), torch.rand(1, 1)), 0.1)
    names = ["input", "forward 1", "forward 2", "loss C", "δ²", "δ¹", "gradients", "update"]
    assert [step.name for step in found] == names
    tags = [[part.tag for part in step.parts] for step in found]
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


def test_every_line_says_which_neuron_it_tells_of():
    found = steps(trace(dp.MLP([2, 3, 1], "tanh"), "quadratic_loss", torch.rand(2, 2), torch.rand(2, 1)), 0.1)

    def of(step: Step) -> set[tuple[int | None, int | None]]:
        return {(line.neuron, line.row) for part in step.parts for line in part.lines}

    assert of(found[1]) == {(j, n) for j in range(3) for n in range(2)}
    assert of(found[-1]) == {(0, None), (1, None), (2, None), (None, None)}


@pytest.mark.parametrize(
    ("options", "y", "said"),
    [
        ({"label_smoothing": 0.2}, torch.tensor([1, 0]), "cross_entropy, label_smoothing=0.2"),
        ({"weight": torch.tensor([1.0, 2.0])}, torch.tensor([1, 0]), "cross_entropy, weight=[1, 2]"),
        ({}, torch.tensor([[0.2, 0.8], [1.0, 0.0]]), "cross_entropy"),
        ({}, torch.tensor([1, -100]), "cross_entropy"),
    ],
    ids=["smoothed", "weighted", "shares", "ignored"],
)
def test_what_the_plain_formula_does_not_cover_is_told_by_value_alone(options: dict, y: Tensor, said: str):
    model, x = dp.MLP([2, 2], dtype=F64), torch.rand(2, 2, dtype=F64)
    found = trace(model, functools.partial(F.cross_entropy, **options), x, y)
    text = "\n".join(as_text(steps(found, 0.1)))
    assert said in text
    assert check(found) > 0
    right = float(nn.functional.cross_entropy(model(x), y, **{k: v.double() if isinstance(v, Tensor) else v
                                                              for k, v in options.items()}).detach())  # fmt: skip
    assert found.loss == pytest.approx(right)
    assert re.search(r"^  C = .*\d$", text, re.MULTILINE)


def test_what_is_tiny():
    assert is_tiny(trace(dp.MLP([2, 3, 1]), "mse_loss", torch.rand(2, 2), torch.rand(2, 1)))
    assert not is_tiny(trace(dp.MLP([2, 3, 1]), "mse_loss", torch.rand(3, 2), torch.rand(3, 1)))
    assert not is_tiny(trace(dp.MLP([9, 9, 1]), "mse_loss", torch.rand(1, 9), torch.rand(1, 1)))
