"""The command line: exit codes, one-line errors, and its equivalent ways to be started."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaprop.cli import main, program
from deltaprop.cli.console import describe_config
from deltaprop.cli.parsing import one_line
from deltaprop.cli.train import parse_flags
from deltaprop.training import TrainConfig

ROOT = Path(__file__).parents[2]
SMALL = ["--data", "moons", "--hidden", "8", "--epochs", "2", "--log-every", "0"]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, and return the finished process."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


NAMES = {"train.py": [str(ROOT / "train.py")], "-m deltaprop train": ["-m", "deltaprop", "train"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, subprocess.CompletedProcess[str]]]:
    """Return a function: entry point → (working folder, finished process) of a small training, run once for each."""

    @functools.cache
    def train_by(name: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp("entry-point")
        return folder, python(*NAMES[name], *SMALL, cwd=folder)

    return train_by


Trained = Callable[[str], tuple[Path, subprocess.CompletedProcess[str]]]


class TestNames:
    """``python train.py``, ``python -m deltaprop train`` and ``deltaprop train`` do the same."""

    @pytest.mark.parametrize("name", ["train.py", pytest.param("-m deltaprop train", marks=pytest.mark.slow)])
    def test_each_trains_and_prints_the_run_folder(self, trained: Trained, name: str):
        cwd, done = trained(name)
        assert done.returncode == 0, done.stderr
        (folder,) = (cwd / "runs").iterdir()
        assert folder.name.startswith("moons-")
        assert f"run     runs/{folder.name}" in done.stdout
        assert "look    tensorboard --logdir runs\n" in done.stdout
        assert done.stderr == ""

    def test_the_console_script_is_the_same_function(self):
        from importlib.metadata import entry_points

        (script,) = entry_points(group="console_scripts", name="deltaprop")
        assert script.load() is program

    def test_help_and_version(self, capsys: pytest.CaptureFixture[str]):
        import deltaprop

        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"deltaprop {deltaprop.__version__}\n"
        assert main([]) == 0
        assert "train" in capsys.readouterr().out

    def test_every_field_is_a_flag_with_help(self, capsys: pytest.CaptureFixture[str]):
        import dataclasses

        with pytest.raises(SystemExit) as caught:
            main(["train", "--help"])
        assert not caught.value.code
        printed = capsys.readouterr().out
        for field in dataclasses.fields(TrainConfig):
            assert f"--{field.name.replace('_', '-')}" in printed


class TestOutput:
    """Plain text, line by line, if the output is not a terminal."""

    def test_no_progress_bar_no_colour_one_line_per_epoch(self, trained: Trained):
        out = trained("-m deltaprop train")[1].stdout
        assert "\x1b" not in out
        assert "\r" not in out
        assert [line.split()[0] for line in out.splitlines() if line[:7].strip().isdigit()] == ["1", "2"]
        assert all(line == line.rstrip() for line in out.splitlines())

    def test_it_prints_model_device_test_metrics_and_run_folder(self, trained: Trained):
        out = trained("-m deltaprop train")[1].stdout
        for part in ("2 → 8 relu → 2", "42 parameters (24 + 18)", "cpu, 1 thread, float32", "right (", "runs/moons-"):
            assert part in out

    def test_on_a_60_column_terminal_no_line_is_wider(self, tmp_path: Path):
        from io import StringIO

        from rich.console import Console

        from deltaprop.cli.console import ConsoleReporter
        from deltaprop.training import train

        screen = StringIO()
        console = Console(file=screen, force_terminal=True, width=60, color_system=None, highlight=False)
        reporter = ConsoleReporter(console)
        train(parse_flags([*SMALL, "--run-dir", str(tmp_path / "run")])[0], reporter)
        printed = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "\x1b" not in line]
        assert max(len(line.rstrip()) for line in printed) <= 60
        assert "2 → 8 relu → 2" in screen.getvalue()


REFUSED = [
    (["--lr", "0"], "--lr must be auto or a number above 0, got 0.0"),
    (["--lr", "fast"], "--lr must be auto or a number, got 'fast'"),
    (["--lrr", "1"], "unrecognized options: --lrr: perhaps you meant --lr"),
    (["--hidden", "0"], "--hidden must be positive whole numbers, got 0"),
    (["--hidden", ""], "--hidden"),
    (["--activation", "sigmiod"], "unknown activation 'sigmiod': did you mean 'sigmoid'?"),
    (["--loss", "mean"], "unknown loss 'mean'"),
    (["--val-fraction", "1.5"], "--val-fraction must be in [0, 1), got 1.5"),
    (["--device", "cuda:x"], "--device must be auto, cpu, cuda, cuda:N or mps, got cuda:x"),
    (["--data", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
    (["--data", "mnist"], "mnist does not come with the package: give the folder that holds its four IDX files"),
    (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
    (["--dtype", "float8"], "--dtype must be one of 'float32', 'float64', got 'float8'"),
    (["--epochs"], "--epochs needs a value"),
    (["--epochs", "three"], "--epochs must be auto or a whole number, got 'three'"),
    (["--momentum", "x"], "--momentum must be a number, got 'x'"),
    (["--missing", "median"], "--missing must be one of 'auto', 'mean', 'drop', 'refuse', got 'median'"),
    (["--data"], "--data needs a value"),
    (["--hidden", "4", "b"], "--hidden cannot be '4', 'b'"),
    (["--config"], "--config needs a value"),
    (["--config", "nowhere.toml"], "--config nowhere.toml: there is no such file"),
    (["--output-activation", "softmax"], "the loss already contains it"),
    (["extra"], "unrecognized options: extra"),
]


class TestRefusals:
    """Invalid input: one line on stderr, exit code 2, nothing written, no traceback."""

    @pytest.mark.parametrize(("flags", "message"), REFUSED)
    def test_one_line_exit_2_nothing_written(
        self,
        flags: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        monkeypatch.chdir(tmp_path)
        assert main(["train", *flags]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
        assert os.listdir(tmp_path) == []

    def test_an_unknown_command_suggests_the_nearest(self, capsys: pytest.CaptureFixture[str]):
        assert main(["trian"]) == 2
        assert "did you mean 'train'?" in capsys.readouterr().err

    def test_debug_shows_the_traceback_too(self, capsys: pytest.CaptureFixture[str]):
        assert main(["train", "--debug", "--lr", "0"]) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1] == "error: --lr must be auto or a number above 0, got 0.0"

    def test_a_training_failure_exits_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        flags = ["--data", "sine", "--lr", "1e6", "--log-every", "0", "--run-dir", str(tmp_path / "run")]
        assert main(["train", *flags]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: not finite: layer 1 (")
        assert err.count("\n") == 1

    def test_an_interrupt_exits_130(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("deltaprop.cli.train.train", interrupted)
        assert main(["train", *SMALL]) == 130
        assert capsys.readouterr().err == "interrupted\n"


class TestTerminal:
    """On a real terminal, where parsers may colour their messages and a progress bar is drawn."""

    def on_a_terminal(self, cwd: Path, *arguments: str, interrupt_on: str = "", fresh: bool = True) -> tuple[int, str]:
        """Train in a pseudo-terminal; return the exit code and all output.

        Ctrl-C is sent once the output contains ``interrupt_on``. With ``fresh`` a new interpreter runs train.py; else a
        fork of this one trains, which has imported everything already.
        """
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(cwd)
            if fresh:
                os.execv(sys.executable, [sys.executable, str(ROOT / "train.py"), *arguments])
            code = 1
            with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
                code = main(["train", *arguments])
            os._exit(code)
        written = ""
        with contextlib.suppress(OSError):  # Linux raises it when the other end closes
            while chunk := os.read(terminal, 4096):
                written += chunk.decode(errors="replace")
                if interrupt_on and interrupt_on in written:
                    os.write(terminal, b"\x03")
                    interrupt_on = ""
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--lrr", "1"], "error: unrecognized options: --lrr: perhaps you meant --lr"),
            (["--lr", "fast"], "error: --lr must be auto or a number, got 'fast'"),
            (["--hidden", "0"], "error: --hidden must be positive whole numbers, got 0"),
        ],
    )
    def test_an_invalid_flag_is_one_plain_line(self, tmp_path: Path, flags: list[str], message: str):
        code, written = self.on_a_terminal(tmp_path, *flags, fresh=False)
        assert (code, written.strip()) == (2, message)

    def test_ctrl_c_prints_how_to_resume_and_exits_130(self, tmp_path: Path):
        flags = ["--data", "moons", "--epochs", "100000", "--log-every", "0", "--run-dir", "run"]
        code, written = self.on_a_terminal(tmp_path, *flags, interrupt_on="      3 ")
        assert code == 130
        assert "saved; resume with: deltaprop train --resume run" in written
        assert "Traceback" not in written
        assert (tmp_path / "run" / "best.safetensors").exists()


class TestConfigFile:
    """``--config FILE.toml``: defaults, then the file, then the flags."""

    def test_flags_override_the_file_and_the_file_overrides_defaults(self, tmp_path: Path):
        file = tmp_path / "recipe.toml"
        file.write_text("lr = 0.5\nepochs = 7\nhidden = [30]\n")
        config, _, _ = parse_flags(["--config", str(file), "--epochs", "9"])
        assert (config.lr, config.epochs, config.hidden, config.batch_size) == (0.5, 9, (30,), 16)
        assert config.config == file

    def test_an_unknown_setting_in_the_file_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        file = tmp_path / "recipe.toml"
        file.write_text("learning-rate = 0.5\n")
        assert main(["train", "--config", str(file)]) == 2
        assert "unknown setting 'learning-rate'" in capsys.readouterr().err

    def test_an_invalid_value_in_the_file_is_refused_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        file = tmp_path / "recipe.toml"
        file.write_text("lr = -1\n")
        assert main(["train", "--config", str(file)]) == 2
        assert capsys.readouterr().err == f"error: --config {file}: lr must be auto or a number above 0, got -1.0\n"

    def test_a_flag_overrides_an_invalid_value_in_the_file(self, tmp_path: Path):
        file = tmp_path / "recipe.toml"
        file.write_text('lr = 0\nnesterov = true\nmomentum = 0.0\nactivation = ["relu", "tanh", "relu"]\n')
        flags = ["--config", str(file), "--lr", "0.1", "--momentum", "0.9", "--hidden", "4", "4", "4"]
        assert parse_flags(flags)[0].activations == ["relu", "tanh", "relu"]

    def test_config_json_holds_the_settings_of_the_run(self, tmp_path: Path):
        """Each setting is stored under its field's name."""
        main(["train", *SMALL, "--run-dir", str(tmp_path / "run"), "--seed", "3"])
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        assert (saved["data"], saved["hidden"], saved["epochs"], saved["seed"]) == ("moons", [8], 2, 3)


