"""``deltaprop trace``: a worked example of a tiny network, an overview of a larger one."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaprop import core
from deltaprop.cli import main
from deltaprop.cli.trace import Arguments, make_trace
from deltaprop.training import TrainConfig, train
from deltaprop.training.load_run import load_run


def test_a_tiny_network_is_a_worked_example(capsys: pytest.CaptureFixture[str]):
    """Every printed sum is recomputed in tests/tracing/test_worked_example.py."""
    assert main(["trace", "--sizes", "2", "3", "1", "--output-activation", "sigmoid"]) == 0
    out = capsys.readouterr().out
    assert "BP2  δ¹ = (δ² W²) ⊙ σ'(z¹)" in out
    assert "ok: PyTorch's autograd agrees " in " ".join(out.split())
    assert "  C was 0.07191, and is 0.06547 after the step" in out


def test_a_larger_network_is_an_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["trace", "--sizes", "64", "30", "10", "--rows", "16", "--loss", "cross_entropy"]) == 0
    out = capsys.readouterr().out
    for word in (
        "one batch of 16 through 64 → 30 sigmoid → 10",
        "1 sigmoid",
        "saturated",
        "∂C/∂W¹  (δ¹)ᵀ a⁰",
        "cross_entropy: C = ",
    ):
        assert word in out
    assert "…" not in out


OWN = """
import torch

net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
number = 3


def example_inputs():
    return torch.rand(2, 3), torch.tensor([0, 1])
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A user's file with a network in plain PyTorch."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "moons"
    train(TrainConfig(data="moons", hidden=(8,), epochs=2, lr=0.3, log_every=0, run_dir=folder))
    return str(folder)


def test_the_network_of_a_run_on_its_own_data(run: str, capsys: pytest.CaptureFixture[str]):
    assert main(["trace", run]) == 0
    out = capsys.readouterr().out
    assert "one batch of 16 through 2 → 8 relu → 2" in out
    assert "after a step of η = 0.3" in out
    pages = {out}
    for args in (["--rows", "4"], ["--weights", "best"], ["--part", "test"], ["--lr", "0"]):
        assert main(["trace", run, *args]) == 0
        pages.add(capsys.readouterr().out)
    assert len(pages) >= 4  # the best weights may be the final ones


def test_a_network_in_plain_pytorch(own: str, capsys: pytest.CaptureFixture[str]):
    assert main(["trace", f"{own}:net", "--loss", "cross_entropy"]) == 0
    out = capsys.readouterr().out
    assert "FWD  z¹ = a⁰ (W¹)ᵀ + b¹,  a¹ = tanh(z¹)" in out
    assert "cross_entropy" in out


