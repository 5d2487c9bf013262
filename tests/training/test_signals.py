"""Signals before there is anything to save."""

from __future__ import annotations

import signal
import time

import pytest

from deltaprop.training.signals import Stop, Stopped


class Ended:
    """Gets a signal as it is destroyed, where Python drops the exception of its handler."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_whose_exception_is_dropped_is_not_lost(number: int, capfd: pytest.CaptureFixture[str]):
    began = time.monotonic()
    stop = Stop()

    def work() -> None:
        with stop:
            Ended(number)
            time.sleep(5)

    with pytest.raises(Stopped):
        work()
    assert stop.received == number
    assert time.monotonic() - began < 4
    assert capfd.readouterr().err == ""


def test_it_comes_before_the_work_ends():
    with pytest.raises(Stopped), Stop():
        Ended(signal.SIGTERM)
