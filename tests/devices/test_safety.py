"""Test that sessions are closed however a process ends, with real processes and real signals."""

import signal
import subprocess
import sys

import pytest

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
