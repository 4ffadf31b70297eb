"""Test that signals wait until chips are safe."""

import signal
import threading
from collections.abc import Iterator

import pytest

from astralora.devices.signals import shielded


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Handle SIGINT as at a terminal, also where the shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_delivered_at_the_end_of_the_outermost_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with shielded():
            with shielded():
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")
        steps.append("after")
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_many_signals_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), shielded():  # noqa: PT012
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert [record.getMessage() for record in caplog.records] == [
        "SIGINT: the chips are brought into their safe state first"
    ]


def test_a_signal_may_be_delivered_a_moment_later() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with shielded(later=True):
            signal.raise_signal(signal.SIGINT)
        threading.Event().wait(60)


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with shielded():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_shield() -> None:
    handlers = []

    def look() -> None:
        with shielded():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
