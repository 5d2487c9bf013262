"""``deltaprop gradcheck``: the library's ops and a user's own, on a terminal."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

from deltaprop import check_gradients
from deltaprop.cli import main
from deltaprop.gradcheck.check import CHECKS
from deltaprop.gradcheck.report import GradientReport

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
    """A user's file with a Function whose backward is correct."""
    path = tmp_path / "own.py"
    path.write_text(OWN.format(factor=3))
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each check_gradients call; every op gets the report of torch.sin, to be fast.

    The ops themselves are checked in tests/gradcheck.
    """
    calls: list[dict[str, Any]] = []
    sine_report = check_gradients(torch.sin, (torch.randn(4, 3),), fast=True)

    def check(op: Any, inputs: Any, **options: Any) -> GradientReport:
        calls.append(options)
        return dataclasses.replace(sine_report, subject=op.__name__)

    monkeypatch.setattr("deltaprop.cli.gradcheck.check_gradients", check)
    return calls


def test_every_op_of_the_library_is_in_one_table(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", "--fast"]) == 0
    assert calls == [{"skip": [], "fast": True, "deep": False, "seed": 0}] * 21
    out = capsys.readouterr().out
    for word in ("sigmoid", "linear", "cross_entropy", "ok", "there is one output", "21 of 21 ok on cpu"):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_users_op_is_checked_by_shape_and_by_example_inputs(own: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", f"{own}:Cube", "--shape", "4x3", "--fast"]) == 0
    assert main(["gradcheck", f"{own}:Cube", "--fast"]) == 0
    assert capsys.readouterr().out.count("Cube: ok; ") == 2


def test_a_file_with_dataclasses_that_imports_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "neighbour_of_mine.py").write_text("FACTOR = 2.0\n")
    lines = ["from __future__ import annotations", "from dataclasses import dataclass", "import neighbour_of_mine"]
    lines += ["@dataclass", "class Options:", "    factor: float = neighbour_of_mine.FACTOR"]
    lines += ["def twice(x):", "    return x * Options().factor"]
    (tmp_path / "mine_with_options.py").write_text("\n".join(lines))
    assert main(["gradcheck", f"{tmp_path}/mine_with_options.py:twice", "--shape", "4x3", "--fast"]) == 0


def test_a_narrow_terminal_shows_every_op(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["gradcheck", "--fast", "--skip", "second", "--skip", "values"]) == 0
    assert calls == [{"skip": ["second", "values"], "fast": True, "deep": False, "seed": 0}] * 21
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum(re.fullmatch(r"\w+ +(\w+ )?ok +\d+ +\d+ *|\w+ +ok +\d+ +\d+ *", line) is not None for line in lines) >= 15
    )
    assert max(map(len, lines)) <= 50


def test_a_target_in_a_module_is_found_by_its_dotted_name(capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", "torch.nn.functional:softsign", "--shape", "5", "--fast"]) == 0
    assert "gradients of softsign" in capsys.readouterr().out


def test_a_wrong_gradient_is_reported_and_exits_1(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own.write_text(OWN.format(factor=2))
    report = tmp_path / "report.json"
    assert main(["gradcheck", f"{own}:Cube", "--shape", "4x3", "--fast", "--json", str(report)]) == 1
    out = re.sub(r"[│\s]+", " ", capsys.readouterr().out)  # a cell may be wrapped
    assert "error" in out
    assert "0.666667 times what it should" in out
    assert json.loads(report.read_text())[0]["ok"] is False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["Cube"], "a target is FILE.py, FILE.py:NAME or package.module:NAME, got 'Cube'"),
        (["{own}", "--shape", "4x3"], "--shape is for one target of your own: FILE.py:NAME"),
        (["{own}:Cubic", "--shape", "4x3"], "has no 'Cubic': did you mean 'Cube'?"),
        (["{own}:x", "--shape", "4x3"], "has no 'x'; it has torch, Function, Cube"),
        (["/nowhere/own.py:Cube"], "/nowhere/own.py: there is no such file"),
        (["{folder}"], "folder.py: this is a folder; name a file in it"),
        (["{own}s.py"], "there is no such file: did you mean {own}?"),
        (["{empty}"], "defines no torch.autograd.Function; name something else in it by {empty}:NAME"),
        (["{bare}"], "inputs are needed: give Cube a static method example_inputs(), or the file a function of that"),
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
        (["--shape", "3"], "--shape is for one target of your own"),
        (["torch:sin", "--shape", "3", "--json", "/nowhere/report.json"], "--json /nowhere/report.json: there is no"),
        (["torch:sin", "--shape", "3", "--junit", "/nowhere/report.xml"], "--junit /nowhere/report.xml: there is no"),
        (["torch.nn:Linear", "--shape", "3"], "torch.nn:Linear is a class of modules: name an instance"),
        (["torch:sin", "--shape", "99999999999x99999999999"], "--shape 99999999999x99999999999: "),
    ],
    ids=str,
)
def test_invalid_input_is_one_line_and_exit_code_2(
    args: list[str], message: str, own: Path, capsys: pytest.CaptureFixture[str]
):
    empty, bare = own.with_name("empty.py"), own.with_name("bare.py")
    empty.write_text("from torch.autograd import Function\n")
    bare.write_text(OWN.format(factor=3).split("def example_inputs")[0])
    folder = own.with_name("folder.py")
    folder.mkdir()
    files = {"folder": folder, "own": own, "empty": empty, "bare": bare}
    assert main(["gradcheck", *[word.format(**files) for word in args]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message.format(**files) in line


SEVERAL = (
    OWN
    + """

