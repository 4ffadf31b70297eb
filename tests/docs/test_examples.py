"""Run the Python examples of the README and of all pages."""

from __future__ import annotations

import inspect
import re
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astralora as al
import astralora.devices.registry as registry
from astralora.drivers.text_server import TextServer

CONTINUED = "# Continued from above."
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples(page: Path) -> list[str]:
    """Return the Python programs of a page; a tutorial is one program from its first block to its last."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    programs: list[str] = []
    for block in blocks:
        if programs and (page.parent.name == "tutorials" or block.startswith(CONTINUED)):
            programs[-1] += "\n" + block
        else:
            programs.append(block)
    return programs


EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{place}") for page in PAGES for place, code in enumerate(examples(page))
]


class Heaters(socketserver.StreamRequestHandler):
    """Answer as the chip of docs/drivers.md does, at the other end of its line."""

    def handle(self) -> None:
        volts = np.zeros((4, 4))
        for line in self.rfile:
            command, *words = line.split()
            values = np.array([float(word) for word in words])
            if command == b"V":
                volts = values.reshape(4, 4)
            answer = " ".join(map(str, (volts / 5) @ values)) if command == b"X" else "OK"
            self.wfile.write(answer.encode() + b"\n")


@pytest.fixture(scope="module")
def heaters() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Heaters) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Return a function that interrupts the main thread, as Ctrl-C does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def run(example: str, port: str) -> dict[str, Any]:
    """Execute an example, with a socket in place of the serial port that only the reader has."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(re.sub(r"serial:///dev/ttyUSB0[^\"]*", port, example), "example", "exec"), names)
    return names


