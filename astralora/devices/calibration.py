"""Store the calibration of one chip in files."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    ValidationError,
)
from safetensors.torch import save as save_tensors
from torch import Tensor

from .calibration_contents import check_findings, check_tensors
from .errors import CalibrationMismatch, DeviceError
from .files import file_name, read_bytes, remove_file, write_file
from .html import html_table
from .parsing import parse_tensors, read_json
from .spec import DeviceSpec
from .validation import Described, first_problem, printable

__all__ = ["Calibration", "CalibrationAgeWarning", "FitQuality", "FittedModel"]

_HASHES = ("sha256", "tensors_file", "tensors_sha256")
_WHAT = "the calibration"
_TENSORS_LIMIT = 4 * 2**30  # bytes
_COUNTS = ("programs", "queries", "vectors")

_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=0)]
# JSON has no nan; it is stored as null.
_Number = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]


class CalibrationAgeWarning(UserWarning):
    """Warn that a calibration is old, or was taken at another temperature, so that the chip may have changed."""


class _Record(Described):
    """Refuse unknown keys, and refuse changes after construction; base class of the records here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FittedModel(_Record):
    """Name the law that was fitted.

    Attributes:
        name: name of a registered device with the capability `astralora.devices.Identifiable`.
        options: options of its factory, except sizes and ranges.
    """

    name: _Text
    options: dict[str, JsonValue] = Field(default_factory=dict)


class FitQuality(_Record):
    """Describe how well a law with fitted constants predicts the answers of the chip.

    Attributes:
        fits: whether the law predicts held-out answers, which the fit did not use.
        verdict: the result in a sentence.
        unexplained: share of the power of held-out answers that is neither predicted nor noise.
        unexplained_error: standard error of ``unexplained``.
        held_out_rms: root mean square error of the prediction of held-out answers, in output units.
        training_rms: root mean square error of the fitted answers, in output units.
        noise_std: standard deviation of noise and rounding alone, measured by repeated queries.
        starts: number of starting points of the fit.
        settings: number of settings that were fitted.
        held_out_settings: number of settings that were held out.
        errors: ``"full"`` if the standard error of each constant includes the uncertainty of all others;
            ``"diagonal"`` if the other constants are assumed to be exact, which gives a lower bound.
    """

    fits: bool
    verdict: str
    unexplained: _Number
    unexplained_error: _Number
    held_out_rms: _Number
    training_rms: _Number
    noise_std: _Number
    starts: _Count
    settings: _Count
    held_out_settings: _Count
    errors: Literal["full", "diagonal"]


