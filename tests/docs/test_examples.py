"""Run the Python examples of the README and of all pages."""

from __future__ import annotations

import inspect
import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices.registry as registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples(page: Path) -> list[str]:
    """Return the Python blocks of a page; a tutorial is one program from its first block to its last."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return ["\n".join(blocks)] if page.parent.name == "tutorials" else blocks


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
            answer = (volts / 5) @ values if command == b"X" else []
            self.wfile.write(" ".join(map(str, answer)).encode() + b"\n")


@pytest.fixture(scope="module")
def heaters() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Heaters) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


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


def test_the_driver_of_the_page_drives_its_chip_in_twenty_lines(heaters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    (driver,) = (code for page in PAGES for code in examples(page) if "class Heaters" in code)
    lines = [line for line in driver.partition("class Heaters")[2].splitlines() if line.strip()]
    assert len(lines) <= 20, "driver, registration and opening; the spec describes the chip"
    with run(driver, heaters)["session"] as session:
        answer = session.apply(torch.full((16,), 2.5), torch.ones(1, 4))
    assert torch.equal(answer, torch.full((1, 4), 2.0))
