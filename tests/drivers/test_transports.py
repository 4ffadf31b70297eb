"""Every way of moving bytes, against a real other end."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from devices import DeviceError, DeviceTimeout, NotConnected, ProtocolError
from drivers.transports import (
    LoopbackTransport,
    SerialTransport,
    TcpTransport,
    Transport,
    VisaTransport,
    open_transport,
)
from drivers.transports.uri import parse_address

TIMEOUT = 0.15


class Peer:
    """The other end: what it writes the transport reads, and the other way round."""

    def __init__(
        self, uri: str, send: Callable[[bytes], object], receive: Callable[[int], bytes], hang_up: Callable[[], object]
    ) -> None:
        self.uri, self.send, self.hang_up = uri, send, hang_up
        self._receive = receive

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._receive(count - len(data))
        return data


@pytest.fixture
def pty() -> Iterator[Peer]:
    master, slave = os.openpty()
    tty.setraw(slave)
    ends = [master, slave]

    def hang_up() -> None:
        while ends:
            os.close(ends.pop())

    yield Peer(
        f"serial://{os.ttyname(slave)}", lambda data: os.write(master, data), lambda n: os.read(master, n), hang_up
    )
    hang_up()


@pytest.fixture
def tcp() -> Iterator[Peer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def peer() -> socket.socket:
            if not connections:
                connections.append(listener.accept()[0])
            return connections[0]

        uri = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        yield Peer(uri, lambda data: peer().sendall(data), lambda n: peer().recv(n), lambda: peer().close())
        for connection in connections:
            connection.close()


@pytest.fixture
def visa(tcp: Peer) -> Peer:
    port = tcp.uri.rsplit(":", 1)[1]
    return Peer(f"visa://TCPIP::127.0.0.1::{port}::SOCKET?backend=@py", tcp.send, tcp._receive, tcp.hang_up)


@pytest.fixture
def loop() -> Iterator[Peer]:
    ends: list[LoopbackTransport] = []
    LoopbackTransport.listen("test", ends.append)
    yield Peer(
        "loop://test", lambda data: ends[0].write(data), lambda n: bytes(ends[0].read(n)), lambda: ends[0].close()
    )
    LoopbackTransport.forget("test")


@pytest.fixture(params=["pty", "tcp", "visa", "loop"])
def peer(request: pytest.FixtureRequest) -> Peer:
    found: Peer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def line(peer: Peer) -> Iterator[Transport]:
    line = open_transport(peer.uri, TIMEOUT)
    line.open()
    yield line
    with suppress(NotConnected):
        line.close()


def test_bytes_pass_both_ways(peer: Peer, line: Transport) -> None:
    everything = bytes(range(256)) * 4
    line.write(everything[:100], b"", everything[100:])
    assert peer.receive(1024) == everything
    peer.send(everything)
    assert line.read(1000) == everything[:1000]
    assert line.read(24) == everything[1000:]
    assert (line.sent, line.received) == (1024, 1024)


def test_a_short_read_is_a_timeout_and_never_a_short_answer(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    peer.send(b"abc")
    with pytest.raises(
        DeviceTimeout, match=r"fell silent for 0.15 s after \d of 4 bytes; check that the instrument is on"
    ):
        line.read(4)


def test_silence_times_out(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    start = time.monotonic()
    with pytest.raises(DeviceTimeout):
        line.read(1)
    assert time.monotonic() - start > 0.9 * TIMEOUT


def test_patience_comes_on_top(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    threading.Timer(2 * TIMEOUT, peer.send, [b"late"]).start()
    assert line.read(4, patience=10 * TIMEOUT) == b"late"


def test_lines_of_text_are_read_to_their_end(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    peer.send(b"one\ntwo\nendless")
    assert line.read_until(b"\n", limit=100) == b"one\n"
    assert line.read_until(b"\n", limit=100) == b"two\n"
    with pytest.raises(ProtocolError, match="sent 4 bytes without"):
        line.read_until(b"\n", limit=4)


def test_what_has_arrived_can_be_flushed(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    peer.send(b"stale" * 100)
    time.sleep(0.05)
    line.flush()
    peer.send(b"new")
    assert line.read(3) == b"new"


def test_a_closed_line_is_not_connected(peer: Peer, line: Transport) -> None:
    line.close()
    line.close()
    for act in (lambda: line.write(b"x"), lambda: line.read(1), line.flush):
        with pytest.raises(NotConnected, match="is closed; call open first"):
            act()


def test_a_line_can_be_opened_again(pty: Peer) -> None:
    line = open_transport(pty.uri, TIMEOUT)
    for _ in range(3):
        with line:
            line.open()
            line.write(b"x")
            assert pty.receive(1) == b"x"


def test_a_peer_that_hangs_up_is_not_connected(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    peer.hang_up()
    # pyvisa-py waits on a socket that was closed as on one that is silent.
    with pytest.raises((NotConnected, DeviceTimeout) if isinstance(line, VisaTransport) else NotConnected):
        line.read(1)


def test_a_cut_line_passes_nothing_either_way(peer: Peer, line: Transport) -> None:
    line.write(b"?")
    peer.receive(1)
    with line.interrupted():
        peer.send(b"a")
        with pytest.raises(DeviceTimeout):
            line.read(1)
        line.write(b"lost")
    line.write(b"b")
    assert peer.receive(1) == b"b"
    assert line.read(1) == b"a"


def test_messages_of_two_threads_are_not_mixed(tcp: Peer) -> None:
    with open_transport(tcp.uri) as line:
        threads = [
            threading.Thread(target=lambda letter=letter: [line.write(letter * 500, letter * 500) for _ in range(50)])
            for letter in (b"a", b"b")
        ]
        for thread in threads:
            thread.start()
        data = tcp.receive(100_000)
        for thread in threads:
            thread.join()
    assert all(len(set(data[start : start + 1000])) == 1 for start in range(0, 100_000, 1000))


def test_the_log_shows_the_beginning_in_hexadecimal(tcp: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "drivers"), open_transport(tcp.uri) as line:
        line.write(b"\xa7\x4c", bytes(1000))
    shown = [record.getMessage() for record in caplog.records if "->" in record.getMessage()]
    assert shown == [f"{tcp.uri} -> 1002 bytes: a7 4c" + " 00" * 22 + " ..."]


def test_nothing_is_made_ready_for_a_log_that_nobody_reads(tcp: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("drivers.transports.base").setLevel(logging.INFO)

    class Unshown(bytes):
        def hex(self, *_: object) -> str:  # type: ignore[override]
            raise AssertionError("nobody asked for it")

    with open_transport(tcp.uri) as line:
        line.write(Unshown(b"abc"))
    logging.getLogger("drivers.transports.base").setLevel(logging.NOTSET)


# -- ports that are not there, or somebody else's ----------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("serial:///dev/nothing", "serial:///dev/nothing does not exist; check the cable and the name"),
        ("tcp://127.0.0.1:9", "tcp://127.0.0.1:9 cannot be reached: Connection refused"),
        ("loop://nobody", "nothing listens at loop://nobody in this process"),
        ("visa://NONSENSE?backend=@py", "visa://NONSENSE cannot be opened"),
    ],
)
def test_a_peer_that_is_not_there_is_told_in_one_sentence(uri: str, complaint: str) -> None:
    with pytest.raises(NotConnected) as error:
        open_transport(uri, TIMEOUT).open()
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value)


def test_a_serial_port_that_another_process_has_is_told_in_one_sentence(pty: Peer) -> None:
    code = f"""
