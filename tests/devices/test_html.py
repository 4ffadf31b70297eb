"""Test that tables for notebooks are short, and safe with any name."""

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from astralora.devices import Calibration, DeviceSpec, FitQuality, FittedModel, Usage
from astralora.devices.html import html_table, short

HOSTILE = '<script>alert("&")</script>'


class Cells(HTMLParser):
    """Collect the text of all cells, and the names of all tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag in ("th", "td", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def check_safe(text: str) -> list[str]:
    """Return the cells of a table, once its tags and attributes are known to be harmless."""
    cells = Cells(text)
    assert cells.tags == {"table", "caption", "tbody", "tr", "th", "td"}
    assert cells.attributes == {"style", "scope"}
    return cells.cells


def spec(**changes: Any) -> DeviceSpec:
    return DeviceSpec(**{"name": "bench", "in_features": 64, "out_features": 32, "num_controls": 2048, **changes})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (1 / 3, "0.3333"),
        (1.5e-9, "1.5e-09"),
        ((-1.0, 1.0), "-1, 1"),
        ([], "none"),
        ({"programs": 10, "vectors": 2000}, "programs: 10, vectors: 2,000"),
        (datetime(2026, 3, 1, 12, 30, 59, tzinfo=UTC), "2026-03-01 12:30+00:00"),
        ("text", "text"),
    ],
)
def test_values_are_short(value: object, text: str) -> None:
    assert short(value) == text


def test_everything_is_escaped() -> None:
    cells = check_safe(html_table(HOSTILE, [(HOSTILE, HOSTILE), ("list", [HOSTILE]), ("map", {HOSTILE: 1})]))
    assert cells == [HOSTILE, HOSTILE, HOSTILE, "list", HOSTILE, "map", f"{HOSTILE}: 1"]


def test_no_colour_is_set_but_that_of_the_theme() -> None:
    text = html_table("title", [("name", 1)])
    assert "color:inherit" in text
    assert text.count("color:") == 1
    assert "background" not in text


def test_usage_is_a_table() -> None:
    cells = check_safe(
        Usage(programs=1500, queries=3, vectors=7, seconds=0.123456, retries=1, bytes=4096)._repr_html_()
    )
    assert cells[0] == "Usage"
    assert dict(zip(cells[1::2], cells[2::2], strict=True)) == {
        "programs": "1,500",
        "queries": "3",
        "vectors": "7",
        "seconds": "0.1235",
        "retries": "1",
        "bytes": "4,096",
    }


def test_a_spec_is_a_table_of_what_it_claims() -> None:
    text = spec(name=HOSTILE, serial_number=HOSTILE, control_range=(-2.0, 2.0), control_unit="<b>V</b>")._repr_html_()
    cells = check_safe(text)
    assert cells[0] == f"Device {HOSTILE}"
    rows = dict(zip(cells[1::2], cells[2::2], strict=True))
    assert rows["in_features"] == "64"
    assert rows["control_range"] == "-2, 2"
    assert rows["control_unit"] == "<b>V</b>"
    assert rows["serial_number"] == HOSTILE
    assert "input_range" not in rows, "only what differs from the defaults"
    assert "reach" not in rows, "a list of thousands of patches"


def record(**changes: Any) -> Calibration:
    fit = FitQuality(
        fits=True,
        verdict=f"The law fits. {HOSTILE}",
        unexplained=0.0,
        unexplained_error=0.0,
        held_out_rms=0.01,
        training_rms=0.01,
        noise_std=0.01,
        starts=1,
        settings=8,
        held_out_settings=2,
        errors="full",
    )
    values: dict[str, Any] = {
        "device": HOSTILE,
        "serial_number": HOSTILE,
        "created": datetime.now(UTC) - timedelta(days=3.5),
        "promised": spec(),
        "measured": spec(),
        "model": FittedModel(name="mzi"),
        "fit": fit,
        "findings": ({"name": HOSTILE, "sentence": HOSTILE}, {"name": "noise", "sentence": "Noise is 0.1."}),
        "spent": {"programs": 1500, "vectors": 7},
        "tensors": {
            "constants/gain": torch.ones(32),
            "constants/phase": torch.ones(2048),
            "dark/offset": torch.ones(32),
        },
    }
    return Calibration(**{**values, **changes})


def test_a_calibration_is_a_table() -> None:
    cells = check_safe(record()._repr_html_())
    assert cells[0] == f"Calibration of {HOSTILE}"
    rows = list(zip(cells[1::2], cells[2::2], strict=True))
    assert rows == [
        ("device", HOSTILE),
        ("serial number", HOSTILE),
        ("age in days", "3.5"),
        ("law", "mzi"),
        ("verdict", f"The law fits. {HOSTILE}"),
        ("constants", "2 kinds, 2,080 values"),
        (HOSTILE, HOSTILE),
        ("noise", "Noise is 0.1."),
    ]


def test_a_calibration_without_a_law_says_so() -> None:
    cells = check_safe(record(model=None, fit=None, findings=(), tensors={})._repr_html_())
    rows = dict(zip(cells[1::2], cells[2::2], strict=True))
    assert (rows["law"], rows["verdict"], rows["constants"]) == ("none", "none", "none")
