"""``deltaprop export``: files, what is said of them, and what is refused with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.inference.export import EXPORTS, DeploymentModule
from tests.inference.conftest import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of every kind."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("to", "name", "by"),
    [
        ("onnx", "m.onnx", "onnxruntime"),
        ("torch-export", "m.pt2", "torch.export"),
        ("state-dict", "m.safetensors", "torch.nn"),
    ],
)
def test_a_file_and_what_is_said_of_it(runs: Runs, capsys: pytest.CaptureFixture[str], to: str, name: str, by: str):
    assert main(["export", str(runs["mixed"].folder), "--to", to, "--out", name]) == 0
    out, err = capsys.readouterr()
    first, parity, *notes = out.splitlines()
    assert err == ""
    assert first == f"{name}: {Path(name).stat().st_size} bytes"
    words = parity.split()
    assert words[:3] == ["parity:", "at", "most"]
    assert 0 <= float(words[3]) <= 1e-5
    assert parity.endswith(f" from the model's own predictions on 512 rows, by {by}")
    assert any("input" in line for line in notes)
    assert [path.name for path in Path().iterdir()] == [name]


def test_the_file_lies_in_the_run_where_no_other_is_named(runs: Runs, capsys: pytest.CaptureFixture[str]):
    folder = runs["numbers"].copy(Path("copy"))
    before = {path.name for path in folder.iterdir()}
    assert main(["export", str(folder), "--to", "state-dict"]) == 0
    (new,) = {path.name for path in folder.iterdir()} - before
    assert new.endswith(".safetensors")
    assert f"copy/{new}: " in capsys.readouterr().out
    assert torch.equal(*(dp.load(run).outputs([[1.0, 2.0]]) for run in (folder, runs["numbers"].folder)))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "copy/model.safetensors",
        "copy/best.safetensors",
        "copy/checkpoints/last.safetensors",
        "copy/checkpoints/mine.safetensors",
        "copy/Model.safetensors",
        "other/../copy/model.safetensors",
        "link/model.safetensors",
        "link.safetensors",
    ],
)
def test_what_a_run_has_written_is_not_written_over(runs: Runs, capsys: pytest.CaptureFixture[str], name: str):
    """By whatever name, and though it is not there: a run without a validation part has no best weights."""
    folder = runs["numbers"].copy(Path("copy"))
    (folder / "best.safetensors").unlink()
    Path("other").mkdir()
    Path("link").symlink_to("copy")
    Path("link.safetensors").symlink_to("copy/model.safetensors")
    before = contents(folder)
    assert main(["export", str(folder), "--to", "state-dict", "--out", name]) == 2
    assert capsys.readouterr().err == f"error: --out {name}: this is a file of the run itself; name another file\n"
    assert contents(folder) == before


def test_a_former_export_in_the_run_is_written_over(runs: Runs):
    """Under its own name or another."""
    folder = runs["numbers"].copy(Path("copy"))
    for words in ([], ["--out", "copy/mine.safetensors"]):
        for _ in range(2):
            assert main(["export", str(folder), "--to", "state-dict", *words]) == 0
    assert (folder / "mine.safetensors").read_bytes() == (folder / "exported.safetensors").read_bytes()


def test_the_data_of_the_run_are_not_written_over(runs: Runs, capsys: pytest.CaptureFixture[str]):
    run = runs["numbers"]
    before = Path(run.data).read_bytes()
    Path("m.pt2").symlink_to(run.data)
    assert main(["export", str(run.folder), "--to", "torch-export", "--out", "m.pt2"]) == 2
    assert capsys.readouterr().err == "error: --out m.pt2: this is the data itself; name another file\n"
    assert Path(run.data).read_bytes() == before


def test_a_folder_of_the_name_of_a_built_in_set_is_no_data(runs: Runs):
    """The run was trained on the digits; its folder may have their name."""
    folder = runs["digits"].copy(Path("digits"))
    assert main(["export", str(folder), "--to", "state-dict"]) == 0


def test_help_tells_where_the_file_lies(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """By the name that it has there."""
    folder = runs["numbers"].copy(Path("copy"))
    before = {path.name for path in folder.iterdir()}
    assert main(["export", str(folder), "--to", "torch-export"]) == 0
    (new,) = {path.name for path in folder.iterdir()} - before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert new == "exported.pt2"
    assert "(default: exported.onnx, .pt2 or .safetensors in the run folder)" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_best_weights(runs: Runs):
    run = runs.train("wild", runs["numbers"].data, lr=3.0, epochs=6)
    for weights in ("final", "best"):
        words = ["--to", "state-dict", "--out", f"{weights}.safetensors", "--weights", weights]
        assert main(["export", str(run.folder), *words]) == 0
    assert Path("final.safetensors").read_bytes() != Path("best.safetensors").read_bytes()


def test_answers_that_differ_are_not_written(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A scaling by twice the deviation, in the graph alone; the old file stays."""
    make = DeploymentModule.__init__

    def wrong(self: DeploymentModule, model: dp.Model) -> None:
        make(self, model)
        self.scale = 2 * self.scale

    monkeypatch.setattr(DeploymentModule, "__init__", wrong)
    Path("m.pt2").write_text("the old one")
    assert main(["export", str(runs["numbers"].folder), "--to", "torch-export", "--out", "m.pt2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --to torch-export: predictions differ by ")
    assert err.count("\n") == 1
    assert Path("m.pt2").read_text() == "the old one"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--to", "onxx"], "unknown format 'onxx': did you mean 'onnx'"),
        (["RUN", "--to", "onnx", "--out", "m.pt2"], "--out m.pt2: the name must end in .onnx for --to onnx"),
        (["RUN", "--to", "state-dict", "--out", "none/m.safetensors"], "there is no folder"),
        (["RUN", "--weights", "last"], "unknown weights 'last'"),
        (["none"], "none: there is no such folder"),
        ([], "which run? name its folder"),
    ],
    ids=range(6),
)
def test_what_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    folder = str(runs["numbers"].folder)
    assert main(["export", *[folder if word == "RUN" else word for word in words]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert [*Path().iterdir()] == []


def test_help_lists_every_format(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = "".join(capsys.readouterr().out.replace("│", " ").split())
    for name, format_ in EXPORTS.items():
        assert f"{name}:{format_.help}".replace(" ", "") in shown
