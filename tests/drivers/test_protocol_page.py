"""Test that docs/protocol.md and the code agree."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.drivers import frames, messages, scpi, values
from astralora.drivers.emulator import ScpiEmulator
from astralora.drivers.transports import open_transport

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text under a heading, up to the next one of its rank or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.MULTILINE)
    assert found is not None, title
    rank = len(found[1])
    return re.split(rf"^#{{1,{rank}}} ", PAGE[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without their heads."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if not set(row[0]) <= {"-", "|"}]


def fixed_size(title: str, table: int = 0) -> int:
    """Return the bytes before the part of a payload whose length varies."""
    tables = re.split(r"\n\n", section(title))
    offsets = [row for row in rows([text for text in tables if text.startswith("| offset")][table]) if row[0].isdigit()]
    last = offsets[-1]
    return int(last[0]) + (int(last[1]) if last[1].isdigit() else 0)


def test_the_page_numbers_the_commands_as_the_code_does() -> None:
    listed = [row for row in rows(section("Commands")) if row[0].isupper() and row[1][:1] == "`"]
    told = {row[0]: (int(row[1].strip("`"), 16), int(row[2].strip("`"), 16)) for row in listed}
    assert told == {command.name: (command, command | frames.ANSWER) for command in messages.Command}


@pytest.mark.parametrize(
    ("title", "table", "layout"),
    [
        ("IDENTIFY", 0, messages.IDENTITY),
        ("PROGRAM", 0, messages.PROGRAM),
        ("QUERY", 0, messages.QUERY),
        ("QUERY", 1, messages.VALUES),
        ("QUERY_EACH", 0, messages.QUERY_EACH),
        ("STATUS", 0, messages.STATUS),
        ("WATCHDOG", 0, messages.WATCHDOG),
    ],
)
def test_the_page_lays_out_payloads_as_the_code_does(title: str, table: int, layout: struct.Struct) -> None:
    assert fixed_size(title, table) == layout.size


def test_the_page_lists_the_formats_of_the_code() -> None:
    told = {row[0]: (int(row[1]), int(row[2])) for row in rows(section("Values"))[1:]}
    assert told == {form.name.lower(): (form, values.value_size(form)) for form in values.Format}


def test_the_page_numbers_the_errors_as_the_code_does() -> None:
    first_errors = PAGE[PAGE.index("### Errors") : PAGE.index("### Rules for the device")]
    told = {row[1].strip("`"): int(row[0]) for row in rows(first_errors) if row[0].isdigit() and row[1][:1] == "`"}
    for name, number in told.items():
        assert messages.encode_error(getattr(d, name)("text")) == struct.pack("<H", number) + b"text"
    assert len(told) == 7


def test_the_page_numbers_the_scpi_errors_as_the_code_does() -> None:
    told = {int(row[0]): row[2].strip("`") for row in rows(section("SCPI")) if re.fullmatch(r"-\d+", row[0])}
    assert told == {number: kind.__name__ for number, (kind, _) in scpi.ERRORS.items() if number}


def test_the_page_lists_the_fields_of_the_spec() -> None:
    told = rows(section("The spec"))[1:]
    assert [row[0].strip("`") for row in told] == list(d.DeviceSpec.model_fields)
    required = {name for name, field in d.DeviceSpec.model_fields.items() if field.is_required()}
    assert {row[0].strip("`") for row in told if row[-1].rstrip("| ") == "required"} == required


class Chip(d.HardwareDevice):
    """Drive the instrument of the example: two inputs, one output, two controls."""

    def __init__(self) -> None:
        bounds: dict[str, Any] = {"input_range": (-1, 1), "control_range": (-1, 1), "serial_number": "0042"}
        super().__init__(d.DeviceSpec(name="chip", in_features=2, out_features=1, num_controls=2, **bounds))
        self.controls = torch.zeros(2)

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _program(self, controls: Any) -> None:
        self.controls = torch.tensor(controls)

    def _query(self, inputs: Any) -> Any:
        return inputs @ self.controls.numpy()[:, None]


def test_the_scpi_exchange_on_the_page_is_right() -> None:
    shown = re.search(r"```scpi\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    with ScpiEmulator(Chip()) as emulator, open_transport(emulator.uri) as line:
        for text in shown[1].splitlines():
            pieces = re.split(r"<([0-9A-F]+)>", text[2:])
            message = b"".join(bytes.fromhex(p) if i % 2 else p.encode() for i, p in enumerate(pieces)) + b"\n"
            if text.startswith("> "):
                line.write(message)
            else:
                assert line.read(len(message)) == message
