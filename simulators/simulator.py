"""A chip in software, with the manners of hardware."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import hypot
from typing import Any

import torch
from torch import Tensor

from devices import DeviceSpec, NotConnected, Range, derive_generator
from devices.checks import check_controls, check_inputs

from .chip import Chip, quantize
from .impairments import PRESETS, Impairments
from .physics import LinearPhysics, Physics
from .wander import Wander

__all__ = ["SimulatedDevice"]

# Largest number of matrix entries that `query_each` holds at a time: 64 MiB in float32.
_CHUNK = 1 << 24


class SimulatedDevice:
    """A simulated chip: a kind's physics inside the impairments of one fabricated specimen.

    Signal order: control DAC, control noise, fabrication, crosstalk, wander; input DAC, input noise;
    physics, loss; detector noise, saturation, output ADC. A virtual clock, moved on by every program and
    vector, drives the wander, so that the chip drifts while it is trained. Time is booked, never slept.

    Args:
        physics: the kind's law.
        in_features: n.
        out_features: m.
        impairments: a preset's name, or a model of your own.
        seed: which chip, and which noise: the same seed is the same chip with the same noise.
        input_range: legal inputs; ``(0.0, 1.0)`` for a modulator of intensities.
        max_batch: the most vectors a query takes.
        torch_device: where to compute, such as ``"cuda"``.
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
    ) -> None:
        if isinstance(impairments, str):
            if impairments not in PRESETS:
                raise ValueError(f"there are no impairments named {impairments!r}; known are {', '.join(PRESETS)}")
            impairments = PRESETS[impairments]
        self.physics = physics
        self.impairments = impairments
        self.seed = seed
        full_scale = physics.full_scale(in_features)
        self._output_noise_std = impairments.output_noise_fraction * full_scale
        kind = type(physics).__name__.lower()
        self._spec = DeviceSpec(
            name=kind,
            in_features=in_features,
            out_features=out_features,
            num_controls=physics.num_controls(in_features, out_features),
            input_range=input_range,
            control_range=physics.control_range,
            output_range=(-full_scale, full_scale) if impairments.bounded else None,
            input_levels=impairments.input_levels,
            control_levels=impairments.control_levels,
            output_levels=impairments.output_levels,
            control_unit=physics.control_unit,
            initial_range=physics.initial_range,
            linear=physics.linear,
            coupling=physics.coupling,
            reach=physics.reach(in_features, out_features),
            noise_std=hypot(self._output_noise_std, impairments.input_noise_std * full_scale),
            idempotent_program=True,
            max_batch=max_batch,
            program_seconds=impairments.program_seconds + impairments.settle_seconds,
            vector_seconds=impairments.vector_seconds,
            serial_number=f"sim-{kind}-{in_features}x{out_features}-{seed}-{_fingerprint(physics, impairments)}",
        )
        self._device = torch.device(torch_device)
        self._chip = Chip(physics, impairments, in_features, out_features, seed, self._device)
        self._noise = derive_generator(seed, "noise", device=self._device)
        self._wander = Wander(
            self._spec.num_controls,
            impairments.wander_std,
            impairments.wander_seconds,
            derive_generator(seed, "wander", device=self._device),
        )
        self._loss = 10 ** (-impairments.insertion_loss_db / 20)
        self._is_open = False
        self.clock_seconds = 0.0
        self._acting: Tensor | None = None  # controls as they act, wander aside: (num_controls,)
        self._matrix: Tensor | None = None  # for as long as neither program nor wander moves

    @property
    def spec(self) -> DeviceSpec:
        """What the simulated chip promises."""
        return self._spec

    # -- Device -----------------------------------------------------------------------------

    def open(self) -> None:
        """Power up; does nothing when open already."""
        self._is_open = True

    def close(self) -> None:
        """Power down: the controls are lost, the chip stays the same."""
        self._is_open = False
        self._acting = self._matrix = None

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units.

        Raises:
            OutOfRange: the control electronics refuse it.
            NotConnected: the device is closed.
        """
        check_controls(self._spec, controls, "program")
        self.program_unchecked(controls)

    def program_unchecked(self, controls: Tensor) -> None:
        """Set controls that are known to be legal; see `program`."""
        self._require_open("program")
        self._acting = self._write(controls)
        self._matrix = None
        self.clock_seconds += self._spec.program_seconds

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features).

        Raises:
            OutOfRange: the input electronics refuse it.
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        check_inputs(self._spec, inputs, "query")
        return self.query_unchecked(inputs)

    def query_unchecked(self, inputs: Tensor) -> Tensor:
        """Pass vectors that are known to be legal; see `query`."""
        signals = self._lit(inputs, "query")
        if isinstance(self.physics, LinearPhysics):
            outputs = signals @ self._matrix_now(signals.dtype).mT
            if self._loss != 1.0:
                outputs = self._loss * outputs
        else:
            assert self._acting is not None
            outputs = self._physics(self._wandered(self._acting.to(signals.dtype)), signals)
        return self._detect(outputs).to(inputs.device)

    # -- ProgramsMany, Differentiable ------------------------------------------------------------

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through, batched over settings.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        self._require_open("query_each")
        check_controls(self._spec, controls, "query_each", ndim=2)
        check_inputs(self._spec, inputs, "query_each")
        batch = len(inputs)
        size = max(self._spec.num_controls, self._spec.in_features * self._spec.out_features)
        size = max(size, batch * self._spec.out_features)
        answers = []
        for part in controls.split(max(1, _CHUNK // size)):
            acting = self._write(part)
            times = []
            for _ in range(len(part)):
                self.clock_seconds += self._spec.program_seconds
                times.append(self.clock_seconds)
                self.clock_seconds += batch * self._spec.vector_seconds
            wander = self._wander.path(times)
            signals = self._drive(inputs)
            moved = acting if wander is None else acting + wander.to(acting.dtype)
            answers.append(self._detect(self._physics(moved.to(signals.dtype), signals)))
            self._acting = acting[-1]
        self._matrix = None
        if not answers:
            return inputs.new_empty(0, batch, self._spec.out_features)
        return torch.cat(answers).to(inputs.device)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """This very chip's answer at this moment, without noise and rounding, for autograd.

        Args:
            controls: (num_controls,), or (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (batch, out_features), or (settings, batch, out_features).
        """
        acting = self._wandered(self._chip.act(controls.to(self._device)))
        return self._physics(acting, inputs.to(self._device)).to(inputs.device)

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Clock, wander, noise stream and the controls held."""
        return {
            "serial_number": self._spec.serial_number,
            "clock_seconds": self.clock_seconds,
            "acting": self._acting,
            "noise": self._noise.get_state(),
            "wander": self._wander.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: the state is another chip's.
        """
        if state["serial_number"] != self._spec.serial_number:
            raise ValueError(f"this state belongs to {state['serial_number']}, not to {self._spec.serial_number}")
        self.clock_seconds = state["clock_seconds"]
        acting = state["acting"]
        self._acting = None if acting is None else acting.to(self._device)
        self._matrix = None
        self._noise.set_state(state["noise"])
        self._wander.load_state_dict(state["wander"])

    # -- the signal's way ---------------------------------------------------------------------

    def _write(self, controls: Tensor) -> Tensor:
        law = self.impairments
        written = quantize(controls.detach().to(self._device), self.physics.control_range, law.control_levels)
        if law.control_noise_std:
            written = written + law.control_noise_std * self._randn(written)
        return self._chip.act(written)

    def _lit(self, inputs: Tensor, operation: str) -> Tensor:
        """The light that enters, from either side; time goes on meanwhile."""
        self._require_open(operation)
        if self._acting is None:
            raise NotConnected("no controls are set; call program first", device=self._spec.name, operation=operation)
        if self._wander.advance(self.clock_seconds):
            self._matrix = None
        self.clock_seconds += len(inputs) * self._spec.vector_seconds
        return self._drive(inputs)

    def _matrix_now(self, dtype: torch.dtype) -> Tensor:
        """The transfer matrix at this moment, loss aside; for linear kinds."""
        if self._matrix is None or self._matrix.dtype != dtype:
            assert isinstance(self.physics, LinearPhysics)
            assert self._acting is not None
            acting = self._wandered(self._acting.to(dtype))
            self._matrix = self.physics.matrix(acting, self._spec.in_features, self._spec.out_features)
        return self._matrix

    def _wandered(self, acting: Tensor) -> Tensor:
        wander = self._wander.value
        return acting if wander is None else acting + wander.to(acting.dtype)

    def _drive(self, inputs: Tensor) -> Tensor:
        law = self.impairments
        bounds = self._spec.input_range
        assert bounds is not None
        signals = inputs.detach().to(self._device)
        if law.input_levels is not None:
            signals = quantize(signals, bounds, law.input_levels)
        if law.input_noise_std:
            signals = signals + law.input_noise_std * self._randn(signals)
        return signals

    def _physics(self, acting: Tensor, signals: Tensor) -> Tensor:
        return self._loss * self.physics.transfer(acting, signals, self._spec.out_features)

    def _detect(self, outputs: Tensor) -> Tensor:
        bounds = self._spec.output_range
        if bounds is None:
            return outputs
        if self._output_noise_std:
            outputs = torch.add(outputs, self._randn(outputs), alpha=self._output_noise_std)
        return quantize(outputs, bounds, self.impairments.output_levels)

    def _randn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._noise, dtype=like.dtype, device=self._device)

    def _require_open(self, operation: str) -> None:
        if not self._is_open:
            raise NotConnected("is closed; call open first", device=self._spec.name, operation=operation)


def _fingerprint(physics: Physics, impairments: Impairments) -> str:
    """Tells chips of one seed but of another design apart."""
    design = f"{physics!r} {impairments!r}"
    return hashlib.blake2b(design.encode(), digest_size=4).hexdigest()
