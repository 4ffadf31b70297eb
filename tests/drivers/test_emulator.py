"""Test devices on real ports, without faults and with every fault."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora as al
import astralora.devices as d
from astralora.devices import DeviceError, FaultPlan, NotConnected, Retry, Session
from astralora.devices.wrappers.faults import CHIP_FAULTS, LINK_FAULTS
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator
from astralora.drivers.frames import Header, encode_frame
from astralora.drivers.messages import Command
from astralora.drivers.transports import Transport, open_transport
from astralora.drivers.transports.base import Bytes

from ..children import start

N, M = 8, 6
AT_ONCE = Retry(attempts=12, wait_seconds=0)


def chip(**options: Any) -> d.Device:
    return d.make_device("matvec", in_features=N, out_features=M, **options)


def work(session: Session, operations: int, seed: int = 0) -> list[torch.Tensor]:
    """Program, query, and run several settings at once; two or three operations for each answer."""
    generator = torch.Generator().manual_seed(seed)
    answers = []
    for number in range(operations // 2):
        controls = torch.empty(N * M).uniform_(-1, 1, generator=generator)
        inputs = torch.empty(3, N).uniform_(-1, 1, generator=generator)
        if number % 3 == 2:
            answers.append(session.query_each(torch.stack([controls, controls / 2]), inputs))
        else:
            answers.append(session.apply(controls, inputs))
    return answers


def hurry(emulator: FrameEmulator, device: Any) -> None:
    """Let a host give up soon after the emulator has handled its request, instead of after a timeout.

    The host would wait through the timeout for every lost answer, and on a busy machine take a slow one for lost.
    """
    sent: int | None = None
    received: int | None = None
    handled: int | None = None

    def send(write: Any, *frame: Bytes) -> None:
        nonlocal sent, handled
        sent, handled = int.from_bytes(frame[0][4:8], "little"), None
        write(*frame)

    def respond(respond: Any, line: Transport, header: Header, payload: Any) -> None:
        nonlocal received, handled
        received = header.sequence
        respond(line, header, payload)
        handled = received

    def hang_up(hang_up: Any, line: Transport) -> None:
        nonlocal handled
        hang_up(line)
        handled = received

    def receive(receive: Any, view: memoryview, seconds: float) -> int:
        until = time.monotonic() + seconds
        while True:
            # Before the read: an answer sent meanwhile is still on its way through the system.
            idle = handled == sent
            count = int(receive(view, min(seconds, 0.02)))
            if count or idle or time.monotonic() >= until:
                return count

    for owner, name, function in (
        (device.transport, "write", send),
        (device.transport, "_receive", receive),
        (emulator.server, "respond", respond),
        (emulator.port, "hang_up", hang_up),
    ):
        setattr(owner, name, partial(function, getattr(owner, name)))


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.processors
@pytest.mark.parametrize("kind", LINK_FAULTS + CHIP_FAULTS)
@pytest.mark.parametrize("operation", [0, 1, 4])
def test_every_single_fault_is_noticed_counted_and_repaired(kind: Any, operation: int) -> None:
    # A program, a query, and several settings at once; a chip has its faults when it is queried.
    plan = FaultPlan(at={max(operation, 1) if kind in CHIP_FAULTS else operation: kind}, flagged=True)
    with FrameEmulator(chip(), "pty", plan) as emulator, Session(chip()) as here:
        device = d.make_device("frame-mvm", port=emulator.uri, timeout=5.0)
        hurry(emulator, device)
        with Session(device, retry=AT_ONCE) as session:
            assert all(map(torch.equal, work(session, 8), work(here, 8)))
            assert session.usage.retries == 1
        assert emulator.injected == Counter({kind: 1})


@pytest.mark.parametrize("kind", [kind for kind in LINK_FAULTS + CHIP_FAULTS if kind != "corrupt"])
def test_scpi_notices_every_fault_but_damage(kind: Any) -> None:
    plan = FaultPlan(at={1: kind}, flagged=True)
    with ScpiEmulator(chip(), "tcp://127.0.0.1:0", plan) as emulator, Session(chip()) as here:
        device = d.make_device("scpi-mvm", port=emulator.uri, timeout=0.5)
        with Session(device, retry=AT_ONCE) as session:
            for answer, due in zip(work(session, 4), work(here, 4), strict=True):
                assert torch.equal(answer, due)
            assert session.usage.retries == 1
        assert emulator.injected == Counter({kind: 1})


def test_scpi_refuses_a_plan_with_damage() -> None:
    with pytest.raises(DeviceError, match="SCPI cannot detect a corrupt answer"):
        ScpiEmulator(chip(), "tcp://127.0.0.1:0", FaultPlan(corrupt=0.1))


def test_the_same_plan_makes_the_same_faults() -> None:
    counts = []
    for _ in range(2):
        plan = FaultPlan.parse("corrupt=0.1,disconnect=0.1,nan=0.1,seed=5")
        with FrameEmulator(chip(), "loop://same", plan) as emulator:
            device = d.make_device("frame-mvm", port=emulator.uri, timeout=5.0)
            hurry(emulator, device)
            with Session(device, retry=AT_ONCE) as session:
                work(session, 100)
                counts.append((emulator.injected, session.usage.retries))
    assert counts[0] == counts[1]
    assert sum(counts[0][0].values()) == counts[0][1] > 10


@pytest.mark.processors
@pytest.mark.parametrize(
    ("operations", "share"), [(1000, 0.03), pytest.param(10_000, 0.01, marks=pytest.mark.campaign)]
)
def test_many_operations_with_every_fault_accept_no_wrong_answer(operations: int, share: float) -> None:
    plan = FaultPlan.parse(f"all={share},flagged=true,seed=1")
    with FrameEmulator(chip(), "pty", plan) as emulator, Session(chip()) as here:
        device = d.make_device("frame-mvm", port=emulator.uri, timeout=5.0)
        hurry(emulator, device)
        with Session(device, retry=AT_ONCE) as session:
            answers = work(session, operations)
            retries = session.usage.retries
        assert all(map(torch.equal, answers, work(here, operations)))
        injected = emulator.injected
    assert set(injected) == {*LINK_FAULTS, *CHIP_FAULTS}
    assert min(injected.values()) > 10
    faults = sum(injected.values())
    # Every fault costs one attempt; on a machine that is too busy to pass bytes on, timeouts of its own are added.
    assert faults <= retries <= 1.2 * faults


@pytest.mark.processors
def test_training_over_a_faulty_line_ends_with_the_weights_of_training_without_faults() -> None:
    def train(session: Session) -> torch.Tensor:
        layer = al.BlackBoxLinear(session, seed=0)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        for _ in range(60):
            inputs = torch.rand(8, N, generator=generator)
            optimizer.zero_grad()
            (layer(inputs) - inputs[:, :M]).square().mean().backward()
            optimizer.step()
        return layer.controls.detach().clone()

    plan = FaultPlan.parse("all=0.03,flagged=true,seed=3")
    with FrameEmulator(chip(), "pty", plan) as emulator, Session(chip()) as here:
        device = d.make_device("frame-mvm", port=emulator.uri, timeout=0.1)
        with Session(device, retry=AT_ONCE) as session:
            assert torch.equal(train(session), train(here))
            assert session.usage.retries > 5


@pytest.mark.processors
def test_a_fault_without_a_self_test_changes_an_answer_silently() -> None:
    """Nothing on the wire marks a stuck or saturated output where the chip has no self-test."""
    for kind in ("stuck", "saturated"):
        with FrameEmulator(chip(), "loop://silent", FaultPlan(at={3: kind})) as emulator, Session(chip()) as here:
            device = d.make_device("frame-mvm", port=emulator.uri)
            with Session(device, retry=AT_ONCE) as session:
                differ = [not torch.equal(a, b) for a, b in zip(work(session, 8), work(here, 8), strict=True)]
                assert sum(differ) == 1
                assert session.usage.retries == 0


# -- ports -----------------------------------------------------------------------------------------


def test_a_terminal_keeps_its_name_through_a_disconnect() -> None:
    with FrameEmulator(chip(), "pty", FaultPlan(at={1: "disconnect"})) as emulator:
        link = Path(emulator.uri.removeprefix("serial://"))
        before = link.resolve()
        with d.open_device("frame-mvm", port=emulator.uri, timeout=0.2) as session:
            work(session, 4)
        assert link.resolve() != before
    assert not link.is_symlink()


def test_the_terminal_can_have_a_chosen_name(tmp_path: Path) -> None:
    with FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}") as emulator:
        assert emulator.uri == f"serial://{tmp_path / 'chip'}"
        with d.open_device("frame-mvm", port=emulator.uri) as session:
            work(session, 2)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced_by_the_link(tmp_path: Path) -> None:
    (tmp_path / "chip").write_text("precious")
    with pytest.raises(DeviceError, match="a file of that name exists"):
        FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}")
    assert (tmp_path / "chip").read_text() == "precious"


# -- what a killed emulator leaves -----------------------------------------------------------------

KILLED = """
import sys, threading
from astralora.drivers.emulator.ports import open_port
ports = [open_port(address) for address in ("pty", f"pty:{sys.argv[1]}")]
print(*(port.uri for port in ports), flush=True)
threading.Event().wait()
"""


@contextmanager
def other_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run emulators in another process, and yield it and their addresses; both processes have this temporary folder."""
    (folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    with start([sys.executable, "-c", KILLED, str(folder / "chip")], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()
        finally:
            process.kill()


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_a_killed_emulator_leaves_is_cleared_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "astralora-mine", f"astralora-{os.getpid()}-full", "astralora-1-ours", "other-1-x"
    with other_process(tmp_path, monkeypatch) as (process, addresses):
        assert len(addresses) == 2
        # A second emulator neither disturbs the first nor takes its name.
        with pytest.raises(DeviceError, match=r"another emulator serves .*chip; stop it, or choose another name") as no:
            FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}")
        assert "\n" not in str(no.value)
        assert all(os.path.exists(address.removeprefix("serial://")) for address in addresses)
        process.kill()
        process.wait(30)
    (tmp_path / f"chip.{process.pid}").symlink_to("/dev/pts/999999")
    (tmp_path / "chip.notes").write_text("precious")
    for name in kept:
        (tmp_path / "tmp" / name).mkdir()
    (tmp_path / "tmp" / kept[1] / "data").write_text("precious")
    assert len(everything_in(tmp_path)) == 13
    with FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}") as emulator:
        assert emulator.uri == f"serial://{tmp_path / 'chip'}"
        with d.open_device("frame-mvm", port=emulator.uri) as session:
            work(session, 2)
    mine = {f"tmp/{name}" for name in kept}
    assert everything_in(tmp_path) == {"tmp", "chip.notes", f"tmp/{kept[1]}/data", *mine}


