"""Settings in error messages become flags that can be pasted into a shell; the user's own text is not changed."""

from __future__ import annotations

import shlex
import signal
import time
import weakref
from pathlib import Path

import pytest

from deltaprop.cli import main
from deltaprop.cli.errors import as_flags, guarded
from deltaprop.errors import setting

ODD = ["`a=b`", "`lr=x`", "it's", 'say "x"', "c\nd", "tab\there", "back\\slash", "`", "a b", "-x", "é µ", "`drop='"]


@pytest.mark.parametrize("value", ODD)
def test_any_value_is_quoted_for_the_shell(value: str):
    flags = as_flags(f"take {setting('drop', value)} or {setting('target', value, 'y')}")
    assert "\n" not in flags
    if value.isprintable():
        assert shlex.split(flags) == ["take", "--drop", value, "or", "--target", value, "y"]
    else:
        assert flags.count(f"$'{repr(value)[1:-1]}'") == 2  # as bash and zsh read it


@pytest.mark.parametrize(
    "text", ["column '`a=b`'", "'`lr=x`'", "`loss.backward()`", "`unknown`", "``", "`lr=`", "`lr=(`"]
)
def test_text_that_is_not_a_setting_is_unchanged(text: str):
    assert as_flags(text) == text


@pytest.mark.parametrize("name", ["`a=b`", "`lr=x`", "`", "`drop='", "it's"])
def test_a_hint_about_any_column_name_is_one_line_and_can_be_pasted(name: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quoted = '"' + name.replace('"', '""') + '"'
    Path("t.csv").write_text(
        f"{quoted},b,y\n" + "".join(f"{'inf' if i == 40 else i},{i % 7},{i % 2}\n" for i in range(60))
    )
    assert main(["train", "--data", "t.csv", "--epochs", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    program, *words = shlex.split(line.rpartition(": ")[2])
    assert program == "deltaprop"
    assert words[:5] == ["train", "--data", "t.csv", "--epochs", "1"]
    assert main([*words, "--log-every", "0"]) == 0


def test_a_hint_keeps_the_lists_of_a_file_of_settings(tmp_path: Path, monkeypatch, capsys):
    """A flag replaces the file's list: the command must repeat it, or a column that was left out is an input again."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text("drop = ['b']\nhidden = [4]\n")
    rows = "".join(f"{'inf' if i == 40 else i * 0.5},{i % 7},{i % 3},{i % 2}\n" for i in range(60))
    Path("t.csv").write_text("a,b,c,y\n" + rows)
    assert main(["train", "--data", "t.csv", "--epochs", "1", "--config", "c.toml"]) == 2
    assert capsys.readouterr().err.strip().endswith("--config c.toml --drop b a")


def test_a_hint_about_words_like_flags_names_the_file_that_can_say_them(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{'inf' if i == 40 else i * 0.5},{i % 7},{i % 2}\n" for i in range(60))
    Path("t.csv").write_text("-a,b,y\n" + rows)
    words = ["train", "--data", "t.csv", "--epochs", "1", "--hidden", "4", "--log-every", "0"]
    assert main(words) == 2
    setting = capsys.readouterr().err.strip().rpartition(": ")[2]
    assert setting == 'drop = ["-a"]'
    Path("c.toml").write_text(setting)
    assert main([*words, "--config", "c.toml"]) == 0


class Ended:
    """Gets a signal as it is destroyed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def in_a_destructor(number: int) -> None:
    Ended(number)


def in_a_callback(number: int) -> None:
    seen = type("Seen", (), {})()
    reference = weakref.ref(seen, lambda _: signal.raise_signal(number))
    del seen
    assert reference() is None


@pytest.mark.parametrize("dropped", [in_a_destructor, in_a_callback])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_not_lost_where_python_drops_exceptions(dropped, number: int, capsys):
    def command() -> int:
        dropped(number)
        time.sleep(5)
        return 0

    began = time.monotonic()
    try:
        code = guarded(command)
    except SystemExit as left:
        code = left.code
    assert code == 128 + number
    assert time.monotonic() - began < 4
    assert capsys.readouterr().err in ("", "interrupted\n")
