"""Ctrl-C, SIGTERM and SIGHUP: the current step is finished and everything saved; a second Ctrl-C ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from deltaprop.dropped_signals import sent_again


class Terminated(SystemExit):
    """SIGTERM was received (the exit code is 143), or the terminal was closed (SIGHUP, 129)."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)


class Stopped(Exception):  # noqa: N818  # not an error
    """A signal was received, at a point where the run can stop."""


class Stop:
    """Handles signals while it is entered, but those that are ignored; outside the main thread it receives none.

    Attributes:
        received: The first signal received, or None.
        immediate: Whether a signal raises Stopped at once: there is nothing to finish and save yet.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.immediate = True
        self._previous: dict[int, Any] = {}
        self._sending = sent_again(self._number_of)

    def __enter__(self) -> Stop:
        self._sending.__enter__()
        if threading.current_thread() is threading.main_thread():
            for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has SIGHUP ignored
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self._sending.__exit__(*exception)
        finally:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h\n")  # the progress bar hides the cursor
                sys.stdout.flush()
            os._exit(128 + number)  # at once, whatever is running
        self.received = self.received or number
        if self.immediate:
            raise Stopped

    def _number_of(self, dropped: BaseException | None) -> int | None:
        if not isinstance(dropped, Stopped):
            return None
        number, self.received = self.received, None  # as if it had not come yet
        return number

    def check(self) -> None:
        """Raise Stopped if a signal was received."""
        if self.received is not None:
            raise Stopped

    def exception(self) -> BaseException:
        """Return the exception that ends the process as the signal would have."""
        return KeyboardInterrupt() if self.received in (None, signal.SIGINT) else Terminated(self.received)
