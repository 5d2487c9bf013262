"""``deltaprop train``, which is also ``python train.py``."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import tyro

from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig, read_toml
from deltaprop.training.console import ConsoleReporter
from deltaprop.training.loop import train


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and return 0.

    Raises:
        UserError: If the flags or the data are at fault.
    """
    config = parse(arguments)
    reporter = ConsoleReporter()
    try:
        train(config, reporter)
    finally:
        reporter.close()
    return 0


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Return the configuration of the flags: defaults, then the TOML file of ``--config``, then the flags.

    Raises:
        UserError: In one line, for anything that is wrong with them.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    try:
        file = finder.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise UserError(f"--config: {error.message}, such as --config recipe.toml") from error
    default = TrainConfig(**read_toml(file)) if file else TrainConfig()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(TrainConfig, prog="deltaprop train", args=list(arguments), default=default)
    except SystemExit as exit_:
        if not exit_.code:  # --help
            raise
        raise UserError(one_line(said.getvalue())) from None


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
    _, *lines = [line.strip("╭╮│╰╯ ") for line in box.strip().splitlines()] or [""]  # the first is a title
    # Rules part the sections; a terminal that knows no box drawing has them of -, and no frame.
    sections = [part for part in re.split(r"^[─-]+$", "\n".join(lines), flags=re.MULTILINE) if part.strip()]
    if not sections:
        return "the flags cannot be read; see deltaprop train --help"
    text = " ".join(sections[0].split()).removeprefix("Error parsing TrainConfig: ").removesuffix(".")
    text = text.removeprefix("Error parsing ")
    near = [re.search(r"--[\w-]+", section) for section in sections[1:] if "Perhaps you meant" in section]
    hint = f": perhaps you meant {near[0][0]}" if near and near[0] else ""
    return (text if text.startswith("-") else text[0].lower() + text[1:]) + hint
