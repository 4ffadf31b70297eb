"""Test the checksums of the lines of metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from astralora.training.metrics import Metrics, format_line

RECORDS: list[dict[str, Any]] = [
    {"event": "step", "step": step, "loss": 0.1 * step, "samples": {"a.b": step}} for step in range(1, 7)
]
LINES = [format_line(number, record).encode() for number, record in enumerate(RECORDS, start=1)]


def parse(data: bytes, lines: int = 0) -> Metrics:
    return Metrics.parse(data, Path("metrics.jsonl"), lines)


def test_a_line_is_json_with_its_number_and_checksum_as_the_last_key() -> None:
    line = json.loads(LINES[2])
    assert list(line) == ["event", "step", "loss", "samples", "check"]
    assert line.pop("check").startswith("3:")
    assert line == RECORDS[2]


def test_all_lines_are_read_without_their_checksums() -> None:
    assert parse(b"".join(LINES)) == Metrics(dict(enumerate(RECORDS, start=1)))


@pytest.mark.parametrize("bit", range(8))
def test_each_flipped_bit_costs_the_line_that_it_hits_and_no_other(bit: int) -> None:
    data = b"".join(LINES)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        found = parse(bytes(damaged), len(LINES))
        hit = data[:place].count(b"\n")
        expected = RECORDS if data[place] == ord("\n") else RECORDS[:hit] + RECORDS[hit + 1 :]
        assert found.records == expected, place
        assert found.damaged_lines == len(RECORDS) - len(expected)


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (b"".join(LINES[:2] + LINES[3:]), [3]),
        (b"".join([*LINES[:2], LINES[2][:20], *LINES[3:]]), [3, 4]),  # the cut line runs into the next
        (b"".join([*LINES[:2], LINES[2][:20] + b"\n", *LINES[3:]]), [3]),
        (b"".join(LINES).replace(b"\n", b"\r\n"), []),
        (b"".join(LINES).replace(b"\n", b""), []),
        (b"".join(LINES[:4]), [5, 6]),
        (b"".join([*LINES[3:], *LINES[:3], *LINES]), []),
        (b"\xff" * 100 + b"".join(LINES), [1]),
        (b"", [1, 2, 3, 4, 5, 6]),
        (b"[" * 100_000, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_lost_lines_are_counted(data: bytes, missing: list[int]) -> None:
    found = parse(data, len(LINES))
    assert [number for gap in found.damaged for number in gap] == missing
    assert found.records == [record for number, record in enumerate(RECORDS, start=1) if number not in missing]


@pytest.mark.parametrize("record", [b'{"a": ' + b"[" * 50_000 + b"]" * 50_000, b'{"a": ' + b"9" * 10_000])
def test_a_line_that_cannot_be_parsed_is_damaged(record: bytes) -> None:
    from zlib import crc32

    hostile = record + b', "check": "2:%08x"}\n' % crc32(record, crc32(b"2:"))
    found = parse(LINES[0] + hostile + LINES[2])
    assert found.describe_damage() == "line 2 of metrics.jsonl is damaged or missing, and was left out"


@pytest.mark.parametrize("end", [b'{"event": "st', LINES[4][:-1].replace(b"step", b"stop"), b"\xff\xfe"])
def test_a_last_line_that_is_cut_short_is_told_apart(end: bytes) -> None:
    found = parse(b"".join(LINES[:4]) + end)
    assert found.incomplete
    assert found.records == RECORDS[:4]
    assert not parse(b"".join(LINES)).incomplete


def test_a_large_number_of_a_line_costs_no_time() -> None:
    found = parse(format_line(10**14, RECORDS[0]).encode())
    assert found.damaged_lines == 10**14 - 1


def test_the_message_names_the_lines() -> None:
    found = parse(b"".join(LINES[:1] + LINES[3:5]), len(LINES))
    assert found.describe_damage() == (
        "3 lines of metrics.jsonl are damaged or missing, and were left out: 2 to 3 and 6"
    )
    assert parse(b"".join(LINES)).describe_damage() is None
