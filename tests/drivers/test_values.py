"""Test values as bytes: their formats, and that their place in memory changes no answer."""

import numpy as np
import pytest

from astralora.devices import ProtocolError, make_device
from astralora.devices.memory import ALIGNMENT
from astralora.drivers.frame_server import FrameServer
from astralora.drivers.frames import Buffers, Header
from astralora.drivers.messages import PROGRAM, QUERY, QUERY_EACH, Command
from astralora.drivers.values import Format, decode_values, encode_values

N, M, BATCH = 13, 11, 5


@pytest.mark.parametrize(("levels", "form"), [(256, Format.UINT8), (17, Format.UINT8), (65536, Format.UINT16)])
def test_codes_are_the_values_of_a_converter(levels: int, form: Format) -> None:
    bounds = (-0.75, 2.25)
    values = bounds[0] + np.arange(levels) * (3.0 / (levels - 1))
    coded = encode_values(values, form, bounds, levels)
    assert len(coded) == levels * (1 if form is Format.UINT8 else 2)
    np.testing.assert_allclose(decode_values(coded, form, bounds, levels), values, rtol=0, atol=1e-12)


def test_values_between_codes_go_to_the_nearest_and_those_beyond_to_the_end() -> None:
    coded = encode_values(np.array([-9.0, 0.24, 0.26, 9.0]), Format.UINT8, (0.0, 1.0), 3)
    assert bytes(coded) == bytes([0, 0, 1, 2])


@pytest.mark.parametrize(
    ("data", "form", "levels", "complaint"),
    [
        (b"\0" * 5, 0, None, "5 bytes are not a multiple of the 4 bytes of a value"),
        (b"\0", 9, None, "there is no value format 9"),
        (b"\0", 1, None, "the values are codes, but the spec has no converter levels"),
        (b"\x10", 1, 16, "code 16 is too large; the spec claims 16 levels"),
    ],
)
def test_invalid_values_are_refused(data: bytes, form: int, levels: int | None, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode_values(memoryview(data), form, (0.0, 1.0) if levels else None, levels)


# -- addresses -------------------------------------------------------------------------------------


def at_offset(data: bytes, offset: int) -> memoryview:
    """Return the bytes at an address that is ``offset`` bytes after an aligned one."""
    view = Buffers().take(ALIGNMENT + len(data))[offset : offset + len(data)]
    assert np.frombuffer(view, np.uint8).__array_interface__["data"][0] % ALIGNMENT == offset
    view[:] = data
    return view


@pytest.mark.parametrize("offset", range(ALIGNMENT))
@pytest.mark.parametrize(("form", "levels"), [(Format.FLOAT32, None), (Format.UINT8, 256), (Format.UINT16, 4096)])
def test_values_are_read_into_aligned_memory_from_every_address(form: Format, levels: int | None, offset: int) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, 37).astype(np.float32)
    coded = bytes(encode_values(values, form, (-1.0, 1.0), levels))
    due = decode_values(coded, form, (-1.0, 1.0), levels)
    # A block of SCPI is a bytearray; the second one begins in the middle of its memory.
    shifted = bytearray(offset) + coded
    del shifted[:offset]
    for data in (at_offset(coded, offset), shifted):
        read = decode_values(data, form, (-1.0, 1.0), levels)
        assert read.__array_interface__["data"][0] % ALIGNMENT == 0
        assert np.array_equal(read, due)


@pytest.mark.parametrize("head", [0, 8, 12])
def test_values_that_are_received_at_an_aligned_address_are_not_copied(head: int) -> None:
    for size in (100, 5000, 80):
        payload = Buffers(head).take(head + size)
        values = decode_values(payload[head:], Format.FLOAT32)
        assert np.shares_memory(values, np.frombuffer(payload, np.uint8))


@pytest.mark.processors
@pytest.mark.parametrize("kind", ["matvec", "mrr", "slm"])
def test_a_server_answers_equally_from_every_address(kind: str) -> None:
    server = FrameServer(make_device(kind, in_features=N, out_features=M))
    spec, random = server.device.spec, np.random.default_rng(2)
    assert spec.control_range is not None
    settings = random.uniform(*spec.control_range, (3, spec.num_controls)).astype("<f4")
    inputs = random.uniform(0, 1, (BATCH, N)).astype("<f4").tobytes()
    requests = [
        (Command.PROGRAM, PROGRAM.pack(0, spec.num_controls) + settings[0].tobytes()),
        (Command.QUERY, QUERY.pack(0, 0, BATCH) + inputs),
        (Command.QUERY_EACH, QUERY_EACH.pack(0, 0, 0, 3, BATCH) + settings.tobytes() + inputs),
    ]
    answers = set()
    for offset in range(ALIGNMENT):
        for command, request in requests:
            # Another number each time: the server answers a number that it has carried out from memory.
            header = Header(1, command, 1 + offset, len(request), 0)
            answered, *payload, _ = server.handle(header, at_offset(request, offset))
            assert answered[3] == command | 0x80, bytes(payload[0])
            answers.add((command, b"".join(map(bytes, payload))))
    assert len(answers) == len(requests)