def test_the_html_page_is_written(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "page.html"
    path.write_text("an older one")
    assert main(["trace", run, "--html", str(path)]) == 0
    assert f"page    {path}" in capsys.readouterr().out
    assert "<title>2 → 8 relu → 2, step by step</title>" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_tensorboard_events_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "--tensorboard"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("trace-")
    assert "look    tensorboard --logdir runs" in capsys.readouterr().out
    assert main(["trace", "--tensorboard", "--run-dir", "mine"]) == 0
    (events,) = (tmp_path / "mine").iterdir()
    assert events.name.startswith("events.out.tfevents")


def test_a_difference_from_autograd_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A tanh whose δ lacks the factor σ'(z)."""
    monkeypatch.setattr(core.ACTIVATIONS["tanh"], "delta", staticmethod(lambda grad_a, saved: grad_a))
    assert main(["trace", "--activation", "tanh"]) == 1
    assert "NOT OK: autograd differs by " in capsys.readouterr().out


def test_the_named_weights_are_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run whose final and best weights differ."""
    folder = tmp_path / "run"
    train(TrainConfig(data="moons", hidden=(8,), epochs=2, log_every=0, run_dir=folder))
    shutil.rmtree(folder / "checkpoints")  # it holds the best weights too, and would show that the file was changed
    state = load_file(folder / "best.safetensors")
    save_file({name: 2 * value for name, value in state.items()}, folder / "best.safetensors")
    traces = [make_trace(Arguments(target=str(folder), weights=weights))[0] for weights in (None, "final", "best")]
    assert torch.equal(traces[0].layers[0].weight, traces[1].layers[0].weight)
    assert torch.equal(traces[2].layers[0].weight, 2 * state["0.weight"].double())
    part = make_trace(Arguments(target=str(folder), part="test", rows=5))[0]
    assert torch.equal(part.input, load_run(folder).dataset.test.x[:5].double())
    assert traces[2].about.endswith("scaled; the update is plain SGD, without the run's momentum")
    assert traces[2].about.startswith(f"{folder}: its best weights, the first 16 rows of its train part")


def test_page_and_tensorboard_get_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learning_rates: list[float] = []
    monkeypatch.setattr("deltaprop.tracing.page.html_page", lambda trace, lr: learning_rates.append(lr) or "")
    monkeypatch.setattr(
        "deltaprop.training.report.tensorboard_trace.write_trace", lambda trace, lr, folder: learning_rates.append(lr)
    )
    args = ["--html", str(tmp_path / "p.html"), "--tensorboard", "--run-dir", str(tmp_path / "t"), "--lr", "0.25"]
    assert main(["trace", *args]) == 0
    assert learning_rates == [0.25, 0.25]


def test_a_new_network_has_the_named_initialisation():
    wide = make_trace(Arguments(sizes=(50, 40, 2), rows=3, init="normal"))[0].layers[0].weight
    narrow = make_trace(Arguments(sizes=(50, 40, 2), rows=3))[0].layers[0].weight
    assert float(wide.std()) == pytest.approx(1, rel=0.1)
    assert float(narrow.abs().max()) <= 50**-0.5


def test_nothing_is_written_without_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["trace"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_output(capsys: pytest.CaptureFixture[str]):
    pages = []
    for seed in ("3", "3", "4"):
        main(["trace", "--seed", seed])
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sizes", "2"], "sizes must be two or more positive integers"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--lr", "nan"], "--lr must be a number of at least 0, got nan"),
        (["--loss", "mze"], "unknown loss 'mze'"),
        (["--html", "net.py"], "--html net.py: the name must end in .html"),
        (
            ["--sizes", "2", "3", "--loss", "cross_entropy", "--output-activation", "softmax"],
            "already contains Softmax",
        ),
        (["--sizes", "2", "1", "--loss", "cross_entropy"], "--loss cross_entropy needs at least two outputs"),
        (["OWN:net"], "quadratic_loss does not take outputs [2, 2] and targets [2]"),
        (["--activation", "sgmoid"], "unknown activation 'sgmoid': did you mean 'sigmoid'"),
        (["--init", "xaver"], "unknown initialisation 'xaver': did you mean 'xavier'"),
        (["--sizes", "two"], "sizes"),
        (["--weights", "best"], "--weights is for the folder of a run: name one"),
        (["--run-dir", "there"], "--run-dir is for --tensorboard: give both"),
        (["--html", "/nope/page.html"], "--html /nope/page.html: there is no folder /nope"),
        (["--html", "."], "--html .: this is a folder; name a file"),
        (["--seed", "-1"], "--seed must be 0 to 2^63 − 1"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["OWN"], "a target is FILE.py:NAME or package.module:NAME, got"),
        (["OWN:nat"], "own.py has no 'nat': did you mean 'net'?"),
        (["EXITS:net"], "its example_inputs() fails: SystemExit: 3"),
        (["OWN:number"], "trace takes an nn.Sequential, got int"),
        (["OWN:net", "--rows", "3"], "--rows is for a new network or the folder of a run, and the target is"),
        (["math:sin"], "trace takes an nn.Sequential, got builtin_function_or_method"),
        (["RUN", "--sizes", "2", "3"], "--sizes is for a new network, and the target is"),
        (["RUN", "--loss", "mse_loss"], "--loss is for a new network or a network of your own, and the target is"),
        (["RUN", "--part", "tset"], "unknown part 'tset': did you mean 'test'"),
        (["RUN", "--weights", "last"], "unknown weights 'last'"),
        (["RUN", "--data", "circles"], "are not those that the run was trained on"),
    ],
    ids=str,
)
def test_invalid_input_is_one_line_and_exit_code_2(
    args: list[str], message: str, own: str, run: str, capsys: pytest.CaptureFixture[str]
):
    exits = Path(own).with_name("exits.py")
    exits.write_text(OWN.replace("return torch", "raise SystemExit(3)  #"))
    paths = {"OWN": own, "RUN": run, "EXITS": str(exits)}
    assert (
        main(["trace", *[paths.get(w.split(":")[0], w.split(":")[0]) + w[len(w.split(":")[0]) :] for w in args]]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_losses_may_have_the_names_of_train(capsys: pytest.CaptureFixture[str]):
    for name, same in (("mse", "mse_loss"), ("cross-entropy", "cross_entropy"), ("quadratic", "quadratic_loss")):
        pages = []
        for loss in (name, same):
            assert main(["trace", "--sizes", "2", "2", "--loss", loss]) == 0
            pages.append(capsys.readouterr().out)
        assert pages[0] == pages[1]


def test_a_warning_is_one_line(own: str, capsys: pytest.CaptureFixture[str]):
    with open(own, "a") as file:
        file.write("import warnings\nwarnings.warn('two\\nlines')\n")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["trace", f"{own}:net", "--loss", "cross_entropy"]) == 0
    assert capsys.readouterr().err == "warning: two lines\n"
