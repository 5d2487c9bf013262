"""Random flags: either a run, or an error of one line, exit code 2 and no file."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaprop import core
from deltaprop.cli import main
from deltaprop.nn.init import INITS
from deltaprop.training.objective import losses

HUGE = "99999999999999999999"
NUMBERS = st.sampled_from(["0", "1", "2", "-1", "0.5", "1e-3", "1e300", "1e400", "nan", "inf", "", "x", "3.0", HUGE])
NAMES = st.sampled_from([*core.ACTIVATIONS, *INITS, *losses(), "auto", "none", "", "é", "-", "--", "\t", "a b", "nan"])
FLAGS = {
    "--data": st.sampled_from(["moons", "xor", "sine", "mons", "/nowhere", "", ".", "mnist", "digits\n"]),
    "--hidden": st.sampled_from(["3", "0", "-1", "2.5", "3 4", "x", "", HUGE]),
    "--activation": NAMES,
    "--output-activation": NAMES,
    "--loss": NAMES,
    "--init": NAMES,
    "--lr": NUMBERS,
    "--momentum": NUMBERS,
    "--weight-decay": NUMBERS,
    "--lr-schedule": NAMES,
    "--lr-step": NUMBERS,
    "--lr-gamma": NUMBERS,
    "--lr-warmup": NUMBERS,
    "--batch-size": NUMBERS,
    "--val-fraction": NUMBERS,
    "--test-fraction": NUMBERS,
    "--val-split": NAMES,
    "--scaling": NAMES,
    "--pixel-scale": NUMBERS,
    "--patience": NUMBERS,
    "--seed": NUMBERS,
    "--engine": st.sampled_from(["autograd", "explicit", "", "jax"]),
    "--device": st.sampled_from(["cpu", "auto", "cuda", "cuda:7", "mps", "tpu", ""]),
    "--dtype": st.sampled_from(["float32", "float64", "float16", ""]),
    "--precision": st.sampled_from(["float32", "bf16", "tf32", "fp8"]),
    "--threads": st.sampled_from(["1", "auto", "0", "-1", "x", "1025", ""]),
    "--log-every": NUMBERS,
    "--save-every": st.sampled_from(["1", "1m", "0", "0s", "-1m", "1h", "", "1e9", "m", "9999999999m", "٣"]),
    "--keep": NUMBERS,
    "--config": st.sampled_from(["/nowhere.toml", "", ".", "\0"]),
    "--resume": st.sampled_from(["auto", "/nowhere", "", "."]),
    "--override": st.sampled_from(["lr", "hidden", "", "x"]),
    "--nonsense": NUMBERS,
    "--nesterov": st.just(""),
    "--decay-biases": st.just(""),
}


@st.composite
def flags(draw: st.DrawFn) -> list[str]:
    """Draw some flags, each with a value that may be valid, invalid or missing."""
    words: list[str] = []
    for name in draw(st.lists(st.sampled_from(sorted(FLAGS)), min_size=1, max_size=4, unique=True)):
        words.append(name)
        value = draw(FLAGS[name])
        if value or draw(st.booleans()):
            words += value.split(" ") if name == "--hidden" else [value]
    return words


def outcome(words: list[str]) -> tuple[int, str, bool]:
    """Run a command in an empty folder; return its exit code, its stderr, and whether it wrote anything."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            plain = ["train", "--data", "xor", "--epochs", "1", "--log-every", "0", "--run-dir", "run"]
            code = main([*plain, *words])
        return code, stderr.getvalue(), any(Path(folder).iterdir())


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@settings(SETTINGS, max_examples=100)
@given(flags())
def test_random_flags_give_a_run_or_an_error_of_one_line(words: list[str]):
    check(words)


@pytest.mark.slow
@settings(SETTINGS, max_examples=1000)
@given(flags())
def test_many_random_flags_give_a_run_or_an_error_of_one_line(words: list[str]):
    check(words)


def check(words: list[str]) -> None:
    """Assert that a command trains, or fails with one line on stderr and writes nothing."""
    code, stderr, wrote = outcome(words)
    if code == 1 and ("not finite" in stderr or "loss became" in stderr):  # a valid η that is too large
        return
    assert code in (0, 2), (words, stderr)
    if code == 2:
        (line,) = stderr.splitlines()
        assert line.startswith("error: ")
        assert len(line) < 400
        assert not wrote
    else:
        assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("lerning_rate = 1", "unknown setting 'lerning_rate'"),
        ("momentun = 0.9", "unknown setting 'momentun': did you mean 'momentum'?"),
        ("save_ever = 3", "unknown setting 'save_ever': did you mean 'save-every'?"),
        ("lr = 'fast'", "lr must be auto or a number, got 'fast'"),
        ("hidden = 3", "hidden must be a list of whole numbers, got 3"),
        ("lr = 1\nlr = 2", "not TOML"),
        ("batch_size = 2\nbatch-size = 3", "batch-size is given twice"),
        ("nesterov = true\nmomentum = 0", "nesterov must be used with a momentum above 0"),
        ("patience = 3\nval_fraction = 0", "patience must be used with a val_fraction above 0"),
        ("output_activation = 'softmax'\nloss = 'cross-entropy'", "the loss already contains it"),
        ("save_every = 0", "save_every must be epochs"),
    ],
)
def test_an_invalid_settings_file_is_refused_in_one_line(toml: str, message: str, tmp_path: Path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(toml)
    assert main(["train", "--config", str(path), "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
