"""A new activation, loss or table format needs only a class and a row of a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import deltaprop as dp
import deltaprop.functional as F
from deltaprop import core
from deltaprop.cli import main
from deltaprop.data import formats
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.table import ReadOptions
from deltaprop.nn import activation_module
from tests import test_docs


class Mish(core.Elementwise):
    """a = z tanh(log(1 + e^z));  σ'(z) = t + z (1 − t²) / (1 + e^−z), t = tanh(log(1 + e^z))."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z * torch.tanh(torch.nn.functional.softplus(z))

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        t = torch.tanh(torch.nn.functional.softplus(z))
        return t + z * (1 - t * t) * torch.sigmoid(z)


class LogCosh(core.ElementwiseLoss):
    """C = Σ log cosh(a − y)/M;  ∂C/∂a = tanh(a − y)/M."""

    contains: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def value(a: Tensor, y: Tensor) -> Tensor:
        return torch.log(torch.cosh(a - y))

    @staticmethod
    def derivative(a: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(a - y)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an activation and a loss, each a class and a row."""
    monkeypatch.setitem(core.ACTIVATIONS, "mish", Mish)
    monkeypatch.setitem(core.LOSSES, "log_cosh_loss", LogCosh)


pytestmark = pytest.mark.usefixtures("rows")


def test_functions_and_modules_follow_from_the_row():
    z = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(F.mish(z), Mish.forward(z))
    assert torch.equal(F.mish(input=z), Mish.forward(z))
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        F.mish(z, beta=1)
    assert torch.equal(dp.Mish()(z), F.mish(z))
    assert type(dp.MLP([3, 4, 1], "mish")[1]) is activation_module("mish") is dp.Mish
    assert dp.check_gradients(F.mish, (z,), fast=True).ok
    assert dp.check_gradients(F.log_cosh_loss, (z, torch.randn_like(z)), fast=True).ok


def test_every_engine_trains_with_new_rows(engine: str, tmp_path: Path):
    words = ["--data", "sine", "--lr", "0.05", "--activation", "mish", "--loss", "log-cosh", "--hidden", "16"]
    words += ["--epochs", "15"]
    run = tmp_path / "run"
    assert main(["train", *words, "--engine", engine, "--run-dir", str(run), "--log-every", "5"]) == 0
    losses = [json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    assert dp.load(run).net[1].op is Mish
    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    texts = [e.tensor_proto.string_val for tag in events.Tags()["tensors"] for e in events.Tensors(tag)]
    assert any("tanh(log(1 + e^z))" in text.decode() for strings in texts for text in strings)


def test_the_page_of_equations_is_checked_for_new_rows():
    """A row without a line in docs/equations.md fails the check, which names it."""
    with pytest.raises(AssertionError, match="log_cosh_loss") as caught:
        test_docs.test_every_activation_and_loss_is_listed()
    assert "mish" in str(caught.value)


def test_help_names_new_rows(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "mish" in shown
    assert "log-cosh" in shown


def test_a_trace_shows_the_formulas_of_new_rows():
    text = str(dp.trace(dp.MLP([2, 2, 1], "mish"), "log-cosh", torch.rand(1, 2), torch.rand(1, 1)))
    assert "a¹ = mish(z¹)" in text
    assert "z tanh(log(1 + e^z))" in text
    assert "Σ log cosh(a − y)/M" in text
    assert "ok: " in text


class Semicolons(CsvTable):
    """A table whose cells are always separated by semicolons."""

    @classmethod
    def open(cls, path: Path, options: ReadOptions) -> CsvTable:  # type: ignore[override]
        return CsvTable.open(path, replace(options, delimiter=";"))


def test_a_table_format_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.setitem(formats.FORMATS, ".scsv", Semicolons.open)
    monkeypatch.chdir(tmp_path)
    Path("t.scsv").write_text("a;b;y\n" + "".join(f"{i};{i % 7};{'no' if i % 2 else 'yes'}\n" for i in range(60)))
    assert main(["train", "--data", "t.scsv", "--hidden", "4", "--epochs", "1", "--run-dir", "run"]) == 0
    assert main(["predict", "run", "--data", "t.scsv", "--out", "answers.csv"]) == 0
    assert len(Path("answers.csv").read_text().splitlines()) == 61
    Path("t.unknown").write_text("a;b\n")
    assert main(["train", "--data", "t.unknown"]) == 2
    assert ".scsv" in capsys.readouterr().err


def test_the_longest_file_extension_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(formats.FORMATS, ".a.csv", Semicolons.open)
    monkeypatch.setitem(formats.FORMATS, ".b.a.csv", CsvTable.open)
    for name, names in (("t.a.csv", ["p,q", "r"]), ("t.b.a.csv", ["p", "q;r"])):
        (tmp_path / name).write_text("p,q;r\n1,2;3\n")
        assert formats.open_table(tmp_path / name, ReadOptions(delimiter=",")).names == names
