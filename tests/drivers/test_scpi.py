"""Test SCPI from both ends: the driver, and the instrument at a plain terminal."""

import itertools
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
from astralora.drivers.scpi import ERRORS, PATTERN, block_head, error_number, error_of, find_byte_order, matches
from astralora.drivers.scpi_link import ScpiLink
from astralora.drivers.scpi_mvm import open_scpi_mvm
from astralora.drivers.scpi_server import Message, ScpiServer
from astralora.drivers.transports import LoopbackTransport, Transport, open_transport
from astralora.drivers.transports.base import Bytes
from astralora.drivers.values import ByteOrder

N, M = 8, 6


def chip(**options: Any) -> d.Device:
    return d.make_device("slm", in_features=N, out_features=M, **options)


@contextmanager
def served(device: d.Device, address: str = "tcp://127.0.0.1:0", **options: Any) -> Iterator[str]:
    with ScpiEmulator(device, address, **options) as emulator:
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


def asked(line: Transport, message: bytes) -> bytes:
    """Return the whole response to a message; a block may contain line feeds."""
    line.write(message, b"*OPC?\n")
    answer = bytearray()
    while not answer.endswith(b"\n1\n"):
        answer += line.read(1)
    return bytes(answer.removesuffix(b"1\n"))


@contextmanager
def serving(server: ScpiServer) -> Iterator[str]:
    """Serve an instrument that has its own server."""
    stop = threading.Event()

    def serve(line: Transport) -> None:
        line.timeout = 0.05
        with line, suppress(NotConnected):
            server.serve(line, stop)

    LoopbackTransport.listen("other", lambda line: threading.Thread(target=serve, args=(line,), daemon=True).start())
    try:
        yield "loop://other"
    finally:
        stop.set()
        LoopbackTransport.forget("other")


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


# -- request numbers -------------------------------------------------------------------------------


