"""Test a line after an exchange that broke off: late answers, cut messages, slow peers, lost lines, echoes."""

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from astralora.devices import DeviceSpec, DeviceTimeout, NotConnected, ProtocolError, make_device, open_device
from astralora.drivers.emulator import FrameEmulator
from astralora.drivers.link import LinkDevice
from astralora.drivers.text import TextLine
from astralora.drivers.transports import SerialTransport, TcpTransport, Transport, open_transport

from .peers import KINDS, SILENCE, TIMEOUT, Peer, Terminal, in_background, interruptions, make_peer


@pytest.fixture(params=KINDS)
def peer(request: pytest.FixtureRequest) -> Generator[Peer]:
    peer = make_peer(request.param)
    yield peer
    peer.hang_up()


@pytest.fixture
def line(peer: Peer) -> Generator[Transport]:
    with open_transport(peer.uri, TIMEOUT) as line:
        line.write(b"?")
        peer.receive(1)
        yield line


@pytest.fixture
def interrupt() -> Generator[Callable[[], None]]:
    with interruptions() as interrupt:
        yield interrupt


def later(function: Callable[..., object], *arguments: Any) -> threading.Thread:
    def run() -> None:
        time.sleep(2 * SILENCE)
        function(*arguments)

    return in_background(run)


def time_out(line: Transport, seconds: float = SILENCE) -> None:
    line.timeout, before = seconds, line.timeout
    with pytest.raises(DeviceTimeout):
        line.read(3)
    line.timeout = before


