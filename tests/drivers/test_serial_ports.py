"""Test serial ports as they are in labs: options, boards that reset, ports in use, URLs of pyserial."""

from __future__ import annotations

import os
import socket
import sys
import termios
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import serial
import serial.rfc2217

from astralora.devices import DeviceError, DeviceTimeout, NotConnected, make_device
from astralora.drivers.emulator import FrameEmulator
from astralora.drivers.transports import SerialTransport, open_transport

from .peers import SILENCE, TIMEOUT, Socket, Terminal, in_background


@pytest.fixture
def terminal() -> Generator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.hang_up()


# -- options ---------------------------------------------------------------------------------------


def test_the_settings_of_an_address_reach_the_port(terminal: Terminal) -> None:
    path = terminal.uri.removeprefix("serial://")
    with open_transport(f"{terminal.uri}?baudrate=9600&bytesize=7&parity=e&stopbits=2&xonxoff=on", TIMEOUT):
        slave = os.open(path, os.O_RDWR | os.O_NOCTTY)
        flags = termios.tcgetattr(slave)
        os.close(slave)
    assert flags[4] == termios.B9600
    assert flags[0] & termios.IXON
    # A pseudo-terminal has no bits on a wire: Linux keeps 8 bits without parity, whatever is set.
    assert flags[2] & termios.CSTOPB


def test_the_settings_of_an_address_are_read() -> None:
    line = open_transport("serial://COM3?bytesize=7&parity=O&stopbits=1.5&rtscts=1&dsrdtr=true&xonxoff=0&dtr=off&rts=1")
    assert isinstance(line, SerialTransport)
    assert line.settings == {
        "bytesize": 7,
        "parity": "O",
        "stopbits": 1.5,
        "rtscts": True,
        "dsrdtr": True,
        "xonxoff": False,
    }
    assert line.levels == {"dtr": False, "rts": True}


