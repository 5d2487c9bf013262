"""``deltaprop depths``: vanishing and exploding gradients, as text and as a plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltaprop.cli import main


def test_each_network_is_labelled_vanishing_kept_or_exploding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["depths", "--epochs", "1", "--depths", "2", "4"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[1] == "sigmoid, torch"
    assert [line.split(": ")[1] for line in lines if ": " in line] == ["vanishes"] * 4 + ["kept"] * 2 + ["explodes"] * 2
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + 4 * (1 + 2 * 2)


@pytest.mark.parametrize("name", ["p.png", "p.svg", "p.pdf"])
def test_the_plot_is_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / name
    args = ["--epochs", "1", "--depths", "1", "--arms", "relu:kaiming", "--data", "moons", "--picture", str(path)]
    assert main(["depths", *args]) == 0
    assert path.stat().st_size > 5000
    assert f"picture {path}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--depths", "0"], "--depths must be positive whole numbers, got 0"),
        (["--width", "0"], "--width must be at least 1"),
        (["--arms", "relu"], "--arms must be ACTIVATION:INIT, such as relu:kaiming, got 'relu'"),
        (["--arms", "relu:kaiming", "relo:torch"], "unknown activation 'relo': did you mean 'relu'"),
        (["--arms", "relu:kiming"], "unknown initialisation 'kiming': did you mean 'kaiming'"),
        (["--picture", "p.gif"], "the name must end in .png, .svg or .pdf"),
        (["--picture", "/nope/p.png"], "there is no folder /nope"),
        (["--lr", "-1"], "--lr must be auto or a number above 0"),
        (["--data", "mons"], "unknown data set 'mons': did you mean 'moons'"),
    ],
    ids=str,
)
def test_invalid_input_is_one_line_and_exit_code_2(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["depths", *args]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line
    assert captured.out == ""  # nothing was trained
