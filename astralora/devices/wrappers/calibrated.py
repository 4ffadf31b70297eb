"""A device with its calibration in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..calibration import Calibration, FittedModel, Thermometer
from ..clock import Clock
from ..device import Device, ReportsPeaks
from ..errors import DeviceError
from ..identifiable import Identifiable
from ..recovery import Retry
from ..registry import find_device, offer_device
from .rehearsal import RehearsalDevice
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage

_Capability = TypeVar("_Capability")

# Gains below this share of the drawing's are those of dead channels.
_DEAD = 0.05

__all__ = ["CalibratedDevice", "CalibratedTwin", "make_model"]


def make_model(model: FittedModel, spec: DeviceSpec) -> Identifiable:
    """The law that a calibration names, in the size and ranges of a device.

    Args:
        model: a registered device, and options of it.
        spec: of the chip that it is to describe.

    Raises:
        DeviceError: there is none of that name, it has no constants to fit, or is of another size.
    """
    offered: dict[str, Any] = {"in_features": spec.in_features, "out_features": spec.out_features}
    if spec.input_range is not None:
        offered["input_range"] = spec.input_range
    if spec.output_range is not None and find_device(model.name).accepts("impairments"):
        offered["impairments"] = {"output_bound": max(map(abs, spec.output_range))}
    offered = {name: value for name, value in offered.items() if name not in model.options}
    made = offer_device(model.name, offered, **model.options)
    if not isinstance(made, Identifiable):
        raise DeviceError(
            "has no constants that could be fitted: a model needs constants(), law() and written_for(), as the "
            "simulated kinds have",
            device=model.name,
            operation="calibration",
        )
    if made.spec.num_controls != spec.num_controls:
        raise DeviceError(
            f"has {made.spec.num_controls} controls at {spec.in_features} x {spec.out_features}, and {spec.name!r} has "
            f"{spec.num_controls}: it is no model of it",
            device=model.name,
            operation="calibration",
        )
    return made


class CalibratedDevice:
    """Makes a chip act as its drawing says: writes what it takes to that end, and corrects what it answers.

    Controls are those of a flawless chip. Before they are written, crosstalk, offsets and efficiencies that the
    calibration has found are taken out of them; inputs and outputs are corrected for gains and offsets. The spec has
    measured values in the place of promised ones. Costs nothing beyond the operations themselves.

    Where no law fits, nothing is corrected but what was measured directly: the dark level of each output.

    Args:
        device: the chip; one that is guarded by a session already keeps it.
        calibration: its own, or a path.
        retry: how often to try again after a fault; see `astralora.devices.Session`.
        max_age_days: after how many days to warn.

    Attributes:
        calibration: the record.
        twin: the chip's law as fitted, in the same corrected units, for autograd; None where no law fits.

    Raises:
        CalibrationMismatch: the calibration is another device's.
    """

    def __init__(
        self,
        device: Device,
        calibration: Calibration | str | Path,
        *,
        retry: Retry | None = None,
        max_age_days: float = 30.0,
    ) -> None:
        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        self.session = device if isinstance(device, Session) else Session(device, retry=retry)
        self.calibration = calibration
        self._max_age_days = max_age_days
        # A chip behind a wire says who it is when it is opened; most know before.
        calibration.check(device.spec, max_age_days=max_age_days)
        self.twin: CalibratedTwin | None = None
        if calibration.model is not None and calibration.fit is not None and calibration.fit.fits:
            self.twin = CalibratedTwin(calibration)
        self._dark = None if self.twin is not None else _dark_level(calibration)
        self.spec = _corrected(calibration, self.twin)

    def open(self) -> None:
        """Connect, and make sure that it is the device that was calibrated."""
        self.session.open()
        thermometer = self.session.capability(Thermometer)
        self.calibration.check(
            self.session.spec,
            temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
            max_age_days=float("inf"),  # its age has been told
        )

    def close(self) -> None:
        """Leave the chip in its safe state and disconnect."""
        self.session.close()

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), as of a flawless chip."""
        self.session.program(controls if self.twin is None else self.twin.written(controls))

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        if self.twin is None:
            return self._lit(self.session.query(inputs))
        return self.twin.corrected(self.session.query(self.twin.sent(inputs)))

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through; see `astralora.devices.ProgramsMany`."""
        if self.twin is None:
            return self._lit(self.session.query_each(controls, inputs))
        return self.twin.corrected(self.session.query_each(self.twin.written(controls), self.twin.sent(inputs)))

    def _lit(self, outputs: Tensor) -> Tensor:
        return outputs if self._dark is None else outputs - self._dark.to(outputs)

    @property
    def usage(self) -> Usage:
        """What the chip has been asked for."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """As many operations on the chip as on this."""
        return self.session.price(usage)

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """What the chip can do besides answering; see `astralora.devices.PassesOn`."""
        if isinstance(self, protocol):
            return self
        return self.session.capability(protocol) if protocol in (Clock, Thermometer, ReportsPeaks) else None

    def rehearsal(self) -> Device:
        """A stand-in that has a twin where this has one."""
        stand_in = _Rehearsal(self.spec)
        stand_in.twin = None if self.twin is None else stand_in
        return stand_in

    def state_dict(self) -> dict[str, Any]:
        """The chip's inner state, where it can be saved."""
        return self.session.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Put back what `state_dict` returned; False where the chip could not be."""
        return self.session.load_state_dict(state)


class _Rehearsal(RehearsalDevice):
    """Stands in for a calibrated device, and for its twin."""

    twin: RehearsalDevice | None = None


class CalibratedTwin:
    """The law of a calibrated chip: what `CalibratedDevice` answers, without noise and rounding, for autograd.

    Args:
        calibration: one whose law fits.
    """

    def __init__(self, calibration: Calibration) -> None:
        assert calibration.model is not None
        self.calibration = calibration
        self.model = make_model(calibration.model, calibration.promised)
        self.constants = calibration.constants
        self._tables: dict[Any, dict[str, Tensor]] = {}
        self.spec = _corrected(calibration, self)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """What comes out: (num_controls,) or (settings, num_controls), and (batch, in_features)."""
        return self.transfer_with({}, controls, inputs)

    def transfer_with(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """The same of a chip whose constants have moved since, by name; what is written stays as calibrated."""
        settings = controls if controls.ndim == 2 else controls.unsqueeze(0)
        now = {**self._as(controls), **constants}
        written = self._held(self.written(settings))
        answers = self.corrected(self.model.law(now, written, self.sent(inputs)))
        return answers if controls.ndim == 2 else answers[0]

    def written(self, controls: Tensor) -> Tensor:
        """What is written for controls (..., num_controls) of a flawless chip."""
        # Of controls that do not move, neighbours feel what they do, whatever is asked of them.
        return self.model.written_for(self._as(controls), self._held(controls))

    def sent(self, inputs: Tensor) -> Tensor:
        """What is sent for inputs (batch, in_features)."""
        constants = self._as(inputs)
        gain, offset = constants.get("input_gain"), constants.get("input_offset")
        if offset is not None:
            inputs = inputs - offset
        if gain is not None:
            inputs = inputs / _alive(gain)
        bounds = self.calibration.promised.input_range
        return inputs if bounds is None else inputs.clamp(*bounds)

    def corrected(self, outputs: Tensor) -> Tensor:
        """What outputs (..., out_features) would be of a chip with even detectors."""
        constants = self._as(outputs)
        gain, offset = constants.get("output_gain"), constants.get("output_offset")
        if offset is not None:
            outputs = outputs - offset
        return outputs if gain is None else outputs / _alive(gain)

    def _held(self, controls: Tensor) -> Tensor:
        """Controls (..., num_controls) with those that do not move where they are."""
        fixed = self.calibration.fixed
        if fixed is None:
            return controls
        fixed = fixed.to(controls)
        return controls.where(fixed.isnan(), fixed.nan_to_num())

    def _as(self, like: Tensor) -> dict[str, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._tables:
            self._tables[key] = {name: value.to(like) for name, value in self.constants.items()}
        return self._tables[key]


def _alive(gain: Tensor) -> Tensor:
    """Gains to divide by: what a detector that sees next to nothing reports is noise, and is left as it is."""
    return gain.where(gain.abs() > _DEAD, 1.0)


def _dark_level(calibration: Calibration) -> Tensor | None:
    """What each output reports of no light, (out_features,), where it is more than its own uncertainty."""
    offset, error = (calibration.tensors.get(f"dark/{name}") for name in ("offset", "error"))
    if offset is None or error is None:
        return None
    return offset.where(offset.abs() > 3 * error, 0.0)


def _corrected(calibration: Calibration, twin: CalibratedTwin | None) -> DeviceSpec:
    """The measured spec, in corrected units: what every input and every output can do."""
    spec = calibration.measured
    if twin is None:
        dark = _dark_level(calibration)
        if dark is None or spec.output_range is None:
            return spec
        low, high = spec.output_range
        return spec.model_copy(update={"output_range": (float((low - dark).max()), float((high - dark).min()))})
    constants = twin.constants
    update: dict[str, Any] = {}
    gain, offset = constants.get("input_gain"), constants.get("input_offset")
    if spec.input_range is not None and gain is not None and offset is not None:
        low, high = spec.input_range
        alive = _alive(gain)
        # What sent x has to be to make the input y: x = (y - offset) / gain, for the weakest modulator at either end.
        least, most = float((low * alive + offset).max()), float((high * alive + offset).min())
        # A range that starts at zero, or lies even about it, goes on doing so.
        if low == 0:
            least = 0.0
        elif low == -high:
            most = min(-least, most)
            least = -most
        update["input_range"] = (least, most)
    gain, offset = constants.get("output_gain"), constants.get("output_offset")
    if gain is not None and spec.output_range is not None:
        shift = 0.0 if offset is None else offset
        low, high = spec.output_range
        alive = _alive(gain)
        update["output_range"] = float(((low - shift) / alive).max()), float(((high - shift) / alive).min())
        update["noise_std"] = spec.noise_std / float(alive.abs().mean())
    return spec.model_copy(update=update)
