"""What the README and the docs show has to run."""

import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import astralora.devices.registry as registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{place}")
    for page in PAGES
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
]


class Heaters(socketserver.StreamRequestHandler):
    """The chip of the docs, at the other end of its line."""

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


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_an_example_runs_as_it_stands(
    example: str, heaters: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    # The one thing that a reader has and this machine has not.
    code = re.sub(r"serial:///dev/ttyUSB0[^\"]*", heaters, example)
    exec(compile(code, "example", "exec"), names)
    made = names.keys() & {"device", "found", "layer", "model", "record", "session", "TestMyChip"}
    assert made
    session = names.get("session")
    if session is not None:
        session.close()  # type: ignore[attr-defined]


def test_the_driver_of_the_docs_drives_its_chip(heaters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(registry, "_registered", {})
    (driver,) = (example.values[0] for example in EXAMPLES if "class Heaters" in str(example.values[0]))
    lines = [line for line in str(driver).partition("class Heaters")[2].splitlines() if line.strip()]
    assert len(lines) <= 20, "driver, registration and opening; the spec tells what the chip is"
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(re.sub(r"serial:///dev/ttyUSB0[^\"]*", heaters, str(driver)), "example", "exec"), names)
    session = names["session"]
    with session:  # type: ignore[attr-defined]
        answer = session.apply(torch.full((16,), 2.5), torch.ones(1, 4))  # type: ignore[attr-defined]
    assert torch.equal(answer, torch.full((1, 4), 2.0))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    from astralora.cli.app import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    assert set(
        re.findall(r"^astralora (\w+)|`astralora (\w+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ) <= {pair for name in known if name for pair in ((name, ""), ("", name))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_linked_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
