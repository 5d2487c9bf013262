"""``deltaprop train``, which is also ``python train.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from deltaprop.cli.parsing import read_flags
from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig, read_toml
from deltaprop.training.console import ConsoleReporter
from deltaprop.training.loop import train

DESCRIPTION = """Train a multilayer perceptron with hand-written backpropagation.

Exit codes: 0 done, 1 failure, 2 wrong input (nothing is written then), 130 interrupted. --debug shows tracebacks."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and return 0.

    Raises:
        UserError: If the flags or the data are at fault.
    """
    config = parse(arguments)
    reporter = ConsoleReporter()
    try:
        train(config, reporter)
    except KeyboardInterrupt:
        reporter.interrupted()
        raise
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
    config = read_flags(TrainConfig, "train", arguments, DESCRIPTION, default)
    try:
        config.validate()
    except UserError as error:
        if file and _is_the_files(default, error):
            raise UserError(f"--config {file}: {error}") from None
        raise
    return config


def _is_the_files(default: TrainConfig, error: UserError) -> bool:
    """Return whether the file alone has the same fault, so that no flag is to blame."""
    try:
        default.validate()
    except UserError as alone:
        return str(alone) == str(error)
    return False
