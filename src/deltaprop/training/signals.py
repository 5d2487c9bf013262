"""Ctrl-C, SIGTERM and SIGHUP: the step in hand is finished and everything saved; a second Ctrl-C ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


class Terminated(SystemExit):
    """SIGTERM came (the exit code is 143), or the terminal was closed (SIGHUP, 129)."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)


class Stopped(Exception):  # noqa: N818  # not an error
    """The run has been asked to stop, where it can stop at once."""


class Stop:
    """Listens for signals while it is entered; outside the main thread it hears nothing.

    Attributes:
        heard: The signal that came, or None.
        at_once: Whether there is nothing yet to finish and save, so that a signal breaks off whatever is done.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self.at_once = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if number not in self._before:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard is not None and number == signal.SIGINT:
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h\n")  # the bar hides the cursor
                sys.stdout.flush()
            os._exit(128 + number)  # at once, whatever is being waited for
        self.heard = self.heard or number
        if self.at_once:
            raise Stopped

    def check(self) -> None:
        """Break off if a signal came.

        Raises:
            Stopped: If one did.
        """
        if self.heard is not None:
            raise Stopped

    def exit(self) -> BaseException:
        """Return the exception that ends the process as the signal that came would have."""
        return KeyboardInterrupt() if self.heard in (None, signal.SIGINT) else Terminated(self.heard)