class Calibration(_Record):
    """Hold the calibration of one chip; on disk, a JSON record and a safetensors file for the tensors.

    Attributes:
        format: version of the format of the record.
        device: name of the device.
        serial_number: serial number of the calibrated unit; the record is valid for this unit only.
        created: time of the calibration.
        temperature_celsius: temperature of the chip, if it has a thermometer.
        promised: spec that the device claims.
        measured: the same spec with measured values, such as the noise.
        model: law that was fitted; None if no law was fitted.
        fit: quality of the fit; None if no law was fitted.
        findings: properties measured directly, each with name, value, low, high (three standard errors), unit,
            promised, agrees and a sentence.
        spent: programs, queries and vectors that the calibration used.
        wall_seconds: time that the calibration took.
        tensors: fitted constants, ``constants/NAME``; their standard errors, ``errors/NAME``; measured and predicted
            answers at held-out settings, ``held_out/measured`` and ``held_out/foreseen``; values of stuck controls,
            ``fixed``, nan for all others; noise of each output, ``noise/by_output``; which outputs are dead,
            ``dead_outputs``; dark level of each output, ``dark/offset``, and its error, ``dark/error``; and more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    format: Literal[1] = 1
    device: _Text
    serial_number: str | None
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    temperature_celsius: Annotated[float, Field(ge=-273.15, allow_inf_nan=False)] | None = None
    promised: DeviceSpec
    measured: DeviceSpec
    model: FittedModel | None = None
    fit: FitQuality | None = None
    findings: tuple[dict[str, JsonValue], ...] = ()
    spent: dict[str, NonNegativeInt]
    wall_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    tensors: dict[str, Tensor] = Field(default_factory=dict, exclude=True, repr=False)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Return the fitted constants by name; empty where no law fits."""
        return self._part("constants/") if self.fit is not None and self.fit.fits else {}

    @property
    def errors(self) -> dict[str, Tensor]:
        """Return the standard errors of the constants by name."""
        return self._part("errors/")

    @property
    def fixed(self) -> Tensor | None:
        """Return the values of stuck controls, nan for all others, (num_controls,); None where no control is stuck."""
        return self.tensors.get("fixed")

    @property
    def age_days(self) -> float:
        """Return the age in days."""
        return (datetime.now(UTC) - self.created).total_seconds() / 86400

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the record and its tensors."""
        return _digest(self._content(), save_tensors(self._contiguous()))

    def check(
        self,
        spec: DeviceSpec,
        *,
        temperature_celsius: float | None = None,
        max_age_days: float = 30.0,
        max_kelvin: float = 5.0,
    ) -> None:
        """Refuse a device that is not the calibrated one, and warn if the chip may have changed.

        Args:
            spec: spec of the device to use.
            temperature_celsius: its present temperature; None if unknown.
            max_age_days: warn if the calibration is older than this, in days.
            max_kelvin: warn if the temperature differs by more than this, in kelvin.

        Raises:
            CalibrationMismatch: the calibration belongs to another device.
        """
        theirs, ours = spec.serial_number, self.serial_number
        if theirs != ours:
            raise CalibrationMismatch(
                f"the calibration was taken on {ours or 'a device without a serial number'}, but this device is "
                f"{theirs or 'a device without one'}; calibrate this device",
                device=spec.name,
                operation="calibration",
            )
        for what in ("in_features", "out_features", "num_controls"):
            here, there = getattr(spec, what), getattr(self.promised, what)
            if here != there:
                raise CalibrationMismatch(
                    f"the calibration was taken with {what} = {there}, but the device now has {here}; calibrate again",
                    device=spec.name,
                    operation="calibration",
                )
        if self.age_days > max_age_days:
            warnings.warn(
                f"the calibration of {spec.name!r} is {self.age_days:.0f} days old; chips change: calibrate again, "
                f"or raise max_age_days",
                CalibrationAgeWarning,
                stacklevel=3,
            )
        if temperature_celsius is not None and self.temperature_celsius is not None:
            difference = abs(temperature_celsius - self.temperature_celsius)
            if difference > max_kelvin:
                warnings.warn(
                    f"{spec.name!r} is at {temperature_celsius:.1f} degrees Celsius, {difference:.1f} away from the "
                    f"temperature of its calibration; restore that temperature, or calibrate again",
                    CalibrationAgeWarning,
                    stacklevel=3,
                )

    def _repr_html_(self) -> str:
        """Return the main results as a table for notebooks."""
        constants = self.constants
        count = sum(value.numel() for value in constants.values())
        rows: list[tuple[str, object]] = [
            ("device", self.device),
            ("serial number", self.serial_number),
            ("age in days", self.age_days),
            ("law", None if self.model is None else self.model.name),
            ("verdict", None if self.fit is None else self.fit.verdict),
            ("constants", f"{len(constants)} kinds, {count:,} values" if constants else None),
        ]
        rows += [(str(finding.get("name", "finding")), finding.get("sentence")) for finding in self.findings]
        return html_table(f"Calibration of {self.device}", rows)

    # -- files ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the record, and write its tensors to a file in the same folder.

        The file of the tensors is written first; its name contains a hash of its content. The record contains this
        name. It is written second and replaces an earlier record atomically, so an interruption leaves the earlier
        calibration complete.

        Raises:
            DeviceError: a file cannot be written.
        """
        path = Path(path)
        data = save_tensors(self._contiguous())
        content = self._content()
        sha = hashlib.sha256(data).hexdigest()
        name = f"{path.stem}-{sha[:12]}.safetensors"
        content |= {"tensors_file": name, "tensors_sha256": sha, "sha256": _digest(content, data)}
        earlier = _named_tensors(path)
        write_file(path.with_name(name), data, "the tensors of a calibration")
        write_file(path, json.dumps(content, indent=2) + "\n", _WHAT)
        # Read again, because another process may have written the earlier record again in between.
        if earlier is not None and earlier not in (name, _named_tensors(path)):
            remove_file(path.with_name(earlier), "the tensors of an earlier calibration")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a record and its tensors, and check their hash.

        Raises:
            DeviceError: there is no record, it is damaged, its parts do not fit together, or its format is newer.
        """
        path = Path(path)
        subject = file_name(path, _WHAT)
        content = read_json(path, _WHAT)
        version = content.get("format")
        if isinstance(version, int) and version > 1:
            raise DeviceError(f"{subject} has format {version}, but this astralora reads format 1; update astralora")
        hashes = {key: content.pop(key, None) for key in _HASHES}
        name = hashes["tensors_file"]
        if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
            raise DeviceError(f"the tensors_file of {subject} must be the name of a file in the same folder")
        tensors_path, shown = path.with_name(name), printable(name)
        if not tensors_path.exists():
            raise DeviceError(f"{subject} needs {shown}, which is not in the same folder; copy both")
        data = read_bytes(tensors_path, "the tensors of a calibration", limit=_TENSORS_LIMIT)
        if _digest(content, data) != hashes["sha256"]:
            raise DeviceError(f"{subject} or {shown} is damaged: its hash differs from the saved one")
        tensors = parse_tensors(data, f"{shown}, which {subject} needs,").tensors
        try:
            found = cls.model_validate({**content, "tensors": tensors})
            found.check_contents()
        except ValidationError as error:
            raise DeviceError(f"{subject}: {first_problem(error)}") from None
        except ValueError as error:
            raise DeviceError(f"{subject}: {error}; calibrate the device again") from None
        return found

    def check_contents(self) -> None:
        """Refuse a record whose parts do not fit together.

        Raises:
            ValueError: a part is missing or wrong; the message names it, what is wrong, and what would be right.
        """
        for name in _COUNTS:
            if name not in self.spent:
                raise ValueError(f"spent.{name} is missing, the number of {name} that the calibration used")
        if self.fit is not None and self.model is None:
            raise ValueError("model is null, and must name the law that was fitted")
        fits = self.fit is not None and self.fit.fits
        check_findings(self.findings)
        check_tensors(self.tensors, self.promised, self.measured, fits=fits)

    def _content(self) -> dict[str, Any]:
        """Return the record as JSON, without its tensors."""
        content: dict[str, Any] = json.loads(self.model_dump_json())
        return content

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _contiguous(self) -> dict[str, Tensor]:
        return {name: self.tensors[name].contiguous() for name in sorted(self.tensors)}


def _digest(content: Mapping[str, Any], data: bytes) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + b"\0" + data).hexdigest()


def _named_tensors(path: Path) -> str | None:
    """Return the name of the tensor file that the record at a path refers to; None if there is no record."""
    if not path.exists():
        return None
    try:
        name = read_json(path, _WHAT).get("tensors_file")
    except DeviceError:
        return None  # not a calibration: this file is replaced, and no other file is deleted
    return name if isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") else None
