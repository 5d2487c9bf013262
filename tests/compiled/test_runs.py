"""Runs with the compiled engine: what is recorded, how they resume, and what happens without a compiler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaprop import MLP
from deltaprop.cli import main
from deltaprop.compiled import build, find_toolchain, trainer
from deltaprop.training import Result, TrainConfig
from deltaprop.training.engines import REPAID, choose_engine
from deltaprop.training.objective import choose_objective
from tests.training.conftest import starter
from tests.training.test_resume import assert_same_run, interrupted_and_resumed

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return starter(tmp_path)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def config_of(result: Result | Path) -> dict[str, Any]:
    folder = result if isinstance(result, Path) else result.folder
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_the_toolchain_is_recorded(run: Run):
    versions = config_of(run(engine="compiled"))["versions"]
    assert {name: versions[name] for name in find_toolchain().to_json()} == find_toolchain().to_json()
    assert "compiler" not in config_of(run(engine="explicit"))["versions"]


def test_the_same_seed_gives_the_same_bytes(run: Run):
    first, second = (run(engine="compiled") for _ in range(2))
    assert (first.folder / "model.safetensors").read_bytes() == (second.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [{}, {"nesterov": True, "weight_decay": 0.01, "lr_schedule": "cosine"}, {"data": "sine", "loss": "huber"}],
    ids=str,
)
def test_resume_in_mid_epoch_gives_the_same_bits(
    settings: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With calls of about 6 steps, so that an epoch of 33 or 45 is interrupted."""
    monkeypatch.setattr(trainer, "CALL", 6 * trainer.STEP)
    whole = run(engine="compiled", **settings)
    small = {"data": "moons", "hidden": (8,), "epochs": 3, "log_every": 0, "seed": 0, "engine": "compiled", **settings}
    assert_same_run(interrupted_and_resumed(TrainConfig(**small, run_dir=tmp_path / "cut"), 20, 1, 33), whole)


def test_another_toolchain_is_told_on_resume(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    folder = run(engine="compiled").folder
    monkeypatch.setattr(build, "processor", lambda: "another processor")
    build._toolchain.cache_clear()
    try:
        assert main(["train", "--resume", str(folder), "--epochs", "4"]) == 0
    finally:
        monkeypatch.undo()
        build._toolchain.cache_clear()
    assert f"processor {build.processor()} → another processor; the bits may differ" in capsys.readouterr().err


def test_another_engine_on_resume_needs_an_override(run: Run, capsys: Any):
    folder = run(engine="compiled").folder
    words = ["train", "--resume", str(folder), "--epochs", "4", "--engine", "explicit"]
    assert main(words) == 2
    assert "engine compiled → explicit; to allow it, add --override engine" in capsys.readouterr().err
    assert main([*words, "--override", "engine"]) == 0
    assert config_of(folder)["engine"] == "explicit"


def test_a_build_is_told_before_it_begins(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """And not where the library is there already."""
    monkeypatch.setattr(build, "default_cache", lambda: tmp_path / "cache")
    line = "building the compiled engine, which takes some seconds; it is kept for later runs"
    words = ["train", "--data", "moons", "--epochs", "1", "--engine", "compiled", "--run-dir"]
    for count in (1, 0):
        build._loaded.clear()
        assert main([*words, str(tmp_path / f"run-{count}")]) == 0
        said = capsys.readouterr()
        assert (said.out + said.err).count(line) == count


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_explicit_trains_and_says_so_once(tmp_path: Path, capsys: Any):
    words = ["train", "--data", "moons", "--epochs", "2", "--engine", "compiled", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    said = capsys.readouterr()
    line = "$CXX names 'no-such-compiler', and there is no such command; the explicit engine trains instead"
    assert (said.out + said.err).count(line) == 1
    assert config_of(tmp_path / "run")["engine"] == "explicit"
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "3"]) == 0  # it is a run of that engine
    for epochs in ("4", "5"):  # asking for the same again changes nothing, however often
        assert main([*words[:4], epochs, *words[5:7], "--resume", "auto", *words[7:]]) == 0
    assert "would change the result" not in capsys.readouterr().err
    assert main([*words[:4], "6", "--engine", "autograd", "--resume", "auto", *words[7:]]) == 2


def test_a_run_begun_compiled_is_not_resumed_without_a_compiler(run: Run, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    folder = run(engine="compiled").folder
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", "--resume", str(folder), "--epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert "it was trained by the compiled engine, and $CXX names 'no-such-compiler'" in error
    assert "to go on with another, add --engine explicit --override engine" in error
    assert (folder / "model.safetensors").read_bytes() == before
    words = ["--override", "engine", "--engine", "explicit"]
    assert main(["train", "--resume", str(folder), "--epochs", "4", *words]) == 0


def test_a_formula_that_cannot_be_written_is_refused_by_name(tmp_path: Path, capsys: Any):
    words = ["train", "--data", "moons", "--engine", "compiled", "--output-activation", "softmax", "--loss", "mse"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "the compiled engine does not have the activation softmax: its derivative is a matrix" in error
    assert "--engine explicit" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "bf16"], "--precision bf16"),
        (["--device", "cuda"], "--device cuda"),
    ],
)
def test_what_it_does_not_have_is_refused(words: list[str], message: str, tmp_path: Path, capsys: Any):
    assert main(["train", "--data", "moons", "--engine", "compiled", *words, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_is_stopped(run: Run, tmp_path: Path):
    """Within a call NaN spreads to every weight, and nothing of it is saved."""
    with pytest.raises(RuntimeError, match=r"not finite: .* lower `lr`"):
        run(engine="compiled", data="sine", lr=1e6, momentum=0.0, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_tensorboard_has_the_same_views(run: Run):
    """The histograms and δ norms are those of the explicit engine's run: its weights are the same up to rounding."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = []
    for engine in ("explicit", "compiled"):
        events = EventAccumulator(str(run(engine=engine, log_every=1).folder))
        events.Reload()
        tags.append({kind: names for kind, names in events.Tags().items() if kind != "tensors"})
    assert tags[0] == tags[1]


class TestAuto:
    def chosen(self, steps: int, sizes: list[int], batch_size: int = 16, **options: Any) -> str:
        model = MLP(sizes, **options)
        objective = choose_objective("cross-entropy", "classification", sizes[-1], "none")
        return choose_engine("auto", model, objective, "float32", batch_size, steps)[0]

    def test_long_runs_of_small_networks_are_compiled(self):
        assert self.chosen(REPAID, [4, 8, 3]) == "compiled"
        assert self.chosen(REPAID - 1, [4, 8, 3]) == "explicit"

    def test_wide_networks_are_not(self):
        """2^24 multiply-adds: 16 · 1024 · 1024."""
        assert self.chosen(REPAID, [1024, 1024, 3]) == "explicit"
        assert self.chosen(REPAID, [1024, 1023, 3]) == "compiled"

    def test_nor_is_what_cannot_be(self):
        assert self.chosen(REPAID, [4, 8, 3], activation="softmax") == "explicit"

    @pytest.mark.usefixtures("no_compiler")
    def test_nor_anything_without_a_compiler(self):
        assert self.chosen(REPAID, [4, 8, 3]) == "explicit"

    def test_what_was_taken_is_told_and_recorded(self, tmp_path: Path, capsys: Any):
        words = ["train", "--data", "moons", "--epochs", "1", "--engine", "auto", "--run-dir", str(tmp_path / "run")]
        assert main(words) == 0
        assert "explicit: the δ recursion as one loop" in capsys.readouterr().out
        assert config_of(tmp_path / "run")["engine"] == "explicit"
        assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2", "--engine", "auto"]) == 0
