"""One line instead of a traceback, and the exit code that goes with it."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from deltaprop.errors import SETTING, UserError


def guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command and turn what it raises into one line on stderr and an exit code.

    Args:
        command: Returns its exit code.
        debug: Show tracebacks too.

    Returns:
        The command's code; 2 for a UserError, 1 for any other failure, 130 for an interrupt.

    Raises:
        SystemExit: With code 143 after SIGTERM, 129 after SIGHUP: what is left half done is cleared away on the way.
    """
    try:
        with warnings.catch_warnings(), _orderly():
            if not debug:
                warnings.showwarning = _warn
            return command()
    except UserError as error:
        return _tell(error, 2, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _tell(error, 1, debug)


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """Turn a signal that would end the process at once into an exit, once; those that are ignored stay so."""
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    heeded = [n for n in numbers if signal.getsignal(n) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        heeded = []

    def leave(number: int, frame: FrameType | None) -> None:
        for other in heeded:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in heeded:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Tell of a warning in one line, without the place in the code that it came from."""
    print_warning(" ".join(str(message).split()))


def print_warning(text: str) -> None:
    """Tell of something that is not as it should be, in one line on stderr."""
    print(f"warning: {as_flags(text)}", file=sys.stderr)


def as_flags(text: str) -> str:
    """Return a text with its settings as flags; what else stands in backticks, such as a column's name, stays.

    Example:
        >>> as_flags("lower `lr_gamma`, or `drop=('a', 'b c')`, or `one_logit=False`; column '`x=y`'")
        "lower --lr-gamma, or --drop a 'b c', or --no-one-logit; column '`x=y`'"
    """
    return SETTING.sub(lambda found: _as_flag(found[1], found[2]) or found[0], text)


def _as_flag(name: str, literal: str | None) -> str | None:
    if name not in _flag_names():
        return None
    flag = f"--{name.replace('_', '-')}"
    try:
        value = True if literal is None else ast.literal_eval(literal)
    except (SyntaxError, ValueError):  # the user's own text
        return None
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    return " ".join([flag, *map(_as_word, map(str, value if isinstance(value, tuple) else (value,)))])


@functools.cache
def _flag_names() -> frozenset[str]:
    """Return the settings that errors outside of the command line name: a run's, and arguments of other functions."""
    from deltaprop.training.config import TrainConfig  # of no use where nothing is wrong

    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return frozenset([*names, "keep", "out", "override", "resume", "to", "weights"])


def _as_word(value: str) -> str:
    """Return a value as a shell's word, on one line."""
    if value.isprintable():
        return shlex.quote(value)
    return (
        "$'"
        + "".join("\\'" if c == "'" else c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in value)
        + "'"
    )


def _tell(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text = as_flags(" ".join(str(error).split())) or type(error).__name__
    known = isinstance(error, UserError) or type(error).__module__.startswith("deltaprop")
    what = text if known else f"{type(error).__name__}: {text} (--debug shows where)"
    print(f"error: {what}", file=sys.stderr)
    return code
