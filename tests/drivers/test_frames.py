"""Test frames on a line of bytes: found among other bytes, accepted only when whole."""

import random
import re
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astralora.devices import DeviceError, DeviceTimeout, OutOfRange, ProtocolError, make_device
from astralora.devices import errors as device_errors
from astralora.drivers import frames
from astralora.drivers.frame_link import FrameLink
from astralora.drivers.frame_server import FrameServer
from astralora.drivers.frames import (
    ANSWER,
    ERROR,
    OVERHEAD,
    Buffers,
    encode_frame,
    find_header,
    read_payload,
    skip_payload,
)
from astralora.drivers.messages import WATCHDOG, decode_error, encode_error
from astralora.drivers.transports import Transport

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
LIMIT = 4096


class Tape:
    """Deliver these bytes, and then silence."""

    def __init__(self, data: bytes) -> None:
        self.left = memoryview(data)
        self.asked: list[int] = []

    def read(self, count: int) -> bytes:
        self.asked.append(count)
        if count > len(self.left):
            self.left = self.left[len(self.left) :]
            raise DeviceTimeout("silence")
        taken, self.left = self.left[:count], self.left[count:]
        return bytes(taken)

    def read_into(self, view: memoryview) -> None:
        view[:] = self.read(len(view))


def whole(*parts: bytes, command: int = 4, sequence: int = 77) -> bytes:
    return b"".join(encode_frame(command, sequence, *parts))