def test_times_of_an_address_are_read() -> None:
    line = open_transport("tcp://chip:1?timeout=3&deadline=20&settle=1.5")
    assert (line.timeout, line.deadline, line.settle) == (3, 20, 1.5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("baudrate=fast", "baudrate must be a positive whole number, not 'fast'"),
        ("baudrate=0", "baudrate must be a positive whole number, not '0'"),
        ("baudrate=-9600", "baudrate must be a positive whole number"),
        ("baudrate=9600.5", "baudrate must be a positive whole number"),
        ("bytesize=9", "bytesize must be 5, 6, 7 or 8, not '9'"),
        ("parity=none", "parity must be N (none), E (even), O (odd), M (mark) or S (space), not 'none'"),
        ("stopbits=3", "stopbits must be 1, 1.5 or 2, not '3'"),
        ("rtscts=maybe", "rtscts must be 1 (on) or 0 (off), not 'maybe'"),
        ("dsrdtr=2", "dsrdtr must be 1 (on) or 0 (off), not '2'"),
        ("xonxoff=", "xonxoff must be 1 (on) or 0 (off), not ''"),
        ("dtr=high", "dtr must be 1 (on) or 0 (off), not 'high'"),
        ("deadline=0", "deadline must be a positive number of seconds, not '0'"),
        ("settle=-1", "settle must be 0 or a positive number of seconds, not '-1'"),
        ("settle=soon", "settle must be 0 or a positive number of seconds, not 'soon'"),
        ("settle=nan", "settle must be 0 or a positive number of seconds"),
        ("baudrate=9600&baudrate=1200", "the option 'baudrate' is given twice"),
        (
            "speed=1",
            "known are baudrate, bytesize, parity, stopbits, rtscts, dsrdtr, xonxoff, rts, dtr, timeout, deadline",
        ),
    ],
)
@pytest.mark.parametrize("place", ["serial:///dev/ttyUSB0", "rfc2217://server:4000"])
def test_a_wrong_option_gets_a_sentence(place: str, options: str, complaint: str) -> None:
    if options == "speed=1" and place.startswith("rfc"):
        complaint = "dtr, logging, ign_set_control, poll_modem, timeout, deadline, settle"
    with pytest.raises(DeviceError) as caught:
        open_transport(f"{place}?{options}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


# -- boards that reset when their port is opened ---------------------------------------------------


def test_what_a_boot_loader_prints_is_discarded(terminal: Terminal) -> None:
    def boot() -> None:
        for _ in range(3):
            time.sleep(SILENCE)
            terminal.send(b"booting...\n")

    booting = in_background(boot)
    start = time.monotonic()
    with open_transport(f"{terminal.uri}?settle=1", TIMEOUT) as line:
        booting.join()
        assert 1 <= time.monotonic() - start < TIMEOUT
        terminal.send(b"fresh")
        assert line.read(5) == b"fresh"


class Board:
    """Be a board at a path that stays the same: it vanishes when its port is opened for the first time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.terminal = Terminal()
        self._plug_in()

    def _plug_in(self) -> None:
        self.path.symlink_to(self.terminal.uri.removeprefix("serial://"))

    def reset(self, seconds: float) -> None:
        self.path.unlink()
        self.terminal.hang_up()
        time.sleep(seconds)
        self.terminal = Terminal()
        self._plug_in()


def test_a_board_that_vanishes_while_it_resets_is_opened_again(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")

    def reset() -> None:
        time.sleep(2 * SILENCE)
        board.reset(4 * SILENCE)

    resetting = in_background(reset)
    with open_transport(f"serial://{board.path}?settle=1", TIMEOUT) as line:
        resetting.join()
        line.write(b"?")
        assert board.terminal.receive(1) == b"?"
    board.terminal.hang_up()


def test_a_port_that_does_not_come_back_is_reported_after_the_time_to_settle(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="does not exist; check the cable and the name"):
        open_transport(f"serial://{tmp_path / 'nothing'}?settle=0.2").open()


def test_a_board_that_resets_is_connected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = serial.Serial.open

    def open_and_count(self: Any) -> None:
        opened.append(self.port)
        original(self)

    monkeypatch.setattr(serial.Serial, "open", open_and_count)
    chip = make_device("matvec", in_features=4, out_features=3)
    with FrameEmulator(chip, "pty") as emulator:
        device = make_device("frame-mvm", port=f"{emulator.uri}?settle=0.1")
        device.open()
        assert len(opened) == 1
        device.close()


def test_a_board_that_was_found_but_not_opened_does_not_block_its_port() -> None:
    chip = make_device("matvec", in_features=4, out_features=3)
    with FrameEmulator(chip, "pty") as emulator:
        first = make_device("frame-mvm", port=f"{emulator.uri}?settle=0.1")
        second = make_device("frame-mvm", port=f"{emulator.uri}?settle=0.1")
        second.open()
        second.close()
        first.open()
        first.close()


# -- ports in use ----------------------------------------------------------------------------------


# pyserial does not close the log of spy://.
LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@LEAKS
@pytest.mark.parametrize("scheme", ["serial://", "spy://"])
def test_a_port_that_this_process_holds_is_reported_as_such(terminal: Terminal, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(terminal.uri.removeprefix("serial://"))
    log = f"?file={tmp_path / 'log'}" if scheme == "spy://" else ""
    with (
        open_transport(terminal.uri, TIMEOUT),
        pytest.raises(NotConnected, match="is in use by another device or session of this process; close that one"),
    ):
        open_transport(f"{scheme}{tmp_path / 'link'}{log}").open()
    with open_transport(terminal.uri):
        pass  # free again


def test_a_refused_connection_names_the_other_one_of_this_process() -> None:
    peer = Socket("tcp://127.0.0.1:{port}")
    with open_transport(peer.uri, TIMEOUT) as line:
        line.write(b"x")
        peer.receive(1)
        peer.refuse()
        with pytest.raises(
            NotConnected, match="another device or session of this process is connected to it, close that"
        ):
            open_transport(peer.uri, 0.5).open()
    peer.hang_up()


# -- URLs of pyserial ------------------------------------------------------------------------------


def test_a_socket_url_exchanges_bytes() -> None:
    peer = Socket("socket://127.0.0.1:{port}")
    with open_transport(peer.uri, TIMEOUT) as line:
        line.write(b"?")
        assert peer.receive(1) == b"?"
        peer.send(b"answer\n")
        assert line.read_until(b"\n", 100) == b"answer\n"
        line.timeout = SILENCE
        with pytest.raises(DeviceTimeout, match=r"sent nothing for 0\.05 s"):
            line.read(1)
        line.timeout = TIMEOUT
        peer.hang_up()
        with pytest.raises(NotConnected, match=r"socket://.* is disconnected: .*; check the other side"):
            line.read(1)
        assert not line.is_open


@LEAKS
def test_a_spy_url_writes_a_log(terminal: Terminal, tmp_path: Path) -> None:
    path = terminal.uri.removeprefix("serial://")
    with open_transport(f"spy://{path}?file={tmp_path / 'log'}&baudrate=9600", TIMEOUT) as line:
        assert isinstance(line, SerialTransport)
        assert line.baudrate == 9600
        line.write(b"hello")
        assert terminal.receive(5) == b"hello"
    assert "hello" in (tmp_path / "log").read_text()


class Rfc2217Server:
    """Serve a port that echoes over RFC 2217."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connection: socket.socket | None = None
        self._listener.settimeout(TIMEOUT)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            self._connection = self._listener.accept()[0]
            self._connection.settimeout(None)
            self._echo(self._connection)

    def _echo(self, connection: socket.socket) -> None:
        port: Any = serial.serial_for_url("loop://", timeout=0)

        class Wire:
            def write(self, data: bytes) -> None:
                connection.sendall(data)

        wire: Any = Wire()
        manager = serial.rfc2217.PortManager(port, wire)
        while data := connection.recv(1024):
            port.write(b"".join(manager.filter(data)))
            connection.sendall(b"".join(manager.escape(port.read(port.in_waiting))))

    def hang_up(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._thread.join()
        self._listener.close()


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")
def test_an_rfc2217_url_exchanges_bytes() -> None:
    server = Rfc2217Server()
    try:
        with open_transport(f"{server.uri}?baudrate=9600&ign_set_control", TIMEOUT) as line:
            line.write(b"answer\n")
            assert line.read_until(b"\n", 100) == b"answer\n"
            line.timeout = SILENCE
            with pytest.raises(DeviceTimeout, match=r"sent nothing for 0\.05 s"):
                line.read(1)
            line.timeout = TIMEOUT
            server.hang_up()
            with pytest.raises(NotConnected, match=r"rfc2217://.* is disconnected: .*; check the other side"):
                line.read(1)
    finally:
        server.hang_up()


@pytest.mark.parametrize(
    "uri",
    ["socket://127.0.0.1:1", "socket://127.0.0.1", "rfc2217://127.0.0.1:1", "hwgrep://no such port", "spy:///dev/no"],
)
def test_a_url_that_leads_nowhere_gets_a_sentence(uri: str) -> None:
    with pytest.raises(NotConnected) as caught:
        open_transport(uri, 0.5).open()
    assert str(caught.value).startswith(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "port"),
    [
        ("hwgrep://USB?serial", "hwgrep://USB?serial"),
        ("hwgrep://USB&n=2?baudrate=9600", "hwgrep://USB&n=2"),
        ("hwgrep://USB.?x?baudrate=9600&timeout=3", "hwgrep://USB.?x"),
        ("rfc2217://host:1?ign_set_control&baudrate=9600", "rfc2217://host:1?ign_set_control"),
        ("socket://host:1?logging=debug&timeout=3", "socket://host:1?logging=debug"),
    ],
)
def test_options_of_pyserial_stay_in_its_url(uri: str, port: str) -> None:
    line = open_transport(uri)
    assert isinstance(line, SerialTransport)
    assert line.port == port


@pytest.mark.parametrize("scheme", ["socket", "rfc2217", "spy", "hwgrep"])
def test_a_missing_pyserial_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(
        DeviceError, match=rf"{scheme}:// addresses need pyserial, which is not .*astralora\[hardware\]"
    ):
        open_transport(f"{scheme}://x:1").open()
