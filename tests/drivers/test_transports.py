"""Test every transport against a real other end: a pseudo-terminal, a socket, VISA on a socket, memory."""

import errno
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest
import serial

from astralora.devices import DeviceError, DeviceTimeout, NotConnected, ProtocolError
from astralora.drivers.transports import (
    LoopbackTransport,
    SerialTransport,
    TcpTransport,
    Transport,
    VisaTransport,
    open_transport,
)

from .peers import KINDS, SILENCE, TIMEOUT, Memory, Peer, Terminal, in_background, make_peer

ALL_BYTES = bytes(range(256))
# TCP as on Windows, which lacks these calls.
WINDOWS_CALLS = "tcp-windows"


@pytest.fixture(params=[*KINDS, WINDOWS_CALLS])
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Peer]:
    if request.param == WINDOWS_CALLS:
        monkeypatch.delattr(socket, "MSG_DONTWAIT")
        monkeypatch.delattr(socket, "MSG_WAITALL")
        monkeypatch.setattr(socket.socket, "sendmsg", None)
    peer = make_peer(request.param.removesuffix("-windows"))
    yield peer
    peer.hang_up()


@pytest.fixture
def line(peer: Peer) -> Generator[Transport]:
    with open_transport(peer.uri, TIMEOUT) as line:
        yield line


# -- bytes -----------------------------------------------------------------------------------------


def test_every_byte_passes_unchanged(line: Transport, peer: Peer) -> None:
    line.write(ALL_BYTES)
    assert peer.receive(256) == ALL_BYTES
    peer.send(ALL_BYTES)
    assert line.read(256) == ALL_BYTES


def test_the_parts_of_a_message_arrive_in_order(line: Transport, peer: Peer) -> None:
    line.write(b"one ", bytearray(b"two "), memoryview(b"three"), b"")
    assert peer.receive(13) == b"one two three"


def test_a_message_larger_than_all_buffers_arrives_whole(line: Transport, peer: Peer) -> None:
    large = ALL_BYTES * 2000
    echo = in_background(lambda: peer.send(peer.receive(len(large))))
    line.write(large[:1000], large[1000:])
    assert line.read(len(large)) == large
    echo.join()


def test_an_answer_that_comes_in_pieces_is_read_whole(line: Transport, peer: Peer) -> None:
    def hesitant() -> None:
        for piece in (b"a", b"bc", b"def"):
            peer.send(piece)
            time.sleep(SILENCE)

    sending = in_background(hesitant)
    assert line.read(6) == b"abcdef"
    sending.join()


def test_bytes_read_into_given_memory_are_counted(line: Transport, peer: Peer) -> None:
    line.write(b"ab", b"c")
    peer.send(b"12345")
    memory = bytearray(5)
    line.read_into(memoryview(memory))
    assert memory == b"12345"
    assert (line.sent, line.received) == (3, 5)


def test_a_line_of_text_ends_at_its_end_mark(line: Transport, peer: Peer) -> None:
    peer.send(b"first\nsecond\n")
    assert line.read_until(b"\n", 100) == b"first\n"
    assert line.read_until(b"\n", 100) == b"second\n"


def test_a_line_of_text_without_an_end_is_given_up(line: Transport, peer: Peer) -> None:
    peer.send(b"x" * 50)
    with pytest.raises(ProtocolError, match=r"sent 20 bytes without an end of line: b'xxxx"):
        line.read_until(b"\n", 20)


def test_flushing_discards_what_has_arrived_and_nothing_later(line: Transport, peer: Peer) -> None:
    line.write(b"?")
    peer.receive(1)
    peer.send(b"stale" * 2000)
    time.sleep(SILENCE)  # until it has come through
    line.flush()
    peer.send(b"fresh")
    assert line.read(5) == b"fresh"


# -- silence ---------------------------------------------------------------------------------------