def received(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return all frames that a receiver finds and accepts."""
    tape = Tape(data)
    found: list[tuple[int, int, bytes]] = []
    while True:
        try:
            header = find_header(tape.read, LIMIT)
        except DeviceTimeout:
            return found
        except ProtocolError:
            continue
        if header.length > LIMIT:
            continue
        try:
            found.append((header.command, header.sequence, bytes(read_payload(tape.read_into, header))))
        except DeviceError:
            continue


@given(payload=st.binary(max_size=300), command=st.integers(0, 255), sequence=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_a_frame_arrives_as_it_was_sent(payload: bytes, command: int, sequence: int) -> None:
    frame = whole(payload, command=command, sequence=sequence)
    assert len(frame) == len(payload) + OVERHEAD
    assert received(frame) == [(command, sequence, payload)]


@given(cuts=st.lists(st.integers(0, 100), max_size=4), payload=st.binary(min_size=100, max_size=100))
@settings(max_examples=100, deadline=None)
def test_a_payload_in_parts_makes_the_same_frame(cuts: list[int], payload: bytes) -> None:
    edges = [0, *sorted(cuts), 100]
    parts = [payload[start:end] for start, end in pairwise(edges)]
    assert whole(*parts) == whole(payload)


def example(start: str) -> str:
    """Return the block of the documentation that begins so, in hexadecimal."""
    block = re.search(rf"```\n({start}[^`]*)```", PAGE)
    assert block is not None
    return block[1]


def test_the_frames_in_the_documentation_are_right() -> None:
    first, second = map(bytes.fromhex, example("A7 4C ").split("\n\n"))
    controls = np.array([0.5, -0.25], "<f4").tobytes()
    assert first == whole(bytes([0, 0, 0, 0, 2, 0, 0, 0]), controls, command=3, sequence=7)
    assert second == whole(command=3 | ANSWER, sequence=7)
    refused = bytes.fromhex(example("A7 4C 01 FF "))
    assert refused == whole(encode_error(OutOfRange("too high")), command=ERROR, sequence=7)
    guarded = bytes.fromhex(example("A7 4C 01 08 "))
    assert guarded == whole(WATCHDOG.pack(5000), command=8, sequence=8)
    assert int.from_bytes(first[12:16], "little") == zlib.crc32(first[:12])
    assert int.from_bytes(first[-4:], "little") == zlib.crc32(first[16:-4], zlib.crc32(first[:12]))


def test_every_library_computes_the_checksum_of_zlib() -> None:
    crc32 = vars(frames)["crc32"]  # from the library that was found at import
    for size in (0, 1, 15, 16, 1000):
        data = random.Random(size).randbytes(size)
        assert crc32(data, 123) == zlib.crc32(data, 123)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 50, b"\xa7", b"\xa7\x4c", b"\xa7" * 31, b"\xa7\x4c" * 20, b"A" * 15])
def test_a_frame_is_found_after_garbage(garbage: bytes) -> None:
    assert (4, 77, b"hello") in received(garbage + whole(b"hello") + b"\0" * 40)


def test_noise_without_an_end_is_given_up() -> None:
    with pytest.raises(ProtocolError, match="no frame began within 4096 bytes"):
        find_header(Tape(b"\0" * 100_000).read, LIMIT)


def mutations(generator: random.Random, frame: bytes, other: bytes) -> bytes:
    """Return the bytes with one fault."""
    data = bytearray(frame)
    for _ in range(generator.choice((1, 1, 2, 5))):
        place = generator.randrange(len(data) + 1) if data else 0
        match generator.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << generator.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = generator.randbytes(generator.randrange(1, 30))
            case 3:
                del data[place : place + generator.randrange(1, 30)]
            case 4:
                data[place:place] = data[: generator.randrange(len(data) + 1)]
            case 5:
                data = data[place:] + data[:place]
            case _:
                data[place : place + 8] = other[place : place + 8]
    return bytes(data)


def test_no_damaged_payload_is_accepted() -> None:
    generator = random.Random(0)
    for number in range(100_000):
        payload = generator.randbytes(generator.choice((0, 1, 8, 24, 60)))
        frame = whole(payload, sequence=number + 1)
        other = whole(generator.randbytes(24), sequence=number + 1_000_000)
        data = mutations(generator, frame, other) + bytes(16)
        honest = {(4, number + 1, payload), (4, number + 1_000_000, other[16:-4])}
        for found in received(data):
            assert found in honest, f"frame {number}"


@given(data=st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_no_frame(data: bytes) -> None:
    assert received(data) == []


class Canned(Transport):
    """Answer every request with prepared bytes."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        super().__init__("canned://", timeout=0.01)
        self.answer, self.tape = answer, Tape(b"")
        self.wanted: list[int] = []
        self.answered = b""

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass

    def _send(self, parts: tuple[bytes | bytearray | memoryview, ...]) -> None:
        self.answered = b"".join(parts)
        sequence = int.from_bytes(self.answered[4:8], "little")
        self.tape = Tape(self.answer(sequence))

    def _receive(self, view: memoryview, seconds: float) -> int:
        self.wanted.append(len(view))
        count = min(len(view), len(self.tape.left))
        view[:count] = self.tape.read(count)
        return count


def header_of(length: int, sequence: int, command: int) -> bytes:
    """Return a valid header of a payload that does not follow."""
    fields = struct.pack("<2sBBII", frames.MAGIC, 1, command, sequence, length)
    return fields + zlib.crc32(fields).to_bytes(4, "little")


@pytest.mark.parametrize("command", [4 | ANSWER, ERROR])
def test_a_hostile_length_allocates_nothing(command: int) -> None:
    line = Canned(lambda sequence: header_of(0xFFFFFFFF, sequence, command))
    line.open()
    # What is discarded before the first request does not count.
    line.flush()
    line.wanted.clear()
    link = FrameLink(line)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="4294967295 bytes; it must have at most"):
        link.exchange(4, longest=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(line.wanted) <= 16
    assert peak < 100_000


@pytest.mark.parametrize("length", [4097, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_hostile_length_is_refused_by_a_device_unread(length: int) -> None:
    chip = make_device("matvec", in_features=2, out_features=2)
    line = Canned(lambda _: b"")
    line.open()
    line.tape = Tape(header_of(length, 5, 3))
    stop = threading.Event()

    def stop_there(_: int) -> bytes:
        stop.set()
        return b""

    line.answer = stop_there
    tracemalloc.start()
    FrameServer(chip, max_payload=4096).serve(line, stop)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(line.wanted) <= 16
    assert peak < 100_000
    assert (line.answered[3], line.answered[4]) == (ERROR, 5)
    assert f"a payload of {length} bytes is too long; this device accepts at most 4096".encode() in line.answered


def test_a_late_answer_of_hostile_length_is_not_read() -> None:
    line = Canned(lambda sequence: header_of(0xFFFFFFFF, sequence - 1, 4 | ANSWER))
    line.open()
    line.flush()
    line.wanted.clear()
    with pytest.raises(ProtocolError):
        FrameLink(line).exchange(4, longest=64)
    assert max(line.wanted) <= 16


def test_a_dropped_payload_is_read_in_small_pieces() -> None:
    tape = Tape(whole(bytes(500_000)))
    header = find_header(tape.read, LIMIT)
    skip_payload(tape.read, header)
    assert not len(tape.left)
    assert max(tape.asked) <= 1 << 16


# -- memory of answers -----------------------------------------------------------------------------


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    buffers = Buffers()
    held = np.frombuffer(buffers.take(1000), "<f4")
    address = held.__array_interface__["data"][0]
    other = np.frombuffer(buffers.take(1000), "<f4")
    assert other.__array_interface__["data"][0] != address
    del held
    again = np.frombuffer(buffers.take(900), "<f4")
    assert again.__array_interface__["data"][0] == address


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in device_errors.__all__ if name != "DeviceError"])
def test_errors_keep_their_type_across_the_wire(name: str) -> None:
    kind = getattr(device_errors, name)
    error = decode_error(encode_error(kind("too hot: 80 °C")))
    assert type(error) is kind
    assert error.message == "too hot: 80 °C"


def test_an_error_of_another_type_is_sent_with_its_name() -> None:
    error = decode_error(encode_error(ZeroDivisionError("oops")))
    assert type(error) is DeviceError
    assert error.message == "ZeroDivisionError: oops"
    assert isinstance(decode_error(b"\1"), ProtocolError)
    assert len(encode_error(DeviceError("x" * 5000))) <= 1002
