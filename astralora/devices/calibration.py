"""What was found out about one chip, as a file that outlives the measurement."""

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
    """A calibration was taken so long ago, or at such another temperature, that the chip may have changed since."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FittedModel(_Record):
    """Which law was fitted.

    Attributes:
        name: a registered device that is `astralora.devices.Identifiable`.
        options: of its factory, sizes and ranges aside.
    """

    name: str
    options: dict[str, JsonValue] = {}


class FitQuality(_Record):
    """How well a law with fitted constants foresees what the chip answers.

    Attributes:
        fits: whether it does, by answers that the fit has not seen.
        verdict: the same in a sentence.
        unexplained: share of the held-out answers' power that is neither foreseen nor noise.
        unexplained_error: standard error of it.
        held_out_rms: root mean square of what is left of held-out answers, in output units.
        training_rms: the same of the answers that were fitted.
        noise_std: what noise and rounding alone leave, as measured by asking twice.
        starts: how often the fit was begun anew.
        settings: that were fitted.
        held_out_settings: that were not.
        errors: ``"full"`` where standard errors of constants allow for all others; ``"diagonal"`` where each takes the
            others for known, and is a lower bound.
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
    """A calibration record: JSON for people and machines, and beside it a safetensors file for what is large.

    Attributes:
        format: version of the record's format.
        device: the device's name.
        serial_number: of the unit it was taken on, which alone it is good for.
        created: when.
        temperature_celsius: of the chip, if it tells.
        promised: what the device says of itself.
        measured: the same, as found: its noise, and what else was measured.
        model: which law was fitted; None for none.
        fit: how well; None for none.
        findings: what was measured directly, each with name, value, low, high (three standard errors), unit, promised,
            agrees and a sentence.
        spent: programs, queries and vectors that it took.
        wall_seconds: time that the measurement took.
        tensors: constants found, as ``constants/NAME``; their standard errors, ``errors/NAME``; measured pairs that
            were held out and what the law says of them, ``held_out/measured`` and ``held_out/foreseen``; what controls
            that do not move are held at, ``fixed``, nan for all others; noise of each output, ``noise/by_output``, and
            those that see nothing, ``dead_outputs``; what outputs report in the dark, ``dark/offset`` with
            ``dark/error``; and more.
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
        """The constants that were found, by name; empty where nothing fits."""
        return self._part("constants/") if self.fit is not None and self.fit.fits else {}

    @property
    def errors(self) -> dict[str, Tensor]:
        """Their standard errors, by name."""
        return self._part("errors/")

    @property
    def fixed(self) -> Tensor | None:
        """What controls that do not move are held at, nan for all others, (num_controls,); None where all move."""
        return self.tensors.get("fixed")

    @property
    def age_days(self) -> float:
        """Days since it was taken."""
        return (datetime.now(UTC) - self.created).total_seconds() / 86400

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return _digest(self.model_dump(mode="json"), save_tensors(self._contiguous()))

    def check(
        self,
        spec: DeviceSpec,
        *,
        temperature_celsius: float | None = None,
        max_age_days: float = 30.0,
        max_kelvin: float = 5.0,
    ) -> None:
        """Refuse to be used on another device than the one it was taken on, and warn of what may have changed.

        Args:
            spec: of the device at hand.
            temperature_celsius: of it, if known.
            max_age_days: after how many days to warn.
            max_kelvin: from what difference of temperatures on to warn.

        Raises:
            CalibrationMismatch: it is another device.
        """
        theirs, ours = spec.serial_number, self.serial_number
        if theirs != ours:
            raise CalibrationMismatch(
                f"the calibration was taken on {ours or 'a device without a serial number'}, and this is "
                f"{theirs or 'a device without one'}; calibrate this one",
                device=spec.name,
                operation="calibration",
            )
        for what in ("in_features", "out_features", "num_controls"):
            here, there = getattr(spec, what), getattr(self.promised, what)
            if here != there:
                raise CalibrationMismatch(
                    f"the calibration was taken with {what} = {there}, and the device has {here} now; calibrate again",
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
            apart = abs(temperature_celsius - self.temperature_celsius)
            if apart > max_kelvin:
                warnings.warn(
                    f"{spec.name!r} is at {temperature_celsius:.1f} degrees Celsius, {apart:.1f} away from where it "
                    f"was calibrated; bring it back there, or calibrate again",
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
        """Write the record, and its tensors beside it.

        The tensors' file is named by what is in it and written first; the record, which names it, replaces an earlier
        one in one go. At no moment is half a record under the final name.

        Raises:
            DeviceError: it cannot be written.
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
        """Read a record and its tensors, and make sure that they are what was written.

        Raises:
            DeviceError: there is none, it is damaged, or of a later format; in one sentence.
        """
        path = Path(path)
        content = _read_json(path)
        version = content.get("format")
        if isinstance(version, int) and version > 1:
            raise DeviceError(f"the calibration {path} has format {version}, and this astralora reads 1; update it")
        hashes = {key: content.pop(key, None) for key in _HASHES}
        name = hashes["tensors_file"]
        if not isinstance(name, str) or Path(name).name != name:
            raise DeviceError(f"the calibration {path} names no tensors_file beside it")
        try:
            data = path.with_name(name).read_bytes()
        except OSError:
            raise DeviceError(
                f"the calibration {path} belongs together with {name}, which is not beside it; copy both"
            ) from None
        if _digest(content, data) != hashes["sha256"]:
            raise DeviceError(f"the calibration {path} or {name} is damaged: its hash is not the one that was written")
        try:
            return cls.model_validate({**content, "tensors": load_tensors(data)})
        except ValidationError as error:
            raise DeviceError(f"the calibration {path}: {first_problem(error)}") from None
        except SafetensorError as error:
            raise DeviceError(f"the calibration {path}: {name} is no safetensors file: {error}") from None

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
        raise DeviceError(f"the calibration {path} is no record, but a {type(content).__name__}")
    return content


def _named_tensors(path: Path) -> str | None:
    """The tensors' file of the record that is there already."""
    if not path.exists():
        return None
    try:
        name = _read_json(path).get("tensors_file")
    except DeviceError:
        return None  # no record of ours: it is replaced, and nothing beside it touched
    return name if isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") else None