def test_a_known_number_with_another_block_is_a_new_request(
    terminal: Transport, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    first, second = (block(setting.numpy()) for setting in questions[0][:2])
    vectors, others = block(questions[1].numpy()), block(questions[1].numpy()[::-1])
    due = {}
    for number, controls in enumerate((first, second), 1):
        asked(terminal, b"PROG:DATA %d," % number + controls + b";:PROG:DATA?;:SYST:ERR?\n")
        due[controls] = asked(terminal, b"QUER:DATA? 50," + vectors + b"\n")
    assert due[first] != due[second], "the program deletes the answers under other controls"
    for controls in (first, second, second, first):
        assert asked(terminal, b"PROG:DATA 7," + controls + b";:PROG:DATA?;:SYST:ERR?\n") == b'7;0,"No error"\n'
        assert asked(terminal, b"QUER:DATA? 50," + vectors + b"\n") == due[controls]
        assert asked(terminal, b"QUER:DATA? 50," + others + b"\n") != due[controls]


def test_a_program_that_failed_forgets_the_numbers(
    questions: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = chip()
    first, second = (block(setting.numpy()) for setting in questions[0][:2])
    with served(device) as port, open_transport(port, 5.0) as line:
        asked(line, b"PROG:DATA 7," + first + b";:PROG:DATA?\n")
        with monkeypatch.context() as patch:
            patch.setattr(device, "program", lambda _: 1 / 0)
            assert asked(line, b"PROG:DATA 8," + second + b";:PROG:DATA?;:SYST:ERR?\n").startswith(b"0;-300,")
        assert asked(line, b"PROG:DATA 7," + first + b";:PROG:DATA?\n") == b"7\n"
        assert asked(line, b"QUER:DATA? 9," + block(questions[1].numpy()) + b"\n").startswith(b"9,#3")


# -- byte order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_driver_uses_the_byte_order_of_the_instrument(
    order: ByteOrder, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with (
        served(chip(impairments="lab"), byte_order=order) as port,
        d.open_device("scpi-mvm", port=port) as session,
        Session(chip(impairments="lab")) as here,
    ):
        for setting in questions[0]:
            assert torch.equal(session.apply(setting, questions[1]), here.apply(setting, questions[1]))


def test_the_pattern_is_as_on_the_page(terminal: Transport) -> None:
    assert asked(terminal, b"syst:pattern?\n") == b"#18" + bytes.fromhex("51069E3FB7E6C0C7") + b"\n"
    with served(chip(), byte_order="big") as port, open_transport(port, 5.0) as line:
        assert asked(line, b"SYST:PATT?\n") == b"#18" + bytes.fromhex("3F9E0651C7C0E6B7") + b"\n"
    assert len(set(np.array(PATTERN, "<f4").tobytes())) == 8


@pytest.mark.parametrize("numbers", list(itertools.permutations(range(4))))
def test_only_two_byte_orders_are_accepted(numbers: tuple[int, ...]) -> None:
    data = np.array(PATTERN, "<f4").tobytes()
    sent = bytes(data[word + number] for word in (0, 4) for number in numbers)
    if numbers == (0, 1, 2, 3):
        assert find_byte_order(sent) == "little"
    elif numbers == (3, 2, 1, 0):
        assert find_byte_order(sent) == "big"
    else:
        with pytest.raises(DeviceError, match=r"but the instrument sent [0-9a-f ]+, in another order"):
            find_byte_order(sent)


@pytest.mark.parametrize("sent", [b"", b"\x3f\x9e\x06\x51", bytes(8), np.array(PATTERN[::-1], "<f4").tobytes()])
def test_other_patterns_are_refused(sent: bytes) -> None:
    with pytest.raises(DeviceError, match=r"the answer to SYST:PATT\? must be"):
        find_byte_order(sent)


def test_the_order_is_checked_at_every_opening(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip()) as port:
        device = open_scpi_mvm(port)
        with Session(device) as session, Session(chip()) as here:
            due = here.apply(questions[0][0], questions[1])
            assert torch.equal(session.apply(questions[0][0], questions[1]), due)
    # Its firmware was updated, and it came back at another port.
    with served(chip(), byte_order="big") as port:
        device.transport = vars(device.link)["_transport"] = open_transport(port)
        with Session(device) as session:
            assert torch.equal(session.apply(questions[0][0], questions[1]), due)


class WithoutPattern(ScpiServer):
    """Serve an instrument without SYSTem:PATTern? and SYSTem:WATChdog."""

    missing = "SYSTem:PATTern?", "SYSTem:WATChdog", "SYSTem:WATChdog?"
    silent = False

    def handle(self, message: Message) -> list[Bytes]:
        if self.silent and any("PATT" in command.header for command in message.commands):
            return []
        commands = vars(self)["_commands"]
        for header in self.missing:
            commands.pop(header, None)
        return super().handle(message)


class Silent(WithoutPattern):
    """Serve an instrument that drops a message with an unknown header."""

    silent = True


@pytest.mark.parametrize("server", [WithoutPattern, Silent])
def test_without_a_pattern_the_option_names_the_order(
    server: type[ScpiServer], questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with serving(server(chip())) as port:
        device = open_scpi_mvm(port, timeout=0.3)
        with pytest.raises(DeviceError, match=r'the option byte_order="little" or byte_order="big" of scpi-mvm') as no:
            device.open()
        assert "\n" not in str(no.value)
    with (
        serving(server(chip(), byte_order="big")) as port,
        d.open_device("scpi-mvm", port=port, timeout=0.3, byte_order="big") as session,
        Session(chip()) as here,
    ):
        due = here.apply(questions[0][0], questions[1])
        assert torch.equal(session.apply(questions[0][0], questions[1]), due)


@pytest.mark.parametrize("order", ["BIG", "", None, 1, ["big"]])
def test_an_unknown_byte_order_is_refused(order: Any) -> None:
    with pytest.raises(DeviceError, match="byte_order must be 'auto', 'little' or 'big', not"):
        d.make_device("scpi-mvm", port="loop://nobody", byte_order=order)


# -- the rest of an interrupted response ------------------------------------------------------------


class Canned(Transport):
    """Deliver prepared bytes, and then silence."""

    def __init__(self, data: bytes) -> None:
        super().__init__("canned://", timeout=0.001)
        self.data = data
        self.open()

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _send(self, parts: tuple[Bytes, ...]) -> None: ...

    def _receive(self, view: memoryview, seconds: float) -> int:
        count = min(len(view), len(self.data))
        view[:count], self.data = self.data[:count], self.data[count:]
        return count


WHOLE = b'7;0,"No error"\n', b'7,#18\x00\x00\x80?\n;,#;0,"No error"\n', b'-222,"Data out of range;too high"\n'


def outcome(data: bytes) -> tuple[int, bytes] | DeviceError:
    """Return what the driver reads from these bytes as the response to request 8."""
    try:
        number, found = ScpiLink(Canned(data)).response(8, 4, 0.0)
    except DeviceError as error:
        return error
    return number, bytes(found or b"")


@pytest.mark.parametrize("response", WHOLE)
def test_the_rest_of_a_response_never_becomes_an_answer(response: bytes) -> None:
    for start in range(1, len(response)):
        found = outcome(response[start:] + b'8,#14abcd;0,"No error"\n')
        if isinstance(found, DeviceError):
            assert "error 0" not in found.message
        else:
            assert found == (8, b"abcd"), f"from byte {start}"


@pytest.mark.parametrize(
    ("before", "accepted"),
    [
        (b'0,"No error"\n', True),
        (b'+0,"No error"\n0,"No error"\n', True),
        (b'6;0,"No error"\n', True),
        (b"1\n", True),
        (b'0,"No error";1;0,"No error"\n', False),
        (b"8\n", True),
        (b"8;0,\n", False),
        (b"8;0\n", False),
        (b'8,#14abcd,0,"No error"\n', False),
        (b"8,#14abcd\n", False),
        (b'8,#14abcd;0,"No error\n', False),
        (b'8,#14abcd;,"No error"\n', False),
        (b'1_0;0,"No error"\n', False),
    ],
)
def test_only_a_whole_response_is_an_answer(before: bytes, accepted: bool) -> None:
    found = outcome(before + b'8,#14wxyz;0,"No error"\n')
    if accepted:
        assert found == (8, b"wxyz")
    else:
        assert isinstance(found, (ProtocolError, d.DeviceTimeout))


def test_an_echo_is_named() -> None:
    with pytest.raises(ProtocolError, match=r"the line echoes what is sent to loop://; switch the echo"):
        open_scpi_mvm("loop://")


def test_no_error_is_never_raised_as_an_error() -> None:
    error = error_of(0, "No error")
    assert type(error) is ProtocolError
    assert "SCPI error" not in error.message


@pytest.mark.parametrize("read", [0, 1, 2, 5, 40, 128, 130, 140])
def test_an_interrupted_exchange_leaves_nothing_behind(
    read: int, questions: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Press Ctrl-C after some bytes of a response; the next answers are right, and no error is left."""
    settings, inputs = questions
    with served(chip()) as port, Session(chip()) as here:
        device = open_scpi_mvm(port)
        device.open()
        device.program(settings[0])
        receive, left = device.transport._receive, read  # noqa: SLF001 - only a test interrupts in the middle

        def interrupt(view: memoryview, seconds: float) -> int:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            count = receive(view[:left], seconds)
            left -= count
            return count

        for step in ("program", "query"):
            left = read
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(device.transport, "_receive", interrupt)
                if step == "program":
                    device.program(settings[1])
                else:
                    device.query(inputs)
            if step == "program":
                device.program(settings[1])
            assert torch.equal(device.query(inputs), here.apply(settings[1], inputs))
        device.close()


@pytest.mark.parametrize("clean", ["flush", "start"])
def test_flush_and_start_leave_line_and_error_queue_clean(clean: str) -> None:
    with served(chip()) as port:
        device = open_scpi_mvm(port)
        device.open()
        line = device.transport
        for rest in (b"NONSENSE\nSYST:ERR?;*OPC?\n", b"*OPC?\n" * 5, b"PROG:DATA 5,#3", b"A" * 300, b"SYST:SPEC?\n"):
            line.write(b"NONSENSE\n", rest)
            device.flush() if clean == "flush" else device.link.start()
            assert ask(line, b"SYST:ERR?\n") == '0,"No error"'
            assert ask(line, b"*OPC?\n") == "1"
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

    with serving(Liar(chip())) as port:
        yield port


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
