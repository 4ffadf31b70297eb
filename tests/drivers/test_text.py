"""Test lines of text: their words, their answers, and what happens after a message was cut off."""

from __future__ import annotations

import numpy as np
import pytest

from astralora.devices import DeviceTimeout, NotConnected, ProtocolError
from astralora.drivers.text import TextLine
from astralora.drivers.text_server import TextServer
from astralora.drivers.transports import open_transport

from .peers import SILENCE, TIMEOUT, Terminal, in_background

ADDRESS = "loop://text"


def asked(*words: object, answer: str = "OK", **options: str) -> tuple[list[str], TextLine]:
    """Ask once, and return the lines that arrived."""
    arrived: list[str] = []

    def reply(line: str) -> str:
        arrived.append(line)
        return answer

    with TextServer(reply, ADDRESS) as server, open_transport(server.uri, TIMEOUT) as transport:
        line = TextLine(transport, **options)
        assert line.ask(*words) == answer
    return arrived, line


@pytest.mark.parametrize(
    ("words", "options", "line"),
    [
        (("S",), {}, "S"),
        (("V", np.array([0.1, 2.5], np.float32)), {}, "V 0.1 2.5"),
        (("V", np.array([1 / 3])), {}, "V 0.3333333333333333"),
        (("SET", 3, [1.5, 2]), {}, "SET 3 1.5 2"),
        (("V", [1.5, 2]), {"separator": ","}, "V,1.5,2"),
        (("V",), {"end": "\r\n"}, "V"),
    ],
)
def test_words_and_numbers_are_joined_to_a_line(words: tuple[object, ...], options: dict[str, str], line: str) -> None:
    assert asked(*words, **options)[0] == [line]


@pytest.mark.parametrize("word", ["X\nS", "X\rS", "\n", "\u03a9"])
def test_a_request_that_is_not_one_line_is_refused_before_it_is_sent(word: str) -> None:
    with open_transport("loop://", TIMEOUT) as transport:
        with pytest.raises(ValueError, match="a request must be one line of ASCII characters"):
            TextLine(transport).ask(word)
        assert transport.sent == 0


def answering(data: bytes) -> tuple[Terminal, TextLine]:
    """Return a terminal that answers any line with these bytes, and the line to it."""
    terminal = Terminal()
    transport = open_transport(terminal.uri, TIMEOUT)
    transport.open()

    def answer() -> None:
        terminal.receive(2)
        terminal.send(data)

    in_background(answer)
    return terminal, TextLine(transport)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff1 2\n", r"the answer to 'X' is no text: b'\\xff1 2"),
        (b"1\n", r"the answer to 'X' is '1'; it must be 2 numbers"),
        (b"1 2 3\n", r"is '1 2 3'; it must be 2 numbers"),
        (b"1,2\n", r"is '1,2'; it must be 2 numbers"),
        (b"1 volt\n", r"is '1 volt'; it must be 2 numbers"),
        (b"1_0 2\n", r"is '1_0 2'; it must be 2 numbers"),
        (b"\n", r"is ''; it must be 2 numbers"),
        (b"X\n", r"the line echoes what is sent to serial://"),
    ],
)
def test_an_answer_that_is_not_numbers_is_refused(data: bytes, complaint: str) -> None:
    terminal, line = answering(data)
    with pytest.raises(ProtocolError, match=complaint):
        line.numbers("X", count=2)
    terminal.hang_up()


@pytest.mark.parametrize("data", [b"1.5 -2e-3\n", b"  1.5\t-2e-3 \r\n"])
def test_the_numbers_of_an_answer_are_returned(data: bytes) -> None:
    terminal, line = answering(data)
    assert line.numbers("X", count=2) == [1.5, -2e-3]
    terminal.hang_up()


def test_a_command_without_its_acknowledgement_is_refused() -> None:
    terminal, line = answering(b"BUSY\n")
    with pytest.raises(ProtocolError, match=r"the answer to 'S' is 'BUSY'; it must be 'OK'"):
        line.command("S")
    terminal.hang_up()


def test_a_part_of_a_line_that_the_instrument_holds_is_ended_before_the_next_request() -> None:
    terminal = Terminal()
    transport = open_transport(terminal.uri, SILENCE)
    line = TextLine(transport)
    transport.open()
    with pytest.raises(DeviceTimeout):
        line.ask("X" * (1 << 20))
    with pytest.raises(NotConnected, match="was cut off; close and open the line"):
        line.ask("S")
    transport.close()
    transport.timeout = 0.5
    transport.open()
    heard: list[bytes] = []

    def listen() -> None:
        while not heard or heard[-1] != b"S":
            heard.append(terminal.receive(1))
        terminal.receive(1)
        terminal.send(b"OK\n")

    listening = in_background(listen)
    line.command("S")
    listening.join()
    assert b"".join(heard).strip(b"X") == b"\nS"
    terminal.hang_up()


def test_a_server_survives_an_answer_that_raises() -> None:
    def reply(line: str) -> str:
        return str(1 / float(line))

    with TextServer(reply, ADDRESS) as server, open_transport(server.uri, TIMEOUT) as transport:
        line = TextLine(transport)
        assert line.ask("0") == "ERR ZeroDivisionError"
        assert line.ask("2") == "0.5"