def test_a_short_read_is_a_timeout_and_never_a_short_answer(line: Transport, peer: Peer) -> None:
    line.timeout = SILENCE
    peer.send(b"abc")
    with pytest.raises(DeviceTimeout, match=r"sent nothing for 0.05 s after \d of 5 bytes; check that the instrument"):
        line.read(5)


def test_silence_ends_after_the_timeout(line: Transport) -> None:
    line.timeout = 0.2
    start = time.monotonic()
    with pytest.raises(DeviceTimeout, match=r"sent nothing for 0.2 s after 0 of 1 bytes"):
        line.read(1)
    assert 0.15 < time.monotonic() - start < TIMEOUT


def test_the_first_byte_may_take_longer_by_the_patience(line: Transport, peer: Peer) -> None:
    line.timeout = SILENCE

    def settle() -> None:
        time.sleep(4 * SILENCE)
        peer.send(b"done")

    settling = in_background(settle)
    assert line.read(4, patience=TIMEOUT) == b"done"
    settling.join()


def test_a_line_that_was_silent_works_afterwards(line: Transport, peer: Peer) -> None:
    line.timeout = SILENCE
    with pytest.raises(DeviceTimeout):
        line.read(1)
    line.timeout = TIMEOUT
    peer.send(b"late")
    assert line.read(4) == b"late"


def test_nothing_passes_while_the_line_is_interrupted(line: Transport, peer: Peer) -> None:
    line.timeout = SILENCE
    with line.interrupted():
        line.write(b"lost")
        peer.send(b"held")
        with pytest.raises(DeviceTimeout):
            line.read(1)
    line.timeout = TIMEOUT
    line.write(b"heard")
    assert peer.receive(5) == b"heard"
    assert line.sent == 5


@pytest.mark.parametrize("kind", ["serial", "tcp"])
def test_a_peer_that_takes_no_more_bytes_is_a_timeout(kind: str) -> None:
    peer = make_peer(kind)

    def pour(line: Transport) -> None:
        for _ in range(1000):
            line.write(bytes(1 << 16))

    with open_transport(peer.uri, SILENCE) as line, pytest.raises(DeviceTimeout, match="accepts no more bytes"):
        pour(line)
    peer.hang_up()


# -- opening and closing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [lambda line: line.write(b"x"), lambda line: line.read(1), lambda line: line.flush()],
    ids=["write", "read", "flush"],
)
def test_a_closed_line_is_refused(peer: Peer, use: Any) -> None:
    line = open_transport(peer.uri, TIMEOUT)
    with pytest.raises(NotConnected, match="is closed; call open first"):
        use(line)


def test_opening_and_closing_twice_does_nothing_more(peer: Peer) -> None:
    line = open_transport(peer.uri, TIMEOUT)
    line.open()
    line.open()
    line.write(b"x")
    assert peer.receive(1) == b"x"
    line.close()
    line.close()
    assert "closed" in repr(line)


@pytest.mark.parametrize("kind", ["serial", "loop"])
def test_a_line_that_was_closed_can_be_opened_again(kind: str) -> None:
    peer = make_peer(kind)
    line = open_transport(peer.uri, TIMEOUT)
    for _ in range(3):
        with line:
            line.write(b"again")
            assert peer.receive(5) == b"again"
    peer.hang_up()


def test_a_peer_that_hangs_up_is_not_connected(line: Transport, peer: Peer) -> None:
    line.write(b"x")
    peer.receive(1)
    peer.hang_up()
    with pytest.raises(NotConnected, match=r"has closed the connection|is disconnected"):
        line.read(1)


def test_bytes_from_before_the_peer_hung_up_can_be_read() -> None:
    for kind in ("tcp", "visa", "loop"):
        peer = make_peer(kind)
        with open_transport(peer.uri, TIMEOUT) as line:
            peer.send(b"goodbye")
            peer.hang_up()
            assert line.read(7) == b"goodbye"
            with pytest.raises(NotConnected):
                line.read(1)


