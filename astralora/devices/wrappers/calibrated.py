"""Correct a chip by its calibration, and make its twin."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..calibration import Calibration, FittedModel
from ..capabilities import (
    Clock,
    Composite,
    Differentiable,
    Identifiable,
    ProgramsMany,
    Rehearses,
    ReportsPeaks,
    Snapshots,
    Thermometer,
    Twinned,
    capability_of,
)
from ..device import Device
from ..errors import DeviceError
from ..recovery import Retry
from ..registry import find_device, offer_device
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage
from ..validation import printable
from ..wrapper import DeviceWrapper
from .rehearsal import RehearsalDevice

# Channels with a gain below this share of the nominal one are dead.
_DEAD = 0.05

# A chip whose constant is further from nominal than this many spreads cannot be made.
_FARTHEST = 1000.0

__all__ = ["CalibratedDevice", "CalibratedTwin", "check_constants", "make_model"]


def make_model(model: FittedModel, spec: DeviceSpec) -> Identifiable:
    """Make the law that a calibration refers to, with the size and ranges of a device.

    Args:
        model: name and options of the registered device that computes the law.
        spec: spec of the chip that the law describes.

    Raises:
        DeviceError: there is no such device, it has no constants to fit, or it has another size.
    """
    offered: dict[str, Any] = {"in_features": spec.in_features, "out_features": spec.out_features}
    if spec.input_range is not None:
        offered["input_range"] = spec.input_range
    if spec.output_range is not None and find_device(model.name).accepts("impairments"):
        offered["impairments"] = {"output_bound": max(map(abs, spec.output_range))}
    offered = {name: value for name, value in offered.items() if name not in model.options}
    made = offer_device(model.name, offered, **model.options)
    law = capability_of(made, Identifiable)
    if law is None:
        raise DeviceError(
            "has no constants to fit; name a model that declares the capability Identifiable and has constants(), "
            "law() and written_for(), as the simulated kinds do, or 'none' to measure without a law",
            device=model.name,
            operation="calibration",
        )
    if made.spec.num_controls != spec.num_controls:
        raise DeviceError(
            f"has {made.spec.num_controls} controls at {spec.in_features} x {spec.out_features}, but {spec.name!r} has "
            f"{spec.num_controls} and needs another model",
            device=model.name,
            operation="calibration",
        )
    return law


def check_constants(constants: Mapping[str, Tensor], law: Identifiable, name: str) -> None:
    """Refuse constants that a law does not have, of a wrong shape, or impossibly far from nominal.

    Args:
        constants: constants of a calibration by name.
        law: law that uses them.
        name: name of the law, for messages.

    Raises:
        DeviceError: a constant is not valid; the message names it, what is wrong, and what would be right.
    """
    declared = law.constants()

    def refused(problem: str) -> DeviceError:
        return DeviceError(f"{problem}; calibrate the device again", device=name, operation="calibration")

    for constant, values in constants.items():
        if constant not in declared:
            known = ", ".join(declared)
            raise refused(f"the calibration has the constant {printable(constant)!r}, and the law has only {known}")
        wanted = declared[constant]
        if tuple(values.shape) != tuple(wanted.shape):
            raise refused(f"the constant {constant} has shape {tuple(values.shape)}, and must have {wanted.shape}")
        far = (values - wanted.nominal).abs() > _FARTHEST * wanted.spread
        if bool(far.any()):
            value = float(values[far].flatten()[0])
            raise refused(f"the constant {constant} has the value {value:g}, and must be near {wanted.nominal:g}")


class CalibratedDevice(DeviceWrapper):
    """Make a chip act like a nominal one: correct its controls, inputs and outputs by a calibration.

    The caller gives the controls for a nominal chip. They are corrected for the measured crosstalk, offsets and
    efficiencies before they are written; inputs and outputs are corrected for gains and offsets. The spec contains
    measured values instead of claimed ones. The corrections cost no operations.

    If no law fits, only the dark level of each output is corrected, because it was measured directly.

    Args:
        device: chip, or a session on it, whose budget and counters then stay in use.
        calibration: calibration of this chip, or a path.
        retry: number of attempts after a fault, and the pauses between them; see `Session`.
        max_age_days: warn if the calibration is older than this, in days.

    Attributes:
        session: session on the chip.
        calibration: calibration record.
        twin: fitted law of the chip in the same corrected units, for autograd; None if no law fits.

    Raises:
        CalibrationMismatch: the calibration belongs to another device.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Composite, ProgramsMany, Rehearses, Snapshots, Twinned)
    forwards: ClassVar[tuple[type, ...]] = (Clock, ReportsPeaks, Thermometer)

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
        super().__init__(self.session)
        self.calibration = calibration
        # Checked again in `open`, because some chips report their serial number only when they are opened.
        calibration.check(device.spec, max_age_days=max_age_days)
        self.twin: CalibratedTwin | None = None
        if calibration.model is not None and calibration.fit is not None and calibration.fit.fits:
            self.twin = CalibratedTwin(calibration)
        self._dark = None if self.twin is not None else _dark_level(calibration)
        self._spec = _corrected(calibration, self.twin)

    @property
    def spec(self) -> DeviceSpec:
        """Return the measured spec of the chip, in corrected units."""
        return self._spec

    def open(self) -> None:
        """Connect, and refuse a device that is not the calibrated one."""
        self.session.open()
        thermometer = self.session.capability(Thermometer)
        self.calibration.check(
            self.session.spec,
            temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
            max_age_days=float("inf"),  # the constructor has warned already
        )

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), given for a nominal chip."""
        self.session.program(controls if self.twin is None else self.twin.written(controls))

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        if self.twin is None:
            return self._without_dark(self.session.query(inputs))
        return self.twin.corrected(self.session.query(self.twin.sent(inputs)))

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors at each; see `ProgramsMany`."""
        if self.twin is None:
            return self._without_dark(self.session.query_each(controls, inputs))
        return self.twin.corrected(self.session.query_each(self.twin.written(controls), self.twin.sent(inputs)))

    def _without_dark(self, outputs: Tensor) -> Tensor:
        return outputs if self._dark is None else outputs - self._dark.to(outputs)

    @property
    def usage(self) -> Usage:
        """Return the usage of the chip."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """Return the usage of the chip for this usage; the corrections add no operations."""
        return self.session.price(usage)

    def rehearsal(self) -> Device:
        """Return a substitute that counts operations; it has a twin if this device has one."""
        stand_in = _CalibratedRehearsal(self.spec)
        stand_in.twin = None if self.twin is None else stand_in
        return stand_in

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state of the chip, if it can be saved."""
        return self.session.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned; return False if the chip could not be restored."""
        return self.session.load_state_dict(state)


class _CalibratedRehearsal(RehearsalDevice):
    """Count the operations of a calibrated device, and provide its twin."""

    capabilities: ClassVar[tuple[type, ...]] = (*RehearsalDevice.capabilities, Twinned)

    twin: RehearsalDevice | None = None


class CalibratedTwin:
    """Compute the answers of a `CalibratedDevice` without noise and rounding, for autograd.

    Args:
        calibration: calibration with a law that fits.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Differentiable,)

    def __init__(self, calibration: Calibration) -> None:
        assert calibration.model is not None
        self.calibration = calibration
        self.model = make_model(calibration.model, calibration.promised)
        self.constants = calibration.constants
        check_constants(self.constants, self.model, calibration.model.name)
        self._converted: dict[Any, dict[str, Tensor]] = {}
        self.spec = _corrected(calibration, self)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Return outputs for inputs (batch, in_features) and controls (num_controls,) or (settings, num_controls)."""
        return self.transfer_with({}, controls, inputs)

    def transfer_with(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs of a chip with changed constants, and with the corrections of the calibration.

        Args:
            constants: present values by name; all other constants have their calibrated values.
            controls: (num_controls,), or (settings, num_controls).
            inputs: (batch, in_features).
        """
        settings = controls if controls.ndim == 2 else controls.unsqueeze(0)
        present = {**self._constants_like(controls), **constants}
        written = self._with_stuck(self.written(settings))
        answers = self.corrected(self.model.law(present, written, self.sent(inputs)))
        return answers if controls.ndim == 2 else answers[0]

    def written(self, controls: Tensor) -> Tensor:
        """Return the controls to write to the chip for given controls of a nominal chip, both (..., num_controls)."""
        # A stuck control causes crosstalk by the value at which it is stuck, not by the requested value.
        return self.model.written_for(self._constants_like(controls), self._with_stuck(controls))

    def sent(self, inputs: Tensor) -> Tensor:
        """Return the inputs to send to the chip for given inputs of a nominal chip, both (batch, in_features)."""
        constants = self._constants_like(inputs)
        gain, offset = constants.get("input_gain"), constants.get("input_offset")
        if offset is not None:
            inputs = inputs - offset
        if gain is not None:
            inputs = inputs / _divisor(gain)
        bounds = self.calibration.promised.input_range
        return inputs if bounds is None else inputs.clamp(*bounds)

    def corrected(self, outputs: Tensor) -> Tensor:
        """Correct outputs, (..., out_features), for the gains and offsets of the detectors."""
        constants = self._constants_like(outputs)
        gain, offset = constants.get("output_gain"), constants.get("output_offset")
        if offset is not None:
            outputs = outputs - offset
        return outputs if gain is None else outputs / _divisor(gain)

    def _with_stuck(self, controls: Tensor) -> Tensor:
        """Return a copy of controls, (..., num_controls), in which stuck controls have their fixed values."""
        fixed = self.calibration.fixed
        if fixed is None:
            return controls
        fixed = fixed.to(controls)
        return controls.where(fixed.isnan(), fixed.nan_to_num())

    def _constants_like(self, like: Tensor) -> dict[str, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._converted:
            self._converted[key] = {name: value.to(like) for name, value in self.constants.items()}
        return self._converted[key]


def _divisor(gain: Tensor) -> Tensor:
    """Return gains to divide by, with 1 for dead channels, because dividing would amplify their noise."""
    return gain.where(gain.abs() > _DEAD, 1.0)


def _dark_level(calibration: Calibration) -> Tensor | None:
    """Return the dark level of each output, (out_features,), 0 below three standard errors; None if not measured."""
    offset, error = (calibration.tensors.get(f"dark/{name}") for name in ("offset", "error"))
    if offset is None or error is None:
        return None
    return offset.where(offset.abs() > 3 * error, 0.0)


def _corrected(calibration: Calibration, twin: CalibratedTwin | None) -> DeviceSpec:
    """Return the measured spec in corrected units, with ranges that every single input and output can reach."""
    spec = calibration.measured
    if twin is None:
        dark = _dark_level(calibration)
        if dark is None or spec.output_range is None:
            return spec
        low, high = spec.output_range
        return _changed(spec, {"output_range": (float((low - dark).max()), float((high - dark).min()))})
    constants = twin.constants
    update: dict[str, Any] = {}
    gain, offset = constants.get("input_gain"), constants.get("input_offset")
    if spec.input_range is not None and gain is not None and offset is not None:
        low, high = spec.input_range
        divisor = _divisor(gain)
        # For input x the modulator must send y with x = y * gain + offset; the weakest one limits each end.
        least, most = float((low * divisor + offset).max()), float((high * divisor + offset).min())
        # A range that starts at zero or is symmetric about zero keeps this property.
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
        divisor = _divisor(gain)
        update["output_range"] = float(((low - shift) / divisor).max()), float(((high - shift) / divisor).min())
        update["noise_std"] = spec.noise_std / float(divisor.abs().mean())
    return _changed(spec, update)


def _changed(spec: DeviceSpec, update: Mapping[str, Any]) -> DeviceSpec:
    """Return a spec with corrected values.

    Raises:
        DeviceError: a corrected range is empty.
    """
    for name, value in update.items():
        if isinstance(value, tuple) and not (value[0] < value[1] and all(map(isfinite, value))):
            raise DeviceError(
                f"the corrections of the calibration leave no {name}, from {value[0]:g} to {value[1]:g}; calibrate the "
                f"device again",
                device=spec.name,
                operation="calibration",
            )
    return spec.model_copy(update=update)
