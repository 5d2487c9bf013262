"""Output files named by a flag: files of a run and the data are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaprop import UserError
from deltaprop.cli.files import OutputFile
from deltaprop.training import TrainConfig, train


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, with events for TensorBoard, checkpoints and both weights."""
    small = TrainConfig(data="xor", hidden=(2,), epochs=1, log_every=0, run_dir=tmp_path / "run")
    return train(small).folder


def test_every_file_of_a_run_is_refused(run: Path):
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len({path.suffix for path in files}) >= 4  # .json, .jsonl, .safetensors, and that of the TensorBoard events
    for path in files:
        with pytest.raises(UserError, match=f"^--json {path}: this is a file of the run itself; name another file$"):
            OutputFile("--json", path).check_apart(run)


def test_new_files_in_a_run_folder_are_accepted(run: Path, tmp_path: Path):
    (run / "mine").mkdir()
    for name in ("exported.onnx", "evaluation.json", "mine/config.json"):
        OutputFile("--json", run / name).check_apart(run)
    OutputFile("--json", tmp_path / "config.json").check_apart(run)
    OutputFile("--json", None).check_apart(run)


def test_data_files_and_their_folders_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By any path; a folder inside the data folder may be written into, since only files directly in it are data."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").touch()
    Path("parts/predictions").mkdir(parents=True)
    Path("link.csv").symlink_to("t.csv")
    for name in ("t.csv", "link.csv", "parts/new.parquet", str(tmp_path / "t.csv")):
        with pytest.raises(UserError, match="this is the data itself; name another file"):
            OutputFile("--out", Path(name)).check_apart(run, "other.csv", "t.csv", "parts")
    for name in ("u.csv", "parts/predictions/new.parquet"):
        OutputFile("--out", Path(name)).check_apart(run, "t.csv", "parts")
