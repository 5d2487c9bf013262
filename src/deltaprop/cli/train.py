"""``deltaprop train``, also ``python train.py``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from deltaprop.cli.console import ConsoleReporter
from deltaprop.cli.folds import FoldsReporter
from deltaprop.cli.parsing import optional, read_arguments
from deltaprop.core import ACTIVATIONS
from deltaprop.errors import UserError, as_keys, setting
from deltaprop.nn.init import INITS
from deltaprop.training.config import TrainConfig, read_toml
from deltaprop.training.folds import cross_validate, folds_config, has_folds
from deltaprop.training.loop import train
from deltaprop.training.objective import losses
from deltaprop.training.resume import locate, saved_config
from deltaprop.training.run_folder import RunFolder, has_checkpoint

HERE = "."  # where --resume without a value looks, unless --run-dir is given


def _one_of(names: Callable[[], Iterable[str]]) -> Any:
    """Return the annotation of a flag whose help lists the names of a table, those added at run time included."""
    return arg(help_behavior_hint=lambda default: f"({', '.join(names())}; default: {default})")


_ACTIVATIONS, _LOSSES, _INITS = _one_of(lambda: ACTIVATIONS), _one_of(losses), _one_of(lambda: INITS)


@dataclass(frozen=True, kw_only=True)
class Flags(TrainConfig):
    """Exit codes: 0 done, 1 failure, 2 wrong input (nothing is written then), 130 after Ctrl-C, 143 after SIGTERM.

    An interrupted run is saved first; a second Ctrl-C exits at once. --debug shows tracebacks.
    """

    target: Annotated[tuple[str, ...], optional("COLUMN ...", "the last")] = ()
    drop: Annotated[tuple[str, ...], optional("COLUMN ...", "none")] = ()
    keep_column: Annotated[tuple[str, ...], optional("COLUMN ...", "none")] = ()
    categorical: Annotated[tuple[str, ...], optional("COLUMN ...", "none")] = ()
    na_values: Annotated[tuple[str, ...], optional("WORD ...", "none")] = ()
    test: Annotated[str | None, optional("PATH", "a random part of the data, `test_fraction`")] = None
    cache: Annotated[Path | None, optional("PATH", "~/.cache/deltaprop")] = None
    pixel_scale: Annotated[float | None, optional("FLOAT", "255 for byte images, 16 for digits")] = None
    run_dir: Annotated[Path | None, optional("PATH", "runs/<data>-<date>-<time>")] = None
    config: Annotated[Path | None, optional("FILE.toml", "")] = None
    lr: Annotated[float | Literal["auto"], arg(metavar="FLOAT|auto")] = TrainConfig.lr
    weight_decay: Annotated[float | Literal["auto"], arg(metavar="FLOAT|auto")] = TrainConfig.weight_decay
    epochs: Annotated[int | Literal["auto"], arg(metavar="INT|auto")] = TrainConfig.epochs
    log_every: Annotated[int | Literal["auto"], arg(metavar="INT|auto")] = TrainConfig.log_every
    activation: Annotated[tuple[str, ...], _ACTIVATIONS] = TrainConfig.activation
    loss: Annotated[str, _LOSSES] = TrainConfig.loss
    init: Annotated[str, _INITS] = TrainConfig.init

    resume: Annotated[str | None, optional("RUN", "")] = None
    """Resume a run: its folder or one of its checkpoints; without a value, the run in --run-dir or else in the current
    folder; auto: the run in --run-dir if there is one, else start a new one there."""

    override: UseAppendAction[tuple[str, ...]] = ()
    """With --resume: allow changing this setting, such as lr, although the result then depends on the change; it is
    recorded."""


def main(words: Sequence[str]) -> int:
    """Train."""
    config, flags, path = parse_flags(words)
    if config.folds and not config.fold:
        with contextlib.closing(FoldsReporter(config)) as of_folds:
            of_folds.summary(cross_validate(config, of_folds, on_fold=of_folds.fold))
        return 0
    restart = path is None and flags.resume == "auto"
    with contextlib.closing(ConsoleReporter(words=words)) as reporter:
        try:
            train(config, reporter, resume=path, restart=restart, override=flags.override)
        except UserError as error:
            if not error.remedy:
                raise
            raise UserError(f"{error}: {_remedied(words, config, error.remedy)}") from error
    return 0


def _remedied(words: Sequence[str], config: TrainConfig, remedy: Mapping[str, Sequence[str]]) -> str:
    """Return the command with the settings of a remedy, or what a file must say if words cannot be told from flags."""
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    more: list[str] = []
    for name, values in remedy.items():
        if name == "header":
            more.append("--no-header")
            continue
        before = getattr(config, name)
        if name not in given and isinstance(before, tuple):  # a flag replaces the list of the file of --config
            values = [*before, *values]
        if any(value.startswith("-") for value in values):
            return f"a file for --config must say so, for a word begins with -: {name} = {json.dumps([*values])}"
        more += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(["deltaprop", "train", *(word for word in words if word != "--debug"), *more])


def parse_flags(words: Sequence[str]) -> tuple[TrainConfig, Flags, Path | None]:
    """Return the configuration of the flags, the flags themselves, and the run to resume, if any.

    Flags win over the TOML file of ``--config``, the file over the settings of the run to resume or the defaults.

    Raises:
        UserError: In one line, if a flag or the file is wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", nargs="?", const=HERE)
    first.add_argument("--run-dir", "--run_dir", type=Path)
    try:
        given, rest = first.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(f"{str(error.argument_name).split('/')[0]} needs a value") from error
    is_help = any(word in ("-h", "--help") for word in rest)
    path = None if given.resume is None or is_help else run_to_resume(given.resume, given.run_dir)
    default = Flags(**{
        **({} if path is None else vars(_saved_config(path))),
        **(read_toml(given.config) if given.config else {}),
        **{name: value for name, value in vars(given).items() if value is not None},
    })  # fmt: skip
    flags = read_arguments(Flags, "train", rest, default)
    if flags.override and (path is None or flags.folds):
        what = "a new run has nothing to override" if path is None else "all folds have the same settings"
        raise UserError(f"--override is for --resume: {what}")
    config = TrainConfig(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(TrainConfig)})
    if path is not None:
        folder, _ = locate(path)
        if config.run_dir is not None and config.run_dir.resolve() != folder.resolve():
            raise UserError(f"--run-dir {config.run_dir}: the run to resume is in {folder}")
    wrong = _error(config)
    if wrong and given.config and wrong == _error(default):  # the file is wrong, not a flag
        raise UserError(f"{setting('config', given.config)}: {as_keys(wrong)}")
    if wrong:
        raise UserError(wrong)
    return config, flags, path


