"""End processes with open chips in every way, and measure at the chips that they are safe."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import start
from .chips import KINDS, Chip, serve, wait_until

__all__ = ["EXITS", "Exit", "check_exit"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Exit:
    """Describe how a process ends.

    Attributes:
        way: what `exit_program` does.
        signals: signals that the process receives; the second one arrives while the chip is closing.
        code: exit code; None for a process that is still running when the chip must be safe.
        chip: options of every `Chip`.
    """

    way: str
    signals: tuple[int, ...] = ()
    code: int | None = 0
    chip: dict[str, Any] = field(default_factory=dict)


_INT, _TERM = signal.SIGINT, signal.SIGTERM
_HUP = getattr(signal, "SIGHUP", _TERM)
_SLOW = {"slow": 0.7}

EXITS = {
    "return": Exit("return"),
    "exception": Exit("exception", code=1),
    "exception in with": Exit("exception in with", code=1),
    "child process returns": Exit("child process"),
    "SIGINT": Exit("wait", (_INT,), -_INT),
    "SIGINT without with": Exit("wait outside", (_INT,), -_INT),
    "SIGINT twice": Exit("wait", (_INT, _INT), -_INT, _SLOW),
    "SIGINT twice without with": Exit("wait outside", (_INT, _INT), -_INT, _SLOW),
    "SIGTERM twice": Exit("wait", (_TERM, _TERM), 128 + _TERM, _SLOW),
    "SIGINT, then SIGTERM": Exit("wait", (_INT, _TERM), 128 + _TERM, _SLOW),
    "SIGTERM": Exit("wait outside", (_TERM,), 128 + _TERM),
    "SIGHUP": Exit("wait outside", (_HUP,), 128 + _HUP),
    "SIGTERM, session in a thread, main joins": Exit("thread, join", (_TERM,), -_TERM),
    "SIGTERM, session in a thread, main sleeps": Exit("thread, sleep", (_TERM,), -_TERM),
    "SIGHUP, session in a thread, main in C": Exit("thread, C", (_HUP,), -_HUP),
    "SIGTERM twice, session in a thread": Exit("thread, sleep", (_TERM, _TERM), -_TERM, _SLOW),
    "children of a fork end first": Exit("fork"),
    "out of scope": Exit("forget", code=None),
    "cycle collected": Exit("cycle", code=None),
    "half-open by an error": Exit("half-open, error", code=None),
    "half-open by Ctrl-C": Exit("half-open, interrupt", code=None),
    "closing fails once": Exit("return", chip={"failures": 1}),
    "another chip hangs": Exit("hang"),
}


def check_exit(kind: str, name: str, *extra: str) -> None:
    """Run a process that ends in one way, and check that all chips are on before and safe afterwards.

    Args:
        kind: kind of device; see `tests.chip_driver`.
        name: key of `EXITS`.
        *extra: further addresses for the program.
    """
    case = EXITS[name]
    chips = [Chip(f"chip-{number}", **case.chip) for number in range(KINDS.get(kind, 1))]
    with ExitStack() as stack:
        uris = [*stack.enter_context(serve(kind, chips)), *extra]
        if case.way == "hang":
            uris += stack.enter_context(serve("numpy", [Chip("hangs")]))
        command = [sys.executable, "-m", "tests.exit_program", case.way, kind, *uris]
        process = stack.enter_context(start(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        assert said == "on\n", process.stderr.read()
        if case.way == "fork":
            assert all(chip.is_on for chip in chips), "the children have closed the chip of their parent"
        for number, sent in enumerate(case.signals):
            if number:
                assert wait_until(lambda: any(chip.is_closing for chip in chips)), "closing has not begun"
            process.send_signal(sent)
        if case.code is None:
            assert process.stdout.readline() == "dropped\n"
            assert wait_until(lambda: not any(chip.is_on for chip in chips), 5), "a chip is on"
            process.kill()
            return
        _, errors = process.communicate(timeout=120)
        # Ray changes the codes of signals.
        expected = case.code if kind != "remote" else case.code and process.returncode
        assert process.returncode == expected, errors
        assert all(chip.programs or chip.closed for chip in chips), "a chip was never on"
        assert not any(chip.is_on for chip in chips), f"a chip is on: {errors}"
