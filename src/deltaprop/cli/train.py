"""``deltaprop train``, which is also ``python train.py``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from deltaprop.cli.console import ConsoleReporter
from deltaprop.cli.parsing import read_flags
from deltaprop.core import ACTIVATIONS
from deltaprop.errors import UserError, as_keys, setting
from deltaprop.nn.init import INITS
from deltaprop.training.config import TrainConfig, read_toml
from deltaprop.training.loop import train
from deltaprop.training.objective import losses
from deltaprop.training.resume import locate, saved_config
from deltaprop.training.run_folder import RunFolder, has_checkpoint

DESCRIPTION = """Train a multilayer perceptron with hand-written backpropagation.

Exit codes: 0 done, 1 failure, 2 wrong input (nothing is written then), 130 after Ctrl-C and 143 after SIGTERM (saved; a
second Ctrl-C ends at once). --debug shows tracebacks."""


def _names_of(names: Callable[[], Iterable[str]]) -> Any:
    """Return the annotation of a flag whose help lists the names in a table, those added at run time included."""
    return arg(help_behavior_hint=lambda default: f"({', '.join(names())}; default: {default})")


_ACTIVATIONS, _LOSSES, _INITS = _names_of(lambda: ACTIVATIONS), _names_of(losses), _names_of(lambda: INITS)


@dataclass(frozen=True, kw_only=True)
class Flags(TrainConfig):
    """Train a multilayer perceptron with hand-written backpropagation."""

    activation: Annotated[tuple[str, ...], _ACTIVATIONS] = TrainConfig.activation
    loss: Annotated[str, _LOSSES] = TrainConfig.loss
    init: Annotated[str, _INITS] = TrainConfig.init

    resume: str | None = None
    """Go on with a run: its folder or a checkpoint of it; without a name the run in --run-dir or, if that is one, the
    current folder; auto: the run in --run-dir if there is one, else a new one there."""

    override: UseAppendAction[tuple[str, ...]] = ()
    """On resume, a setting that may be changed though the run is then not the same any more, such as lr; recorded."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and return 0.

    Raises:
        UserError: If the flags or the data are at fault.
    """
    config, flags = parse_flags(arguments)
    resume = None if flags.resume in (None, "auto") else Path(str(flags.resume))
    reporter = ConsoleReporter()
    try:
        train(config, reporter, resume=resume, restart=flags.resume == "auto", override=flags.override)
    finally:
        reporter.close()
    return 0


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Return the configuration of the flags; see :func:`parse_flags`."""
    return parse_flags(arguments)[0]


def parse_flags(arguments: Sequence[str]) -> tuple[TrainConfig, Flags]:
    """Return the configuration of the flags, and the flags themselves, ``resume`` None where the run is a new one.

    What is said nowhere has its default, or on resume is as the run had it; then comes the TOML file of ``--config``,
    then the flags.

    Raises:
        UserError: In one line, for anything that is wrong with them.
    """
    words = _spelt_out(arguments)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--resume")
    finder.add_argument("--run-dir", "--run_dir", type=Path)
    try:
        found = finder.parse_known_args(words)[0]
    except argparse.ArgumentError as error:
        raise UserError(f"{str(error.argument_name).split('/')[0]} needs a value") from error
    file: Path | None = found.config
    asks_for_help = any(word in ("-h", "--help") for word in words)
    path = None if found.resume is None or asks_for_help else run_to_resume(found.resume, found.run_dir)
    saved = {} if path is None else settings_of(path)
    default = Flags(**{**saved, **(read_toml(file) if file else {})})
    flags = read_flags(Flags, "train", words, DESCRIPTION, default)
    flags = dataclasses.replace(flags, resume=str(path) if path is not None else flags.resume)
    if flags.override and path is None:
        raise UserError("--override is for --resume: a new run has nothing to go on from")
    config = TrainConfig(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(TrainConfig)})
    if path is not None:
        folder, _ = locate(path)
        if config.run_dir is not None and config.run_dir.resolve() != folder.resolve():
            raise UserError(f"--run-dir {config.run_dir}: the run to go on with is in {folder}")
    try:
        config.validate()
    except UserError as error:
        if file and _is_the_files(default, error):
            raise UserError(f"{setting('config', file)}: {as_keys(str(error))}") from None
        raise
    return config, flags


def _spelt_out(arguments: Sequence[str]) -> list[str]:
    """Return the words, with ``--resume .`` for a ``--resume`` that names nothing."""
    words: list[str] = []
    for at, word in enumerate(arguments):
        words.append(word)
        if word == "--resume" and (at + 1 == len(arguments) or arguments[at + 1].startswith("-")):
            words.append(HERE)
    return words


HERE = "."


def run_to_resume(where: str, run_dir: Path | None) -> Path | None:
    """Return the folder of the run to go on with; None where ``auto`` finds nothing to go on from.

    Raises:
        UserError: If it is not clear which, or there is none.
    """
    if where == "auto":
        if run_dir is None:
            raise UserError("--resume auto: say which run by --run-dir")
        return run_dir if has_checkpoint(run_dir) else None
    path = run_dir if where == HERE and run_dir is not None else Path(where)
    path = path.resolve() if path.is_file() else path
    if path.is_file() and path.parent.name == "checkpoints":
        return path
    if not (path / "config.json").is_file() and not has_checkpoint(path):
        hint = ": name the folder of a run, or give --run-dir" if where == HERE else ""
        raise UserError(f"--resume {path}: there is no run here{hint}")
    return path


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings that a run goes on with if nothing else is said.

    Raises:
        UserError: If it has no valid checkpoint.
    """
    folder, only = locate(path)
    _, checkpoint = RunFolder.of(folder).latest_checkpoint(lambda text: None, only)  # `train` warns of damaged ones
    config = saved_config(checkpoint, folder)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}


def _is_the_files(default: TrainConfig, error: UserError) -> bool:
    """Return whether the file alone has the same fault, so that no flag is to blame."""
    try:
        default.validate()
    except UserError as alone:
        return str(alone) == str(error)
    return False
