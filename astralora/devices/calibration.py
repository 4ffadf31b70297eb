"""Store the calibration of one chip in files."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .errors import CalibrationMismatch, DeviceError
from .files import write_atomically
from .html import html_table
from .spec import DeviceSpec
from .validation import first_problem

__all__ = ["Calibration", "CalibrationAgeWarning", "FitQuality", "FittedModel"]

_HASHES = ("sha256", "tensors_file", "tensors_sha256")


class CalibrationAgeWarning(UserWarning):
    """Warn that a calibration is old, or was taken at another temperature, so that the chip may have changed."""


class _Record(BaseModel):
    """Refuse unknown keys, and refuse changes after construction; base class of the records here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FittedModel(_Record):
    """Name the law that was fitted.

    Attributes:
        name: name of a registered device with the capability `astralora.devices.Identifiable`.
        options: options of its factory, except sizes and ranges.
    """

    name: str
    options: dict[str, JsonValue] = {}


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
    unexplained: float
    unexplained_error: float
    held_out_rms: float
    training_rms: float
    noise_std: float
    starts: int
    settings: int
    held_out_settings: int
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
    device: str
    serial_number: str | None
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    temperature_celsius: float | None = None
    promised: DeviceSpec
    measured: DeviceSpec
    model: FittedModel | None = None
    fit: FitQuality | None = None
    findings: tuple[dict[str, JsonValue], ...] = ()
    spent: dict[str, int]
    wall_seconds: float = Field(default=0.0, ge=0)
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
        return _digest(self.model_dump(mode="json"), save_tensors(self._contiguous()))

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
        content = self.model_dump(mode="json")
        sha = hashlib.sha256(data).hexdigest()
        name = f"{path.stem}-{sha[:12]}.safetensors"
        content |= {"tensors_file": name, "tensors_sha256": sha, "sha256": _digest(content, data)}
        try:
            earlier = _named_tensors(path)
            write_atomically(path.with_name(name), data)
            write_atomically(path, json.dumps(content, indent=2) + "\n")
            if earlier is not None and earlier != name:
                path.with_name(earlier).unlink(missing_ok=True)
        except OSError as error:
            raise DeviceError(f"the calibration {path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a record and its tensors, and check their hash.

        Raises:
            DeviceError: there is no record, it is damaged, or its format is newer.
        """
        path = Path(path)
        content = _read_json(path)
        version = content.get("format")
        if isinstance(version, int) and version > 1:
            raise DeviceError(
                f"the calibration {path} has format {version}, but this astralora reads format 1; update astralora"
            )
        hashes = {key: content.pop(key, None) for key in _HASHES}
        name = hashes["tensors_file"]
        if not isinstance(name, str) or Path(name).name != name:
            raise DeviceError(
                f"the tensors_file of the calibration {path} must be the name of a file in the same folder"
            )
        try:
            data = path.with_name(name).read_bytes()
        except OSError:
            raise DeviceError(
                f"the calibration {path} needs {name}, which is not in the same folder; copy both"
            ) from None
        if _digest(content, data) != hashes["sha256"]:
            raise DeviceError(f"the calibration {path} or {name} is damaged: its hash differs from the saved one")
        try:
            return cls.model_validate({**content, "tensors": load_tensors(data)})
        except ValidationError as error:
            raise DeviceError(f"the calibration {path}: {first_problem(error)}") from None
        except SafetensorError as error:
            raise DeviceError(f"the calibration {path}: {name} is not a safetensors file: {error}") from None

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _contiguous(self) -> dict[str, Tensor]:
        return {name: self.tensors[name].contiguous() for name in sorted(self.tensors)}


def _digest(content: Mapping[str, Any], data: bytes) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + b"\0" + data).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviceError(f"the calibration {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DeviceError(f"the calibration {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DeviceError(f"the calibration {path} must contain a JSON object, not a {type(content).__name__}")
    return content


def _named_tensors(path: Path) -> str | None:
    """Return the name of the tensor file that the record at a path refers to; None if there is no record."""
    if not path.exists():
        return None
    try:
        name = _read_json(path).get("tensors_file")
    except DeviceError:
        return None  # not a calibration: this file is replaced, and no other file is deleted
    return name if isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") else None
