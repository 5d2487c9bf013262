"""Resume: the same bits as an uninterrupted run, and refusal of changes that would alter the result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.training import Result, TrainConfig, train
from deltaprop.training.evaluate import evaluate
from deltaprop.training.load_run import load_run
from deltaprop.training.report.reporter import Silent
from deltaprop.training.report.tensorboard import TensorBoardReporter
from deltaprop.training.run_folder import LAST, RunFolder, load_checkpoint
from deltaprop.training.signals import Terminated
from tests.training.conftest import starter, without_times

Run = Callable[..., Result]


class StopAt(Silent):
    """A reporter that stops the run by SIGTERM after a number of steps.

    Args:
        step: The number of steps.
        seen: The number of steps done before; None to count from the first one reported.
    """

    def __init__(self, step: int, seen: int | None = 0) -> None:
        self.remaining, self.seen = step, seen

    def step(self, epoch: int, steps: int, step: int) -> None:
        done = (epoch - 1) * steps + step
        before, self.remaining = self.remaining, self.remaining - (1 if self.seen is None else done - self.seen)
        self.seen = done
        if self.remaining <= 0 < before:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted_and_resumed(config: TrainConfig, *stops: int) -> Path:
    """Train to the end with interruptions after these numbers of steps; return the folder."""
    folder = config.run_dir
    assert folder is not None
    with pytest.raises(Terminated):
        train(config, StopAt(stops[0]))
    for steps in stops[1:]:
        with contextlib.suppress(Terminated):  # the explicit engine stops between blocks, possibly at the end
            train(config, StopAt(steps, seen=None), resume=folder)
    train(config, resume=folder)
    return folder


def assert_same_run(folder: Path, whole: Result) -> None:
    """Assert that a folder holds the same weights and metrics as an uninterrupted run."""
    for name in ("model.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    resumed = dataclasses.replace(whole, folder=folder)
    assert without_times(resumed) == without_times(whole)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.0, "lr_schedule": "cosine", "lr_warmup": 1},
    {"nesterov": True, "weight_decay": 0.01, "decay_biases": True, "lr_schedule": "step", "lr_step": 1},
    {"data": "sine", "loss": "huber", "dtype": "float64"},
    {"patience": 1, "epochs": 30, "lr": 0.5},
    {"activation": ("sigmoid", "tanh"), "hidden": (8, 5), "loss": "binary-cross-entropy", "val_fraction": 0.3},
    {"batch_size": 1, "epochs": 1, "data": "xor"},
]


# Each setting with one engine, and with the other where there is more time.
MID_EPOCH = [
    pytest.param(engine, settings, marks=[pytest.mark.slow] if (at + (engine == "explicit")) % 2 else [])
    for engine in ("autograd", "explicit")
    for at, settings in enumerate(SETTINGS)
]


@pytest.mark.parametrize(("engine", "settings"), MID_EPOCH, ids=str)
def test_resume_in_mid_epoch_gives_the_same_bits(engine: str, settings: dict[str, Any], run: Run, tmp_path: Path):
    whole = run(engine=engine, **settings)
    config = dataclasses.replace(TrainConfig(**{**json_of(whole), "run_dir": tmp_path / "interrupted"}))
    assert_same_run(interrupted_and_resumed(config, 20, 1, 33), whole)


def json_of(result: Result) -> dict[str, Any]:
    """Return the settings of a run."""
    saved = json.loads((result.folder / "config.json").read_text())
    return {field.name: saved[field.name] for field in dataclasses.fields(TrainConfig) if field.name != "config"}


def test_resume_after_any_step_gives_the_same_bits(run: Run, tmp_path: Path):
    """After each of the 12 steps of 2 epochs but the last."""
    whole = run(batch_size=128, epochs=2)
    for step in range(1, 12):
        config = TrainConfig(**{**json_of(whole), "run_dir": tmp_path / f"at{step}"})
        assert_same_run(interrupted_and_resumed(config, step), whole)


def test_saving_in_mid_epoch_changes_no_bit(run: Run, monkeypatch: pytest.MonkeyPatch):
    whole = run()
    monkeypatch.setattr(TrainConfig, "save_seconds", property(lambda self: 0.0))
    assert_same_run(run().folder, whole)


def test_adding_epochs_equals_one_longer_run(run: Run, tmp_path: Path):
    whole, short = run(epochs=5), run(epochs=2)
    config = TrainConfig(**{**json_of(short), "epochs": 5})
    train(config, resume=short.folder)
    assert_same_run(short.folder, whole)
    assert json.loads((short.folder / "config.json").read_text())["epochs"] == 5


def test_resume_finishes_the_epoch_before_patience_applies(run: Run, tmp_path: Path):
    config = TrainConfig(**{**json_of(run(epochs=9, lr=0.5)), "run_dir": tmp_path / "interrupted"})
    with pytest.raises(Terminated):
        train(config, StopAt(45 * 6 + 20))
    result = train(dataclasses.replace(config, patience=1), resume=tmp_path / "interrupted")
    last_line = json.loads((tmp_path / "interrupted" / "metrics.jsonl").read_text().splitlines()[-1])
    setup = load_run(tmp_path / "interrupted")
    test = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
    assert test is not None
    assert last_line["test_loss"] == pytest.approx(test.loss)
    assert result.metrics["epoch"] >= 7


def test_final_weights_are_removed_until_a_resumed_run_ends(run: Run):
    result = run(epochs=2)
    with pytest.raises(Terminated):
        train(TrainConfig(**{**json_of(result), "epochs": 9}), StopAt(20), resume=result.folder)
    assert not (result.folder / "model.safetensors").exists()


def test_best_weights_are_restored_from_the_checkpoint(run: Run):
    """Even if a killed run had already written those of a later epoch."""
    result = run(epochs=3)
    path = result.folder / "best.safetensors"
    before = path.read_bytes()
    path.write_bytes(b"of a later epoch")
    with pytest.raises(Terminated):
        train(TrainConfig(**{**json_of(result), "epochs": 9}), StopAt(1), resume=result.folder)
    assert path.read_bytes() == before


def test_adding_epochs_to_a_cosine_schedule_warns(run: Run, capsys: pytest.CaptureFixture[str]):
    result = run(lr_schedule="cosine", epochs=2)
    assert main(["train", "--resume", str(result.folder), "--epochs", "3"]) == 0
    assert "warning: the cosine schedule depends on the number of epochs" in capsys.readouterr().err


def test_events_are_flushed_before_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    flush, write = TensorBoardReporter.flush, RunFolder.save_checkpoint
    monkeypatch.setattr(TensorBoardReporter, "flush", lambda self: calls.append("flush") or flush(self))
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda *a: calls.append("save") or write(*a))
    train(TrainConfig(data="moons", hidden=(4,), epochs=2, log_every=0, save_every="1", run_dir=tmp_path / "run"))
    assert calls == ["flush", "save"] * 4


def test_resume_leaves_a_finished_run_unchanged(run: Run):
    result = run()
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*") if path.name != ".lock"}
    again = train(TrainConfig(**json_of(result)), resume=result.folder)
    assert again.metrics == result.metrics
    after = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*") if path.name != ".lock"}
    files = {path: stamp for path, stamp in before.items() if path.is_file()}
    assert {path: stamp for path, stamp in after.items() if path.is_file()} == files


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of two epochs; read-only."""
    return starter(tmp_path_factory.mktemp("two"))(epochs=2)


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of three epochs; read-only."""
    return starter(tmp_path_factory.mktemp("three"))(epochs=3)


class TestMetrics:
    """On resume metrics.jsonl has the epochs of the checkpoint, and only valid lines."""

    @pytest.mark.parametrize(
        "trailing", ['{"epoch": 3, "ste', '{"epoch": 3}\n{"ep', "\0\0\0\0", '{"epoch": 9}\n', "[1]\n"]
    )
    def test_invalid_trailing_lines_are_repaired(
        self, trailing: str, two_epochs: Result, three_epochs: Result, tmp_path: Path
    ):
        shutil.copytree(two_epochs.folder, tmp_path / "short")
        with open(tmp_path / "short" / "metrics.jsonl", "a") as file:
            file.write(trailing)
        config = {**json_of(two_epochs), "epochs": 3, "run_dir": tmp_path / "short"}
        train(TrainConfig(**config), resume=tmp_path / "short")
        assert_same_run(tmp_path / "short", three_epochs)

    def test_a_damaged_line_is_reported_and_only_it_is_dropped(self, run: Run, capsys: pytest.CaptureFixture[str]):
        result = run(epochs=5)
        path = result.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([lines[0], "{damaged\n", *lines[2:]]))
        assert main(["train", "--resume", str(result.folder), "--epochs", "6"]) == 0
        assert "those of 1 of 5 epochs, the first of epoch 2" in capsys.readouterr().err
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 3, 4, 5, 6]

    def test_resume_from_an_older_checkpoint_makes_it_the_last_one_first(self, run: Run):
        """So that a run killed right after this resume can resume from there, with the metrics up to there."""
        result = run(epochs=4, save_every="1", keep=9)
        config = TrainConfig(**json_of(result))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "deltaprop.training.loop.Run.train", lambda self: (_ for _ in ()).throw(RuntimeError("killed"))
            )
            with pytest.raises(RuntimeError, match="killed"):
                train(config, resume=RunFolder(result.folder).numbered()[2])
        assert load_checkpoint(result.folder / "checkpoints" / LAST).state["epoch"] == 3
        train(config, resume=result.folder)
        assert_same_run(result.folder, run(epochs=4))

    def test_resume_from_an_older_checkpoint_drops_later_metrics(self, run: Run):
        """Resuming a run of 4 epochs from its numbered checkpoint after epoch 2."""
        whole, run4 = run(epochs=4), run(epochs=4, save_every="1", keep=9)
        steps = len(RunFolder(run4.folder).numbered())
        assert steps == 5  # before the first epoch, and after each
        path = RunFolder(run4.folder).numbered()[2]
        assert load_checkpoint(path).state["epoch"] == 3
        train(TrainConfig(**json_of(run4)), resume=path)
        assert_same_run(run4.folder, whole)


class TestChangedSettings:
    def refused(self, result: Result, *words: str) -> str:
        """Assert that the resume is refused and changes no file; return the message."""
        return self.resume(result, 2, *words)

    def resume(self, result: Result, code: int, *words: str) -> str:
        """Assert that the resume ends with this exit code; return its stderr."""
        before = {p: p.read_bytes() for p in result.folder.rglob("*") if p.is_file()}
        assert main(["train", "--resume", str(result.folder), *words]) == code
        if code == 2:
            assert {p: p.read_bytes() for p in result.folder.rglob("*") if p.is_file()} == before
        line: str = self.capsys.readouterr().err
        assert line.count("\n") == (1 if code else 0)
        return line

    @pytest.fixture(autouse=True)
    def _capture(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    @pytest.fixture
    def short(self, two_epochs: Result, tmp_path: Path) -> Result:
        """A copy of a run of two epochs."""
        shutil.copytree(two_epochs.folder, tmp_path / "short")
        return dataclasses.replace(two_epochs, folder=tmp_path / "short")

    @pytest.mark.parametrize(
        "words",
        [["--epochs", "3"], ["--log-every", "1"], ["--save-every", "5m"], ["--keep", "3"], ["--patience", "4"]],
        ids=str,
    )
    def test_harmless_changes_are_accepted(self, words: list[str], short: Result):
        assert self.resume(short, 0, *words) == ""

    @pytest.mark.parametrize(
        ("words", "diff"),
        [
            (["--lr", "0.2"], "lr 0.05 → 0.2; to allow it, add --override lr"),
            (["--batch-size", "32"], "batch_size 16 → 32; to allow it, add --override batch_size"),
            (["--seed", "7"], "seed 0 → 7"),
            (["--engine", "explicit"], "engine autograd → explicit"),
            (["--threads", "2"], "threads 1 → 2"),
            (
                ["--momentum", "0.5", "--lr", "0.2"],
                "lr 0.05 → 0.2, momentum 0.9 → 0.5; to allow it, add --override lr",
            ),
            (["--data", "circles"], "data moons → circles"),
            (["--precision", "bf16"], "precision float32 → bf16"),
            (["--lr", "0.2", "--override", "momentum"], "lr 0.05 → 0.2"),
        ],
        ids=str,
    )
    def test_changes_of_the_result_are_refused_with_a_diff(self, words: list[str], diff: str, short: Result):
        line = self.refused(short, "--epochs", "3", *words)
        assert f"error: {short.folder}: this would change the result: " in line
        assert diff in line

    @pytest.mark.parametrize(
        ("words", "diff"),
        [
            (["--hidden", "9"], "hidden 8 → 9"),
            (["--activation", "tanh"], "activation relu → tanh"),
            (["--loss", "quadratic"], "loss auto → quadratic"),
            (["--dtype", "float64"], "dtype float32 → float64"),
            (["--test-fraction", "0.3"], "test_fraction 0.2 → 0.3"),
            (["--scaling", "none"], "scaling auto → none"),
        ],
        ids=str,
    )
    def test_another_network_or_data_set_cannot_be_overridden(self, words: list[str], diff: str, short: Result):
        assert diff in self.refused(short, "--epochs", "3", *words)
        name = words[0].removeprefix("--")
        assert f"--override {name.replace('-', '_')}: must be one of" in self.refused(
            short, "--epochs", "3", *words, "--override", name
        )

    def test_other_data_under_the_same_name_is_refused(self, short: Result):
        line = self.refused(short, "--epochs", "3", "--data", "circles", "--override", "data")
        assert "the data in circles are not those that the run was trained on" in line

    def test_fewer_epochs_than_done_are_refused(self, short: Result):
        assert "--epochs 1: the run has already completed 2 epochs" in self.refused(short, "--epochs", "1")

    @pytest.mark.parametrize(
        ("words", "setting", "old", "new"),
        [
            (["--lr", "0.2"], "lr", 0.05, 0.2),
            (["--batch-size", "32"], "batch_size", 16, 32),
            (["--seed", "7"], "seed", 0, 7),
            (["--engine", "explicit"], "engine", "autograd", "explicit"),
            (["--threads", "2"], "threads", "1", "2"),
        ],
    )
    def test_an_override_is_recorded(self, words: list[str], setting: str, old: object, new: object, short: Result):
        assert self.resume(short, 0, "--epochs", "3", *words, "--override", setting.replace("_", "-")) == ""
        config = json.loads((short.folder / "config.json").read_text())
        assert config["overrides"] == [{"epoch": 3, "step": 0, "setting": setting, "from": old, "to": new}]
        assert config[setting] == new
        self.resume(short, 0, "--epochs", "4")  # the new value persists without a second --override
        assert len(json.loads((short.folder / "config.json").read_text())["overrides"]) == 1

    def test_another_seed_keeps_the_split(self, short: Result):
        """Otherwise training rows would become validation rows."""
        self.resume(short, 0, "--epochs", "3", "--seed", "7", "--override", "seed")
        assert load_checkpoint(short.folder / "checkpoints" / LAST).state["split_seed"] == 0
        assert load_run(short.folder).split_seed == 0  # for all other commands too

    def test_another_batch_size_in_mid_epoch_restarts_the_epoch(self, run: Run, tmp_path: Path):
        config = TrainConfig(**{**json_of(run()), "run_dir": tmp_path / "interrupted"})
        with pytest.raises(Terminated):
            train(config, StopAt(60))  # in the second epoch of 45 steps
        folder = tmp_path / "interrupted"
        train(dataclasses.replace(config, batch_size=90), resume=folder, override=["batch-size"])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [45, 16, 24]  # 720 rows are 8 steps of 90

    def test_a_toml_file_changes_settings_as_flags_do(self, short: Result, tmp_path: Path):
        (tmp_path / "more.toml").write_text("epochs = 3\nlr = 0.2\n")
        assert "lr 0.05 → 0.2" in self.refused(short, "--config", str(tmp_path / "more.toml"))
        assert self.resume(short, 0, "--config", str(tmp_path / "more.toml"), "--lr", "0.05") == ""


class TestCommand:
    def test_resume_in_the_run_folder_needs_no_path(self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any):
        result = run()
        monkeypatch.chdir(result.folder)
        assert main(["train", "--resume", "--epochs", "4"]) == 0
        assert "checkpoints/last.safetensors: after epoch 3" in capsys.readouterr().out
        monkeypatch.chdir("/")
        assert main(["train", "--resume", "--run-dir", str(result.folder), "--epochs", "5"]) == 0
        assert main(["train", "--epochs", "6", "--resume", str(result.folder / "checkpoints" / LAST)]) == 0
        assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == 6

    def test_auto_restarts_after_a_kill_during_the_first_save(self, tmp_path: Path):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / ".step-000000000.safetensors.tmp-1a2b3c4d").write_bytes(b"torn")
        (tmp_path / "run" / "config.json").write_text("{}")
        words = ["--run-dir", str(tmp_path / "run"), "--data", "moons", "--hidden", "4", "--epochs", "1"]
        assert main(["train", "--resume", "auto", *words, "--log-every", "0"]) == 0
        assert not list((tmp_path / "run").rglob(".*.tmp-*"))

    def test_auto_does_not_restart_a_run_that_another_process_began(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        """This process looked before the other one had saved, and got the lock after the other one had ended."""
        result = run()
        before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
        monkeypatch.setattr("deltaprop.training.run_folder.is_incomplete_run", lambda path: True)
        with pytest.raises(UserError, match="another run has begun in this folder by now"):
            train(TrainConfig(**json_of(result)), restart=True)
        assert {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()} == before

    def test_resume_without_config_json_writes_it_again(self, run: Run):
        result = run()
        before = json.loads((result.folder / "config.json").read_text())
        (result.folder / "config.json").unlink()
        assert main(["train", "--resume", str(result.folder), "--epochs", "4"]) == 0
        after = json.loads((result.folder / "config.json").read_text())
        assert {**after, "epochs": 3, "command": 0} == {**before, "threads": "1", "device": "cpu", "command": 0}

    def test_resume_through_a_link_and_with_an_unusual_folder_name(self, tmp_path: Path):
        folder = tmp_path / "[b]x é y"
        (tmp_path / "link").symlink_to(folder)
        words = ["train", "--data", "moons", "--hidden", "4", "--log-every", "0"]
        assert main([*words, "--epochs", "1", "--run-dir", str(folder)]) == 0
        assert main(["train", "--resume", str(tmp_path / "link"), "--epochs", "2"]) == 0
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2

    def test_a_checkpoint_is_found_by_its_file_name(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        result = run()
        monkeypatch.chdir(result.folder / "checkpoints")
        assert main(["train", "--resume", LAST, "--epochs", "4"]) == 0

    def test_auto_starts_and_then_resumes(self, tmp_path: Path, capsys: Any):
        words = ["train", "--resume", "auto", "--run-dir", str(tmp_path / "run"), "--data", "moons", "--hidden", "4"]
        for epochs in ("1", "2"):
            assert main([*words, "--epochs", epochs, "--log-every", "0"]) == 0
        out = capsys.readouterr().out
        assert out.count(": after epoch 1\n") == 1
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2

    def test_a_damaged_last_checkpoint_gives_a_warning(self, run: Run, capsys: Any):
        result = run(keep=2, save_every="1")
        path = result.folder / "checkpoints" / LAST
        path.write_bytes(path.read_bytes()[:-1])
        assert main(["train", "--resume", str(result.folder), "--epochs", "4"]) == 0
        captured = capsys.readouterr()
        assert f"warning: {path}: damaged: " in captured.err
        assert re.search(r"resume +\S+step-\d+\.safetensors: after epoch 3", captured.out)

    def test_a_damaged_last_checkpoint_of_a_finished_run_is_replaced(self, run: Run, capsys: Any):
        result = run(keep=2, save_every="1")
        path = result.folder / "checkpoints" / LAST
        path.write_bytes(path.read_bytes()[:-1])
        for warned in (True, False):
            assert main(["train", "--resume", str(result.folder)]) == 0
            assert ("damaged: " in capsys.readouterr().err) == warned
        load_checkpoint(path)


def test_weights_load_without_deltaprop_and_checkpoints_without_pickle(two_epochs: Result):
    """All of them are plain safetensors files."""
    from safetensors import safe_open

    for path in two_epochs.folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.keys()


def test_resume_keeps_the_callers_random_state(run: Run):
    result = run()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(TrainConfig(**{**json_of(result), "epochs": 4}), resume=result.folder)
    assert torch.equal(torch.get_rng_state(), before)


# --- TensorBoard ---


def scalars(logdir: Path, tag: str, fast: bool) -> list[int]:
    """Return the steps of a tag as a TensorBoard server shows them, with its fast or its old loader."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    command += [f"--load_fast={'true' if fast else 'false'}", "--reload_interval", "1"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                url = f"{address}/data/plugin/scalars/scalars?tag={tag}&run=run"
                with urllib.request.urlopen(url, timeout=30) as answer:
                    found = [step for _, step, _ in json.load(answer)]
                if found:
                    time.sleep(2)  # the loader may still be reading
                    with urllib.request.urlopen(url, timeout=30) as answer:
                        return [step for _, step, _ in json.load(answer)]
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError("TensorBoard shows nothing")
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False], ids=["fast loader", "old loader"])
def test_tensorboard_shows_each_epoch_once_after_a_resume(fast: bool, run: Run, tmp_path: Path):
    """Resuming a run of 5 epochs from epoch 3, and then from its end."""
    folder = tmp_path / "logs" / "run"
    config = TrainConfig(data="moons", hidden=(8,), epochs=5, log_every=0, save_every="1", keep=9, run_dir=folder)
    train(config)
    train(config, resume=RunFolder(folder).numbered()[2])
    train(dataclasses.replace(config, epochs=6), resume=folder)
    assert scalars(tmp_path / "logs", "loss/train", fast) == [1, 2, 3, 4, 5, 6]


def test_the_events_hold_each_epoch_once_after_a_resume(tmp_path: Path):
    """With the reader of TensorBoard's old loader; the slow test queries a server."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    config = TrainConfig(data="moons", hidden=(8,), epochs=3, log_every=1, save_every="1", keep=9, run_dir=folder)
    train(config)
    train(config, resume=RunFolder(folder).numbered()[1])
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("delta_norm/layer1")] == [0, 1, 2, 3]
    assert len(events.Tensors("config/text_summary")) == 1
