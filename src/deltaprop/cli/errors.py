"""Errors and warnings as one line on stderr, and the exit code of a command."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from deltaprop.distributed import LostError, is_one_of_several
from deltaprop.dropped_signals import sent_again
from deltaprop.errors import SETTING, UserError


def guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command and turn exceptions into one line on stderr and an exit code.

    Args:
        command: Returns its exit code.
        debug: Show tracebacks too.

    Returns:
        The command's code; 2 for a UserError, 1 for any other failure, 130 for an interrupt.

    Raises:
        SystemExit: With code 143 after SIGTERM, 129 after SIGHUP, so that cleanup code runs.
    """
    try:
        with warnings.catch_warnings(), _exit_on_signals():
            if not debug:
                warnings.showwarning = lambda message, *_, **__: print_warning(" ".join(str(message).split()))
            return command()
    except KeyboardInterrupt:
        if _is_first():
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has exited, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        text = as_flags(" ".join(str(error).split())) or type(error).__name__
        is_ours = isinstance(error, UserError) or type(error).__module__.startswith("deltaprop")
        if not error.is_told if isinstance(error, LostError) else _is_first() or not is_ours:
            print(
                f"error: {text if is_ours else f'{type(error).__name__}: {text} (--debug shows where)'}",
                file=sys.stderr,
            )
        return 2 if isinstance(error, UserError) else 1


def _is_first() -> bool:
    """Return whether this process tells what all of torchrun's have met."""
    return not is_one_of_several() or os.environ["RANK"] == "0"


class _Signalled(SystemExit):
    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turn the first SIGTERM or SIGHUP into SystemExit; ignored signals stay ignored."""
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in numbers if is_main and signal.getsignal(number) == signal.SIG_DFL]

    def set_handlers(handler: Any) -> None:
        for number in handled:
            signal.signal(number, handler)

    def leave(number: int, frame: FrameType | None) -> None:
        set_handlers(signal.SIG_IGN)
        raise _Signalled(number)

    def number_of(dropped: BaseException | None) -> int | None:
        if isinstance(dropped, _Signalled):
            set_handlers(leave)
            return dropped.number
        return signal.SIGINT if isinstance(dropped, KeyboardInterrupt) else None

    set_handlers(leave)
    try:
        with sent_again(number_of):
            yield
    finally:
        set_handlers(signal.SIG_DFL)


def print_warning(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {as_flags(text)}", file=sys.stderr)


def as_flags(text: str) -> str:
    """Return a text with its settings as flags; other text in backticks, such as a column's name, is unchanged.

    Example:
        >>> as_flags("lower `lr_gamma`, or `drop=('a', 'b c')`, or `one_logit=False`; column '`x=y`'")
        "lower --lr-gamma, or --drop a 'b c', or --no-one-logit; column '`x=y`'"
    """
    return SETTING.sub(_as_flag, text)


def _as_flag(match: re.Match[str]) -> str:
    name, literal = match[1], match[2]
    if name not in _flag_names():
        return match[0]
    flag = f"--{name.replace('_', '-')}"
    try:
        value = True if literal is None else ast.literal_eval(literal)
    except (SyntaxError, ValueError):  # the user's own text
        return match[0]
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    return " ".join([flag, *map(_shell_word, map(str, value if isinstance(value, tuple) else (value,)))])


@functools.cache
def _flag_names() -> frozenset[str]:
    """Return the settings that errors name: those of a run, and arguments of other public functions."""
    from deltaprop.training.config import TrainConfig  # needed only for errors

    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return frozenset(
        [*names, "interval", "keep", "out", "override", "positive", "resume", "threshold", "to", "weights"]
    )


def _shell_word(value: str) -> str:
    """Return a value quoted for a shell, on one line."""
    if value.isprintable():
        return shlex.quote(value)
    escaped = ["\\'" if c == "'" else c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in value]
    return f"$'{''.join(escaped)}'"