def test_writing_to_a_peer_that_has_gone_is_not_connected(line: Transport, peer: Peer) -> None:
    line.write(b"x")
    peer.receive(1)
    peer.hang_up()

    def insist() -> None:
        # A socket learns of it by the answer to the first bytes that are sent in vain.
        for _ in range(100):
            line.write(b"is anybody there?")
            time.sleep(0.01)

    with pytest.raises(NotConnected, match=r"has closed the connection|is disconnected"):
        insist()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("serial:///dev/ttyNOPE0", "serial:///dev/ttyNOPE0 does not exist; check the cable and the name"),
        ("tcp://127.0.0.1:{port}", "cannot be reached: Connection refused"),
        ("visa://TCPIP::127.0.0.1::{port}::SOCKET?backend=@py", "SOCKET cannot be reached: Connection refused"),
        ("visa://NOTHING?backend=@py", "visa://NOTHING cannot be opened: "),
        ("loop://nobody", "nothing listens on loop://nobody in this process; start an emulator with this name"),
    ],
)
def test_a_missing_peer_gets_a_one_sentence_error(uri: str, complaint: str) -> None:
    if uri.startswith("visa"):
        pytest.importorskip("pyvisa_py", reason="pyvisa-py is not installed")
    line = open_transport(uri.format(port=free_port()), 0.5)
    with pytest.raises(NotConnected) as caught:
        line.open()
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(*_: object, **__: object) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silence)
    with pytest.raises(NotConnected, match=r"tcp://far:1 does not answer; check address and network"):
        TcpTransport("far", 1).open()


