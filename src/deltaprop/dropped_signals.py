"""Signals whose exception Python drops: they are sent again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sent_again(number_of: Callable[[BaseException | None], int | None]) -> Iterator[None]:
    """Send a signal again if the exception that its handler raises is dropped.

    Python drops, and only prints, what is raised while it runs a destructor, or the callback of a weak reference, as it
    does at every import.

    Args:
        number_of: Returns the signal that a dropped exception came from, None for another exception. It is called
            before the signal is sent again, a hundredth of a second later.
    """
    print_dropped, timers = sys.unraisablehook, []

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        number = number_of(dropped.exc_value)
        if number is None:
            print_dropped(dropped)
            return
        timers.append(threading.Timer(0.01, os.kill, (os.getpid(), number)))
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = print_dropped
        for timer in timers:
            timer.join()  # the signal has to come while its handler is still there
