"""Test that no interruption, late answer or error of a driver leads to a wrong answer.

The campaign of the same name runs a thousand of each.
"""

from typing import Any

import pytest

from astralora.devices import FaultPlan, FaultyDevice

from ..interrupted_chips import CHIPS, Crossbar, SequencedCrossbar
from ..interruptions import interrupt, interrupt_and_close, run_threads, with_late_answers

# Where Ctrl-C comes between opening a port and storing it, the garbage collector closes the port.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TIMEOUT = 0.05
FEW = 6
PORTS = [
    ("minimal", "tcp"),
    ("minimal", "pty"),
    ("vendor", "tcp"),
    ("docs", "pty"),
    ("template", "tcp"),
    ("frame", "pty"),
    ("scpi", "tcp"),
]


@pytest.mark.parametrize(("kind", "port"), PORTS)
def test_after_ctrl_c_every_answer_is_right(kind: str, port: str) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = interrupt(device, chip, FEW, timeout=TIMEOUT)
    assert outcome.interrupted == FEW
    outcome.require_right()


@pytest.mark.parametrize(("kind", "port"), [(kind, port) for kind, port in PORTS if CHIPS[kind].makes_safe])
def test_after_ctrl_c_closing_leaves_the_chip_safe(kind: str, port: str) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = interrupt_and_close(device, chip, FEW, timeout=TIMEOUT)
    assert outcome.interrupted == FEW
    outcome.require_safe()


@pytest.mark.parametrize(("kind", "port"), PORTS)
def test_after_a_late_answer_every_answer_is_right(kind: str, port: str) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = with_late_answers(device, chip, FEW, timeout=TIMEOUT, late=0.05)
    assert outcome.injected >= FEW
    outcome.require_right()


@pytest.mark.parametrize(("kind", "port"), PORTS)
def test_after_an_error_of_the_driver_every_answer_is_right(kind: str, port: str) -> None:
    with CHIPS[kind].start(port, TIMEOUT) as (device, chip):
        outcome = with_late_answers(device, chip, FEW, timeout=TIMEOUT, garbage=0.05)
    assert outcome.injected >= FEW
    outcome.require_right()


@pytest.mark.parametrize("kind", [Crossbar, SequencedCrossbar])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_threads_on_a_faulty_link_get_right_answers_and_keep_the_budget(kind: Any, share: float) -> None:
    chip = kind(max_batch=3)
    each = share / 6
    plan = FaultPlan(timeout=each, late=each, truncated=each, disconnect=each, corrupt=each, nan=each)
    device = FaultyDevice(chip, plan)
    outcome = run_threads(device, chip, 400, injected=lambda: device.injected)
    assert outcome.injected > 10
    outcome.require_right()
