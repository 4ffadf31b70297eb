"""Test SCPI from both ends: the driver, and the instrument at a plain terminal."""

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices as d
from astralora.devices import DeviceError, NotConnected, OutOfRange, ProtocolError, Session
from astralora.drivers.emulator import ScpiEmulator
from astralora.drivers.scpi import ERRORS, block_head, error_number, error_of, matches
from astralora.drivers.scpi_mvm import open_scpi_mvm
from astralora.drivers.scpi_server import Message, ScpiServer
from astralora.drivers.transports import LoopbackTransport, Transport, open_transport
from astralora.drivers.transports.base import Bytes

N, M = 8, 6


def chip(**options: Any) -> d.Device:
    return d.make_device("slm", in_features=N, out_features=M, **options)


@contextmanager
def served(device: d.Device, address: str = "tcp://127.0.0.1:0") -> Iterator[str]:
    with ScpiEmulator(device, address) as emulator:
        yield emulator.uri


@pytest.fixture
def questions(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(3, N * M).uniform_(0, 6, generator=generator), torch.rand(5, N, generator=generator)


@pytest.fixture
def terminal() -> Iterator[Transport]:
    with served(chip()) as port, open_transport(port, 5.0) as line:
        yield line


def ask(line: Transport, message: bytes) -> str:
    line.write(message)
    return line.read_until(b"\n", 10_000).decode().rstrip("\n")


def block(values: Any) -> bytes:
    data = np.asarray(values, "<f4").tobytes()
    return block_head(len(data)) + data


# -- the driver ------------------------------------------------------------------------------------


@pytest.mark.processors
@pytest.mark.parametrize("line", ["tcp", "visa", "pty", "loop"])
@pytest.mark.parametrize("impairments", ["ideal", "lab"])
def test_answers_as_the_device_itself(
    line: str, impairments: str, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    address = {"pty": "pty", "loop": "loop://scpi"}.get(line, "tcp://127.0.0.1:0")
    with served(chip(impairments=impairments), address) as port, Session(chip(impairments=impairments)) as here:
        if line == "visa":
            port = f"visa://TCPIP::127.0.0.1::{port.rsplit(':', 1)[1]}::SOCKET?backend=@py"
        with d.open_device("scpi-mvm", port=port) as session:
            for setting in questions[0]:
                assert torch.equal(session.apply(setting, questions[1]), here.apply(setting, questions[1]))
            assert session.spec.model_copy(update={"max_batch": None}) == here.spec


def test_a_request_sent_again_is_not_carried_out_again(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip(impairments="lab")) as port:
        device = open_scpi_mvm(port)
        device.open()
        device.program(questions[0][0])
        assert device.resend() is None
        answer = device.query(questions[1])
        resent = device.resend()
        assert resent is not None
        assert torch.equal(resent, answer), "also the noise is the same"
        device.close()


def test_a_late_answer_is_dropped(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip()) as port:
        device = open_scpi_mvm(port)
        device.open()
        device.program(questions[0][0])
        due = [device.query(questions[1][:3]), device.query(questions[1])]
        for _ in range(2):
            # A request whose answer nobody waits for, as after a timeout; its block may hold anything.
            device.transport.write(b"QUER:DATA? 5,", block(questions[1][:3]), b";:SYST:ERR?\n")
            assert torch.equal(device.query(questions[1]), due[1])
        device.close()


def test_closing_leaves_it_safe(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    good = chip()
    with served(good) as port:
        with d.open_device("scpi-mvm", port=port) as session:
            session.apply(questions[0][0], questions[1])
        with pytest.raises(NotConnected, match="is closed"):
            good.query(questions[1])


def test_an_error_of_the_instrument_is_raised_on_the_host() -> None:
    with served(chip()) as port:
        device = open_scpi_mvm(port)
        device.open()
        with pytest.raises(NotConnected, match=r"no controls are set"):
            device.query(torch.zeros(1, N))
        with pytest.raises(OutOfRange, match=r"must stay within 0 to 6.28319 rad \(SCPI error -222\)"):
            device.program(torch.full((N * M,), 99.0))
        device.program(torch.zeros(N * M))
        assert device.query(torch.zeros(1, N)).shape == (1, M)
        device.close()


def test_another_unit_at_the_same_port_is_refused() -> None:
    with served(chip(seed=1), "loop://scpi") as port:
        device = open_scpi_mvm(port)
    with served(chip(seed=2), "loop://scpi"), pytest.raises(DeviceError, match="make a new device for the new chip"):
        device.open()


def test_late_answers_do_not_disturb_opening_and_closing(
    questions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    late = b"QUER:DATA? 5," + block(questions[1]) + b";:SYST:ERR?\nPROG:DATA?;:SYST:ERR?\n*OPC?\n"
    with served(chip()) as port:
        device = open_scpi_mvm(port)
        device.open()
        device.program(questions[0][0])
        device.transport.write(late)
        assert device.link.identify() == device.identity
        device.transport.write(late.removesuffix(b"*OPC?\n"))
        device.close()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Serve an instrument that answers every query with its number and these bytes."""

    class Liar(ScpiServer):
        def handle(self, message: Message) -> list[Bytes]:
            first = message.commands[0]
            if first.header == "QUER:DATA?":
                return [str(first.parameters[0]).encode() + answer]
            return super().handle(message)

    server, stop = Liar(chip()), threading.Event()

    def serve(line: Transport) -> None:
        with line, suppress(NotConnected):
            server.serve(line, stop)

    LoopbackTransport.listen("liar", lambda line: threading.Thread(target=serve, args=(line,), daemon=True).start())
    yield "loop://liar"
    stop.set()
    LoopbackTransport.forget("liar")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b",#9999999999", "a block of 999999999 bytes; it must have at most 120"),
        (b",#0\n", "a block begins with b'0'; it must begin with a digit"),
        (b",#2xx", "begins with b'xx'; it must begin with its length in digits"),
        (b",17\n", "b'1' instead of a block"),
        (b',#14abcd;0,"No error"\n', "the answer has 4 bytes; it must have 120"),
        (b"x" * 3000, "the instrument sent 1025 bytes without an end"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused_unread(answer: bytes, complaint: str) -> None:
    with answering(answer) as port:
        device = open_scpi_mvm(port, timeout=0.1)
        with Session(device, retry=d.Retry(attempts=1)) as session:
            session.program(torch.zeros(N * M))
            tracemalloc.start()
            with pytest.raises(ProtocolError, match=complaint):
                session.query(torch.zeros(5, N))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            device.flush()
    assert peak < 100_000


def test_a_second_host_gets_a_one_sentence_error(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip()) as port, d.open_device("scpi-mvm", port=port) as session:
        session.apply(questions[0][0], questions[1])
        with pytest.raises(
            NotConnected, match=r"has closed the connection.*; check the instrument, and whether another program uses"
        ):
            open_scpi_mvm(port, timeout=0.5)
        session.query(questions[1])


class Named(d.HardwareDevice):
    """Drive a device whose name has commas and line ends."""

    def __init__(self) -> None:
        super().__init__(d.DeviceSpec(name="MVM, 2 x 2;\nrev B", in_features=2, out_features=2, num_controls=4))

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _program(self, controls: Any) -> None: ...

    def _query(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize("protocol", ["frames", "scpi"])
def test_a_name_may_have_commas_and_lines(protocol: str) -> None:
    emulator = d.make_emulator(protocol, Named(), "loop://named").start()
    with d.open_device(emulator.driver, port=emulator.uri, timeout=0.5) as session:
        assert session.spec.name == Named().spec.name
    emulator.stop()


# -- the instrument --------------------------------------------------------------------------------


def test_the_instrument_identifies_itself(terminal: Transport) -> None:
    maker, model, number, firmware = ask(terminal, b"*IDN?\n").split(",")
    assert (maker, model, number, firmware) == ("astralora", "slm", chip().spec.serial_number, "1.0")


@pytest.mark.parametrize("header", ["SYST:ERR?", "syst:err?", "SYSTem:ERRor?", ":SYSTEM:ERR?", " SYST:ERROR? "])
def test_headers_may_be_short_or_long_in_any_case(terminal: Transport, header: str) -> None:
    assert ask(terminal, header.encode() + b"\n") == '0,"No error"'


def test_errors_wait_in_a_queue(terminal: Transport) -> None:
    terminal.write(b"NONSENSE\n")
    terminal.write(b"PROG:DATA 1,2\n")
    assert ask(terminal, b"SYST:ERR?\n").startswith('-310,"System error;there is no command NONSENSE')
    assert "write a number, a comma, and a block" in ask(terminal, b"SYST:ERR?\n")
    assert ask(terminal, b"SYST:ERR?\n") == '0,"No error"'
    terminal.write(b"NONSENSE\n*CLS\n")
    assert ask(terminal, b"SYST:ERR?\n") == '0,"No error"'


def test_a_block_may_hold_anything(terminal: Transport) -> None:
    # The bytes of this number are those of a line feed, a semicolon, a comma and a hash sign.
    tricky = np.frombuffer(b"\n;,#" * (N * M), "<f4")
    terminal.write(b"PROG:DATA 7,", block(tricky), b";:PROG:DATA?\n")
    assert terminal.read_until(b"\n", 100) == b"7\n"
    assert ask(terminal, b"SYST:ERR?\n") == '0,"No error"'


@pytest.mark.parametrize("request_", [b"PROG:DATA 0,", b"QUER:DATA? 0,"])
def test_0_is_the_number_of_no_request(terminal: Transport, request_: bytes) -> None:
    count = N * M if request_.startswith(b"PROG") else N
    terminal.write(request_, block([0.0] * count), b"\n")
    assert "numbers begin at 1" in ask(terminal, b"SYST:ERR?\n")


def test_a_message_answers_all_its_queries(terminal: Transport) -> None:
    assert ask(terminal, b"*OPC?;:SYST:ERR?;*OPC?\n") == '1;0,"No error";1'


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"PROG:DATA 1,#9999999999\n", "a block of 999999999 bytes is too long; at most 16777216 are accepted"),
        (b"PROG:DATA 1,#0abc\n", "only blocks of definite length are accepted"),
        (b"PROG:DATA 1,#2xx\n", "begins with b'xx'; it must begin with its length in digits"),
        (b"A" * 5000 + b"\n", "a message may have at most 1024 bytes without its blocks"),
    ],
)
def test_hostile_messages_are_refused_unread(terminal: Transport, message: bytes, complaint: str) -> None:
    terminal.write(message)
    errors = ""
    for _ in range(20):
        terminal.write(b"\n")
        newest = ask(terminal, b"SYST:ERR?\n")
        errors += newest
        if newest.endswith('0,"No error"'):
            break
    assert complaint.replace("'", "'") in errors
    assert ask(terminal, b"*OPC?\n") == "1"


def test_headers_match_short_and_long_forms_only() -> None:
    assert matches("PROG:DATA", "PROGram:DATA")
    assert matches("program:data", "PROGram:DATA")
    for wrong in ("PROGR:DATA", "PRO:DATA", "PROG:DAT", "PROG", "PROG:DATA:X", "PROG:DATA?"):
        assert not matches(wrong, "PROGram:DATA")


def test_errors_keep_their_type_across_the_wire() -> None:
    for kind in (DeviceError, OutOfRange, NotConnected, d.DeviceTimeout, ProtocolError, d.CalibrationMismatch):
        number, text = error_number(kind('too "hot"\n: 80'))
        assert type(error_of(number, text)) is kind
        assert '"' not in text
        assert "\n" not in text
        assert number in ERRORS
