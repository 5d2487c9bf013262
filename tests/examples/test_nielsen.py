"""The book's numbers are reproduced: the first of them in every test run, all of them with ``-m slow``."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import deltaprop as dp
from examples.nielsen import __main__ as command
from examples.nielsen import published, replay
from examples.nielsen.draws import SEED, Draws
from tests.data.conftest import MNIST, encode_idx

main = command.main


@pytest.fixture
def mnist() -> str:
    """The folder of the four MNIST files; skips the test if it is missing."""
    if not MNIST.is_dir():
        pytest.skip("needs the MNIST files in ../shared/data/mnist")
    return str(MNIST)


# --- the replay ---


@pytest.mark.parametrize("engine", ["explicit", pytest.param("autograd", marks=pytest.mark.slow)])
def test_the_first_overfitting_epochs_match_the_book(engine: str, mnist: str, capsys: pytest.CaptureFixture[str]):
    """As many of the 10 000 test and 1000 training images are right, and both costs agree to 1e-9."""
    assert main(["overfitting", "--data", mnist, "--engine", engine, "--first", "20"]) == 0
    out = capsys.readouterr().out
    assert "test right: 20 of 20 the same, at most 0 off" in out
    assert "training right: 20 of 20 the same, at most 0 off" in out
    if engine == "explicit":  # docs/results.md shows this output; the last digits of the differences may vary
        page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
        shown = page.split("python -m examples.nielsen overfitting")[1].split("```text\n")[1].splitlines()[:5]
        assert [re.sub(r"[+-]\S+", "", line) for line in shown] == [
            re.sub(r"[+-]\S+", "", line) for line in out.splitlines()[:5]
        ]


def test_the_first_weight_decay_epochs_match_the_book(mnist: str, capsys: pytest.CaptureFixture[str]):
    """λ = 5 on weights only; 50 000 training images and 10 000 validation images."""
    assert main(["weight-initialization", "--data", mnist, "--first", "2"]) == 0
    assert "validation right: 2 of 2 the same" in capsys.readouterr().out


def test_float32_deviates_slightly(mnist: str):
    """In 20 epochs the cost differs by less than 1e-5, and no prediction differs."""
    network = replay.Network(torch.float32, "explicit")
    rows = [
        row
        for row, _ in zip(
            replay.overfitting(replay.mnist(Path(mnist), torch.float32), network), range(20), strict=False
        )
    ]
    offs = dict(command.apart(rows[-1]))
    assert 0 < abs(offs["training cost"]) < 1e-5
    assert offs["test right"] == offs["training right"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "engine", "rows"),
    [
        ("overfitting", "explicit", 400),
        ("overfitting", "autograd", 400),
        ("weight-initialization", "explicit", 60),
        ("more-data", "explicit", 9),
    ],
)
def test_every_number_matches_the_book(
    run: str, engine: str, rows: int, mnist: str, capsys: pytest.CaptureFixture[str]
):
    assert main([run, "--data", mnist, "--engine", engine]) == 0
    assert f"right: {rows} of {rows} the same, at most 0 off" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("run", "rows"), [("overfitting", 400), ("weight-initialization", 60), ("more-data", 9)])
def test_every_number_is_close_to_the_book_in_float32(
    run: str, rows: int, mnist: str, capsys: pytest.CaptureFixture[str]
):
    """Within the bound of the run; in at least half of the rows as many images are right."""
    assert main([run, "--data", mnist, "--dtype", "float32"]) == 0
    (same,) = re.findall(rf"(?:test|validation) right: (\d+) of {rows} the same", capsys.readouterr().out)
    assert int(same) >= rows / 2


# --- random numbers ---


def test_shuffle_matches_python_2():
    """From the end on, entry i is exchanged with entry ⌊(i + 1) u⌋, with one random number u each."""
    rows, generator = [*"abcdef"], random.Random(SEED)
    Draws().shuffle(rows)  # type: ignore[arg-type]
    expected = [*"abcdef"]
    for index, u in zip((5, 4, 3, 2, 1), [generator.random() for _ in range(5)], strict=True):
        other = int((index + 1) * u)
        expected[index], expected[other] = expected[other], expected[index]
    assert rows == expected != [*"abcdef"]


@pytest.mark.parametrize(("draw", "divisor"), [("default", np.sqrt), ("large", np.ones_like)])
def test_biases_are_drawn_before_weights(draw: str, divisor: Callable[..., float]):
    model, numbers = dp.MLP([3, 4, 2], "sigmoid", dtype=torch.float64), np.random.RandomState(SEED)
    getattr(Draws(), draw)(model)
    biases = [numbers.randn(4, 1)[:, 0], numbers.randn(2, 1)[:, 0]]
    weights = [numbers.randn(4, 3) / divisor(3.0), numbers.randn(2, 4) / divisor(4.0)]
    for layer, weight, bias in zip((model[0], model[2]), weights, biases, strict=True):
        np.testing.assert_array_equal(layer.weight.detach().numpy(), weight)
        np.testing.assert_array_equal(layer.bias.detach().numpy(), bias)


# --- published numbers, and the report ---


def test_all_published_numbers_are_present():
    """400, 30 and 30 epochs and nine training set sizes, and the last value of each."""
    rows = published.overfitting()
    assert len(rows) == 400
    assert rows[-1] == {
        "test cost": 1.7731493757222807, "test right": 8223,
        "training cost": 0.0042016444290295845, "training right": 1000,
    }  # fmt: skip
    assert (len(published.DEFAULT_WEIGHTS), published.DEFAULT_WEIGHTS[-1]) == (30, 9650)
    assert (len(published.LARGE_WEIGHTS), published.LARGE_WEIGHTS[-1]) == (30, 9637)
    assert (len(published.MORE_DATA), published.MORE_DATA[50_000]) == (9, 9597)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("test right", lambda value: value + 1, "test right: 1 of 2 the same, at most 1 off (bound 0)"),
        ("training cost", lambda value: value * (1 + 1e-8), "training cost: at most 1e-08 off, relative (bound 1e-09)"),
    ],
)
def test_a_number_beyond_the_bound_is_reported(
    name: str, change: Callable[[float], float], message: str, mnist: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Here in the second row; the exit code is 1."""
    rows = published.overfitting()
    rows[1] = {**rows[1], name: change(rows[1][name])}
    monkeypatch.setattr(published, "overfitting", lambda: rows)
    assert main(["overfitting", "--data", mnist, "--first", "2"]) == 1
    out = capsys.readouterr().out
    assert message in out
    assert "beyond the bound: 1 of 2, first at 2" in out


def test_nan_is_beyond_the_bound():
    row = replay.Row("1", {"test cost": float("nan")}, {"test cost": 1.0})
    assert not command.within(row, command.BOUNDS["float32"]["overfitting"])


def test_a_folder_of_other_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encode_idx(np.zeros((60, 2, 2), dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encode_idx((np.arange(60) % 10).astype(np.uint8)))
    assert main(["overfitting", "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{tmp_path}: this is not MNIST" in err


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["overfitting", "--data", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
