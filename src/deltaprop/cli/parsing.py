"""Command-line arguments: parsed into a dataclass by tyro, whose errors become one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deltaprop.cli import COMMANDS
from deltaprop.cli.errors import as_flags
from deltaprop.data import BUILTIN
from deltaprop.data.formats.files import ENCODINGS, is_encoding
from deltaprop.data.table import ReadOptions
from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig

Arguments = TypeVar("Arguments")


def optional(metavar: str, default: str) -> Any:
    """Return the annotation of an argument that is None unless given: its placeholder and default in the help."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


@dataclass(frozen=True)
class RunArguments:
    """Arguments of the commands that read a run."""

    run: Annotated[Positional[Path | None], optional("RUN", "")] = None  # Run folder.

    @property
    def folder(self) -> Path:
        """The run folder; a UserError is raised if none was given, or a file."""
        run = self.run
        if run is None:
            raise UserError("which run? name its folder, such as runs/iris-20261125-093000")
        if run.is_file():
            inside = run.parent.parent if run.parent.name == "checkpoints" else run.parent
            hint = f": name its folder, {inside}" if (inside / "config.json").is_file() else ""
            raise UserError(f"{run}: this is a file, not the folder of a run{hint}")
        return run


@dataclass(frozen=True)
class ModelArguments(RunArguments):
    """Arguments of the commands that load a trained model."""

    #: Weights to load: final, or best (lowest validation loss).
    weights: Annotated[str | None, optional("final|best", "as the run records")] = None


@dataclass(frozen=True)
class DataArguments(ModelArguments):
    """Arguments of the commands that read data for a trained model."""

    delimiter: Annotated[str | None, optional("CHAR", "as for the training data")] = None  # Delimiter of a CSV.
    encoding: Annotated[str | None, optional("NAME", "as for the training data")] = None  # Encoding of a CSV.
    header: FlagCreatePairsOff[bool] = False  # The data have a header, although the training data have none.
    no_header: FlagCreatePairsOff[bool] = False  # The data have no header, although the training data have one.
    sheet: Annotated[str | None, optional("NAME", "as for the training data")] = None  # Sheet of an Excel workbook.

    def reading(self, trained: ReadOptions) -> ReadOptions:
        """Return how the data are read: as the training data, but for what is given."""
        if self.header and self.no_header:
            raise UserError("--header and --no-header: choose one of them")
        if self.encoding is not None and not is_encoding(self.encoding):
            raise UserError(f"--encoding must be {ENCODINGS}, got {self.encoding}")
        return ReadOptions(
            delimiter=self.delimiter or trained.delimiter,
            encoding=self.encoding or trained.encoding,
            header=(trained.header or self.header) and not self.no_header,
            sheet=self.sheet or trained.sheet,
            least=1,
        )


def training_data(config: TrainConfig) -> list[str]:
    """Return the files and folders of data that a run was trained and tested on; none for a built-in data set."""
    return [name for name in (config.data, config.test) if name is not None and name not in BUILTIN]


def read_arguments(
    kind: type[Arguments], command: str, words: Sequence[str], default: Arguments | None = None
) -> Arguments:
    """Parse the words after a command's name into its dataclass, or raise a UserError of one line.

    ``--help`` prints the command's summary, the dataclass's docstring and a flag for each field, and exits.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(_FlagStream(sys.stdout)):
            return tyro.cli(
                kind,
                prog=f"deltaprop {command}",
                args=_join_repeated(kind, [word for word in words if word != "--debug"]),  # handled by main
                description=f"{COMMANDS[command]}\n\n{inspect.getdoc(kind)}",
                default=kind() if default is None else default,
            )
    except SystemExit as exit_:
        if not exit_.code:  # --help
            raise
        raise UserError(one_line(errors.getvalue())) from None


def _join_repeated(kind: type[Any], words: Sequence[str]) -> list[str]:
    """Return the words with ``--drop a --drop b`` as ``--drop a b``, of which tyro would keep the last alone."""
    types = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    lists = {name for name, type_ in types.items() if "tuple[" in type_ and "UseAppendAction" not in type_}
    groups: dict[str, list[str]] = {"": []}  # each flag with the words after it
    group = groups[""]
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            group.append(word)
        elif name in lists:
            group = groups.setdefault(name, [flag])
            group += [value] if equals else []
        else:
            group = groups.setdefault(str(number), [word])
    return [*itertools.chain.from_iterable(groups.values())]


class _FlagStream:
    """Stream that writes settings in backticks, as docstrings name them, as flags."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(as_flags(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# tyro's messages, and ours.
MESSAGES = (
    (r"^Error parsing (\w+: )?", ""),
    (r"(--\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, got \2"),
    (r"(--\S+): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"FLOAT\|\{auto\}", "auto or a number"),
    (r"INT\|\{auto\}", "auto or a whole number"),
    (r"(--\S+): no type matching (?:\{None\}\|)?(.*?) could be instantiated from \['(.*?)'\].*",
     r"\1 must be \2, got '\3'"),
    (r"(--\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1 cannot be \2"),
    (r"invalid choice '(.*?)' for argument '(--\S+?)'\. Expected one of \((.*)\)", r"\2 must be one of \3, got '\1'"),
    (r"missing value for argument '(--\S+?)'.*", r"\1 needs a value"),
)  # fmt: skip


def one_line(box: str) -> str:
    """Return tyro's error, which is a framed box of several lines, as one line.

    The first section is the error; of the rest only the suggested flag is kept.

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
    lines = [line.strip("╭╮│╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()]
    # The first line is the title. Rules separate the sections: of - where the terminal cannot show box drawings.
    sections = [part for part in re.split(r"\s*[─-]{8,}\s*", " ".join(" ".join(lines[1:]).split())) if part]
    if not sections:
        return "the arguments cannot be parsed; see deltaprop COMMAND --help"
    text = sections[0].removesuffix(".")
    for pattern, ours in MESSAGES:
        text = re.sub(pattern, ours, text, flags=re.IGNORECASE)
    suggested = re.search(r"Perhaps you meant.*?(--[\w-]+)", " ".join(sections[1:]))
    if text.lower().startswith("unrecognized options: "):
        words = text.split(": ", 1)[1].split(", ")
        text = f"unrecognized options: {', '.join([word for word in words if word.startswith('-')] or words)}"
    return text[:1].lower() + text[1:] + (f": perhaps you meant {suggested[1]}" if suggested else "")