@pytest.mark.parametrize(
    ("number", "complaint"),
    [
        (errno.EACCES, "cannot be opened by this user; on Linux, add yourself to the group 'dialout'"),
        (errno.EBUSY, "is in use by another program; close it there"),
        (errno.EIO, "cannot be opened: "),
    ],
)
def test_the_reason_why_a_serial_port_cannot_be_opened_is_reported(
    monkeypatch: pytest.MonkeyPatch, number: int, complaint: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise serial.SerialException(number, "could not open port")

    monkeypatch.setattr(serial, "Serial", refuse)
    with pytest.raises(NotConnected, match=complaint):
        SerialTransport("/dev/ttyUSB0").open()


def test_a_file_that_is_no_serial_port_is_reported(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotConnected, match="cannot be opened: "):
        SerialTransport(str(tmp_path / "file")).open()


HOLD = "import serial, sys; port = serial.Serial(sys.argv[1], exclusive=True); print('held', flush=True); input()"


def test_a_serial_port_in_use_by_another_process_is_reported() -> None:
    peer = Terminal()
    path = peer.uri.removeprefix("serial://")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        line = open_transport(peer.uri)
        with pytest.raises(NotConnected, match=r"is in use by another program; close it there$"):
            line.open()
        other.communicate("\n")
    with line:  # now it is free
        line.write(b"x")
    peer.hang_up()


def test_a_name_in_memory_can_be_listened_at_once() -> None:
    peer = Memory()
    with pytest.raises(NotConnected, match="is in use in this process; choose another name"):
        LoopbackTransport.listen(peer.uri.removeprefix("loop://"), lambda line: None)
    peer.hang_up()


def test_a_line_without_a_name_echoes() -> None:
    with open_transport("loop://", SILENCE) as line:
        line.write(b"hel", b"lo")
        assert line.read(5) == b"hello"
        with pytest.raises(DeviceTimeout):
            line.read(1)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "kind", "found"),
    [
        ("serial:///dev/ttyUSB0", SerialTransport, {"port": "/dev/ttyUSB0", "baudrate": 115200, "timeout": 3.0}),
        ("serial:///dev/ttyUSB0?baudrate=921600", SerialTransport, {"baudrate": 921600}),
        ("serial://COM3?timeout=0.5&baudrate=9600", SerialTransport, {"port": "COM3", "timeout": 0.5}),
        ("tcp://192.168.1.5:5000", TcpTransport, {"host": "192.168.1.5", "port": 5000, "timeout": 3.0}),
        ("tcp://chip.lab:5000?timeout=7", TcpTransport, {"host": "chip.lab", "timeout": 7.0}),
        ("tcp://[::1]:5000", TcpTransport, {"host": "::1", "port": 5000}),
        (
            "visa://TCPIP::10.0.0.1::5025::SOCKET?backend=@py",
            VisaTransport,
            {"resource": "TCPIP::10.0.0.1::5025::SOCKET", "backend": "@py"},
        ),
        ("visa://GPIB0::7::INSTR?timeout=9", VisaTransport, {"resource": "GPIB0::7::INSTR", "timeout": 9.0}),
        ("loop://chip", LoopbackTransport, {"name": "chip"}),
        ("loop://?timeout=0.1", LoopbackTransport, {"name": "", "timeout": 0.1}),
    ],
)
def test_an_address_names_a_transport(uri: str, kind: type[Transport], found: dict[str, Any]) -> None:
    line = open_transport(uri, 3.0)
    assert type(line) is kind
    assert {name: getattr(line, name) for name in found} == found


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("serail:///dev/ttyUSB0", "did you mean serial://?"),
        ("/dev/ttyUSB0", "write, for example, serial:///dev/ttyUSB0?baudrate=921600"),
        ("", "write, for example, serial://"),
        ("http://chip", "write, for example, serial://"),
        ("tcp://chip:5000?speed=3", "there is no option 'speed'; known are timeout"),
        ("serial:///dev/ttyUSB0?speed=9600", "there is no option 'speed'; known are baudrate, bytesize, parity,"),
        ("serial:///dev/ttyUSB0?baudrate=fast", "'fast'"),
        ("visa://GPIB0::7::INSTR?colour=red", "known are backend, timeout"),
        ("loop://chip?baudrate=3", "there is no option 'baudrate'"),
        ("serial://", "the part after :// is missing"),
        ("tcp://", "the part after :// is missing"),
        ("visa://?backend=@py", "the part after :// is missing"),
        ("tcp://chip", "write HOST:PORT, such as 127.0.0.1:5000, not 'chip'"),
        ("tcp://:5000", "write HOST:PORT"),
        ("tcp://chip:", "write HOST:PORT"),
        ("tcp://chip:http", "write HOST:PORT"),
        ("tcp://chip:65536", "write HOST:PORT"),
        ("tcp://chip:-1", "write HOST:PORT"),
        ("loop://chip?timeout=0", "timeout must be a positive number of seconds"),
        ("loop://chip?timeout=-1", "timeout must be a positive number of seconds"),
        ("loop://chip?timeout=nan", "timeout must be a positive number of seconds"),
        ("loop://chip?timeout=inf", "timeout must be a positive number of seconds"),
        ("loop://chip?timeout=soon", "'soon'"),
    ],
)
def test_an_invalid_address_gets_a_one_sentence_error(uri: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_transport(uri)
    assert f"{uri!r} is not the address of a port" in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_ipv6_address_is_reached() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    uri = f"tcp://[::1]:{listener.getsockname()[1]}"
    with listener, open_transport(uri, TIMEOUT) as line, listener.accept()[0] as host:
        host.sendall(b"six")
        assert line.read(3) == b"six"


# -- log -------------------------------------------------------------------------------------------


def test_the_log_shows_the_first_bytes_of_a_message(caplog: pytest.LogCaptureFixture) -> None:
    secret = bytes(range(100, 200))
    with caplog.at_level(logging.DEBUG, "astralora.drivers.transports"), open_transport("loop://", TIMEOUT) as line:
        line.write(secret[:10], secret[10:])
        line.read(100)
    beginning = secret[:24].hex(" ")
    assert [record.getMessage() for record in caplog.records] == [
        "loop:// opened",
        f"loop:// -> 100 bytes: {beginning} ...",
        f"loop:// <- 100 bytes: {beginning} ...",
        "loop:// closed",
    ]


def test_the_log_shows_the_bytes_of_an_incomplete_answer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "astralora.drivers.transports"), open_transport("loop://", SILENCE) as line:
        line.write(b"\x01\x02")
        with pytest.raises(DeviceTimeout):
            line.read(9)
    assert "loop:// <- 2 bytes: 01 02" in caplog.text


