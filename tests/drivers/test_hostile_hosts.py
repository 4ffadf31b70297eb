"""Send damaged and hostile messages to the servers: they refuse them, and answer the next host rightly."""

import random
import struct
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.devices import DeviceError
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator
from astralora.drivers.frame_link import FrameLink
from astralora.drivers.frames import encode_frame
from astralora.drivers.messages import OPERATIONS, PROGRAM, QUERY, QUERY_EACH, WATCHDOG, Command
from astralora.drivers.scpi import block_head
from astralora.drivers.scpi_link import ScpiLink
from astralora.drivers.transports import Transport, open_transport

N, M = 5, 3
HEADERS = (
    *("*IDN?", "*CLS", "*RST", "*OPC?", "SYST:ERR?", ":syst:spec?", "SYST:PATT?", "SYSTem:WATChdog?", "SYST:WATC 1e3"),
    *("SYST:WATC", "SYST:WATC -1", "PROG:DATA?", "NONSENSE", "", ";", ",", "#", "#0", "#9", "\x00\xff", "QUER:DATA?"),
)


def floats(numbers: random.Random, count: int) -> bytes:
    """Return values as float32, sometimes with one that is not legal."""
    values = [numbers.uniform(-1, 1) for _ in range(count)]
    if values and numbers.random() < 0.2:
        values[numbers.randrange(count)] = numbers.choice([1e9, float("nan"), float("inf"), -1.5])
    return struct.pack(f"<{count}f", *values)


def scpi_message(numbers: random.Random) -> bytes:
    """Return commands in one message, with faults."""
    parts = []
    for _ in range(numbers.randrange(1, 4)):
        if numbers.random() < 0.5:
            parts.append(numbers.choice(HEADERS).encode("latin-1"))
            continue
        header, count = numbers.choice([("PROG:DATA", N * M), ("QUER:DATA?", N), ("QUER:DATA?", 4 * N)])
        values = floats(numbers, count)
        if numbers.random() < 0.3:
            values = values[: numbers.randrange(len(values))]
        parts.append(
            f"{header} {numbers.choice([0, 1, 2, 3, -1, 1 << 40])},".encode() + block_head(len(values)) + values
        )
    return damaged(numbers, b";".join(parts) + b"\n")


def frame(numbers: random.Random) -> bytes:
    """Return a request with faults of its content, under valid checksums, or of its bytes."""
    small = numbers.choice([0, 1, 2, 3, 1 << 31, 0xFFFFFFFF])
    form = numbers.choice([0, 0, 0, 0, 1, 3])
    requests: dict[int, tuple[bytes, int]] = {
        Command.PROGRAM: (PROGRAM.pack(form, numbers.choice([N * M, N * M, small])), N * M),
        Command.QUERY: (QUERY.pack(form, numbers.choice([0, 0, 0, 1]), numbers.choice([4, 4, small])), 4 * N),
        Command.QUERY_EACH: (QUERY_EACH.pack(0, form, 0, 2, numbers.choice([3, 3, small])), 2 * N * M + 3 * N),
        Command.WATCHDOG: (WATCHDOG.pack(numbers.choice([0, 1000, 0xFFFFFFFF])), 0),
    }
    command = numbers.choice([*Command, *OPERATIONS, *OPERATIONS, 0, 99, 255])
    head, count = requests.get(command, (b"", 0))
    if numbers.random() < 0.1:
        count = numbers.randrange(40)
    return damaged(numbers, b"".join(encode_frame(command, numbers.randrange(4), head, floats(numbers, count))))


def damaged(numbers: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    match numbers.randrange(8):
        case 0:
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        case 1:
            del data[numbers.randrange(len(data)) :]
        case 2:
            place = numbers.randrange(len(data))
            data[place:place] = numbers.randbytes(numbers.randrange(1, 40))
    return bytes(data)


def finish(line: Transport, protocol: str) -> None:
    """Wait until the server has handled all messages; the last may have been cut off."""
    link: Any = FrameLink(line) if protocol == "frames" else ScpiLink(line)
    for _ in range(20):
        try:
            link.identify()
        except DeviceError:
            line.flush()
        else:
            return
    pytest.fail("the server no longer answers")


@pytest.mark.parametrize("protocol", ["frames", "scpi"])
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.campaign)])
def test_no_hostile_message_disturbs_the_next_host(protocol: str, count: int) -> None:
    numbers, generator = random.Random(7), torch.Generator().manual_seed(7)
    emulator: Any = (FrameEmulator if protocol == "frames" else ScpiEmulator)(
        d.make_device("matvec", in_features=N, out_features=M), "loop://hostile"
    )
    make = frame if protocol == "frames" else scpi_message
    with emulator, d.Session(d.make_device("matvec", in_features=N, out_features=M)) as here:
        for _ in range(count // 100):
            with open_transport(emulator.uri, 0.2) as line:
                for _ in range(100):
                    line.write(make(numbers))
                finish(line, protocol)
            controls = 2 * torch.rand(N * M, generator=generator) - 1
            inputs = torch.rand(4, N, generator=generator)
            with d.open_device(emulator.driver, port=emulator.uri, retry=d.Retry(attempts=1)) as session:
                assert torch.equal(session.apply(controls, inputs), here.apply(controls, inputs))