def test_every_kind_of_page_has_examples() -> None:
    assert len(EXAMPLES) >= 25
    assert sum(page.parent.name == "tutorials" for page in PAGES) == 3


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_an_example_runs_as_it_is_shown(
    example: str, heaters: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.chdir(tmp_path)
    names = run(example, heaters)
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            test(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(test).parameters})
    session = names.get("session")
    if session is not None:
        session.close()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the driver of docs/drivers.md, without its simulated chip."""
    monkeypatch.setattr(registry, "_registered", {})
    (program,) = (code for page in PAGES for code in examples(page) if "class Heaters" in code)
    return program.partition(CONTINUED)[0]


def test_the_driver_of_the_page_drives_its_chip_in_twenty_lines(driver: str, heaters: str) -> None:
    lines = [line for line in driver.partition("class Heaters")[2].splitlines() if line.strip()]
    assert len(lines) <= 20, "driver, registration and opening; the spec describes the chip"
    with run(driver, heaters)["session"] as session:
        answer = session.apply(torch.full((16,), 2.5), torch.ones(1, 4))
    assert torch.equal(answer, torch.full((1, 4), 2.0))


class Chip:
    """Answer as the chip of docs/drivers.md does, with the next answer to a query late or wrong.

    Attributes:
        late: time by which the next answer to a query is late, in seconds.
        wrong: answer in place of the next one; None for the right one.
        meanwhile: function to call while an answer is late.
        commands: commands that arrived.
    """

    def __init__(self) -> None:
        self.volts = np.zeros((4, 4))
        self.late = 0.0
        self.meanwhile: Callable[[], None] = lambda: None
        self.wrong: str | None = None
        self.commands: list[str] = []

    def __call__(self, line: str) -> str:
        command, *words = line.split()
        self.commands.append(command)
        values = np.array([float(word) for word in words])
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            return wrong
        if command != "X":
            self.volts = values.reshape(4, 4) if command == "V" else np.zeros((4, 4))
            return "OK"
        late, self.late = self.late, 0.0
        if late:
            self.meanwhile()
            time.sleep(late)
        return " ".join(map(str, (self.volts / 5) @ values))


CONTROLS = torch.full((16,), 2.5)
ONES, ANSWER = torch.ones(1, 4), torch.full((1, 4), 2.0)


@pytest.mark.parametrize("address", ["loop://late-heaters", "tcp://127.0.0.1:0", "pty"])
def test_a_late_answer_is_not_taken_for_the_next_one(driver: str, address: str) -> None:
    chip = Chip()
    with TextServer(chip, address) as server, run(driver, f"{server.uri}?timeout=0.3")["session"] as session:
        session.program(CONTROLS)
        chip.late = 0.35
        assert torch.equal(session.query(0.5 * ONES), 0.5 * ANSWER)
        assert torch.equal(session.query(ONES), ANSWER)
        assert session.usage.retries == 1


@pytest.mark.parametrize("address", ["loop://broken-heaters", "tcp://127.0.0.1:0", "pty"])
def test_the_answer_to_an_interrupted_query_is_not_taken_for_the_next_one(
    driver: str, address: str, interrupt: Callable[[], None]
) -> None:
    chip = Chip()
    with TextServer(chip, address) as server, run(driver, server.uri)["session"] as session:
        session.program(CONTROLS)
        chip.late, chip.meanwhile = 0.3, interrupt
        with pytest.raises(KeyboardInterrupt):
            session.query(0.5 * ONES)
        session.program(CONTROLS)
        assert torch.equal(session.query(ONES), ANSWER)


@pytest.mark.parametrize("wrong", ["", "1 2 3", "1 2 3 4 5", "1 2 3 four", "ERR", "1_0 2 3 4"])
def test_an_answer_that_is_not_four_numbers_is_refused(driver: str, wrong: str) -> None:
    chip = Chip()
    with TextServer(chip, "loop://wrong-heaters") as server, run(driver, server.uri)["session"] as session:
        session.program(CONTROLS)
        chip.wrong = wrong
        assert torch.equal(session.query(ONES), ANSWER)
        assert session.usage.retries == 1
        device = session.device
        chip.wrong = wrong
        with pytest.raises(al.ProtocolError, match="it must be 4 numbers"):
            device.query(ONES)


def test_a_program_that_is_not_acknowledged_is_refused(driver: str) -> None:
    chip = Chip()
    with TextServer(chip, "loop://busy-heaters") as server, run(driver, server.uri)["session"] as session:
        chip.wrong = "BUSY"
        with pytest.raises(al.ProtocolError, match=r"is 'BUSY'; it must be 'OK'"):
            session.device.program(CONTROLS)


@pytest.mark.parametrize("scheme", ["pty", "tcp"])
def test_the_driver_of_the_page_comes_back_when_the_cable_does(driver: str, scheme: str, tmp_path: Path) -> None:
    chip = Chip()
    address = f"pty:{tmp_path / 'chip'}" if scheme == "pty" else "tcp://127.0.0.1:0"
    with TextServer(chip, address) as server:
        session = run(driver, f"{server.uri}?timeout=0.3")["session"]
        assert torch.equal(session.apply(CONTROLS, ONES), ANSWER)
    address = address if scheme == "pty" else server.uri
    with TextServer(chip, address):  # pulled and put back between two queries
        assert torch.equal(session.query(ONES), ANSWER)
    with pytest.raises(al.NotConnected):  # pulled for longer
        session.query(ONES)
    with TextServer(chip, address):
        session.program(CONTROLS)
        assert torch.equal(session.query(ONES), ANSWER)
        session.close()
    assert chip.commands[-1] == "S"


def test_the_heaters_are_switched_off_although_the_line_was_lost(driver: str, tmp_path: Path) -> None:
    chip = Chip()
    address = f"pty:{tmp_path / 'chip'}"
    with TextServer(chip, address) as server:
        session = run(driver, f"{server.uri}?timeout=0.3")["session"]
        session.program(CONTROLS)
    with pytest.raises(al.NotConnected):
        session.device.query(ONES)
    with TextServer(chip, address):
        session.close()
    assert chip.commands[-1] == "S"
