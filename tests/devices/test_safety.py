"""Test that sessions are closed however a process ends, with real processes and real signals."""

import gc
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch

from astralora.devices import DeviceError, DeviceTimeout, NotConnected, Session, TiledDevice, safety

from ..children import start

PROGRAM = """
import sys, time
import numpy as np, torch
import astralora.devices as d

class Chip(d.HardwareDevice):
    def _open(self): pass
    def _close(self): print("safe", flush=True)
    def _program(self, controls): pass
    def _query(self, inputs): return inputs

spec = d.DeviceSpec(name="chip", in_features=2, out_features=2, num_controls=1)
session = d.Session(Chip(spec))
{before}
session.open()
session.program(torch.zeros(1))
print("running", flush=True)
{after}
"""
WAIT = "time.sleep(60)"


def run(after: str, number: int | None = None, before: str = "") -> tuple[str, int]:
    program = [sys.executable, "-c", PROGRAM.format(before=before, after=after)]
    with start(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        if number is not None:
            process.send_signal(number)
        said = process.stdout.read()
    return said, process.returncode


@pytest.mark.parametrize("after", ["pass", "raise ValueError", "sys.exit(3)"])
def test_a_session_that_was_left_open_is_closed_at_the_end(after: str) -> None:
    assert run(after)[0] == "safe\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_the_session(number: int) -> None:
    said, code = run(WAIT, number)
    assert said == "safe\n"
    assert code != 0


def test_a_signal_handler_of_the_program_is_kept() -> None:
    handler = "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('mine', flush=True), sys.exit(7)))"
    assert run(WAIT, signal.SIGTERM, handler) == ("mine\nsafe\n", 7)


def test_a_fork_does_not_close_sessions_of_its_parent() -> None:
    after = "import os\nif os.fork() == 0:\n    sys.exit()\nos.wait()\nprint('parent', flush=True)"
    assert run(after)[0] == "parent\nsafe\n"


def test_a_session_that_was_closed_is_not_closed_again() -> None:
    assert run("session.close(); print('closed', flush=True)")[0] == "safe\nclosed\n"


# -- in this process -----------------------------------------------------------------------------


def failing(device: Any, method: str, monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> None:
    """Make the first calls of a method raise errors after it has done its work."""
    whole, left = getattr(device, method), list(errors)

    def fail(*args: Any) -> Any:
        answer = whole(*args)
        if left:
            raise left.pop(0)
        return answer

    monkeypatch.setattr(device, method, fail)


def test_a_session_out_of_scope_is_closed(bench: Any) -> None:
    def use() -> None:
        session = Session(bench)
        session.open()

    use()
    assert bench.log == ["open", "close"]


def test_a_session_in_a_cycle_is_closed_when_it_is_collected(bench: Any) -> None:
    cycle: list[Any] = [Session(bench)]
    cycle[0].open()
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert bench.log == ["open", "close"]


def test_a_session_out_of_scope_leaves_a_device_that_another_one_uses(bench: Any) -> None:
    first, second = Session(bench), Session(bench)
    first.open()
    second.open()
    del first
    second.apply(torch.zeros(12), torch.zeros(1, 4))
    del second
    assert bench.log == ["open", "program", "query 1", "close"]


def test_closing_is_tried_again_after_an_error(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(bench, "_close", monkeypatch, OSError("no answer"))
    with Session(bench):
        pass
    assert bench.log == ["open", "close", "open", "close"]


def test_a_chip_that_does_not_close_is_named(
    bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(bench, "_close", monkeypatch, DeviceError("no answer", device="bench"), OSError("no power"))
    session = Session(bench)
    session.open()
    with pytest.raises(DeviceError, match="no answer"):
        session.close()
    assert [record.getMessage() for record in caplog.records] == [
        "device 'bench': no answer; the chip may not be in its safe state: check it, or switch it off"
    ]


def test_a_chip_that_hangs_does_not_stop_the_others(matrix_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "PATIENCE", 0.2)
    chips, never = [matrix_device() for _ in range(3)], threading.Event()
    monkeypatch.setattr(chips[1], "_close", never.wait)
    session = Session(TiledDevice(chips, 12, 3))
    session.open()
    with pytest.raises(DeviceTimeout, match=r"'bench', close: has not closed within 0\.7\d* s"):
        session.close()
    assert [chip.log for chip in chips] == [["open", "close"], ["open"], ["open", "close"]]
    never.set()


def test_a_session_is_closed_while_another_thread_uses_it_without_a_pause(bench: Any) -> None:
    session = Session(bench)
    session.open()
    session.program(torch.zeros(12))
    refused = threading.Event()

    def use() -> None:
        with pytest.raises(NotConnected, match="the session is closed"):  # noqa: PT012
            while True:
                session.query(torch.zeros(1, 4))
        refused.set()

    thread = threading.Thread(target=use)
    thread.start()
    time.sleep(0.05)
    session.close()
    thread.join(30)
    assert refused.is_set()
    assert bench.log[-1] == "close"


def test_a_session_can_be_closed_within_its_own_transaction(bench: Any) -> None:
    with Session(bench) as session, session.transaction():
        session.close()
    assert bench.log == ["open", "close"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_device_that_opens_half_way_is_closed(
    bench: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(bench, "_open", monkeypatch, error("no bias"))
    failing(bench, "_close", monkeypatch, OSError("no answer"))
    with pytest.raises(error, match="no bias"):
        bench.open()
    assert bench.log == ["open", "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "'bench' could not be closed after it failed to open: no answer"
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_all_tiles_are_closed_when_one_opens_half_way(
    matrix_device: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = [matrix_device() for _ in range(4)]
    failing(chips[2], "_open", monkeypatch, error("no bias"))
    failing(chips[0], "_close", monkeypatch, *[OSError("no answer")] * 2)
    with pytest.raises(error, match="no bias"):
        Session(TiledDevice(chips, 16, 3)).open()
    assert [chip.log[-1:] for chip in chips] == [["close"], ["close"], ["close"], []]
