"""Declare and look up what a device can do beyond the five members of `Device`.

A device lists its capabilities in the attribute ``capabilities``. A method alone does not declare a capability::

    class MyChip(HardwareDevice):
        capabilities = (Flushes,)

        def flush(self) -> None: ...

`Session.capability` returns the object that provides a capability: the device itself, a wrapper around it, or None. A
wrapper declares which capabilities it forwards; see `DeviceWrapper`. All capabilities are optional.

==================  ==============================================  ===============================  ==================
capability          purpose                                         implemented by                   used by
==================  ==============================================  ===============================  ==================
`ProgramsMany`      run many settings in one call                   simulators, frame protocol       `Session`
`Reciprocal`        send vectors backwards                          reciprocal simulators            surrogate adjoint
`Flushes`           discard old data on the link after a fault      drivers with a link              `Recovery`
`Resends`           repeat the newest answer, not the operation     drivers that number requests     `Recovery`
`InProcess`         compute answers without a link to hardware      simulators, mock devices         `Session`
`Clock`             virtual time that drift follows                 simulators                       drift, timing
`Thermometer`       chip temperature                                simulators, some drivers         calibration
`ReportsPeaks`      saturation that the outputs do not show         tiled devices                    layers, probes
`Snapshots`         save and restore the inner state                simulators                       checkpoints
`Differentiable`    compute the law with autograd                   simulators, twins                method exact
`PullsBack`         compute gradients without the outputs           linear simulators                `pull_back`
`Identifiable`      fit the constants of the law                    simulators                       calibration
`Twinned`           provide a calibrated model of this chip         `CalibratedDevice`               methods auto, twin
`Composite`         count and price the operations of several parts tiled and compensated devices    `Session`
`Rehearses`         provide a substitute that prices a run          wrappers that add operations     plan
`ChecksRequests`    accept requests that were checked already       simulators                       `Session`
==================  ==============================================  ===============================  ==================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor

from .constants import Constant
from .device import Device
from .spec import DeviceSpec
from .usage import Usage

__all__ = [
    "ChecksRequests",
    "Clock",
    "Composite",
    "Differentiable",
    "Flushes",
    "ForwardsCapabilities",
    "Identifiable",
    "InProcess",
    "ProgramsMany",
    "PullsBack",
    "Reciprocal",
    "Rehearses",
    "ReportsPeaks",
    "Resends",
    "Snapshots",
    "Thermometer",
    "Twinned",
    "capability_of",
]

_Capability = TypeVar("_Capability")


def capability_of(device: object, protocol: type[_Capability]) -> _Capability | None:
    """Return the object that provides a capability of a device, or None if no object does.

    Args:
        device: a device, a session, or a law such as `CalibratedTwin`.
        protocol: one of the protocols of this module, or one of your own.

    Raises:
        TypeError: the device declares the capability, but lacks a method of it.
    """
    if isinstance(device, ForwardsCapabilities):
        return device.capability(protocol)
    if protocol not in getattr(device, "capabilities", ()):
        return None
    check_declared(device, protocol)
    return cast(_Capability, device)


def check_declared(device: object, protocol: type[Any]) -> None:
    """Refuse a device that declares a capability but does not implement it.

    Raises:
        TypeError: a method or property is missing; the message names the class and the capability.
    """
    if not isinstance(device, protocol):
        raise TypeError(
            f"{type(device).__name__} declares the capability {protocol.__name__}, but lacks a method or property of it"
        )


@runtime_checkable
class ForwardsCapabilities(Protocol):
    """Look up the capabilities of a wrapped device; implemented by `DeviceWrapper` and `Session`."""

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """Return the object that provides ``protocol``, or None."""
        ...


# -- operations ---------------------------------------------------------------------------------


@runtime_checkable
class ProgramsMany(Protocol):
    """Run many settings in one call, which is faster than one call for each."""

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors through the device at each setting.

        Args:
            controls: settings, (settings, num_controls).
            inputs: vectors, (batch, in_features).

        Returns:
            Outputs, (settings, batch, out_features). The device holds the last setting afterwards.
        """
        ...


