"""``deltaprop trace``: a worked example of a tiny net, an overview of a larger one."""

from __future__ import annotations

import pytest

from deltaprop.cli import main


def test_a_tiny_net_is_a_worked_example(capsys: pytest.CaptureFixture[str]):
    """Every sum of it is held to its digits in tests/verify/test_steps.py."""
    assert main(["trace", "--sizes", "2", "3", "1", "--output-activation", "sigmoid"]) == 0
    out = capsys.readouterr().out
    assert "BP2  δ¹ = (δ² W²) ⊙ σ'(z¹)" in out
    assert out.splitlines()[-1].startswith("ok: autograd differs by ")
    assert "  C was 0.07191, and is 0.06547 after the step" in out


def test_a_larger_net_is_an_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["trace", "--sizes", "64", "30", "10", "--rows", "16", "--loss", "cross_entropy"]) == 0
    out = capsys.readouterr().out
    for word in ("one batch of 16 through 64-30-10", "1 sigmoid", "saturated", "‖∂C/∂W‖", "cross_entropy: C = "):
        assert word in out
    assert "…" not in out


def test_the_same_seed_gives_the_same_page(capsys: pytest.CaptureFixture[str]):
    pages = []
    for seed in ("3", "3", "4"):
        main(["trace", "--seed", seed])
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "2"], "sizes must be two or more positive integers"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--lr", "nan"], "--lr must be a number of at least 0, got nan"),
        (["--loss", "mse"], "unknown loss 'mse'"),
        (["--activation", "sgmoid"], "unknown activation 'sgmoid': did you mean 'sigmoid'"),
        (["--init", "xaver"], "unknown initialisation 'xaver': did you mean 'xavier'"),
        (["--sizes", "two"], "sizes"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line_and_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["trace", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
