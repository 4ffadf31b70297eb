"""Test the driver of the framed protocol against its server, on real lines."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices as d
from astralora.devices import DeviceError, DeviceTimeout, NotConnected, OutOfRange, ProtocolError, Session
from astralora.drivers.emulator import FrameEmulator
from astralora.drivers.frame_mvm import Encoding, open_frame_mvm
from astralora.drivers.frame_server import FrameServer
from astralora.drivers.frames import encode_frame, find_header, read_payload
from astralora.drivers.messages import PROGRAM, QUERY, STATUS, Command
from astralora.drivers.transports import LoopbackTransport, Transport, open_transport

pytestmark = pytest.mark.processors

N, M = 8, 6


def chip(**options: Any) -> d.Device:
    return d.make_device("slm", in_features=N, out_features=M, **options)


@contextmanager
def served(device: d.Device, address: str = "loop://frames", **options: Any) -> Iterator[str]:
    with FrameEmulator(device, address, **options) as emulator:
        yield emulator.uri


@pytest.fixture
def questions(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(4, N * M).uniform_(0, 6, generator=generator), torch.rand(5, N, generator=generator)


def resent(device: d.Resends) -> torch.Tensor:
    """Return the answer to the newest query, sent again."""
    answer = device.resend()
    assert answer is not None
    return answer


@pytest.mark.parametrize("address", ["loop://frames", "pty", "tcp://127.0.0.1:0"])
@pytest.mark.parametrize("impairments", ["ideal", "lab"])
def test_answers_as_the_device_itself(
    address: str, impairments: str, questions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    settings, inputs = questions
    with served(chip(impairments=impairments), address) as port, d.open_device("frame-mvm", port=port) as session:
        with Session(chip(impairments=impairments)) as here:
            for setting in settings:
                assert torch.equal(session.apply(setting, inputs), here.apply(setting, inputs))
            assert torch.equal(session.query_each(settings, inputs), here.query_each(settings, inputs))
        assert session.spec.model_copy(update={"max_batch": None}) == here.spec


def test_codes_take_a_quarter_of_the_bytes_and_lose_nothing(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    settings, inputs = questions
    moved, answers = [], []
    encodings: tuple[Encoding, ...] = ("float32", "codes")
    for encoding in encodings:
        with served(chip(impairments="lab")) as port:
            device = open_frame_mvm(port, encoding=encoding)
            with Session(device) as session:
                before = device.transport.sent + device.transport.received
                answers.append(session.apply(settings[0], inputs))
                moved.append(device.transport.sent + device.transport.received - before)
    overhead = 2 * 2 * 20 + 8 + 8 + 8  # two exchanges, and what stands before their values
    values = N * M + 5 * N + 5 * M
    assert moved == [4 * values + overhead, values + overhead]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-6)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(DeviceError, match="encoding must be 'float32' or 'codes', not 'text'"):
        d.make_device("frame-mvm", port="loop://nobody", encoding="text")


def test_a_request_sent_again_is_not_carried_out_again(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    settings, inputs = questions
    with served(chip(impairments="lab")) as port:
        device = open_frame_mvm(port)
        device.open()
        device.program(settings[0])
        assert device.resend() is None
        answer = device.query(inputs)
        assert torch.equal(resent(device), answer), "also the noise is the same"
        many = device.query_each(settings, inputs)
        assert torch.equal(resent(device), many)
        status = device.status()
        assert (status.programs, status.vectors) == (1 + 4, 5 + 4 * 5)
        assert torch.equal(resent(device), many), "STATUS is no operation"
        device.close()


# -- request numbers, byte by byte -----------------------------------------------------------------


def asked(line: Transport, command: int, sequence: int, *payload: bytes) -> tuple[int, bytes]:
    """Send one frame, and return the command and the payload of its answer."""
    line.write(*encode_frame(command, sequence, *payload))
    header = find_header(line.read, 4096)
    assert header.sequence == sequence
    return header.command, bytes(read_payload(line.read_into, header))


def programmed_with(values: torch.Tensor) -> bytes:
    return PROGRAM.pack(0, len(values)) + values.numpy().astype("<f4").tobytes()


def counters(line: Transport) -> tuple[int, ...]:
    """Return state, newest number, programs and vectors."""
    return STATUS.unpack(asked(line, Command.STATUS, 1)[1])


def test_a_known_number_with_another_payload_is_a_new_request(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = (programmed_with(setting) for setting in questions[0][:2])
    with served(chip()) as port, open_transport(port, 5.0) as line, Session(chip()) as here:
        for payload, programs in ((first, 1), (first, 1), (second, 2), (second, 2), (first, 3)):
            assert asked(line, Command.PROGRAM, 7, payload) == (0x83, b"")
            assert counters(line) == (1, 7, programs, 0)
        # The chip has the controls of the newest one.
        vectors = questions[1].numpy().astype("<f4").tobytes()
        answer = asked(line, Command.QUERY, 8, QUERY.pack(0, 0, 5), vectors)[1]
        due = here.apply(questions[0][0], questions[1])
        assert torch.equal(torch.from_numpy(np.frombuffer(answer[8:], "<f4").copy()).view(5, M), due)


@pytest.mark.parametrize("changed", ["value", "format", "unused byte"])
def test_every_byte_of_the_payload_counts(changed: str, questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    vectors = questions[1].numpy().astype("<f4").tobytes()
    first = QUERY.pack(0, 0, 5) + vectors
    second = bytearray(first)
    second[{"value": len(first) - 1, "format": 1, "unused byte": 3}[changed]] ^= 1
    with served(chip(impairments="lab")) as port, open_transport(port, 5.0) as line:
        asked(line, Command.PROGRAM, 6, programmed_with(questions[0][0]))
        answer = asked(line, Command.QUERY, 7, first)
        assert asked(line, Command.QUERY, 7, first) == answer
        assert asked(line, Command.QUERY, 7, bytes(second)) != answer, "also the noise is another"


def test_a_program_that_failed_forgets_the_newest_number(
    questions: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = chip()
    payload, other = (programmed_with(setting) for setting in questions[0][:2])
    with served(device) as port, open_transport(port, 5.0) as line:
        asked(line, Command.PROGRAM, 7, payload)
        with monkeypatch.context() as patch:
            patch.setattr(device, "program", lambda _: 1 / 0)
            assert asked(line, Command.PROGRAM, 8, other)[0] == 0xFF
        assert counters(line) == (0, 0, 1, 0)
        # Answered from memory, the host would believe that the chip is programmed.
        assert asked(line, Command.PROGRAM, 7, payload) == (0x83, b"")
        assert counters(line) == (1, 7, 2, 0)


def test_two_hosts_that_count_from_the_same_number_do_not_get_the_answers_of_each_other(
    questions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    settings, inputs = questions
    with served(chip(), "tcp://127.0.0.1:0") as port, Session(chip()) as here:
        one, two = open_frame_mvm(port), open_frame_mvm(port)
        # Both count from the same number, as after a fork.
        vars(two.link)["_sequence"] = vars(one.link)["_sequence"]
        one.open()
        one.program(settings[0])
        one.transport.close()  # without SAFE, as a process that is killed
        two.open()
        two.program(settings[1])
        assert torch.equal(two.query(inputs), here.apply(settings[1], inputs))
        two.close()


def test_after_safe_a_repeated_program_is_carried_out(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip()) as port:
        device = open_frame_mvm(port)
        device.open()
        device.program(questions[0][0])
        device.link.safe()
        device.resend()
        assert device.query(questions[1]).shape == (5, M)
        device.close()


def test_closing_leaves_it_safe(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    good = chip()
    with served(good) as port:
        with d.open_device("frame-mvm", port=port) as session:
            session.apply(questions[0][0], questions[1])
        with pytest.raises(NotConnected, match="is closed"):
            good.query(questions[1])


@pytest.mark.parametrize(
    ("act", "kind", "complaint"),
    [
        (lambda device: device.query(torch.zeros(1, N)), NotConnected, "no controls are set"),
        (lambda device: device.program(torch.full((N * M,), 99.0)), OutOfRange, "must stay within 0 to 6.28319 rad"),
        (
            lambda device: device.program(torch.zeros(3)),
            OutOfRange,
            "3 controls arrived; 1 settings have 48 controls each",
        ),
        (lambda device: device.link.exchange(99, longest=0), ProtocolError, "there is no command 99"),
        (lambda device: device.link.exchange(Command.QUERY, b"abc", longest=0), ProtocolError, "is too short"),
    ],
)
def test_an_error_of_the_device_is_raised_on_the_host(
    act: Callable[[Any], Any], kind: type[DeviceError], complaint: str
) -> None:
    with served(chip()) as port:
        device = open_frame_mvm(port)
        device.open()
        with pytest.raises(kind, match=complaint):
            act(device)
        device.program(torch.zeros(N * M))
        device.close()


def test_an_empty_batch_has_an_empty_answer() -> None:
    with served(chip()) as port:
        device = open_frame_mvm(port)
        device.open()
        device.program(torch.zeros(N * M))
        assert device.query(torch.zeros(0, N)).shape == (0, M)
        device.close()


def test_another_unit_at_the_same_port_is_refused(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip(seed=1)) as port:
        device = open_frame_mvm(port)
    with served(chip(seed=2)), pytest.raises(DeviceError, match="make a new device for the new chip"):
        device.open()
    with served(chip(seed=1)):
        device.open()
        device.close()


def test_a_second_host_gets_a_one_sentence_error(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    with served(chip(), "tcp://127.0.0.1:0") as port, d.open_device("frame-mvm", port=port) as session:
        session.apply(questions[0][0], questions[1])
        with pytest.raises(NotConnected, match=r"is in use by another host; close it there|has closed the connection"):
            open_frame_mvm(port, timeout=0.5)
        session.query(questions[1])


# -- the other end misbehaves ----------------------------------------------------------------------


@contextmanager
def answering(answer: Callable[[int, int], bytes]) -> Iterator[str]:
    """Answer each request with the bytes that ``answer`` returns for its command and number."""
    stop = threading.Event()

    def serve(line: Transport) -> None:
        line.timeout = 0.02
        while not stop.is_set():
            try:
                header = find_header(line.read, 10_000)
                line.read(header.length + 4)
                line.write(answer(header.command, header.sequence))
            except DeviceTimeout:
                continue
            except NotConnected:
                return

    def accept(line: LoopbackTransport) -> None:
        threading.Thread(target=serve, args=(line,), daemon=True).start()

    LoopbackTransport.listen("liar", accept)
    yield "loop://liar"
    stop.set()
    LoopbackTransport.forget("liar")


def frame(*parts: Any, **options: Any) -> bytes:
    return b"".join(encode_frame(*parts, **options))


SPEC = d.DeviceSpec(name="liar", in_features=2, out_features=2, num_controls=4).model_dump_json().encode()


@pytest.mark.parametrize(
    ("answer", "kind", "complaint"),
    [
        (lambda c, s: b"", DeviceTimeout, "sent nothing for"),
        (lambda c, s: b"hello world, this is no frame", DeviceTimeout, "the bytes that arrived are not a frame"),
        (lambda c, s: frame(c | 0x80, s, b"x" * 20, version=2), ProtocolError, "uses version 2 of the protocol"),
        (
            lambda c, s: frame(0x83, s, b"x" * 20),
            ProtocolError,
            "the answer belongs to command 3, but command 1 was sent",
        ),
        (lambda c, s: frame(c | 0x80, s, b"x"), ProtocolError, "the identity has 1 bytes"),
        (
            lambda c, s: frame(c | 0x80, s - 1, b"x" * 20) * 200,
            ProtocolError,
            "too many answers to other requests arrived",
        ),
        (
            lambda c, s: frame(c | 0x80, s, bytes(8) + b"a,b,c,d" if c == 1 else b'{"name": "x"}'),
            ProtocolError,
            "the spec that the device sent is not valid: in_features: Field required",
        ),
        (
            lambda c, s: frame(c | 0x80, s, bytes([8, 0, 0, 0, 0, 0, 0, 0]) + b"a,b,c,d" if c == 1 else SPEC),
            DeviceError,
            "accepts frames of at most 8 bytes, too few for its own controls and vectors",
        ),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused(
    answer: Callable[[int, int], bytes], kind: type[DeviceError], complaint: str
) -> None:
    with answering(answer) as port, pytest.raises(kind, match=complaint):
        open_frame_mvm(port, timeout=0.1)


def test_a_late_answer_is_dropped(questions: tuple[torch.Tensor, torch.Tensor], caplog: Any) -> None:
    with served(chip(), "tcp://127.0.0.1:0") as port:
        device = open_frame_mvm(port)
        device.open()
        device.program(questions[0][0])
        expected = device.query(questions[1])
        # A request whose answer nobody waits for, as after a timeout.
        newest = device.link.newest
        assert newest is not None
        device.transport.write(*newest.frame)
        with caplog.at_level(logging.DEBUG, "astralora.drivers.frame_link"):
            assert torch.equal(device.query(questions[1]), expected)
        assert "dropped a late answer" in caplog.text
        device.close()


# -- sizes -----------------------------------------------------------------------------------------


@contextmanager
def small_frames(device: d.Device, limit: int) -> Iterator[str]:
    """Serve a device that accepts frames of a limited length."""
    server, stop = FrameServer(device, max_payload=limit), threading.Event()

    def serve(line: Transport) -> None:
        line.timeout = 0.02
        with line:
            try:
                server.serve(line, stop)
            except NotConnected:
                return

    def accept(line: LoopbackTransport) -> None:
        threading.Thread(target=serve, args=(line,), daemon=True).start()

    LoopbackTransport.listen("small", accept)
    yield "loop://small"
    stop.set()
    LoopbackTransport.forget("small")


def test_batches_are_split_to_fit_a_frame(generator: torch.Generator) -> None:
    inputs = torch.rand(200, N, generator=generator)
    controls = torch.empty(N * M).uniform_(0, 6, generator=generator)
    with small_frames(chip(), 1024) as port, d.open_device("frame-mvm", port=port) as session, Session(chip()) as here:
        assert session.spec.max_batch is not None
        assert session.spec.max_batch < 32
        torch.testing.assert_close(session.apply(controls, inputs), here.apply(controls, inputs))
        assert session.usage.queries > 6


def test_many_settings_are_split_into_frames(questions: tuple[torch.Tensor, torch.Tensor]) -> None:
    settings, inputs = questions
    with small_frames(chip(), 700) as port, Session(chip()) as here:
        device = open_frame_mvm(port)
        device.open()
        torch.testing.assert_close(device.query_each(settings, inputs[:2]), here.query_each(settings, inputs[:2]))
        assert device.status().programs == 4
        device.close()


@pytest.mark.parametrize(("settings", "batch"), [(0, 3), (2, 0)])
def test_an_empty_request_costs_nothing(settings: int, batch: int) -> None:
    with served(chip()) as port:
        device = open_frame_mvm(port)
        device.open()
        answer = device.query_each(torch.zeros(settings, N * M), torch.zeros(batch, N))
        assert answer.shape == (settings, batch, M)
        assert device.status().programs == 0
        device.close()


def test_a_fault_between_two_of_those_frames_is_repaired(
    questions: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, inputs = questions
    with small_frames(chip(), 700) as port, Session(chip()) as here:
        device = open_frame_mvm(port)
        with Session(device) as session:
            write, calls = device.transport.write, []

            def lose_one(*parts: Any) -> None:
                calls.append(parts)
                if len(calls) == 2:
                    raise DeviceTimeout("lost")
                write(*parts)

            monkeypatch.setattr(device.transport, "write", lose_one)
            torch.testing.assert_close(session.query_each(settings, inputs[:2]), here.query_each(settings, inputs[:2]))
            assert session.usage.retries == 1
            assert device.status().programs == 4, "none twice"


def test_too_long_a_request_is_refused_unread() -> None:
    with small_frames(chip(), 256) as port, open_transport(port, 0.5) as line:
        line.write(frame(Command.QUERY, 5, bytes(1000)))
        header = find_header(line.read, 4096)
        assert (header.command, header.sequence) == (0xFF, 5)
        assert b"a payload of 1000 bytes is too long; this device accepts at most 256" in line.read(header.length)
        line.flush()
        line.write(bytes(64))
        line.write(frame(Command.STATUS, 6))
        assert find_header(line.read, 4096).sequence == 6