@runtime_checkable
class Reciprocal(Protocol):
    """Multiply by the transpose of the transfer matrix, by sending light backwards.

    `DeviceSpec.backward` describes the ranges of the reverse port.
    """

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through the device: (batch, out_features) -> (batch, in_features)."""
        ...


@runtime_checkable
class ChecksRequests(Protocol):
    """Accept requests that a session has checked, so that the device need not check them again."""

    def program_unchecked(self, controls: Tensor) -> None:
        """Set controls without checking them, because the session has checked them; see `Device.program`."""

    def query_unchecked(self, inputs: Tensor) -> Tensor:
        """Pass inputs without checking them, because the session has checked them; see `Device.query`."""
        ...


# -- faults of the link -------------------------------------------------------------------------


@runtime_checkable
class Flushes(Protocol):
    """Discard old data on the link after a fault."""

    def flush(self) -> None:
        """Discard data that has arrived or will still arrive; the state of the chip does not change."""


@runtime_checkable
class Resends(Protocol):
    """Repeat the newest answer; requests are numbered, so that the device carries out each request once only."""

    def resend(self) -> Tensor | None:
        """Send the newest request again with the same number; return its answer, or None for a program."""
        ...


@runtime_checkable
class InProcess(Protocol):
    """Compute every answer within the call, so that no answer can arrive after the call was interrupted.

    This capability has no methods. Devices that wait for hardware, also through a library of its vendor, must not
    declare it.
    """


# -- the state of the chip ----------------------------------------------------------------------


@runtime_checkable
class Clock(Protocol):
    """Provide the time that drift follows; simulators have a virtual one."""

    @property
    def clock_seconds(self) -> float:
        """Return the present time in seconds, from an arbitrary origin."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        ...


@runtime_checkable
class Thermometer(Protocol):
    """Measure the temperature of the chip."""

    @property
    def temperature_celsius(self) -> float:
        """Return the present temperature of the chip in degrees Celsius."""
        ...


@runtime_checkable
class ReportsPeaks(Protocol):
    """Report saturated detectors on devices whose outputs are sums, which do not show the saturation."""

    @property
    def peaks(self) -> Tensor:
        """Return, for each vector of the newest query, the largest used share of a detector's range, (batch,)."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """Save and restore the whole inner state, so that a run can be resumed exactly."""

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state as tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> bool | None:
        """Restore the state that `state_dict` returned; return False if a part of it could not be restored."""
        ...


# -- the law of the chip ------------------------------------------------------------------------


@runtime_checkable
class Differentiable(Protocol):
    """Compute the law of the device with operations that autograd can follow."""

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs without noise and rounding.

        Args:
            controls: one setting, (num_controls,), or many, (settings, num_controls).
            inputs: vectors, (batch, in_features).

        Returns:
            Outputs, (batch, out_features) or (settings, batch, out_features).
        """
        ...


@runtime_checkable
class PullsBack(Protocol):
    """Compute gradients of a `Differentiable` law without computing its outputs, which saves a matrix product."""

    def vjp(
        self,
        controls: Tensor,
        inputs: Tensor,
        grad_outputs: Tensor,
        *,
        by_controls: bool = True,
        by_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the vector-Jacobian product of ``transfer(controls, inputs)``.

        Args:
            controls: one setting, (num_controls,).
            inputs: vectors, (batch, in_features).
            grad_outputs: gradient with respect to the outputs, (batch, out_features).
            by_controls: whether to compute the gradient with respect to the controls.
            by_inputs: whether to compute the gradient with respect to the inputs.

        Returns:
            Gradients with respect to the controls, (num_controls,), and the inputs, (batch, in_features); None for a
            gradient that was not computed.
        """
        ...


@runtime_checkable
class Identifiable(Protocol):
    """Compute a law whose constants differ from chip to chip and can be fitted to measurements."""

    @property
    def spec(self) -> DeviceSpec:
        """Return sizes, ranges and units."""
        ...

    def constants(self) -> dict[str, Constant]:
        """Return the constants that can be fitted, by name."""
        ...

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs of a chip with these constants, without noise and rounding.

        Args:
            constants: values by name; constants that are not given have their nominal values.
            controls: settings as written to the chip, (settings, num_controls).
            inputs: vectors, (batch, in_features).

        Returns:
            Outputs, (settings, batch, out_features).
        """
        ...

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """Return the controls to write to a chip with these constants, so that it acts like a nominal chip.

        Args:
            constants: values by name.
            acting: controls that a nominal chip would get, (..., num_controls).

        Returns:
            Controls, (..., num_controls); a value out of range is moved to the nearest legal value.
        """
        ...


@runtime_checkable
class Twinned(Protocol):
    """Provide a calibrated model of this chip; see `CalibratedDevice`."""

    @property
    def twin(self) -> Differentiable | None:
        """Return the model, or None if no law fits well enough."""
        ...


# -- devices that contain other devices ---------------------------------------------------------


@runtime_checkable
class Composite(Protocol):
    """Count the operations of all parts of a device that contains other devices."""

    @property
    def usage(self) -> Usage:
        """Return the usage of all parts together."""
        ...

    def price(self, usage: Usage) -> Usage:
        """Return the largest number of operations of all parts together that ``usage`` of this device can cost."""
        ...


@runtime_checkable
class Rehearses(Protocol):
    """Provide a substitute that counts the same operations, to compute the price of a run without running it."""

    def rehearsal(self) -> Device:
        """Return the substitute."""
        ...
