"""Open a device, and end in a given way: python -m tests.exit_program WAY KIND ADDRESS..."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn
from unittest import mock

import torch

from astralora.devices import Session, TiledDevice, safety

from .chip_driver import drivers_of, open_chips


def say(word: str) -> None:
    """Tell the parent how far the program is."""
    print(word, flush=True)


def opened() -> Session:
    """Open and program the device."""
    session = Session(open_chips(KIND, URIS))
    session.open()
    session.program(torch.ones(session.spec.num_controls))
    return session


def sleep(seconds: float = 60.0) -> None:
    """Say that the chip is on, and wait for a signal."""
    say("on")
    time.sleep(seconds)


def leave_open() -> None:
    """Return with an open session in a global variable."""
    globals()["kept"] = opened()
    say("on")


def fail() -> NoReturn:
    """Raise an error with an open session."""
    globals()["kept"] = opened()
    say("on")
    raise ValueError


def fail_within() -> NoReturn:
    """Raise an error within the with block of the session."""
    with opened():
        say("on")
        raise ValueError


def wait_within() -> None:
    """Wait within the with block of the session."""
    with opened():
        sleep()


def wait_outside() -> None:
    """Wait with an open session in a global variable."""
    globals()["kept"] = opened()
    sleep()


def wait_in_child() -> None:
    """Open the session in a process of multiprocessing, and end this process."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=leave_open_in_child, args=(KIND, URIS))
    process.start()
    process.join()


def leave_open_in_child(kind: str, uris: list[str]) -> None:
    """Open a session in a child, and return with it in a global variable."""
    globals().update(KIND=kind, URIS=uris)
    leave_open()


def in_thread(block: Callable[[threading.Thread], object]) -> None:
    """Open the session in a thread that uses it without a pause, and block the main thread."""
    started = threading.Event()

    def use() -> None:
        session = opened()
        started.set()
        while True:
            session.query(torch.ones(1, session.spec.in_features))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    started.wait()
    say("on")
    block(thread)


def fork() -> None:
    """Fork a child that ends in three ways; the chip must stay on until the parent ends."""
    with opened() as session:
        for end in (0, 1, 2):
            child = os.fork()
            if child == 0:
                if end == 0:
                    sys.exit()
                if end == 1:
                    raise ValueError
                session.close()
                os._exit(0)
            os.waitpid(child, 0)
        sleep(0.5)


def forget() -> None:
    """Drop the last reference to the session."""
    session = opened()
    say("on")
    del session
    say("dropped")
    time.sleep(60)


def forget_cycle() -> None:
    """Collect a session that is part of a cycle."""
    cycle: list[Any] = [opened()]
    cycle.append(cycle)
    say("on")
    del cycle
    gc.collect()
    say("dropped")
    time.sleep(60)


def method(driver: object, name: str) -> Any:
    """Return a method of a driver that a test replaces."""
    return getattr(driver, name)


def open_half(error: type[BaseException]) -> None:
    """Interrupt opening after the last chip was switched on."""
    device = open_chips(KIND, URIS)
    if isinstance(device, TiledDevice):
        device.sessions[0].open()  # as a user may do who checks one chip first
        device.sessions[0].program(torch.ones(4))
    driver: Any = drivers_of(device)[-2 if KIND == "tiled" else -1]
    whole, program = method(driver, "_open"), method(driver, "_program")

    def half() -> None:
        whole()
        program(torch.ones(4).numpy())
        say("on")
        raise error

    with mock.patch.object(driver, "_open", half):
        try:
            Session(device).open()
        except error:
            say("dropped")
    time.sleep(60)


def never() -> None:
    """Do not return."""
    time.sleep(1000)


def hang() -> None:
    """End with an open session whose driver does not return from closing, and one behind it."""
    safety.PATIENCE = 3.0
    first = Session(open_chips("numpy", [URIS.pop()]))
    mock.patch.object(first.device, "_close", never).start()
    first.open()
    globals()["kept"] = first, opened()
    say("on")


WAYS: dict[str, Callable[[], object]] = {
    "return": leave_open,
    "exception": fail,
    "exception in with": fail_within,
    "wait": wait_within,
    "wait outside": wait_outside,
    "child process": wait_in_child,
    "thread, join": lambda: in_thread(lambda thread: thread.join()),
    "thread, sleep": lambda: in_thread(lambda _: time.sleep(60)),
    "thread, C": lambda: in_thread(lambda _: hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)),
    "fork": fork,
    "forget": forget,
    "cycle": forget_cycle,
    "half-open, error": lambda: open_half(ValueError),
    "half-open, interrupt": lambda: open_half(KeyboardInterrupt),
    "hang": hang,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    way, KIND, *URIS = sys.argv[1:]
    WAYS[way]()
