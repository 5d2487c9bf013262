"""One line instead of a traceback, and the exit code that goes with it."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable

from deltaprop.errors import UserError


def guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command and turn what it raises into one line on stderr and an exit code.

    Args:
        command: Returns its exit code.
        debug: Show tracebacks too.

    Returns:
        The command's code; 2 for a UserError, 1 for any other failure, 130 for an interrupt.
    """
    try:
        with warnings.catch_warnings():
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


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Tell of a warning in one line, without the place in the code that it came from."""
    print_warning(" ".join(str(message).split()))


def print_warning(text: str) -> None:
    """Tell of something that is not as it should be, in one line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def _tell(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, UserError) or type(error).__module__.startswith("deltaprop")
    what = text if known else f"{type(error).__name__}: {text} (--debug shows where)"
    print(f"error: {what}", file=sys.stderr)
    return code
