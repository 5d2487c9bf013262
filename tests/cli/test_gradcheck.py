"""``deltaprop gradcheck``: the library's ops and a user's own, on a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deltaprop.cli import main

OWN = """
import torch
from torch.autograd import Function


class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return {factor} * x * x * grad_output


def example_inputs():
    return (torch.randn(4, 3),)


def fails(x):
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of the user's with a Function that is right."""
    path = tmp_path / "own.py"
    path.write_text(OWN.format(factor=3))
    return path


def test_every_op_of_the_library_in_one_table(capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", "--fast"]) == 0
    out = capsys.readouterr().out
    for word in ("sigmoid", "linear", "cross_entropy", "✓", "values", "20 of 20 ops ok on cpu"):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_users_own_by_shapes_and_by_example(own: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", f"{own}:Cube", "--shape", "4x3", "--fast"]) == 0
    assert main(["gradcheck", f"{own}:Cube", "--fast"]) == 0
    assert "ok: 0 errors" in capsys.readouterr().out


def test_a_module_by_its_dotted_name(capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", "torch.nn.functional:softsign", "--shape", "5", "--fast"]) == 0
    assert "gradients of softsign" in capsys.readouterr().out


def test_what_is_wrong_is_told_and_ends_with_1(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own.write_text(OWN.format(factor=2))
    report = tmp_path / "report.json"
    assert main(["gradcheck", f"{own}:Cube", "--shape", "4x3", "--fast", "--json", str(report)]) == 1
    out = re.sub(r"[│\s]+", " ", capsys.readouterr().out)  # a cell may be wrapped
    assert "ERROR" in out
    assert "0.666667 times what it should" in out
    assert json.loads(report.read_text())[0]["ok"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Cube"], "a target is FILE.py:NAME or package.module:NAME, got 'Cube'"),
        (["{own}"], "a target is FILE.py:NAME"),
        (["{own}:Cubic", "--shape", "4x3"], "has no 'Cubic'; it has"),
        (["/nowhere/own.py:Cube"], "/nowhere/own.py: there is no such file"),
        (["no.such.module:Cube"], "no.such.module cannot be imported: ModuleNotFoundError"),
        (["torch:sin"], "inputs are needed: --shape 4x3 for each, or a function example_inputs() beside it"),
        (
            ["torch:sin", "--shape", "4,3"],
            "--shape must be sizes with x between them, such as 4x3, or scalar, got '4,3'",
        ),
        (["torch:mm", "--shape", "4x3", "--shape", "4x3"], "mm raises on these inputs in torch.float64: RuntimeError"),
        (["{own}:fails", "--shape", "2"], "fails raises on these inputs in torch.float64: RuntimeError: no such thing"),
        (["torch:sin", "--shape", "3", "--skip", "valeus"], "unknown check 'valeus': did you mean 'values'"),
        (["torch:sin", "--shape", "3", "--device", "gpu"], "--device must be auto, cpu"),
        (["torch:sin", "--shape", "3", "--slow"], "unrecognized options: --slow"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line_and_2(words: list[str], said: str, own: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", *[word.format(own=own) for word in words]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
