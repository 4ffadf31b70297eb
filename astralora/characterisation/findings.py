"""What was measured of a device, as a record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from ..devices import DeviceSpec

__all__ = ["Characterisation", "Finding"]


class Finding(BaseModel):
    """One property of a device.

    Attributes:
        name: of the property, such as ``"noise_std"``.
        measurement: that found it.
        value: what was found; None where there is no one number, or nothing could be told.
        low: lowest value that the answers leave open, at three standard errors.
        high: the highest.
        unit: of the three.
        promised: what the spec says; None where it says nothing.
        agrees: whether the promise lies within what the answers leave open; None without one.
        sentence: the finding in words.
        data: numbers for pictures and tables, as lists.
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
    """Everything that was measured of a device at one time.

    Attributes:
        format: version of the record's format.
        device: its name.
        serial_number: of the unit.
        created: when.
        temperature_celsius: of the chip, if it tells.
        promised: what the device says of itself.
        findings: in the order of the measurements.
        skipped: measurements that were not made, with the reason.
        spent: programs, queries and vectors.
        spent_by_measurement: programs and vectors of each; the first has found the strength of the light as well.
        wall_seconds: how long it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    device: str
    serial_number: str | None
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    temperature_celsius: float | None = None
    promised: DeviceSpec
    findings: tuple[Finding, ...]
    skipped: dict[str, str] = {}
    spent: dict[str, int]
    spent_by_measurement: dict[str, dict[str, int]] = {}
    wall_seconds: float

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name.

        Raises:
            KeyError: it was not made.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    @property
    def broken_promises(self) -> list[Finding]:
        """Findings that contradict the spec."""
        return [finding for finding in self.findings if finding.agrees is False]

    @property
    def measured(self) -> DeviceSpec:
        """The spec, with what was measured in the place of what was promised."""
        update: dict[str, Any] = {}
        for name in ("noise_std", "input_levels", "control_levels", "output_levels"):
            if name in self and self[name].value is not None:
                value = self[name].value
                assert value is not None
                update[name] = value if name == "noise_std" else round(value)
        return self.promised.model_copy(update=update)