def test_two_emulators_of_one_process_do_not_share_a_name(tmp_path: Path) -> None:
    with FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}") as emulator:
        with pytest.raises(DeviceError, match="another emulator serves"):
            FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}")
        with d.open_device("frame-mvm", port=emulator.uri) as session:
            work(session, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["precious", "missing", "/dev/null"])
def test_a_link_of_somebody_else_is_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "chip").symlink_to(target)
    with pytest.raises(DeviceError, match=f"is a link to {target}; delete it, or choose another name"):
        FrameEmulator(chip(), f"pty:{tmp_path / 'chip'}")
    assert os.readlink(tmp_path / "chip") == target


@pytest.mark.parametrize("address", ["pty:", "pty:.", "pty:/", "pty:a\0b", "tcp://" + 70 * "a" + ":0"])
def test_a_name_that_cannot_be_made_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(DeviceError) as no:
        FrameEmulator(chip(), address, public=True)
    assert "\n" not in str(no.value)


def test_without_a_temporary_folder_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/tmp")
    with pytest.raises(DeviceError, match="no pseudo-terminal can be opened: No such file or directory"):
        FrameEmulator(chip(), "pty")


# -- a host that behaves badly ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["frames", "scpi"])
def test_a_host_that_sends_its_bytes_one_by_one_is_disconnected(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astralora.drivers.incoming._SECONDS", 0.2)
    monkeypatch.setattr("astralora.drivers.incoming._NOISE_SECONDS", 0.5)
    request = b"".join(encode_frame(Command.PROGRAM, 5, bytes(100)))[:-1] if protocol == "frames" else b"A" * 100
    emulator = d.make_emulator(protocol, chip(), "tcp://127.0.0.1:0").start()
    with socket.create_connection(("127.0.0.1", int(emulator.uri.rsplit(":", 1)[1]))) as host:
        host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trickle() -> None:
            for byte in 30 * request:
                host.sendall(bytes([byte]))
                time.sleep(0.01)

        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            trickle()
        with d.open_device(emulator.driver, port=emulator.uri) as session:
            work(session, 2)
    emulator.stop()


@pytest.mark.parametrize("protocol", ["frames", "scpi"])
def test_a_host_that_is_silent_stays_connected(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astralora.drivers.incoming._SECONDS", 0.1)
    monkeypatch.setattr("astralora.drivers.incoming._NOISE_SECONDS", 0.1)
    emulator = d.make_emulator(protocol, chip(), "tcp://127.0.0.1:0").start()
    with d.open_device(emulator.driver, port=emulator.uri, retry=d.Retry(attempts=1)) as session:
        for _ in range(3):
            work(session, 2)
            time.sleep(0.3)
    emulator.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "some-host.example"])
