"""Files that a flag names: none that a run has written, and none of the data."""

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


def test_every_file_of_a_run_is_its_own(run: Path):
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len({path.suffix for path in files}) >= 4  # .json, .jsonl, .safetensors, and the events'
    for path in files:
        with pytest.raises(UserError, match=f"^--json {path}: this is a file of the run itself; name another file$"):
            OutputFile("--json", path).check_apart(run)


def test_others_may_lie_beside_them(run: Path, tmp_path: Path):
    (run / "mine").mkdir()
    for name in ("exported.onnx", "judged.json", "mine/config.json"):
        OutputFile("--json", run / name).check_apart(run)
    OutputFile("--json", tmp_path / "config.json").check_apart(run)
    OutputFile("--json", None).check_apart(run)


def test_data_and_their_folders_are_left_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By any name; a folder within that of the data may be written into: parts lie beside each other."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").touch()
    Path("parts/answers").mkdir(parents=True)
    Path("link.csv").symlink_to("t.csv")
    for name in ("t.csv", "link.csv", "parts/new.parquet", str(tmp_path / "t.csv")):
        with pytest.raises(UserError, match="this is the data itself; name another file"):
            OutputFile("--out", Path(name)).check_apart(run, "other.csv", "t.csv", "parts")
    for name in ("u.csv", "parts/answers/new.parquet"):
        OutputFile("--out", Path(name)).check_apart(run, "t.csv", "parts")