def test_nothing_is_formatted_for_a_log_that_is_off(caplog: pytest.LogCaptureFixture) -> None:
    class Unshown(bytes):
        def hex(self, *_: object) -> str:
            raise AssertionError("nobody asked for it")

    with caplog.at_level(logging.INFO, "drivers"), open_transport("loop://", TIMEOUT) as line:
        line.write(Unshown(b"x"))
        line.read(1)
    assert not caplog.records


# -- threads ---------------------------------------------------------------------------------------


def test_the_messages_of_two_threads_are_not_mixed(line: Transport, peer: Peer) -> None:
    each, part = 200, 50

    def write(mark: bytes) -> None:
        for _ in range(each):
            line.write(mark * part, mark * part)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many chances to go wrong as can be had
    try:
        writers = [in_background(write, mark) for mark in (b"a", b"b")]
        arrived = peer.receive(2 * each * 2 * part)
        for writer in writers:
            writer.join()
    finally:
        sys.setswitchinterval(before)
    messages = {arrived[start : start + 2 * part] for start in range(0, len(arrived), 2 * part)}
    assert messages == {b"a" * 2 * part, b"b" * 2 * part}


# -- libraries that may be missing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "uri", "complaint"),
    [
        ("serial", "serial:///dev/ttyUSB0", "serial ports need pyserial, which is not installed"),
        ("pyvisa", "visa://GPIB0::7::INSTR", "VISA instruments need pyvisa, which is not installed"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, uri: str, complaint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = open_transport(uri)
    with pytest.raises(DeviceError, match=complaint + r"; pip install 'astralora\[hardware\]'"):
        line.open()


def test_a_missing_visa_library_is_reported() -> None:
    pytest.importorskip("pyvisa", reason="pyvisa is not installed")
    with pytest.raises(DeviceError, match=r"no VISA library is installed .*adds pyvisa-py"):
        open_transport("visa://GPIB0::7::INSTR?backend=/nowhere/libvisa.so@ivi").open()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_libraries_are_imported_only_when_used() -> None:
    python(
        "import sys, astralora.drivers.frame_mvm, astralora.drivers.scpi_mvm, astralora.drivers.emulator;"
        "astralora.devices.list_devices(); astralora.devices.list_emulators();"
        "found = {'serial', 'pyvisa', 'pyvisa_py'} & set(sys.modules); assert not found, found"
    )


def test_checksums_are_the_same_without_isal() -> None:
    from astralora.drivers.frames import encode_frame

    payload = ALL_BYTES * 10
    code = (
        "import sys; sys.modules['isal'] = None; from astralora.drivers import frames;"
        "assert frames.crc32.__module__ == 'zlib', frames.crc32.__module__;"
        "print(b''.join(frames.encode_frame(3, 9, bytes(range(256)) * 10)).hex())"
    )
    assert python(code).strip() == b"".join(encode_frame(3, 9, payload)).hex()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_an_open_line_belongs_to_the_process_that_opened_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, TcpTransport(*server.getsockname()) as line:
        peer, _ = server.accept()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                line.close()
                line.write(b"from the child")
            except DeviceError as error:
                code = 0 if "cannot use it" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        line.write(b"from the parent")
        with peer:
            assert peer.recv(100) == b"from the parent"
