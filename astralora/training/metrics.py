"""Write and read the lines of metrics.jsonl, each with its number and a checksum.

The last key of a line is "check", such as ``"17:1a2b3c4d"``: the number of the line, which begins at 1, and the CRC-32
of the number and of all text before this key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any
from zlib import crc32

from ..common.errors import ConfigurationError
from .reading import parse_record

__all__ = ["Metrics", "format_line", "format_lines"]

Record = dict[str, Any]

_CHECK = re.compile(rb', "check": "([1-9][0-9]{0,14}):([0-9a-f]{8})"\}')
_LISTED = 5  # lines or ranges of lines that a message lists


@dataclass(frozen=True, slots=True)
class Metrics:
    """Hold the records of a metrics.jsonl.

    Attributes:
        by_line: undamaged records by the number of their line, in order.
        damaged: numbers of the damaged or missing lines.
        incomplete: whether the last line is damaged or was cut short. Its number is unknown and is not in ``damaged``.
    """

    by_line: Mapping[int, Record]
    damaged: tuple[range, ...] = ()
    incomplete: bool = False

    @classmethod
    def parse(cls, data: bytes, file: Path, lines: int = 0) -> Metrics:
        """Read all undamaged lines.

        Args:
            data: content of the file.
            file: path of the file, for messages.
            lines: number of lines that were written at least.
        """
        read = sorted(_records(data, file), key=lambda each: each[0])
        found = {number: record for number, record, _ in read}
        end = max((end for _, _, end in read), default=0)
        return cls(found, tuple(_gaps(found, lines)), incomplete=data[end:].strip() != b"")

    @property
    def records(self) -> list[Record]:
        """Return the records in order."""
        return list(self.by_line.values())

    @property
    def damaged_lines(self) -> int:
        """Return the number of damaged or missing lines."""
        return sum(map(len, self.damaged))

    def up_to(self, line: int) -> Metrics:
        """Return the metrics without the lines after a line."""
        kept = {number: record for number, record in self.by_line.items() if number <= line}
        return Metrics(kept, tuple(_gaps(kept, line)))

    def after(self, line: int) -> list[Record]:
        """Return the records of the lines after a line."""
        return [record for number, record in self.by_line.items() if number > line]

    def describe_damage(self) -> str | None:
        """Say which lines are damaged; return None if none is."""
        if not self.damaged:
            return None
        listed = [f"{gap[0]} to {gap[-1]}" if len(gap) > 1 else str(gap[0]) for gap in self.damaged[:_LISTED]]
        if len(self.damaged) > _LISTED:
            listed.append("others")
        places = " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
        if self.damaged_lines == 1:
            return f"line {places} of metrics.jsonl is damaged or missing, and was left out"
        return f"{self.damaged_lines} lines of metrics.jsonl are damaged or missing, and were left out: {places}"


def format_line(number: int, record: Mapping[str, Any]) -> str:
    """Return a record, which is not empty, as a line with its number and checksum."""
    content = dumps(record).removesuffix("}")
    return f'{content}, "check": "{number}:{_checksum(number, content.encode()):08x}"}}\n'


def format_lines(metrics: Metrics) -> str:
    """Return the undamaged lines, which keep their numbers."""
    return "".join(format_line(number, record) for number, record in metrics.by_line.items())


def _records(data: bytes, file: Path) -> Iterator[tuple[int, Record, int]]:
    """Find all records whose checksum is right, with their numbers and the places where they end."""
    end = 0
    for check in _CHECK.finditer(data):
        number = int(check[1])
        for start in _starts(data, end, check.start()):
            content = data[start : check.start()]
            if _checksum(number, content) == int(check[2], 16):
                try:
                    record = parse_record(content + b"}", file)
                except ConfigurationError:
                    break
                yield number, record, check.end()
                break
        end = check.end()


def _starts(data: bytes, begin: int, end: int) -> Iterator[int]:
    """Return the places where the record before ``end`` can begin, the most likely one first.

    Usually a record begins behind the newline that ends the one before. This newline may be damaged or missing, and the
    line before may be damaged.
    """
    yield begin + 1 if begin else 0
    yield begin
    place = data.find(b"\n", begin + 1, end)
    while place >= 0:
        yield place + 1
        place = data.find(b"\n", place + 1, end)


def _gaps(found: Mapping[int, Record], lines: int) -> Iterator[range]:
    """Return the numbers that are missing between 1 and the last line."""
    before = 0
    for number in [*found, max([lines, *found]) + 1]:
        if number > before + 1:
            yield range(before + 1, number)
        before = number


def _checksum(number: int, content: bytes) -> int:
    return crc32(content, crc32(b"%d:" % number))