def test_a_parser_error_without_text_still_gives_a_line():
    assert one_line("") == "the arguments cannot be parsed; see deltaprop COMMAND --help"


class TestRepeatedFlags:
    """A list flag that is given twice adds its values, as ``action="extend"`` of argparse does."""

    def test_the_values_are_joined(self):
        config, *_ = parse_flags(
            ["--drop", "a", "--hidden", "4", "--drop=b", "--lr", "0.1", "--hidden", "3", "--drop", "c"]
        )
        assert (config.drop, config.hidden, config.lr) == (("a", "b", "c"), (4, 3), 0.1)

    def test_a_flag_of_one_value_takes_the_last(self):
        config, *_ = parse_flags(["--epochs", "2", "--epochs", "3"])
        assert config.epochs == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "η 0.1, batch 16, momentum 0.9"),
        ({"momentum": 0.0, "weight_decay": 0.01}, "η 0.1, batch 16, weight decay 0.01"),
        ({"nesterov": True, "lr_schedule": "step"}, "η 0.1, batch 16, Nesterov momentum 0.9, step schedule"),
        ({"lr_warmup": 1}, "η 0.1, batch 16, momentum 0.9, constant schedule, 1 epoch warm-up"),
        ({"lr_schedule": "cosine", "lr_warmup": 3}, "η 0.1, batch 16, momentum 0.9, cosine schedule, 3 epochs warm-up"),
    ],
    ids=str,
)
def test_the_optimizer_is_described_in_one_line(settings: dict[str, Any], text: str):
    config = TrainConfig(**{"lr": 0.1, "weight_decay": 0.0, "lr_schedule": "constant", **settings})
    resolved = {"sizes": [2, 128, 64, 2], "loss": "mse"}
    assert dict(describe_config(config, resolved, []))["sgd"] == text
