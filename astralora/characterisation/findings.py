"""Record the measured properties of a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from ..devices import DeviceSpec
from ..devices.html import html_table

__all__ = ["Characterisation", "Finding", "finding_row", "first_numbers"]

_LABELS = {
    "noise_std": "noise of outputs",
    "flicker_corner": "corner of 1/f noise",
    "output_enob": "effective bits of outputs",
    "linearity_error": "linearity of inputs",
    "drift_exponent": "exponent of decay",
}
"""Labels of findings in tables, where they differ from the name."""


class Finding(BaseModel):
    """Record one measured property of a device.

    Attributes:
        name: name of the property, such as ``"noise_std"``.
        measurement: name of the measurement.
        value: measured value; None where there is no single number, or the measurement was not conclusive.
        low: lowest value consistent with the answers, at three standard errors.
        high: highest value consistent with the answers.
        unit: unit of the values.
        promised: value that the spec claims; None where it claims none.
        agrees: whether the claimed value is consistent with the answers; None without a claim.
        sentence: the finding in words.
        data: numbers for plots and tables, as lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    measurement: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    promised: float | None = None
    agrees: bool | None = None
    sentence: str
    data: dict[str, JsonValue] = {}


class Characterisation(BaseModel):
    """Record all measured properties of a device at one time.

    Attributes:
        format: version of the record's format.
        device: name of the device.
        serial_number: serial number of the unit.
        created: time of the measurement.
        temperature_celsius: temperature of the chip, if the device reports it.
        promised: spec that the device claims.
        findings: findings in the order of the measurements.
        skipped: measurements that were not made, with the reason.
        spent: total programs, queries and vectors.
        spent_by_measurement: programs and vectors of each measurement; the first includes the search for the amplitude.
        wall_seconds: duration in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    device: str
    serial_number: str | None
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    temperature_celsius: Annotated[float, Field(ge=-273.15, allow_inf_nan=False)] | None = None
    promised: DeviceSpec
    findings: tuple[Finding, ...]
    skipped: dict[str, str] = {}
    spent: dict[str, int]
    spent_by_measurement: dict[str, dict[str, int]] = {}
    wall_seconds: float = Field(ge=0, allow_inf_nan=False)

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of this name.

        Raises:
            KeyError: there is no finding of this name.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    @property
    def unmet_claims(self) -> list[Finding]:
        """Return the findings that contradict the spec."""
        return [finding for finding in self.findings if finding.agrees is False]

    @property
    def measured(self) -> DeviceSpec:
        """Return the spec with the measured values in place of the claimed ones."""
        update: dict[str, Any] = {}
        for name in ("noise_std", "input_levels", "control_levels", "output_levels"):
            if name in self and self[name].value is not None:
                value = self[name].value
                assert value is not None
                update[name] = value if name == "noise_std" else round(value)
        return self.promised.model_copy(update=update)

    def _repr_html_(self) -> str:
        """Return the findings as a table for notebooks."""
        rows: list[tuple[str, object]] = []
        for finding in self.findings:
            row = finding_row(finding.model_dump())
            label = row["name"] + (f", {row['unit']}" if row["unit"] else "")
            bounds = f" ({row['between']})" if row["between"] else ""
            claim = f"; the spec claims {row['promised']}" if row["promised"] else ""
            contradiction = "; contradicts the spec" if finding.agrees is False else ""
            rows.append((label, f"{row['value'] or row['sentence']}{bounds}{claim}{contradiction}"))
        rows += [(f"{name}, not measured", reason) for name, reason in self.skipped.items()]
        rows.append(("spent", f"{self.spent['programs']:,} programs, {self.spent['vectors']:,} vectors"))
        return html_table(f"Characterisation of {self.serial_number or self.device}", rows)


def finding_row(finding: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a finding for a table.

    Args:
        finding: fields of a `Finding`.

    Returns:
        The texts name, sentence, value, between, unit, promised, and kind: ``"broken"`` where the spec is contradicted.
    """
    low, high = finding["low"], finding["high"]
    between = (
        f"{_number(low)} to {_number(high)}" if high is not None else f"from {_number(low)}" if low is not None else ""
    )
    return {
        "name": _LABELS.get(finding["name"], finding["name"].replace("_", " ")),
        "sentence": finding["sentence"],
        "value": _number(finding["value"]),
        "between": between,
        "unit": finding["unit"],
        "promised": _number(finding["promised"]),
        "kind": "broken" if finding["agrees"] is False else "",
    }


def first_numbers(which: Sequence[int]) -> str:
    """List the first eight numbers, such as those of stuck controls."""
    return ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")


def _number(value: float | None) -> str:
    """Format a number with three digits, and a whole number with all digits; return "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"
