"""Correct a chip by its calibration, and compute its twin."""

from __future__ import annotations

from collections.abc import Mapping
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
from ..wrapper import DeviceWrapper
from .rehearsal import RehearsalDevice

# Channels with a gain below this share of the nominal one are dead.
_DEAD = 0.05

__all__ = ["CalibratedDevice", "CalibratedTwin", "make_model"]


def make_model(model: FittedModel, spec: DeviceSpec) -> Identifiable:
    """Make the law that a calibration names, with the size and ranges of a device.

    Args:
        model: registered device, and options of it.
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
            "has no constants that could be fitted: a model declares the capability Identifiable and has constants(), "
            "law() and written_for(), as the simulated kinds do",
            device=model.name,
            operation="calibration",
        )
    if made.spec.num_controls != spec.num_controls:
        raise DeviceError(
            f"has {made.spec.num_controls} controls at {spec.in_features} x {spec.out_features}, and {spec.name!r} has "
            f"{spec.num_controls}: it cannot be a model of it",
            device=model.name,
            operation="calibration",
        )
    return law


class CalibratedDevice(DeviceWrapper):
    """Make a chip act like a nominal one: correct its controls, inputs and outputs by a calibration.

    Controls are those of a nominal chip. Before they are written, the crosstalk, offsets and efficiencies that the
    calibration found are removed from them; inputs and outputs are corrected for gains and offsets. The spec holds
    measured values instead of claimed ones. The corrections cost no operations.

    Where no law fits, only what was measured directly is corrected: the dark level of each output.

    Args:
        device: the chip; a session keeps its budget and its counters.
        calibration: calibration of this chip, or a path.
        retry: how often to repeat after a fault; see `Session`.
        max_age_days: age of the calibration, in days, from which a warning is given.

    Attributes:
        session: guarded chip.
        calibration: calibration record.
        twin: law of the chip as fitted, in the same corrected units, for autograd; None where no law fits.

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
        # A chip behind a wire reports its serial number when it is opened; most report it before.
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
        """Connect, and make sure that this is the device that was calibrated."""
        self.session.open()
        thermometer = self.session.capability(Thermometer)
        self.calibration.check(
            self.session.spec,
            temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
            max_age_days=float("inf"),  # a warning was given when the device was made
        )

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), those of a nominal chip."""
        self.session.program(controls if self.twin is None else self.twin.written(controls))

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        if self.twin is None:
            return self._without_dark(self.session.query(inputs))
        return self.twin.corrected(self.session.query(self.twin.sent(inputs)))

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through; see `ProgramsMany`."""
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
        """Return the operations on the chip; the corrections add none."""
        return self.session.price(usage)

    def rehearsal(self) -> Device:
        """Return a stand-in, which has a twin where this device has one."""
        stand_in = _CalibratedRehearsal(self.spec)
        stand_in.twin = None if self.twin is None else stand_in
        return stand_in

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state of the chip, where it can be saved."""
        return self.session.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned; return False where the chip could not be restored."""
        return self.session.load_state_dict(state)


class _CalibratedRehearsal(RehearsalDevice):
    """Stand in for a calibrated device and for its twin."""

    capabilities: ClassVar[tuple[type, ...]] = (*RehearsalDevice.capabilities, Twinned)

    twin: RehearsalDevice | None = None


class CalibratedTwin:
    """Compute the law of a calibrated chip: what `CalibratedDevice` answers, without noise and rounding, for autograd.

    Args:
        calibration: calibration whose law fits.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Differentiable,)

    def __init__(self, calibration: Calibration) -> None:
        assert calibration.model is not None
        self.calibration = calibration
        self.model = make_model(calibration.model, calibration.promised)
        self.constants = calibration.constants
        self._converted: dict[Any, dict[str, Tensor]] = {}
        self.spec = _corrected(calibration, self)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs of (num_controls,) or (settings, num_controls), and (batch, in_features)."""
        return self.transfer_with({}, controls, inputs)

    def transfer_with(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs of a chip some of whose constants have drifted; the corrections stay as calibrated.

        Args:
            constants: present values by name; the others are those of the calibration.
            controls: (num_controls,), or (settings, num_controls).
            inputs: (batch, in_features).
        """
        settings = controls if controls.ndim == 2 else controls.unsqueeze(0)
        present = {**self._constants_like(controls), **constants}
        written = self._with_stuck(self.written(settings))
        answers = self.corrected(self.model.law(present, written, self.sent(inputs)))
        return answers if controls.ndim == 2 else answers[0]

    def written(self, controls: Tensor) -> Tensor:
        """Return the controls to write for controls (..., num_controls) of a nominal chip."""
        # Neighbours of a stuck control receive crosstalk from the value at which it is stuck, whatever is requested.
        return self.model.written_for(self._constants_like(controls), self._with_stuck(controls))

    def sent(self, inputs: Tensor) -> Tensor:
        """Return the inputs to send for inputs (batch, in_features) of a nominal chip."""
        constants = self._constants_like(inputs)
        gain, offset = constants.get("input_gain"), constants.get("input_offset")
        if offset is not None:
            inputs = inputs - offset
        if gain is not None:
            inputs = inputs / _divisor(gain)
        bounds = self.calibration.promised.input_range
        return inputs if bounds is None else inputs.clamp(*bounds)

    def corrected(self, outputs: Tensor) -> Tensor:
        """Return outputs (..., out_features) corrected for the gains and offsets of the detectors."""
        constants = self._constants_like(outputs)
        gain, offset = constants.get("output_gain"), constants.get("output_offset")
        if offset is not None:
            outputs = outputs - offset
        return outputs if gain is None else outputs / _divisor(gain)

    def _with_stuck(self, controls: Tensor) -> Tensor:
        """Return controls (..., num_controls) with stuck ones at the values where they are stuck."""
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
    """Return gains to divide by, with 1 for dead channels: dividing would only amplify their noise."""
    return gain.where(gain.abs() > _DEAD, 1.0)


def _dark_level(calibration: Calibration) -> Tensor | None:
    """Return the output without light, (out_features,), where it exceeds its own uncertainty; None if not measured."""
    offset, error = (calibration.tensors.get(f"dark/{name}") for name in ("offset", "error"))
    if offset is None or error is None:
        return None
    return offset.where(offset.abs() > 3 * error, 0.0)


def _corrected(calibration: Calibration, twin: CalibratedTwin | None) -> DeviceSpec:
    """Return the measured spec in corrected units, with the ranges that every input and every output covers."""
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
        divisor = _divisor(gain)
        # The input y is reached by sending x = (y - offset) / gain; the weakest modulator limits either end.
        least, most = float((low * divisor + offset).max()), float((high * divisor + offset).min())
        # A range that starts at zero, or is symmetric about it, stays so.
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
    return spec.model_copy(update=update)
