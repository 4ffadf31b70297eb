"""Simulate a chip as a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..devices import (
    Calibration,
    ChecksRequests,
    Clock,
    Constant,
    DeviceError,
    DeviceSpec,
    Differentiable,
    Identifiable,
    InProcess,
    NotConnected,
    ProgramsMany,
    PullsBack,
    Range,
    Reciprocal,
    Snapshots,
    Thermometer,
    derive_generator,
)
from ..devices.checks import check_controls, check_inputs
from .chip import Chip
from .fabrication import check_impairments, draw_flaws
from .impairments import Impairments, find_impairments
from .law import ChipLaw
from .physics import LinearPhysics, Physics
from .signals import SignalPath
from .spec import simulated_spec
from .state import ChipState
from .twin import twin_options

__all__ = ["SimulatedDevice"]

# Largest number of matrix entries that `query_each` computes at a time: 64 MiB in float32.
_CHUNK = 1 << 24

# Capabilities of every simulated device; `Reciprocal` depends on the kind.
_CAPABILITIES: tuple[type, ...] = (
    ProgramsMany,
    ChecksRequests,
    Differentiable,
    PullsBack,
    Identifiable,
    InProcess,
    Clock,
    Thermometer,
    Snapshots,
)


class SimulatedDevice:
    """Simulate one fabricated chip: the physics of a kind with impairments, noise and drift.

    Three parts do the work:

    - `Chip` stores the properties that are fixed since fabrication: constants, stuck controls, dead outputs. Its law is
      differentiable by autograd.
    - `ChipState` stores all that changes with time: the clock, the controls and their drift. It processes programs in
      this order: control DAC, control noise, hysteresis, memory, stuck and dead controls, drive, fabrication,
      crosstalk; then settling, decay, wander, temperature.
    - `SignalPath` processes vectors in this order: input DAC, input noise, modulators; physics with weight noise;
      detectors with their noise, saturation, output ADC.

    The drift depends on a virtual clock. Every program, every vector and `wait` advance it, so the chip drifts during
    training. No operation sleeps.

    Args:
        physics: law of the kind.
        in_features: number n of inputs.
        out_features: number m of outputs.
        impairments: name of a preset, or an `Impairments` object.
        seed: seed of the chip and of its noise; equal seeds give the same chip with the same noise.
        input_range: range of legal inputs, such as ``(0.0, 1.0)`` for a modulator of intensities.
        max_batch: largest batch of a query; None for no limit.
        torch_device: torch device for the computation, such as ``"cuda"``.
        constants: constants of the chip, in place of those drawn from the seed; see `constants`.
        fixed: values of stuck controls, nan for controls that move, (num_controls,), in place of those drawn from
            the seed.
        noise_by_output: standard deviation of each output's noise, (out_features,), in output units, for detectors that
            differ. It replaces ``output_noise_fraction``, but the spec is still computed from the latter.

    Raises:
        ValueError: the kind cannot have one of the impairments or constants, or a tensor has the wrong shape.
    """

    def __init__(
        self,
        physics: Physics,
        in_features: int,
        out_features: int,
        *,
        impairments: str | Impairments = "ideal",
        seed: int = 0,
        input_range: Range = (-1.0, 1.0),
        max_batch: int | None = None,
        torch_device: str = "cpu",
        constants: Mapping[str, Tensor] | None = None,
        fixed: Tensor | None = None,
        noise_by_output: Tensor | None = None,
    ) -> None:
        self.physics = physics
        self.impairments = impairments = find_impairments(impairments)
        self.seed = seed
        check_impairments(physics, impairments)
        full_scale = impairments.output_bound or physics.full_scale(in_features)
        self._spec = simulated_spec(
            physics,
            in_features,
            out_features,
            impairments=impairments,
            full_scale=full_scale,
            input_range=input_range,
            max_batch=max_batch,
            seed=seed,
        )
        self._device = torch.device(torch_device)
        law = ChipLaw(physics, in_features, out_features, full_scale, input_range, self._device)
        self._chip = Chip(law, draw_flaws(law, impairments, seed), constants=constants, fixed=fixed)
        # All noise comes from one random stream, in the order of the operations.
        self._noise = derive_generator(seed, "noise", device=self._device)
        self._signals = SignalPath(self._chip, impairments, self._spec, self._noise, noise_by_output)
        self._state = ChipState(self._chip, impairments, seed, self._noise)
        self._is_open = False

    @classmethod
    def from_calibration(cls, calibration: Calibration | str | Path, *, seed: int = 0) -> Self:
        """Make the simulated twin of a calibrated chip, with the constants, noise and converters of the chip.

        Args:
            calibration: record of the chip, or a path.
            seed: seed of the noise.

        Raises:
            DeviceError: no law fits the chip.
        """
        return cls(**twin_options(calibration), seed=seed)

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the simulated chip; all its claims are true."""
        return self._spec

    @property
    def capabilities(self) -> tuple[type, ...]:
        """Return the optional capabilities of the device, as protocols.

        They include `Reciprocal` only if the law is linear and reciprocal.
        """
        return (*_CAPABILITIES, Reciprocal) if self._is_reciprocal else _CAPABILITIES

    # -- Device, ChecksRequests -------------------------------------------------------------

    def open(self) -> None:
        """Power up; do nothing when open already."""
        self._is_open = True

    def close(self) -> None:
        """Power down and lose the controls; the chip itself stays the same."""
        self._is_open = False
        self._state.lose_controls()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units.

        Raises:
            OutOfRange: the controls are not legal.
            NotConnected: the device is closed.
        """
        check_controls(self._spec, controls, "program")
        self.program_unchecked(controls)

    def program_unchecked(self, controls: Tensor) -> None:
        """Set controls without checking them; see `program`."""
        self._require_open("program")
        self._state.program(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features).

        Raises:
            OutOfRange: the inputs are not legal.
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        check_inputs(self._spec, inputs, "query")
        return self.query_unchecked(inputs)

    def query_unchecked(self, inputs: Tensor) -> Tensor:
        """Pass vectors without checking them; see `query`."""
        self._require_programmed("query")
        self._state.pass_vectors(len(inputs))
        return self._signals.answer(inputs, self._state.response(inputs.dtype)).to(inputs.device)

    # -- ProgramsMany -----------------------------------------------------------------------

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors at each; many settings are computed at once.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        self._require_open("query_each")
        check_controls(self._spec, controls, "query_each", ndim=2)
        check_inputs(self._spec, inputs, "query_each")
        if not len(controls):
            return inputs.new_empty(0, len(inputs), self._spec.out_features)
        if self._state.depends_on_order:
            return torch.stack([self._program_and_query(setting, inputs) for setting in controls])
        answers = []
        for part in controls.split(self._settings_at_a_time(len(inputs))):
            acting = self._state.program_each(part, len(inputs))
            answers.append(self._signals.answer(inputs, self._chip.response(acting.to(inputs.dtype))))
        return torch.cat(answers).to(inputs.device)

    # -- Reciprocal -------------------------------------------------------------------------

    @property
    def _is_reciprocal(self) -> bool:
        return self.physics.reciprocal and isinstance(self.physics, LinearPhysics)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through the device: (batch, out_features) -> (batch, in_features).

        The reverse port multiplies by the transpose of the present transfer matrix. It has its own input converters,
        noise, saturation and output converters, of the same kind as the forward port.

        Raises:
            DeviceError: the law is not linear and reciprocal; see `capabilities`.
            OutOfRange: the vectors are not within the range of the reverse port.
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        if not self._is_reciprocal:
            raise DeviceError(
                "has no reverse port, because its law is not reciprocal; use a reciprocal kind, such as mzi",
                device=self._spec.name,
                operation="query_adjoint",
            )
        check_inputs(self._spec.backward(), outputs, "query_adjoint")
        self._require_programmed("query_adjoint")
        self._state.pass_vectors(len(outputs))
        return self._signals.answer_backwards(outputs, self._state.response(outputs.dtype)).to(outputs.device)

    # -- Differentiable, PullsBack, Identifiable --------------------------------------------

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Compute the present answer of this chip, without noise and rounding, for autograd.

        Args:
            controls: (num_controls,), or (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (batch, out_features), or (settings, batch, out_features).
        """
        outputs = self._chip.transfer(controls.to(self._device), inputs.to(self._device), self._state.drift)
        return outputs.to(inputs.device)

    def vjp(
        self,
        controls: Tensor,
        inputs: Tensor,
        grad_outputs: Tensor,
        *,
        by_controls: bool = True,
        by_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the vector-Jacobian product of `transfer`; see `astralora.devices.PullsBack`."""
        grads = self._chip.vjp(
            controls.to(self._device),
            inputs.to(self._device),
            grad_outputs.to(self._device),
            self._state.drift,
            by_controls=by_controls,
            by_inputs=by_inputs,
        )
        by_control, by_input = grads
        return (
            None if by_control is None else by_control.to(controls.device),
            None if by_input is None else by_input.to(inputs.device),
        )

    def constants(self) -> dict[str, Constant]:
        """Return the constants that may differ from chip to chip, by name; see `astralora.devices.Identifiable`."""
        return dict(self._chip.law.declared)

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """Compute the answer of a chip with these constants, without noise and drift.

        See `astralora.devices.Identifiable`.
        """
        return self._chip.answer(constants, self._chip.law.act(controls, constants), inputs)

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """Compute the controls to write to a chip with these constants, so that it acts like a nominal chip.

        See `astralora.devices.Identifiable`.
        """
        return self._chip.law.written_for(self.physics.actuate(acting), constants)

    # -- Clock, Thermometer -----------------------------------------------------------------

    @property
    def clock_seconds(self) -> float:
        """Return the time on the virtual clock, in seconds."""
        return self._state.clock_seconds

    @clock_seconds.setter
    def clock_seconds(self, seconds: float) -> None:
        self._state.clock_seconds = seconds

    def wait(self, seconds: float) -> None:
        """Advance the virtual clock without any operation."""
        self._state.clock_seconds += seconds

    @property
    def temperature_celsius(self) -> float:
        """Return the present temperature of the chip, in degrees Celsius."""
        return self._state.temperature_celsius

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the clock, all drift, the state of the noise stream and the controls."""
        return {
            "serial_number": self._spec.serial_number,
            "noise": self._noise.get_state(),
            **self._state.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: the state belongs to another chip.
        """
        if state["serial_number"] != self._spec.serial_number:
            raise ValueError(
                f"this state belongs to chip {state['serial_number']}, not to {self._spec.serial_number}; "
                f"load it into the former"
            )
        self._noise.set_state(state["noise"])
        self._state.load_state_dict(state)

    # -- true values, which hardware cannot report ------------------------------------------

    @property
    def true_constants(self) -> dict[str, Tensor]:
        """Return the true values of the constants that are not nominal; a calibration estimates them."""
        return dict(self._chip.constants)

    @property
    def fixed_controls(self) -> Tensor | None:
        """Return the values of stuck and dead controls, nan for controls that move; None if all move."""
        return self._chip.fixed

    @property
    def dead_outputs(self) -> Tensor:
        """Return the indices of the dead outputs, (dead outputs,), int64."""
        return self._chip.dead_outputs

    @property
    def clipped(self) -> float:
        """Return the share of the inputs of the newest query that are outside the range of the modulators."""
        return self._signals.clipped

    @property
    def saturated(self) -> float:
        """Return the share of the outputs of the newest query that are at an end of the detectors' range."""
        return self._signals.saturated

    def _program_and_query(self, setting: Tensor, inputs: Tensor) -> Tensor:
        self.program_unchecked(setting)
        return self.query_unchecked(inputs)

    def _settings_at_a_time(self, batch: int) -> int:
        spec = self._spec
        size = max(spec.num_controls, spec.in_features * spec.out_features, batch * spec.out_features)
        return max(1, _CHUNK // size)

    def _require_open(self, operation: str) -> None:
        if not self._is_open:
            raise NotConnected("is closed; call open first", device=self._spec.name, operation=operation)

    def _require_programmed(self, operation: str) -> None:
        self._require_open(operation)
        if not self._state.is_programmed:
            raise NotConnected("no controls are set; call program first", device=self._spec.name, operation=operation)