def seconds_of(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


# -- draining --------------------------------------------------------------------------------------


def test_what_has_arrived_is_drained_after_a_complete_exchange(line: Transport, peer: Peer) -> None:
    peer.send(b"answer and more")
    assert line.read(6) == b"answer"
    assert line.drain() == 9
    assert not line.broke_off


def test_the_answer_to_an_interrupted_read_is_drained(
    line: Transport, peer: Peer, interrupt: Callable[[], None]
) -> None:
    interrupting = later(interrupt)
    with pytest.raises(KeyboardInterrupt):
        line.read(6)
    interrupting.join()
    assert line.broke_off
    sending = later(peer.send, b"stale\n")
    assert line.drain() == 6
    sending.join()
    assert not line.broke_off
    line.write(b"?")
    peer.receive(1)
    peer.send(b"fresh")
    assert line.read(5) == b"fresh"


def test_the_answer_to_a_message_without_a_read_is_drained(line: Transport, peer: Peer) -> None:
    sending = later(peer.send, b"stale\n")
    assert line.drain() == 6
    sending.join()


def test_a_line_that_timed_out_is_drained_for_longer_than_the_timeout(line: Transport) -> None:
    time_out(line, 0.2)
    assert 0.25 < seconds_of(line.drain) < TIMEOUT


def test_the_patience_of_a_read_counts_for_the_drain(line: Transport) -> None:
    line.timeout = SILENCE
    with pytest.raises(DeviceTimeout):
        line.read(1, patience=0.3)
    assert 0.4 < seconds_of(line.drain) < TIMEOUT


def test_a_silent_line_is_drained_at_once_after_a_complete_exchange(line: Transport, peer: Peer) -> None:
    peer.send(b"x")
    line.read(1)
    assert seconds_of(line.drain) < TIMEOUT / 2


@pytest.mark.parametrize("kind", ["serial", "tcp", "loop"])
def test_an_answer_that_stopped_half_way_is_drained_to_its_end(kind: str) -> None:
    peer = make_peer(kind)
    with open_transport(peer.uri, TIMEOUT) as line:
        line.write(b"?")
        peer.receive(1)
        peer.send(b"ab")
        line.timeout = 0.3
        with pytest.raises(DeviceTimeout):
            line.read(3)

        def hesitant() -> None:
            for _ in range(3):
                peer.send(b"c")
                time.sleep(2 * SILENCE)  # longer than the silence that ends a complete answer

        sending = in_background(hesitant)
        assert line.drain() == 3
        sending.join()
    peer.hang_up()


def test_an_interrupted_drain_leaves_the_line_marked(line: Transport, interrupt: Callable[[], None]) -> None:
    line.break_off()
    interrupting = later(interrupt)
    with pytest.raises(KeyboardInterrupt):
        line.drain()
    interrupting.join()
    assert line.broke_off


def test_a_line_that_does_not_stop_sending_is_given_up(line: Transport, peer: Peer) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(SILENCE / 10):
            peer.send(b"x")

    line.timeout = SILENCE
    chattering = in_background(chatter)
    with pytest.raises(ProtocolError, match=r"does not stop sending: \d+ bytes came in .* s without a request; check"):
        line.drain()
    stop.set()
    chattering.join()
    assert line.broke_off


def test_what_arrives_before_the_first_message_is_discarded(peer: Peer) -> None:
    with open_transport(peer.uri, TIMEOUT) as line:
        peer.send(b"welcome\n")
        time.sleep(2 * SILENCE)  # until it has come through
        line.write(b"?")
        peer.receive(1)
        peer.send(b"fresh")
        assert line.read(5) == b"fresh"


def test_a_message_that_can_be_read_before_the_first_write_is_not_discarded(peer: Peer) -> None:
    with open_transport(peer.uri, TIMEOUT) as line:
        peer.send(b"welcome and more")
        assert line.read(7) == b"welcome"
        line.write(b"?")
        assert line.read(9) == b" and more"


def test_a_late_answer_is_drained_although_the_port_was_opened_again() -> None:
    peer = Terminal()
    line = open_transport(peer.uri, TIMEOUT)
    with line:
        line.write(b"?")
        time_out(line, 0.3)
    with line:
        sending = later(peer.send, b"late\n")
        line.write(b"!")
        sending.join()
        peer.receive(2)
        peer.send(b"fresh")
        assert line.read(5) == b"fresh"
    peer.hang_up()


# -- messages that were cut off --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serial", "tcp"])
def test_a_message_that_was_cut_off_must_not_be_continued(kind: str, interrupt: Callable[[], None]) -> None:
    peer = make_peer(kind)
    line = open_transport(peer.uri, TIMEOUT)
    line.open()
    interrupting = later(interrupt)
    with pytest.raises(KeyboardInterrupt):
        line.write(bytes(1 << 26))
    interrupting.join()
    assert line.is_cut
    with pytest.raises(NotConnected, match=r"a message to .* was cut off; close and open the line"):
        line.write(b"x")
    line.close()
    peer.hang_up()


def test_a_line_works_after_a_message_was_cut_off_and_the_line_opened_again() -> None:
    peer = Terminal()
    line = open_transport(peer.uri, SILENCE)
    line.open()
    with pytest.raises(DeviceTimeout, match="accepts no more bytes"):
        line.write(bytes(1 << 20))
    assert line.is_cut
    line.close()
    line.open()
    assert not line.is_cut
    assert line.has_remnant
    line.close()
    peer.hang_up()


# -- slow peers ------------------------------------------------------------------------------------


READS: dict[str, Callable[[Transport], object]] = {
    "read": lambda line: line.read(1000),
    "read_until": lambda line: line.read_until(b"\n", 1000),
    "many short reads": lambda line: [line.read(1) for _ in range(1000)],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("kind", ["serial", "tcp", "loop"])
@pytest.mark.parametrize("deadline", [None, 0.3])
def test_a_peer_that_sends_too_slowly_is_given_up(
    kind: str, deadline: float | None, read: Callable[[Transport], object]
) -> None:
    peer, stop = make_peer(kind), threading.Event()

    def trickle() -> None:
        while not stop.wait(SILENCE / 2):
            peer.send(b"x")

    with open_transport(peer.uri, TIMEOUT) as line:
        line.write(b"?")
        peer.receive(1)
        line.timeout, line.deadline = (0.1 if deadline is None else TIMEOUT), deadline
        trickling = in_background(trickle)
        try:
            with pytest.raises(
                DeviceTimeout, match=r"sent only \d+ bytes in [\d.]+ s, which is too slow for an answer"
            ):
                read(line)
        finally:
            stop.set()
            trickling.join()
        assert line.broke_off
    peer.hang_up()


def test_the_time_between_requests_does_not_count_for_the_deadline(line: Transport, peer: Peer) -> None:
    line.deadline = 1.0
    for _ in range(3):
        line.write(b"?")
        peer.receive(1)
        peer.send(b"x")
        assert line.read(1) == b"x"
        time.sleep(0.4)


def test_the_patience_of_a_read_is_added_to_the_deadline(line: Transport, peer: Peer) -> None:
    line.deadline = SILENCE
    sending = later(peer.send, b"x")
    assert line.read(1, patience=TIMEOUT) == b"x"
    sending.join()


@pytest.mark.parametrize(("baudrate", "seconds"), [(921600, 0.01), (9600, 0.01), (300, 20 / 300), (75, 20 / 75)])
def test_a_slow_serial_line_has_twice_the_time_of_its_bytes(baudrate: int, seconds: float) -> None:
    line = SerialTransport("/dev/ttyS0", baudrate=baudrate)
    assert line.slowest == pytest.approx(seconds)
    assert line.silence >= max(0.05, 200 / baudrate)


# -- lost lines ------------------------------------------------------------------------------------


def test_a_line_that_is_lost_is_closed(line: Transport, peer: Peer) -> None:
    peer.hang_up()
    with pytest.raises(NotConnected, match=r"has closed the connection|is disconnected"):
        line.read(1)
    assert not line.is_open
    with pytest.raises(NotConnected, match=r"was lost; open it again"):
        line.write(b"x")


def test_a_connection_that_is_lost_can_be_opened_again() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = TcpTransport("127.0.0.1", listener.getsockname()[1], 2 * SILENCE)
        for _ in range(3):
            line.open()
            line.write(b"x")
            with listener.accept()[0] as connection:
                assert connection.recv(1) == b"x"
            with pytest.raises(NotConnected):
                line.read(1)


# -- echoes ----------------------------------------------------------------------------------------


def test_an_echo_is_named_by_a_driver_of_text() -> None:
    with (
        open_transport("loop://", TIMEOUT) as line,
        pytest.raises(ProtocolError, match=r"the line echoes what is sent to loop://; switch the echo"),
    ):
        TextLine(line).command("V", [1.0, 2.0])


@pytest.mark.parametrize("driver", ["frame-mvm", "scpi-mvm"])
def test_an_echo_is_named_by_the_drivers_with_numbers(driver: str) -> None:
    with pytest.raises(ProtocolError, match=r"the line echoes what is sent to loop://; switch the echo"):
        make_device(driver, port="loop://")


@pytest.mark.parametrize(
    ("answer", "echoes"),
    [(b"X 1 2\r\n", True), (b"X 1 2\r3 4\n", True), (b"\r\nX 1 2\n", True), (b"X 1 2 3\n", False), (b"X\n", False)],
)
def test_an_answer_that_only_begins_as_the_request_is_no_echo(answer: bytes, echoes: bool) -> None:
    with open_transport("loop://", TIMEOUT) as line:
        line.write(b"X 1 2\n")
        if echoes:
            with pytest.raises(ProtocolError, match="echoes"):
                line.refuse_echo(answer)
        else:
            line.refuse_echo(answer)


# -- the emulator on Windows -----------------------------------------------------------------------


def test_the_emulator_needs_no_calls_that_windows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import torch

    monkeypatch.delattr(socket, "MSG_DONTWAIT")
    monkeypatch.setattr(socket.socket, "sendmsg", None)
    chip = make_device("matvec", in_features=4, out_features=3)
    with FrameEmulator(chip, "tcp://127.0.0.1:0") as emulator, open_device("frame-mvm", port=emulator.uri) as session:
        session.program(torch.zeros(session.spec.num_controls))
        assert session.query(torch.zeros(2, 4)).shape == (2, 3)
        with pytest.raises(NotConnected, match="in use by another host"):
            make_device("frame-mvm", port=emulator.uri)
        assert session.query(torch.zeros(2, 4)).shape == (2, 3)


def test_a_driver_that_fails_to_open_is_closed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(LinkDevice):
        closed = False

        def _open(self) -> None:
            self.transport.open()
            raise DeviceTimeout("no answer to the greeting")

        def _close(self) -> None:
            self.closed = True
            self.transport.close()

        def _program(self, controls: Any) -> None: ...

        def _query(self, inputs: Any) -> Any: ...

    spec = DeviceSpec(name="refusing", in_features=1, out_features=1, num_controls=1)
    device = Refusing(spec, open_transport("loop://"))
    with pytest.raises(DeviceTimeout, match="greeting"):
        device.open()
    assert device.closed
    assert not device.transport.is_open
    assert "has not closed" not in caplog.text