import sys
from drivers.transports import open_transport
line = open_transport({pty.uri!r})
line.open()
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(NotConnected) as error:
            open_transport(pty.uri).open()
        assert str(error.value) == f"{pty.uri} is in use by another program; close it there"
        process.communicate("")
    with open_transport(pty.uri):
        pass


def test_loopback_without_a_name_is_an_echo() -> None:
    with open_transport("loop://") as line:
        line.write(b"hello")
        assert line.read(5) == b"hello"


def test_a_name_in_memory_is_taken_once(loop: Peer) -> None:
    with pytest.raises(NotConnected, match="loop://test is taken"):
        LoopbackTransport.listen("test", lambda line: None)


# -- addresses -----------------------------------------------------------------------------------


def test_an_address_says_everything() -> None:
    port = open_transport("serial:///dev/ttyUSB0?baudrate=921600&timeout=5")
    assert isinstance(port, SerialTransport)
    assert (port.port, port.baudrate, port.timeout) == ("/dev/ttyUSB0", 921600, 5.0)
    windows = open_transport("serial://COM3", 1.5)
    assert isinstance(windows, SerialTransport)
    assert (windows.port, windows.baudrate, windows.timeout) == ("COM3", 115200, 1.5)
    host = open_transport("tcp://[::1]:5000")
    assert isinstance(host, TcpTransport)
    assert (host.host, host.port) == ("::1", 5000)
    instrument = open_transport("visa://TCPIP::192.168.1.5::5025::SOCKET?backend=@py")
    assert isinstance(instrument, VisaTransport)
    assert (instrument.resource, instrument.backend) == ("TCPIP::192.168.1.5::5025::SOCKET", "@py")


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("/dev/ttyUSB0", "'/dev/ttyUSB0' is no address of a port; write, for example, serial:///dev/ttyUSB0"),
        ("tpc://127.0.0.1:5000", "did you mean tcp://?"),
        ("usb://1", "write, for example,"),
        ("tcp://127.0.0.1", "write HOST:PORT, such as 127.0.0.1:5000, not '127.0.0.1'"),
        ("tcp://127.0.0.1:70000", "write HOST:PORT"),
        ("tcp://127.0.0.1:5000?speed=1", "there is no option 'speed'; known are timeout"),
        ("serial:///dev/ttyUSB0?baud=9600", "there is no option 'baud'; known are baudrate, timeout"),
        ("serial:///dev/ttyUSB0?baudrate=fast", "invalid literal for int"),
        ("serial:///dev/ttyUSB0?timeout=-1", "timeout must be a positive number of seconds"),
        ("serial://", "it names no place"),
    ],
)
def test_what_is_no_address_is_told_in_one_sentence(uri: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as error:
        open_transport(uri)
    assert complaint in str(error.value)


def test_hosts_and_ports_are_taken_apart() -> None:
    assert parse_address("localhost:80") == ("localhost", 80)
    with pytest.raises(ValueError, match="not 'localhost:http'"):
        parse_address("localhost:http")


# -- libraries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "uri", "complaint"),
    [
        ("serial", "serial:///dev/ttyUSB0", "serial ports need pyserial, which is not installed"),
        ("pyvisa", "visa://GPIB0::7::INSTR", "VISA instruments need pyvisa, which is not installed"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    module: str, uri: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeviceError, match=complaint) as error:
        open_transport(uri).open()
    assert str(error.value).endswith("pip install 'astralora[hardware]'")


def test_libraries_are_imported_only_when_used() -> None:
    ours = "drivers.frame_mvm, drivers.scpi_mvm, drivers.emulator"
    code = f"import sys, {ours}; print({{'serial', 'pyvisa'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_its_faster_library_the_checksum_is_zlibs() -> None:
    code = "import sys, zlib; sys.modules['isal'] = None; from drivers import frames; assert frames.crc32 is zlib.crc32"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
