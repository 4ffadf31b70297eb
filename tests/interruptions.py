"""Disturb the operations of a session by Ctrl-C, late answers, errors of drivers and threads.

Each function returns an `Outcome`, which a test compares with its requirements.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from astralora.devices import Device, DeviceError, Retry, Session
from astralora.devices.wrappers.faults import FaultKind

from .interrupted_chips import Chip, Crossbar
from .notebook_user import Interrupter, Notebook, Outcome

__all__ = ["interrupt", "interrupt_and_close", "run_threads", "with_late_answers"]

# Seconds after which a thread counts as blocked.
_MOST_PATIENCE = 60.0
_ATTEMPTS_TO_OPEN = 5
_UNDISTURBED = 20
# Seconds that a chip may take to carry out the last command of a closed session.
_PATIENCE_AFTER_CLOSE = 1.0


def interrupt(device: Device, chip: Chip, moments: int, *, timeout: float, seed: int = 0, threads: int = 0) -> Outcome:
    """Press Ctrl-C at random moments of a sequence of operations.

    Args:
        device: driver of the chip.
        chip: chip behind the driver.
        moments: number of interruptions.
        timeout: timeout of the driver, in seconds.
        seed: seed of operations and moments.
        threads: number of threads that use the same session meanwhile.
    """
    chip.disturb(pause=5e-4, timeout=timeout, seed=seed)
    outcome = Outcome()
    with _opened(device, chip, outcome) as session, Interrupter(seed) as interrupter:
        notebook = Notebook(session, seed, timeout=timeout, shared=threads > 0)
        ended = threading.Event()

        def work() -> None:
            while interrupter.fired < moments and notebook.outcome.operations < 20 * moments:
                notebook.step(interrupter.carry_out)
            ended.set()

        with _other_users(session, outcome, threads, seed, ended):
            work()
        _go_on(notebook, outcome)
        outcome.compare_counts(session.usage, chip.counts)
    return outcome


def interrupt_and_close(device: Device, chip: Chip, moments: int, *, timeout: float, seed: int = 0) -> Outcome:
    """Press Ctrl-C at a random moment of an operation, and close the session at once, as the end of a script does.

    Args:
        device: driver of the chip.
        chip: chip behind the driver.
        moments: number of interruptions, each in a new session.
        timeout: timeout of the driver, in seconds.
        seed: seed of operations and moments.
    """
    chip.disturb(pause=5e-4, timeout=timeout, seed=seed)
    outcome = Outcome()
    with Interrupter(seed) as interrupter:
        for number in range(moments):
            with _opened(device, chip, outcome) as session:
                notebook = Notebook(session, seed + number, timeout=timeout)
                notebook.step()
                while interrupter.fired <= number and notebook.outcome.operations < 100:
                    notebook.step(interrupter.carry_out)
            outcome.add(notebook.outcome)
    return outcome


def with_late_answers(
    device: Device,
    chip: Chip,
    faults: int,
    *,
    timeout: float,
    late: float = 0.0,
    garbage: float = 0.0,
    seed: int = 0,
    threads: int = 0,
) -> Outcome:
    """Let the chip answer late or send words that are not numbers.

    Args:
        device: driver of the chip.
        chip: chip behind the driver.
        faults: number of faults.
        timeout: timeout of the driver, in seconds.
        late: probability that an answer comes after 1.0 to 3.0 times the timeout.
        garbage: probability that an answer contains a word that is not a number.
        seed: seed of operations and faults.
        threads: number of threads that use the same session meanwhile.
    """
    outcome = Outcome()
    with _opened(device, chip, outcome) as session:
        chip.disturb(late=late, garbage=garbage, timeout=timeout, seed=seed)
        notebook = Notebook(session, seed, timeout=timeout, shared=threads > 0)
        ended = threading.Event()
        with _other_users(session, outcome, threads, seed, ended):
            for number in range(20 * faults):
                notebook.step()
                if number % 20 == 19 and _made(chip) >= faults:
                    break
            ended.set()
        outcome.injected = _made(chip)
        chip.disturb(timeout=timeout)
        _go_on(notebook, outcome)
        outcome.compare_counts(session.usage, chip.counts)
    return outcome


def run_threads(
    device: Device,
    chip: Crossbar,
    operations: int,
    *,
    injected: Callable[[], Counter[FaultKind]],
    seed: int = 0,
    threads: int = 4,
) -> Outcome:
    """Use one session from several threads, with small budgets, on a device with faults.

    Args:
        device: device with faults in front of the chip.
        chip: chip that counts what it has carried out.
        operations: number of operations of all threads together.
        injected: function that returns the number of faults of each kind.
        seed: seed of the operations.
        threads: number of threads.
    """
    outcome = Outcome()
    with _opened(device, chip, outcome, Retry(wait_seconds=0)) as session:
        users = [Notebook(session, seed + number, shared=True, allowance=12, rows=10) for number in range(threads)]

        def work(user: Notebook) -> None:
            for _ in range(operations // threads):
                user.step()

        workers = [threading.Thread(target=work, args=(user,), daemon=True) for user in users]
        for worker in workers:
            worker.start()
        outcome.blocked = _join(workers, max(_MOST_PATIENCE, 0.1 * operations))
        for user in users:
            outcome.add(user.outcome)
        outcome.injected = sum(injected().values())
        outcome.compare_counts(session.usage, chip.counts)
    return outcome


@contextmanager
def _opened(device: Device, chip: Chip, outcome: Outcome, retry: Retry | None = None) -> Generator[Session]:
    """Open a session, close it afterwards as a ``with`` block does, and record errors of both."""
    session = Session(device, retry=retry)
    for attempt in range(_ATTEMPTS_TO_OPEN):
        try:
            session.open()
            break
        except DeviceError as error:
            outcome.errors[f"{type(error).__name__} on open"] += 1
            if attempt == _ATTEMPTS_TO_OPEN - 1:
                raise
    try:
        yield session
    finally:
        try:
            session.close()
        except Exception as error:
            # A vendor's library raises errors of its own.
            outcome.close_errors.append(f"{type(error).__name__}: {error}")
        until = time.monotonic() + _PATIENCE_AFTER_CLOSE
        while (is_on := chip.is_on) and time.monotonic() < until:
            time.sleep(1e-3)
        outcome.left_on += is_on


@contextmanager
def _other_users(
    session: Session, outcome: Outcome, threads: int, seed: int, ended: threading.Event
) -> Generator[None]:
    users = [Notebook(session, 1000 * (seed + 1) + number, shared=True) for number in range(threads)]

    def work(user: Notebook) -> None:
        while not ended.is_set():
            user.step()
            time.sleep(1e-3)

    workers = [threading.Thread(target=work, args=(user,), daemon=True) for user in users]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        ended.set()
        outcome.blocked += _join(workers, _MOST_PATIENCE)
        for user in users:
            outcome.add(user.outcome)


def _go_on(notebook: Notebook, outcome: Outcome) -> None:
    """Carry out some operations without faults, until one of them returns an answer."""
    before = notebook.outcome.answers
    for _ in range(_UNDISTURBED):
        notebook.step()
        if notebook.outcome.answers > before:
            break
    outcome.add(notebook.outcome)
    outcome.recovered = notebook.outcome.answers > before


def _join(workers: list[threading.Thread], seconds: float) -> int:
    """Wait for threads, and return the number of those that are still running."""
    until = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
    return sum(worker.is_alive() for worker in workers)


def _made(chip: Chip) -> int:
    counts = chip.counts
    return counts["late"] + counts["garbage"]