class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return x * grad_output

    @staticmethod
    def example_inputs():
        return torch.randn(5, 2)
"""
)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A user's file with two Functions, of which the second is wrong and has inputs of its own."""
    path = tmp_path / "several.py"
    path.write_text(SEVERAL.format(factor=3))
    return path


def test_every_function_of_a_file_is_in_one_table(several: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", str(several), "--fast"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^Cube +ok +\d+ +\d+ *$", out, flags=re.MULTILINE)
    assert re.search(r"^Square +values.* +\d+ +\d+ *$", out, flags=re.MULTILINE)
    assert "Square: error: values: ∂C/∂x: at [" in out
    assert "1 of 2 ok on cpu" in out


def test_a_function_without_inputs_is_named(several: Path, capsys: pytest.CaptureFixture[str]):
    several.write_text(
        several.read_text().replace("def example_inputs():\n    return (", "def others():\n    return (")
    )
    assert main(["gradcheck", str(several), "--fast"]) == 1
    assert "not checked, no example_inputs(): Cube" in capsys.readouterr().out


def test_one_function_that_raises_does_not_hide_the_others(several: Path, capsys: pytest.CaptureFixture[str]):
    several.write_text(several.read_text().replace("return x * x\n", "raise ValueError('not today')\n"))
    assert main(["gradcheck", str(several), "--fast"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Square: error: values: Square raises on these inputs in torch.float64: ValueError: not today" in out
    assert "1 of 2 ok on cpu" in out


def test_checks_to_skip_may_be_listed_with_commas(own: Path, capsys: pytest.CaptureFixture[str]):
    own.write_text(OWN.format(factor=2))
    words = ["--fast", "--skip", "values,kink", "--skip", "missing"]
    assert main(["gradcheck", f"{own}:Cube", "--shape", "4x3", *words]) == 0
    assert "3 checks values, kink, missing: as requested" in re.sub(r"[│\s]+", " ", capsys.readouterr().out)


def test_the_same_command_prints_the_same(several: Path, capsys: pytest.CaptureFixture[str]):
    outputs = []
    for _ in range(2):
        main(["gradcheck", str(several), "--fast"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_junit_has_a_case_for_each_check(several: Path, tmp_path: Path):
    path = tmp_path / "report.xml"
    assert main(["gradcheck", str(several), "--fast", "--junit", str(path)]) == 1
    cube, square = ET.parse(path).getroot()
    assert (cube.get("name"), cube.get("failures"), cube.get("tests")) == ("Cube", "0", str(len(CHECKS)))
    assert [case.get("name") for case in cube] == list(CHECKS)
    (failure,) = square.findall("testcase[@name='values']/failure")
    assert failure.get("message", "").startswith("∂C/∂x: at [")
    assert square.find("testcase[@name='compile']/skipped").get("message") == "not with fast=True"


def test_githubs_annotations_name_file_and_line_of_the_backward(several: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["gradcheck", str(several), "--fast", "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    backward = several.read_text().split("class Square")[0].count("\n") + 7
    name = str(several).replace(":", "%3A").replace(",", "%2C")
    assert lines[0].startswith("Cube: ok; ")
    assert lines[1].startswith(f"::error file={name},line={backward},title=Square%3A values::∂C/∂x: at [")