def test_a_public_address_is_refused_unless_allowed(host: str) -> None:
    threads = threading.active_count()
    with pytest.raises(DeviceError, match="could operate the device without a password"):
        FrameEmulator(chip(), f"tcp://{host}:0")
    assert threading.active_count() == threads


def test_a_public_address_is_served_where_allowed() -> None:
    with FrameEmulator(chip(), "tcp://0.0.0.0:0", public=True) as emulator:
        port = emulator.uri.rsplit(":", 1)[1]
        with d.open_device("frame-mvm", port=f"tcp://127.0.0.1:{port}") as session:
            work(session, 2)


def test_a_stopped_emulator_frees_its_port_and_leaves_the_device_safe() -> None:
    device = chip()
    with FrameEmulator(device, "tcp://127.0.0.1:0") as emulator:
        number = int(emulator.uri.rsplit(":", 1)[1])
        session = d.open_device("frame-mvm", port=emulator.uri)
        work(session, 2)
    with pytest.raises(NotConnected, match="is closed"):
        device.program(torch.zeros(N * M))
    with pytest.raises(NotConnected):
        session.close()
    with socket.create_server(("127.0.0.1", number)):
        pass


@pytest.mark.parametrize("address", ["pty", "tcp://127.0.0.1:0", "loop://twice"])
def test_stopping_twice_does_nothing_more(address: str) -> None:
    emulator = FrameEmulator(chip(), address).start()
    emulator.stop()
    # A number that was freed may have become somebody else's file.
    reader, writer = os.pipe()
    emulator.stop()
    os.write(writer, b"still open")
    assert os.read(reader, 10) == b"still open"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("address", ["pty", "tcp://127.0.0.1:0", "loop://never"])
