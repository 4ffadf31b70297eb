"""Use an open device from a second process in every way, and check that the first process does not notice."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from .children import start
from .chips import KINDS, Chip, serve

__all__ = ["WAYS", "check_fork"]

ROOT = Path(__file__).parent.parent
WAYS = ("fork", "multiprocessing fork", "multiprocessing spawn", "data loader", "joblib")


def check_fork(kind: str, way: str) -> None:
    """Run `fork_program`, and check its chips: used by one process only, on until it ends, and safe afterwards."""
    chips = [Chip(f"chip-{number}") for number in range(KINDS[kind])]
    with ExitStack() as stack:
        uris = stack.enter_context(serve(kind, chips))
        process = stack.enter_context(
            start(
                [sys.executable, "-m", "tests.fork_program", way, kind, *uris],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        assert said, process.stderr.read()
        assert json.loads(said) == []
        for chip in chips:
            assert (chip.is_on, chip.programs, chip.queries, chip.closed) == (True, 1, 10, 0)
        _, errors = process.communicate("\n", timeout=60)
        assert process.returncode == 0, errors
        assert not any(chip.is_on for chip in chips)
