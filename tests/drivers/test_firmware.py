"""Test the reference firmware: compiled here, and driven over a pseudo-terminal by the driver for real chips."""

import os
import shutil
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import astralora.devices as d
from astralora.devices.testing import check_device
from astralora.drivers.frame_link import FrameLink
from astralora.drivers.frame_mvm import FrameDevice
from astralora.drivers.frames import ERROR, VERSION, encode_frame, find_header, read_payload
from astralora.drivers.messages import PROGRAM, QUERY, QUERY_EACH, Command, State, decode_error
from astralora.drivers.transports import Transport, open_transport
from astralora.drivers.values import Format

from ..children import start

pytest.importorskip("serial", reason="pyserial is not installed")

SOURCES = Path(__file__).parents[2] / "examples" / "firmware"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
MAGIC = b"\xa7\x4c"
N, M, LEVELS, MAX_PAYLOAD = 8, 6, 256, 2048
# A sum of N products, each of factors within 1: so many roundings of float32, of numbers no larger than N.
EXACT = (2 * N) * N * 2.0**-24


def build(folder: Path, *options: str) -> Path:
    """Compile the firmware as a program for this machine; skip the test where this is impossible."""
    if os.name != "posix":
        pytest.skip("pseudo-terminals are had on POSIX systems only")
    if not SOURCES.is_dir():
        pytest.skip(f"there is no firmware at {SOURCES}: it comes with a checkout only")
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler is installed: neither g++ nor c++ nor clang++")
    target = folder / "reference-chip"
    command = [compiler, *FLAGS, *options, "-o", str(target), str(SOURCES / "host.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@contextmanager
def running(program: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Run the firmware, and yield its process and the path of its port."""
    with start([program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("firmware"), "-O2")


@pytest.fixture(scope="session")
def port(program: Path) -> Generator[str]:
    with running(program) as (_, path):
        yield f"serial://{path}"


@pytest.fixture
def chip(port: str) -> Generator[d.Session]:
    """Open the chip as a user does."""
    with d.open_device("frame-mvm", port=port) as session:
        yield session


@pytest.fixture
def line(port: str) -> Generator[Transport]:
    """Open the bare line to a chip in its safe state."""
    with open_transport(port, 2.0) as transport:
        transport.flush()
        FrameLink(transport).safe()
        yield transport


@pytest.fixture
def link(line: Transport) -> FrameLink:
    return FrameLink(line)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=generator) - 1


def product(controls: Tensor, inputs: Tensor) -> Tensor:
    """Return the answer of a chip with an 8-bit control DAC, in float64."""
    step = 2 / (LEVELS - 1)
    weights = torch.round((controls.double() + 1) / step) * step - 1
    return inputs.double() @ weights.view(M, N).T


def driver(chip: d.Session) -> FrameDevice:
    assert isinstance(chip.device, FrameDevice)
    return chip.device


def assert_answers(chip: d.Device, controls: Tensor, inputs: Tensor) -> None:
    torch.testing.assert_close(chip.query(inputs).double(), product(controls, inputs), atol=EXACT, rtol=0)


def frame(command: int, sequence: int, *payload: bytes, **options: Any) -> bytes:
    return b"".join(encode_frame(command, sequence, *payload, **options))


def header(command: int, sequence: int, length: int) -> bytes:
    """Return a valid header that announces so many bytes."""
    fields = struct.pack("<2sBBII", MAGIC, VERSION, command, sequence, length)
    return fields + struct.pack("<I", zlib.crc32(fields))


def next_error(line: Transport) -> d.DeviceError:
    """Return the error in the next frame on the line."""
    answer = find_header(line.read, 0)
    assert answer.command == ERROR
    return decode_error(read_payload(line.read_into, answer))


def floats(values: Tensor) -> bytes:
    return values.numpy().astype("<f4").tobytes()


def program_payload(controls: Tensor) -> bytes:
    return PROGRAM.pack(Format.FLOAT32, len(controls)) + floats(controls)


def query_payload(inputs: Tensor) -> bytes:
    return QUERY.pack(Format.FLOAT32, Format.FLOAT32, len(inputs)) + floats(inputs)


# -- what it is ------------------------------------------------------------------------------------


def test_the_chip_reports_its_spec(chip: d.Session) -> None:
    told = {
        "name": "reference-chip",
        "in_features": N,
        "out_features": M,
        "num_controls": N * M,
        "input_range": (-1, 1),
        "control_range": (-1, 1),
        "control_levels": LEVELS,
        "linear": True,
        "coupling": "elementwise",
        "idempotent_program": True,
        "max_batch": 32,
        "serial_number": "REF-0001",
    }
    assert chip.spec == d.DeviceSpec(**told)


def test_identity_and_spec_agree(link: FrameLink) -> None:
    identity, spec = link.identify(), link.spec()
    assert (identity.model, identity.serial_number) == (spec.name, spec.serial_number)
    assert identity.max_payload == MAX_PAYLOAD


def test_the_chip_passes_every_check(port: str) -> None:
    results = check_device(lambda: d.make_device("frame-mvm", port=port))
    assert [result for result in results if not result.passed] == []


def test_the_readme_has_the_same_build_command() -> None:
    readme = SOURCES / "README.md"
    if not readme.exists():
        pytest.skip(f"there is no firmware at {SOURCES}: it comes with a checkout only")
    assert " ".join(["g++", *FLAGS]) in readme.read_text(encoding="utf-8")


def test_it_ends_cleanly_on_sigterm(program: Path) -> None:
    with running(program) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


# -- operations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["float32", "codes"])
def test_answers_are_the_product_with_the_quantised_matrix(
    port: str, encoding: str, generator: torch.Generator
) -> None:
    controls, inputs = uniform(generator, N * M), uniform(generator, 5, N)
    with d.open_device("frame-mvm", port=port, encoding=encoding) as chip:
        chip.program(controls)
        assert_answers(chip, controls, inputs)


def test_both_ends_of_the_range_are_codes(chip: d.Session) -> None:
    controls = torch.ones(N * M)
    controls[::2] = -1
    chip.program(controls)
    assert torch.equal(chip.query(torch.eye(N)).T, controls.view(M, N))


def test_a_batch_longer_than_a_frame_is_answered_whole(chip: d.Session, generator: torch.Generator) -> None:
    controls, inputs = uniform(generator, N * M), uniform(generator, 100, N)
    chip.program(controls)
    assert_answers(chip, controls, inputs)


@pytest.mark.parametrize("encoding", ["float32", "codes"])
def test_many_settings_in_one_call_equal_single_ones(port: str, encoding: str, generator: torch.Generator) -> None:
    controls, inputs = uniform(generator, 20, N * M), uniform(generator, 3, N)
    with d.open_device("frame-mvm", port=port, encoding=encoding) as chip:
        together = chip.query_each(controls, inputs)
        for setting, answer in zip(controls, together, strict=True):
            chip.program(setting)
            assert torch.equal(chip.query(inputs), answer)


def test_operations_are_counted(chip: d.Session, generator: torch.Generator) -> None:
    before = driver(chip).status()
    chip.query_each(uniform(generator, 4, N * M), uniform(generator, 3, N))
    after = driver(chip).status()
    assert (after.programs - before.programs, after.vectors - before.vectors) == (4, 12)


# -- requests that come twice ----------------------------------------------------------------------


def test_a_repeated_program_is_carried_out_once(chip: d.Session, generator: torch.Generator) -> None:
    before = driver(chip).status().programs
    chip.device.program(uniform(generator, N * M))
    driver(chip).resend()
    assert driver(chip).status().programs == before + 1


def test_a_repeated_query_is_answered_from_memory(chip: d.Session, generator: torch.Generator) -> None:
    chip.program(uniform(generator, N * M))
    before = driver(chip).status().vectors
    answer = chip.device.query(uniform(generator, 3, N))
    repeated = driver(chip).resend()
    assert repeated is not None
    assert torch.equal(repeated, answer)
    assert driver(chip).status().vectors == before + 3


def test_many_settings_asked_for_twice_are_carried_out_once(link: FrameLink, generator: torch.Generator) -> None:
    before = link.status().programs
    head = QUERY_EACH.pack(Format.FLOAT32, Format.FLOAT32, Format.FLOAT32, 2, 3)
    controls, inputs = uniform(generator, 2, N * M), uniform(generator, 3, N)
    answer = link.exchange(Command.QUERY_EACH, head, floats(controls), floats(inputs), longest=MAX_PAYLOAD)
    # The link may use its memory again.
    first = bytes(answer)
    assert bytes(link.repeat()) == first
    assert link.status().programs == before + 2


def test_a_program_is_carried_out_again_after_the_safe_state(
    link: FrameLink, line: Transport, generator: torch.Generator
) -> None:
    request = frame(Command.PROGRAM, 7, program_payload(uniform(generator, N * M)))
    before = link.status().programs
    line.write(request)
    link.safe()
    line.write(request)
    status = link.status()
    assert (status.state, status.programs) == (State.PROGRAMMED, before + 2)


def test_a_known_number_with_another_payload_is_carried_out(
    link: FrameLink, line: Transport, generator: torch.Generator
) -> None:
    before = link.status().programs
    first, second = (frame(Command.PROGRAM, 7, program_payload(uniform(generator, N * M))) for _ in range(2))
    for request, programs in ((first, 1), (first, 1), (second, 2), (second, 2), (first, 3)):
        line.write(request)
        assert bytes(line.read(20)) == frame(Command.PROGRAM | 0x80, 7)
        assert link.status().programs == before + programs


@pytest.mark.parametrize("place", [0, 1, 2, 3, 8, 39])
def test_every_byte_of_a_query_counts(link: FrameLink, line: Transport, generator: torch.Generator, place: int) -> None:
    link.exchange(Command.PROGRAM, program_payload(uniform(generator, N * M)), longest=0)
    payload = bytearray(query_payload(uniform(generator, 1, N)))
    line.write(frame(Command.QUERY, 7, bytes(payload)))
    answer = bytes(line.read(8 + 4 * M + 20))
    before = link.status().vectors
    line.write(frame(Command.QUERY, 7, bytes(payload)))
    assert bytes(line.read(len(answer))) == answer
    assert link.status().vectors == before
    payload[place] ^= 1
    line.write(frame(Command.QUERY, 7, bytes(payload)))
    # A wrong format is refused, and other values are passed.
    if place < 2:
        assert isinstance(next_error(line), d.ProtocolError)
    else:
        line.read(len(answer))
        assert link.status().vectors == before + 1


def test_status_reports_the_newest_number_carried_out(
    link: FrameLink, line: Transport, generator: torch.Generator
) -> None:
    line.write(frame(Command.PROGRAM, 0xFEDCBA98, program_payload(uniform(generator, N * M))))
    assert link.status().sequence == 0xFEDCBA98


# -- a bad line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x00", id="a byte"),
        pytest.param(MAGIC[:1], id="half a magic"),
        pytest.param(bytes(15), id="all but the last byte of a header"),
        pytest.param(MAGIC * 20, id="many magics"),
        pytest.param(frame(Command.STATUS, 1)[:11], id="a header cut short"),
        pytest.param(np.random.default_rng(0).bytes(5000), id="noise"),
    ],
)
def test_garbage_before_a_request_is_skipped(link: FrameLink, line: Transport, garbage: bytes) -> None:
    line.write(garbage)
    assert link.status().state is State.SAFE


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 0x7FFFFFFF, 0xFFFFFFFC, 0xFFFFFFFF])
def test_a_hostile_length_is_refused_at_once(link: FrameLink, line: Transport, length: int) -> None:
    line.write(header(Command.PROGRAM, 9, length))
    assert "longer than is taken" in next_error(line).message
    assert link.status().state is State.SAFE


def test_a_damaged_payload_is_reported_and_not_carried_out(
    link: FrameLink, line: Transport, generator: torch.Generator
) -> None:
    before = link.status().programs
    request = bytearray(frame(Command.PROGRAM, 9, program_payload(uniform(generator, N * M))))
    request[40] ^= 0x10
    line.write(request)
    assert isinstance(next_error(line), d.ProtocolError)
    assert link.status().programs == before


def test_a_damaged_header_is_skipped_without_an_answer(link: FrameLink, line: Transport) -> None:
    request = bytearray(frame(Command.SPEC, 9))
    request[5] ^= 0x01
    line.write(request)
    assert link.status().state is State.SAFE


def test_a_payload_that_never_ends_is_given_up(link: FrameLink, line: Transport, generator: torch.Generator) -> None:
    line.write(frame(Command.PROGRAM, 9, program_payload(uniform(generator, N * M)))[:100])
    assert isinstance(next_error(line), d.ProtocolError)
    assert link.status().state is State.SAFE


# -- requests that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.001, -1.001, 1e30, float("nan"), float("inf"), float("-inf")])
def test_controls_out_of_range_are_refused_and_the_old_ones_kept(
    chip: d.Session, generator: torch.Generator, value: float
) -> None:
    controls, inputs = uniform(generator, N * M), uniform(generator, 3, N)
    chip.program(controls)
    bad = uniform(generator, N * M)
    bad[-1] = value
    with pytest.raises(d.OutOfRange, match="controls must be finite"):
        chip.device.program(bad)
    assert_answers(chip.device, controls, inputs)


def test_inputs_out_of_range_are_refused(chip: d.Session) -> None:
    chip.program(torch.zeros(N * M))
    with pytest.raises(d.OutOfRange, match="inputs must be finite"):
        chip.device.query(torch.full((1, N), 2.0))


def test_one_bad_setting_among_many_refuses_them_all(chip: d.Session, generator: torch.Generator) -> None:
    before = driver(chip).status().programs
    controls = uniform(generator, 3, N * M)
    controls[2, 0] = 3
    with pytest.raises(d.OutOfRange):
        driver(chip).query_each(controls, uniform(generator, 1, N))
    assert driver(chip).status().programs == before


def test_one_rounding_step_beyond_the_range_is_accepted(chip: d.Session) -> None:
    controls = torch.full((N * M,), 1 + 2.0**-23)
    chip.device.program(controls)
    assert_answers(chip.device, torch.ones(N * M), torch.eye(N))


def test_a_query_before_any_program_is_not_connected(link: FrameLink) -> None:
    with pytest.raises(d.NotConnected, match="send PROGRAM first"):
        link.exchange(Command.QUERY, query_payload(torch.zeros(1, N)), longest=100)


@pytest.mark.parametrize(
    ("command", "payload", "kind"),
    [
        pytest.param(99, b"", d.ProtocolError, id="unknown command"),
        pytest.param(0, b"", d.ProtocolError, id="command 0"),
        pytest.param(Command.PROGRAM, b"\0" * 7, d.ProtocolError, id="program too short"),
        pytest.param(Command.QUERY, b"", d.ProtocolError, id="query too short"),
        pytest.param(Command.QUERY_EACH, b"\0" * 11, d.ProtocolError, id="query_each too short"),
        pytest.param(Command.PROGRAM, PROGRAM.pack(2, N * M) + bytes(2 * N * M), d.ProtocolError, id="unknown format"),
        pytest.param(Command.QUERY, QUERY.pack(0, 1, 1) + bytes(4 * N), d.ProtocolError, id="unknown answer format"),
        pytest.param(Command.PROGRAM, PROGRAM.pack(1, 5) + bytes(5), d.OutOfRange, id="too few controls"),
        pytest.param(Command.PROGRAM, PROGRAM.pack(1, N * M) + bytes(3), d.OutOfRange, id="controls missing"),
        pytest.param(Command.QUERY, QUERY.pack(0, 0, 2) + bytes(4 * N), d.OutOfRange, id="inputs missing"),
        pytest.param(Command.QUERY, QUERY.pack(0, 0, 33) + bytes(33 * 4 * N), d.OutOfRange, id="batch too large"),
        pytest.param(Command.QUERY, QUERY.pack(0, 0, 1 << 27), d.OutOfRange, id="batch whose bytes overflow"),
        pytest.param(
            Command.QUERY_EACH, QUERY_EACH.pack(0, 0, 0, 0xFFFFFFFF, 32), d.OutOfRange, id="settings that overflow"
        ),
        pytest.param(
            Command.QUERY_EACH,
            QUERY_EACH.pack(1, 0, 0, 20, 10) + bytes(20 * N * M + 10 * 4 * N),
            d.OutOfRange,
            id="answer too long",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    link: FrameLink, command: int, payload: bytes, kind: type[d.DeviceError]
) -> None:
    with pytest.raises(kind) as caught:
        link.exchange(command, payload, longest=MAX_PAYLOAD)
    assert type(caught.value) is kind


def test_another_version_of_the_protocol_is_refused(line: Transport) -> None:
    line.write(frame(Command.STATUS, 9, version=2))
    assert isinstance(next_error(line), d.ProtocolError)


# -- the watchdog ----------------------------------------------------------------------------------


def state_after(link: FrameLink, seconds: float) -> State:
    """Return the state after a silence of so many seconds."""
    time.sleep(seconds)
    return link.status().state


def test_the_watchdog_makes_the_chip_safe(link: FrameLink, line: Transport, generator: torch.Generator) -> None:
    link.set_watchdog(800)
    request = program_payload(uniform(generator, N * M))
    link.exchange(Command.PROGRAM, request, longest=0)
    # STATUS is a request too, and restarts the time.
    assert [state_after(link, 0.02) for _ in range(5)] == [State.PROGRAMMED] * 5
    assert state_after(link, 1.6) is State.SAFE
    with pytest.raises(d.NotConnected, match="no controls are set"):
        link.exchange(Command.QUERY, query_payload(torch.zeros(1, N)), longest=100)
    assert link.status().sequence == 0
    # It is off now.
    link.exchange(Command.PROGRAM, request, longest=0)
    assert state_after(link, 1.6) is State.PROGRAMMED


@pytest.mark.parametrize("off", ["zero", "SAFE"])
def test_the_watchdog_can_be_turned_off(link: FrameLink, generator: torch.Generator, off: str) -> None:
    link.set_watchdog(800)
    if off == "zero":
        link.set_watchdog(0)
    else:
        link.safe()
    link.exchange(Command.PROGRAM, program_payload(uniform(generator, N * M)), longest=0)
    assert state_after(link, 1.6) is State.PROGRAMMED


def test_noise_does_not_restart_the_watchdog(link: FrameLink, line: Transport, generator: torch.Generator) -> None:
    link.set_watchdog(300)
    link.exchange(Command.PROGRAM, program_payload(uniform(generator, N * M)), longest=0)
    for _ in range(40):
        line.write(MAGIC + bytes(30))
        time.sleep(0.02)
    assert link.status().state is State.SAFE


def test_a_refused_request_restarts_the_watchdog(link: FrameLink, generator: torch.Generator) -> None:
    link.set_watchdog(800)
    link.exchange(Command.PROGRAM, program_payload(uniform(generator, N * M)), longest=0)
    for _ in range(24):
        with pytest.raises(d.ProtocolError):
            link.exchange(99, longest=0)
        time.sleep(0.05)
    assert link.status().state is State.PROGRAMMED


@pytest.mark.parametrize("payload", [b"", b"\1\0\0", b"\1\0\0\0\0"])
def test_a_watchdog_of_another_length_is_refused(link: FrameLink, payload: bytes) -> None:
    with pytest.raises(d.ProtocolError, match="a watchdog has 4 bytes"):
        link.exchange(Command.WATCHDOG, payload, longest=0)


def test_the_longest_watchdog_does_not_overflow(link: FrameLink, generator: torch.Generator) -> None:
    link.exchange(Command.PROGRAM, program_payload(uniform(generator, N * M)), longest=0)
    link.set_watchdog(0xFFFFFFFF)
    assert state_after(link, 0.3) is State.PROGRAMMED
    link.set_watchdog(1)
    assert state_after(link, 0.3) is State.SAFE


def test_a_driver_with_a_watchdog_keeps_the_chip_programmed(port: str, generator: torch.Generator) -> None:
    controls, inputs = uniform(generator, N * M), uniform(generator, 3, N)
    with d.open_device("frame-mvm", port=port, watchdog=1.0) as chip:
        chip.program(controls)
        time.sleep(2.5)
        assert_answers(chip, controls, inputs)
        assert chip.usage.retries == 0
    with open_transport(port, 2.0) as line:
        assert FrameLink(line).status().state is State.SAFE


# -- closing ---------------------------------------------------------------------------------------


def test_closing_leaves_the_chip_safe(port: str, generator: torch.Generator) -> None:
    with d.open_device("frame-mvm", port=port) as chip:
        chip.program(uniform(generator, N * M))
    with open_transport(port, 2.0) as line:
        status = FrameLink(line).status()
    assert (status.state, status.sequence) == (State.SAFE, 0)


def test_a_device_that_was_closed_can_be_opened_again(chip: d.Session, generator: torch.Generator) -> None:
    controls, inputs = uniform(generator, N * M), uniform(generator, 3, N)
    for _ in range(3):
        chip.close()
        chip.open()
        chip.program(controls)
        assert_answers(chip, controls, inputs)


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n", encoding="utf-8")
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is not None:
        there = subprocess.run(
            [compiler, *SANITIZERS, "-o", str(folder / "probe"), str(probe)], capture_output=True, check=False
        )
        if there.returncode != 0 or subprocess.run([folder / "probe"], capture_output=True, check=False).returncode:
            pytest.skip(f"{compiler} has no address and undefined-behaviour sanitizers that work here")
    return build(folder, "-O1", *SANITIZERS)


def mutated(random: np.random.Generator) -> bytes:
    """Return a frame with faults: of its content, under valid checksums, or of its bytes."""
    command = int(random.choice([*Command, 0, 9, 0x83, 0xFF], p=[0.04, 0.04, 0.2, 0.3, 0.28, *[0.02] * 7]))
    settings, batch = (int(random.choice([0, 1, 2, 3, 32, 33, 1 << 27, 0xFFFFFFFF])) for _ in range(2))
    form = int(random.choice([0, 0, 0, 1, 2, 255]))
    requests: dict[int, tuple[bytes, int]] = {
        Command.PROGRAM: (PROGRAM.pack(form, random.choice([N * M, settings])), N * M * (4 >> 2 * (form == 1))),
        Command.QUERY: (QUERY.pack(random.choice([0, form]), 0, batch), batch * N * 4),
        Command.QUERY_EACH: (
            QUERY_EACH.pack(form, 0, 0, settings, batch),
            settings * N * M * (4 >> 2 * (form == 1)) + batch * N * 4,
        ),
    }
    head, body = requests.get(command, (b"", 0))
    length = body if body <= MAX_PAYLOAD - len(head) else int(random.integers(0, MAX_PAYLOAD))
    values = random.uniform(-1, 1, length // 4 + 1).astype("<f4").tobytes()[:length]
    sequence = int(random.integers(1, 5))
    whole = bytearray(frame(command, sequence, head, values))
    match random.integers(0, 8):
        case 0:
            whole[random.integers(len(whole))] ^= 1 << random.integers(8)
        case 1:
            del whole[random.integers(len(whole)) :]
        case 2:
            del whole[random.integers(len(whole))]
        case 3:
            whole[:16] = header(command, sequence, int(random.integers(0, 1 << random.integers(1, 33))))
        case 4:
            cut = len(head) + int(random.integers(0, length + 1)) - int(random.integers(0, len(head) + 1))
            whole = bytearray(frame(command, sequence, (head + values)[: max(0, cut)]))
        case 5 if random.random() < 0.1:
            whole = bytearray(frame(command, sequence, bytes(MAX_PAYLOAD + random.integers(-4, 9))))
    return bytes(whole)


def test_no_damaged_frame_touches_foreign_memory(sanitized: Path, generator: torch.Generator) -> None:
    random = np.random.default_rng(20)
    with running(sanitized) as (process, path):
        with open_transport(f"serial://{path}", 2.0) as line:
            for _ in range(3000):
                line.write(mutated(random))
                line.flush()
        # The last may have promised a payload; it is given up after a silence of 0.2 s.
        time.sleep(0.5)
        controls, inputs = uniform(generator, N * M), uniform(generator, 5, N)
        with d.open_device("frame-mvm", port=f"serial://{path}") as chip:
            # Most faults are refused; these got as far as the converters.
            assert driver(chip).status().programs > 100
            chip.program(controls)
            assert_answers(chip, controls, inputs)
        process.terminate()
        # The sanitizers end it with another number.
        assert process.wait(10) == 0