def test_an_emulator_that_was_never_started_can_be_stopped(address: str) -> None:
    threads = threading.active_count()
    FrameEmulator(chip(), address).stop()
    assert threading.active_count() == threads


def test_hosts_are_served_one_after_another() -> None:
    with FrameEmulator(chip(), "tcp://127.0.0.1:0") as emulator:
        for _ in range(5):
            with d.open_device("frame-mvm", port=emulator.uri) as session:
                work(session, 2)


def test_the_next_host_is_served_after_one_broke_off_a_request() -> None:
    with FrameEmulator(chip(), "tcp://127.0.0.1:0") as emulator:
        number = int(emulator.uri.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", number)) as host:
            host.sendall(b"\xa7\x4c\x01\x03")
        with d.open_device("frame-mvm", port=emulator.uri) as session:
            work(session, 2)


@pytest.mark.parametrize("count", [4, 50], ids=["header", "payload"])
def test_the_next_host_is_served_after_one_left_the_terminal(count: int) -> None:
    with FrameEmulator(chip(), "pty") as emulator:
        with open_transport(emulator.uri) as host:
            host.write(b"".join(encode_frame(Command.PROGRAM, 5, bytes(100)))[:count])
        # What has begun is given up after a silence of 0.05 s, before another program could have been started.
        time.sleep(0.3)
        with d.open_device("frame-mvm", port=emulator.uri) as session:
            work(session, 2)


@pytest.mark.parametrize("address", ["nowhere", "udp://127.0.0.1:1", "loop://", "tcp://127.0.0.1"])
def test_an_address_that_cannot_be_listened_at_is_refused(address: str) -> None:
    with pytest.raises(DeviceError, match=r"not an address to listen on|write HOST:PORT"):
        FrameEmulator(chip(), address)


def test_protocols_are_found_by_name() -> None:
    assert d.list_emulators() == ["frames", "scpi"]
    with pytest.raises(DeviceError, match="there is no emulator for the protocol 'morse'; known are frames, scpi"):
        d.make_emulator("morse", chip(), "pty")
