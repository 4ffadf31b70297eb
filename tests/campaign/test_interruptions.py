"""Interrupt a thousand operations of every kind of driver, and compare every answer with the law of the chip."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from astralora.devices import Device, FaultPlan, FaultyDevice
from astralora.devices.wrappers.faults import FaultKind
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator

from ..interrupted_chips import CHIPS, Crossbar, SequencedCrossbar, emulated
from ..interruptions import interrupt, interrupt_and_close, run_threads, with_late_answers

# Where Ctrl-C comes between opening a port and storing it, the garbage collector closes the port.
pytestmark = [pytest.mark.campaign, pytest.mark.filterwarnings("ignore::ResourceWarning")]

TIMEOUT = 0.05
MANY = 1000
KINDS = [(kind, port) for kind in CHIPS for port in ("tcp", "pty")]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("kind", "port"), KINDS)
def test_after_ctrl_c_every_answer_is_right(kind: str, port: str, threads: int) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = interrupt(device, chip, MANY // (1 + threads), timeout=TIMEOUT, threads=threads)
    print(f"Ctrl-C, {kind}, {port}, {1 + threads} threads: {outcome}")
    outcome.require_right(recovers=CHIPS[kind].recovers)


@pytest.mark.parametrize(("kind", "port"), [(kind, port) for kind, port in KINDS if CHIPS[kind].makes_safe])
def test_after_ctrl_c_closing_leaves_the_chip_safe(kind: str, port: str) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = interrupt_and_close(device, chip, MANY, timeout=TIMEOUT)
    print(f"Ctrl-C and close, {kind}, {port}: {outcome}")
    outcome.require_safe()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("kind", "port"), KINDS)
def test_after_a_late_answer_every_answer_is_right(kind: str, port: str, threads: int) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = with_late_answers(
            device, chip, MANY // (1 + threads), timeout=TIMEOUT, late=0.1, seed=1, threads=threads
        )
    print(f"late, {kind}, {port}, {1 + threads} threads: {outcome}")
    outcome.require_right(recovers=CHIPS[kind].recovers)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("kind", "port"), KINDS)
def test_after_an_error_of_the_driver_every_answer_is_right(kind: str, port: str, threads: int) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = with_late_answers(
            device, chip, MANY // (1 + threads), timeout=TIMEOUT, garbage=0.1, seed=2, threads=threads
        )
    print(f"errors, {kind}, {port}, {1 + threads} threads: {outcome}")
    outcome.require_right(recovers=CHIPS[kind].recovers)


_Faulty = tuple[Device, Callable[[], Counter[FaultKind]]]


@contextmanager
def _in_memory(chip: Crossbar, plan: FaultPlan) -> Generator[_Faulty]:
    device = FaultyDevice(chip, plan)
    yield device, lambda: device.injected


@contextmanager
def _frames(chip: Crossbar, plan: FaultPlan) -> Generator[_Faulty]:
    with emulated(FrameEmulator, chip, "pty", TIMEOUT, plan) as (device, emulator):
        yield device, lambda: emulator.injected


@contextmanager
def _scpi(chip: Crossbar, plan: FaultPlan) -> Generator[_Faulty]:
    # SCPI has no checksum, so that no driver could detect damaged bytes.
    with emulated(ScpiEmulator, chip, "tcp", TIMEOUT, plan.model_copy(update={"corrupt": 0.0})) as (device, emulator):
        yield device, lambda: emulator.injected


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    ("link", "kind"),
    [(_in_memory, Crossbar), (_in_memory, SequencedCrossbar), (_frames, SequencedCrossbar), (_scpi, Crossbar)],
)
def test_threads_on_a_faulty_link_get_right_answers_and_keep_the_budget(link: Any, kind: Any, share: float) -> None:
    chip = kind(max_batch=3)
    each = share / 6
    plan = FaultPlan(timeout=each, late=each, truncated=each, disconnect=each, corrupt=each, nan=each, seed=3)
    with link(chip, plan) as (device, injected):
        outcome = run_threads(device, chip, 10_000, injected=injected, seed=4)
    print(f"{100 * share:.0f} % faults, {link.__name__}, {kind.__name__}: {outcome}")
    outcome.require_right()