def run_to_resume(name: str, run_dir: Path | None) -> Path | None:
    """Return the folder, or the checkpoint, of the run to resume; None where ``auto`` finds no checkpoint.

    Raises:
        UserError: If there is no run, or ``auto`` is used without a run folder.
    """
    if name == "auto":
        if run_dir is None:
            raise UserError("--resume auto: give the folder of the run with --run-dir")
        return run_dir if has_checkpoint(run_dir) or has_folds(run_dir) else None
    path = run_dir if name == HERE and run_dir is not None else Path(name)
    path = path.resolve() if path.is_file() else path
    if path.is_file() and path.parent.name == "checkpoints":
        return path
    if not has_checkpoint(path) and not has_folds(path):
        hint = ": name the folder of a run, or give --run-dir" if name == HERE else ""
        raise UserError(f"--resume {path}: there is no checkpoint of a run here{hint}")
    return path


def _saved_config(path: Path) -> TrainConfig:
    """Return the configuration of the run to resume, from its last valid checkpoint, or that of its folds."""
    if has_folds(path):
        return folds_config(path)
    folder, only = locate(path)
    _, checkpoint = RunFolder.of(folder).latest_checkpoint(lambda text: None, only)  # training warns about damaged ones
    return saved_config(checkpoint, folder)


def _error(config: TrainConfig) -> str:
    """Return what is wrong with a configuration; nothing if it is valid."""
    try:
        config.validate()
    except UserError as error:
        return str(error)
    return ""
