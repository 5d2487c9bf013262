"""Flags into a dataclass, and what the parser says of wrong ones, in one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeVar

import tyro

from deltaprop.cli.errors import as_flags
from deltaprop.errors import UserError

Settings = TypeVar("Settings")


def read_flags(
    kind: type[Settings], command: str, words: Sequence[str], description: str, default: Settings | None = None
) -> Settings:
    """Return the settings that the words of a command stand for.

    Args:
        kind: A dataclass, a flag for each field.
        command: Its name, such as ``"train"``.
        words: Behind the name.
        description: For ``--help``, which prints and exits.
        default: What is not said; the dataclass's own defaults by default.

    Raises:
        UserError: In one line, for anything that is wrong with them.
    """
    said = io.StringIO()
    own = [word for word in words if word != "--debug"]  # of the command line, not of the command
    default = kind() if default is None else default
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(_WithFlags(sys.stdout)):  # --help goes there
            return tyro.cli(kind, prog=f"deltaprop {command}", args=own, description=description, default=default)
    except SystemExit as exit_:
        if not exit_.code:  # --help
            raise
        raise UserError(one_line(said.getvalue())) from None


class _WithFlags:
    """A stream that writes settings, as their docstrings name them, as flags."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(as_flags(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _one_of(found: re.Match[str]) -> str:
    *names, last = re.findall(r"'([^']*)'", found[3])
    return f"{found[2]} must be {', '.join(names)} or {last}, got {found[1]!r}"


# What the parser says, and how this project says it.
SAID: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(--\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, got \2"),
    (r"(--\S+): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"(--\S+): no type matching FLOAT\|\{auto\} could be instantiated from \['(.*?)'\].*",
     r"\1 must be auto or a number, got '\2'"),
    (r"(--\S+): no type matching (?:\{None\}\|)?(.*?) could be instantiated from \['(.*?)'\].*",
     r"\1 must be \2, got '\3'"),
    (r"(--\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1 cannot be \2"),
    (r"[Ii]nvalid choice '(.*?)' for argument '(--\S+?)'\. Expected one of \((.*)\)", _one_of),
    (r"[Mm]issing value for argument '(--\S+?)'.*", r"\1 needs a value"),
)  # fmt: skip


def one_line(box: str) -> str:
    """Return what the parser said in a framed box of several lines, as one line.

    The first section says what is wrong; of the rest only a flag that may have been meant is kept.

    Example:
        >>> print(one_line('''
        ... ╭─ Unrecognized options ───────╮
        ... │ Unrecognized options: --lrr  │
        ... │ ──────────────────────────── │
        ... │ Perhaps you meant:           │
        ... │     --lr FLOAT               │
        ... ╰──────────────────────────────╯'''))
        unrecognized options: --lrr: perhaps you meant --lr
    """
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # on a terminal it is coloured
    _, *lines = [line.strip("╭╮│╰╯ ") for line in box.strip().splitlines()] or [""]  # the first is a title
    # Rules part the sections; a terminal that knows no box drawing has them of -, and no frame.
    sections = [part for part in re.split(r"^[─-]+$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]
    if not sections:
        return "the flags cannot be read; see deltaprop train --help"
    text = (
        " ".join(sections[0].split())
        .removeprefix("Error parsing Arguments: ")
        .removeprefix("Error parsing TrainConfig: ")
        .removesuffix(".")
    )
    text = text.removeprefix("Error parsing ")
    for pattern, ours in SAID:
        text = re.sub(pattern, ours, text)
    near = [re.search(r"--[\w-]+", section) for section in sections[1:] if "Perhaps you meant" in section]
    hint = f": perhaps you meant {near[0][0]}" if near and near[0] else ""
    if text.lower().startswith("unrecognized options: "):
        words = text.split(": ", 1)[1].split(", ")
        unknown = [word for word in words if word.startswith("-")] or words  # not what stands behind them
        return f"unrecognized options: {', '.join(unknown)}{hint}"
    return (text if text.startswith("-") else text[0].lower() + text[1:]) + hint
