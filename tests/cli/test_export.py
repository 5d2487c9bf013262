"""``deltaprop export``: the written files, the printed lines, and refused input that writes nothing."""

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
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("to", "name", "runtime"),
    [
        ("onnx", "m.onnx", "onnxruntime"),
        ("torch-export", "m.pt2", "torch.export"),
        ("state-dict", "m.safetensors", "torch.nn"),
    ],
)
def test_the_file_and_the_printed_lines(
    runs: Runs, capsys: pytest.CaptureFixture[str], to: str, name: str, runtime: str
):
    assert main(["export", str(runs["mixed"].folder), "--to", to, "--out", name]) == 0
    out, err = capsys.readouterr()
    first, parity, *notes = out.splitlines()
    assert err == ""
    assert first == f"{name}: {Path(name).stat().st_size} bytes, final weights"
    words = parity.split()
    assert words[:3] == ["parity:", "at", "most"]
    assert 0 <= float(words[3]) <= 1e-5
    assert parity.endswith(f" from the model's own predictions on 512 rows, by {runtime}")
    assert any("input" in line for line in notes)
    assert [path.name for path in Path().iterdir()] == [name]


def test_without_out_the_file_is_written_to_the_run_folder(runs: Runs, capsys: pytest.CaptureFixture[str]):
    folder = runs["numbers"].copy(Path("copy"))
    before = {path.name for path in folder.iterdir()}
    assert main(["export", str(folder), "--to", "state-dict"]) == 0
    (new,) = {path.name for path in folder.iterdir()} - before
    assert new.endswith(".safetensors")
    assert f"copy/{new}: " in capsys.readouterr().out
    assert torch.equal(*(dp.load(run).outputs([[1.0, 2.0]]) for run in (folder, runs["numbers"].folder)))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, by relative path."""
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
def test_files_of_a_run_are_not_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str], name: str):
    """By any path, even if the file does not exist: a run without validation rows has no best weights."""
    folder = runs["numbers"].copy(Path("copy"))
    (folder / "best.safetensors").unlink()
    Path("other").mkdir()
    Path("link").symlink_to("copy")
    Path("link.safetensors").symlink_to("copy/model.safetensors")
    before = contents(folder)
    assert main(["export", str(folder), "--to", "state-dict", "--out", name]) == 2
    assert capsys.readouterr().err == f"error: --out {name}: this is a file of the run itself; name another file\n"
    assert contents(folder) == before


def test_an_earlier_export_in_the_run_is_overwritten(runs: Runs):
    """By the default name or another."""
    folder = runs["numbers"].copy(Path("copy"))
    for args in ([], ["--out", "copy/mine.safetensors"]):
        for _ in range(2):
            assert main(["export", str(folder), "--to", "state-dict", *args]) == 0
    assert (folder / "mine.safetensors").read_bytes() == (folder / "exported.safetensors").read_bytes()


def test_the_data_of_the_run_is_not_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str]):
    run = runs["numbers"]
    before = Path(run.data).read_bytes()
    Path("m.pt2").symlink_to(run.data)
    assert main(["export", str(run.folder), "--to", "torch-export", "--out", "m.pt2"]) == 2
    assert capsys.readouterr().err == "error: --out m.pt2: this is the data itself; name another file\n"
    assert Path(run.data).read_bytes() == before


def test_a_run_folder_named_like_a_built_in_data_set_is_not_mistaken_for_data(runs: Runs):
    """The run was trained on the built-in digits; its folder may be called digits too."""
    folder = runs["digits"].copy(Path("digits"))
    assert main(["export", str(folder), "--to", "state-dict"]) == 0


def test_help_names_the_default_file(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """The help text names the file that is written without --out."""
    folder = runs["numbers"].copy(Path("copy"))
    before = {path.name for path in folder.iterdir()}
    assert main(["export", str(folder), "--to", "torch-export"]) == 0
    (new,) = {path.name for path in folder.iterdir()} - before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert new == "exported.pt2"
    assert "(default: exported.onnx|.pt2|.safetensors in the run folder)" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_best_weights_can_be_exported(runs: Runs):
    run = runs.train("wild", runs["numbers"].data, lr=3.0, lr_schedule="constant", epochs=6)
    for weights in ("final", "best"):
        args = ["--to", "state-dict", "--out", f"{weights}.safetensors", "--weights", weights]
        assert main(["export", str(run.folder), *args]) == 0
    assert Path("final.safetensors").read_bytes() != Path("best.safetensors").read_bytes()


def test_predictions_that_differ_are_not_exported(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Only the exported graph scales by twice the standard deviation; the old file is not changed."""
    make = DeploymentModule.__init__

    def scale_twice(self: DeploymentModule, model: dp.Model) -> None:
        make(self, model)
        self.scale = 2 * self.scale

    monkeypatch.setattr(DeploymentModule, "__init__", scale_twice)
    Path("m.pt2").write_text("the old one")
    assert main(["export", str(runs["numbers"].folder), "--to", "torch-export", "--out", "m.pt2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --to torch-export: predictions differ by ")
    assert err.count("\n") == 1
    assert Path("m.pt2").read_text() == "the old one"


@pytest.mark.parametrize(
    ("args", "message"),
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
def test_invalid_input_is_one_line_and_exit_code_2(
    runs: Runs, capsys: pytest.CaptureFixture[str], args: list[str], message: str
):
    folder = str(runs["numbers"].folder)
    assert main(["export", *[folder if word == "RUN" else word for word in args]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [*Path().iterdir()] == []


def test_help_lists_every_format(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    help_text = "".join(capsys.readouterr().out.replace("│", " ").split())
    for name, format_ in EXPORTS.items():
        assert f"{name}:{format_.help}".replace(" ", "") in help_text
