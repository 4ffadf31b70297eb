"""A chip in software, with the manners of hardware."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import exp, hypot
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..devices import (
    Calibration,
    ChecksRequests,
    Clock,
    Constant,
    DeviceSpec,
    Differentiable,
    Identifiable,
    NotConnected,
    ProgramsMany,
    PullsBack,
    Range,
    Snapshots,
    Thermometer,
    derive_generator,
    pull_back_answer,
)
from ..devices.checks import check_controls, check_inputs
from .chip import Chip, fabricate, quantize
from .impairments import PRESETS, Impairments
from .memory import Decay
from .physics import LinearPhysics, Physics
from .twin import twin_options
from .wander import Process, Wander, flicker

__all__ = ["SimulatedDevice"]

# Largest number of matrix entries that `query_each` holds at a time: 64 MiB in float32.
_CHUNK = 1 << 24

# Time constants after which a chip has settled, to 1e-9.
_SETTLED = 20.0

_ROOM_CELSIUS = 25.0


class SimulatedDevice:
    """A simulated chip: a kind's physics inside the impairments of one fabricated specimen.

    Signal order: control DAC, control noise, hysteresis, memory, stuck and dead controls, drive, fabrication,
    crosstalk, settling, decay, wander, temperature; input DAC, input noise, modulators; physics with weight noise;
    detectors with their noise, saturation, output ADC. A virtual clock, moved on by every program and vector and by
    `wait`, drives all that changes with time, so that the chip drifts while it is trained. Time is booked, never
    slept.

    Args:
        physics: the kind's law.
        in_features: n.
        out_features: m.
        impairments: a preset's name, or a model of your own.
        seed: which chip, and which noise: the same seed is the same chip with the same noise.
        input_range: legal inputs; ``(0.0, 1.0)`` for a modulator of intensities.
        max_batch: the most vectors a query takes.
        torch_device: where to compute, such as ``"cuda"``.
        constants: of the chip, in the place of those that the seed draws; see `constants`.
        fixed: what controls that do not move are held at, nan for all others, in the place of what the seed draws.
        noise_by_output: standard deviation of each output's noise, (out_features,), in output units, where detectors
            differ; in the place of ``output_noise_fraction``, by which the spec goes.

    Raises:
        ValueError: impairments that the kind cannot have.
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
        if isinstance(impairments, str):
            if impairments not in PRESETS:
                raise ValueError(f"there are no impairments named {impairments!r}; known are {', '.join(PRESETS)}")
            impairments = PRESETS[impairments]
        kind = type(physics).__name__.lower()
        _check_impairments(kind, physics, impairments)
        self.physics = physics
        self.capabilities: tuple[type, ...] = (ChecksRequests, Clock, Differentiable, Identifiable, ProgramsMany, PullsBack, Snapshots, Thermometer)
        self.impairments = impairments
        self.seed = seed
        self._full_scale = full_scale = impairments.output_bound or physics.full_scale(in_features)
        drive = physics.drive
        self._spec = DeviceSpec(
            name=kind,
            in_features=in_features,
            out_features=out_features,
            num_controls=physics.num_controls(in_features, out_features),
            input_range=input_range,
            control_range=drive.range,
            output_range=(-full_scale, full_scale) if impairments.bounded else None,
            input_levels=impairments.input_levels,
            control_levels=impairments.control_levels,
            output_levels=impairments.output_levels,
            control_unit=drive.unit,
            initial_range=drive.initial,
            linear=physics.linear,
            coupling=physics.coupling,
            reach=physics.reach(in_features, out_features),
            noise_std=_most_noise(impairments, full_scale, in_features),
            idempotent_program=True,
            max_batch=max_batch,
            program_seconds=impairments.program_seconds + impairments.settle_seconds,
            vector_seconds=impairments.vector_seconds,
            program_joules=impairments.program_joules,
            vector_joules=impairments.vector_joules,
            serial_number=f"sim-{kind}-{in_features}x{out_features}-{seed}-{_fingerprint(physics, impairments)}",
        )
        self._device = torch.device(torch_device)
        self._chip = Chip(physics, in_features, out_features, full_scale, input_range, self._device)
        drawn, held, seeing = fabricate(self._chip, impairments, seed)
        self._constants = drawn if constants is None else _known(self._chip, constants, kind)
        self._fixed = held if fixed is None else fixed.to(torch.float64)
        self._seeing = None if bool(seeing.all()) else seeing.to(self._device)
        self._tables: dict[torch.dtype, tuple[dict[str, Tensor], Tensor | None]] = {}
        self._noise = derive_generator(seed, "noise", device=self._device)
        if noise_by_output is not None and tuple(noise_by_output.shape) != (out_features,):
            raise ValueError(
                f"noise_by_output must have shape ({out_features},), but has {tuple(noise_by_output.shape)}"
            )
        self._noise_by_output = None if noise_by_output is None else noise_by_output.to(self._device)
        self._wander = Wander(
            self._spec.num_controls,
            _processes(impairments),
            derive_generator(seed, "wander", device=self._device),
        )
        self._warmth = Wander(
            1,
            [Process(impairments.temperature_std, impairments.temperature_seconds)],
            derive_generator(seed, "temperature", device=self._device),
        )
        self._decay = Decay(impairments, self._spec.num_controls, seed, self._noise)
        self._is_open = False
        self.clock_seconds = 0.0
        self._position: Tensor | None = None  # where play has left the controls
        self._acting: Tensor | None = None  # controls as they act, but for what time does to them: (num_controls,)
        self._earlier: Tensor | None = None  # the same before the newest program, while that settles
        self._settles_at = 0.0
        self._matrix: Tensor | None = None  # for as long as nothing moves it
        self._newest: tuple[Tensor, Tensor] | None = None  # what modulators and detectors were asked for last

    @classmethod
    def from_calibration(cls, calibration: Calibration | str | Path, *, seed: int = 0) -> Self:
        """The twin of a calibrated chip: its constants, its noise, its converters.

        Raises:
            DeviceError: no law fits the chip.
        """
        return cls(**twin_options(calibration), seed=seed)

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
        self._acting = self._earlier = self._matrix = self._position = None

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
        earlier = self._settling(self._acting) if self.impairments.settle_tau_seconds else None
        self._acting = self._write(controls)
        self._matrix = None
        self.clock_seconds += self._spec.program_seconds
        self._start_settling(earlier)
        self._decay.programmed(self._acting, self.clock_seconds)

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
        constants, _ = self._as(signals.dtype)
        signals = self._chip.modulate(signals, constants).clamp_(*self._modulators) if self._uneven else signals
        if isinstance(self.physics, LinearPhysics):
            outputs = signals @ self._noisy(self._matrix_now(signals.dtype)).mT
        else:
            kind = self._chip.kind(constants)
            outputs = kind.transfer(self._present(signals.dtype), signals, self._spec.out_features)
        return self._detect(self._chip.detect(outputs, constants)).to(inputs.device)

    # -- ProgramsMany, Differentiable, PullsBack, Identifiable -----------------------------------------------

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
        if self._depends_on_order:
            answers = [self._program_and_query(setting, inputs) for setting in controls]
            return torch.stack(answers) if answers else inputs.new_empty(0, batch, self._spec.out_features)
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
            moved = self._moved(acting, self._wander.path(times), self._warmth.path(times))
            signals = self._drive(inputs)
            constants, _ = self._as(signals.dtype)
            signals = self._chip.modulate(signals, constants).clamp_(*self._modulators) if self._uneven else signals
            kind = self._chip.kind(constants)
            if isinstance(kind, LinearPhysics):
                matrices = kind.matrix(moved.to(signals.dtype), self._spec.in_features, self._spec.out_features)
                outputs = signals @ self._noisy(matrices).mT
            else:
                outputs = kind.transfer(moved.to(signals.dtype), signals, self._spec.out_features)
            answers.append(self._detect(self._chip.detect(outputs, constants)))
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
        controls, signals = controls.to(self._device), inputs.to(self._device)
        constants, fixed = self._as(controls.dtype)
        moved = self._moved(self._chip.act(controls, constants, fixed), self._wander.value, self._warmth.value)
        return self._seen(moved, signals, constants).to(inputs.device)

    def vjp(
        self,
        controls: Tensor,
        inputs: Tensor,
        grad_outputs: Tensor,
        *,
        by_controls: bool = True,
        by_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The vector-Jacobian product of `transfer`; see `astralora.devices.PullsBack`.

        Of a linear kind, dL/dA = G^T X and dL/dX = G A take no answer: two products, and A with its own way back.
        """
        if not isinstance(self.physics, LinearPhysics):
            wanted = {"by_controls": by_controls, "by_inputs": by_inputs}
            return pull_back_answer(self.transfer, controls, inputs, grad_outputs, **wanted)
        written, signals = controls.detach().to(self._device), inputs.detach().to(self._device)
        constants, fixed = self._as(written.dtype)
        kind = self._chip.kind(constants)
        assert isinstance(kind, LinearPhysics)
        acting = self._moved(self._chip.act(written, constants, fixed), self._wander.value, self._warmth.value)
        with torch.enable_grad():
            acting = acting.detach().requires_grad_(by_controls)
            matrix = kind.matrix(acting, self._spec.in_features, self._spec.out_features)
        seen = self._masked(self._chip.detect_adjoint(grad_outputs.to(self._device), constants))
        by_control = by_input = None
        if by_controls:
            entries = seen.mT @ self._chip.modulate(signals, constants)
            (moves,) = torch.autograd.grad(matrix, acting, entries)
            by_control = self._chip.act_adjoint(moves, written, constants, fixed).to(controls.device)
        if by_inputs:
            by_input = self._chip.modulate_adjoint(seen @ matrix.detach(), constants).to(inputs.device)
        return by_control, by_input

    def constants(self) -> dict[str, Constant]:
        """What may differ from chip to chip, by name; see `astralora.devices.Identifiable`."""
        return dict(self._chip.declared)

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """What a chip with these constants answers, free of noise and of what time does; see `astralora.devices.Identifiable`."""
        return self._seen(self._chip.act(controls, constants), inputs, constants)

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """What to write so that a chip with these constants acts as a flawless one; see `astralora.devices.Identifiable`."""
        return self._chip.written_for(self.physics.actuate(acting), constants)

    @property
    def true_constants(self) -> dict[str, Tensor]:
        """What this chip was made with, those that are not nominal: what a calibration is trying to find out."""
        return dict(self._constants)

    @property
    def fixed_controls(self) -> Tensor | None:
        """What stuck and dead controls are held at, nan for all others; None where all move."""
        return self._fixed

    # -- beyond what a device has to do -----------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time go by on the virtual clock, without any operation."""
        self.clock_seconds += seconds

    @property
    def temperature_celsius(self) -> float:
        """The chip's temperature at this moment."""
        self._warmth.advance(self.clock_seconds)
        warmth = self._warmth.value
        return _ROOM_CELSIUS + (0.0 if warmth is None else float(warmth[0]))

    @property
    def clipped(self) -> float:
        """Share of the newest query's inputs that the modulators could not make."""
        if self._newest is None or not self._uneven:
            return 0.0
        low, high = self._modulators
        wanted = self._chip.modulate(self._newest[0], self._as(self._newest[0].dtype)[0])
        return float(((wanted < low) | (wanted > high)).float().mean())

    @property
    def saturated(self) -> float:
        """Share of the newest query's outputs that are at an end of the detectors' range."""
        if self._newest is None or self._spec.output_range is None:
            return 0.0
        margin = (self._spec.output_step or 0.0) / 2
        low, high = self._spec.output_range
        outputs = self._newest[1]
        return float(((outputs <= low + margin) | (outputs >= high - margin)).float().mean())

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Clock, all that moves with it, noise stream and the controls held."""
        return {
            "serial_number": self._spec.serial_number,
            "clock_seconds": self.clock_seconds,
            "acting": self._acting,
            "earlier": self._earlier,
            "settles_at": self._settles_at,
            "position": self._position,
            "noise": self._noise.get_state(),
            "wander": self._wander.state_dict(),
            "warmth": self._warmth.state_dict(),
            "decay": self._decay.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: the state is another chip's.
        """
        if state["serial_number"] != self._spec.serial_number:
            raise ValueError(f"this state belongs to {state['serial_number']}, not to {self._spec.serial_number}")
        self.clock_seconds = state["clock_seconds"]
        acting, earlier, position = (
            None if state[name] is None else state[name].to(self._device) for name in ("acting", "earlier", "position")
        )
        self._acting, self._earlier, self._position = acting, earlier, position
        self._settles_at = state["settles_at"]
        self._matrix = None
        self._noise.set_state(state["noise"])
        self._wander.load_state_dict(state["wander"])
        self._warmth.load_state_dict(state["warmth"])
        self._decay.load_state_dict(state["decay"])

    # -- controls ---------------------------------------------------------------------------

    @property
    def _depends_on_order(self) -> bool:
        law = self.impairments
        return bool(law.write_hysteresis or law.settle_tau_seconds or law.drifts)

    def _program_and_query(self, setting: Tensor, inputs: Tensor) -> Tensor:
        self.program_unchecked(setting)
        return self.query_unchecked(inputs)

    def _write(self, controls: Tensor) -> Tensor:
        law = self.impairments
        written = quantize(controls.detach().to(self._device), self.physics.drive.range, law.control_levels)
        if law.control_noise_std:
            written = written + law.control_noise_std * self._randn(written)
        if law.write_hysteresis:
            half = law.write_hysteresis / 2
            if self._position is not None:
                written = torch.clamp(self._position.to(written.dtype), written - half, written + half)
            self._position = written
        written = self._decay.write(written)
        constants, fixed = self._as(written.dtype)
        return self._chip.act(written, constants, fixed)

    def _start_settling(self, earlier: Tensor | None) -> None:
        tau = self.impairments.settle_tau_seconds
        self._earlier = earlier
        self._settles_at = self.clock_seconds - self.impairments.settle_seconds + _SETTLED * tau

    def _settling(self, acting: Tensor | None) -> Tensor | None:
        """Where the controls are on their way to ``acting``."""
        left = self._settles_at - self.clock_seconds
        if self._earlier is None or acting is None or left <= 0:
            return acting
        rest = exp(left / self.impairments.settle_tau_seconds - _SETTLED)
        return acting + rest * (self._earlier.to(acting.dtype) - acting)

    def _present(self, dtype: torch.dtype) -> Tensor:
        """The controls as they act at this moment."""
        acting = self._settling(self._acting)
        assert acting is not None
        acting = acting.to(dtype)
        decay = self._decay.factor(self.clock_seconds, dtype)
        if decay is not None:
            acting = acting * decay
        return self._moved(acting, self._wander.value, self._warmth.value)

    def _moved(self, acting: Tensor, wander: Tensor | None, warmth: Tensor | None) -> Tensor:
        """Controls with what time has added to them."""
        if wander is not None:
            acting = acting + wander.to(acting.dtype)
        if warmth is not None:
            acting = acting + self.impairments.temperature_coefficient * warmth.to(acting.dtype)
        return acting

    # -- signals ------------------------------------------------------------------------------

    @property
    def _modulators(self) -> Range:
        bounds = self._spec.input_range
        assert bounds is not None
        return bounds

    @property
    def _uneven(self) -> bool:
        """Whether modulators differ from each other."""
        return "input_gain" in self._constants or "input_offset" in self._constants

    def _lit(self, inputs: Tensor, operation: str) -> Tensor:
        """The light that is asked for, from either side; time goes on meanwhile."""
        self._require_open(operation)
        if self._acting is None:
            raise NotConnected("no controls are set; call program first", device=self._spec.name, operation=operation)
        now = self.clock_seconds
        settling = self._earlier is not None  # also once more when that is over: the matrix is from on the way
        if now >= self._settles_at:
            self._earlier = None
        # All three are asked: each moves on by itself.
        if self._wander.advance(now) | self._warmth.advance(now) | self._decay.moved(now) | settling:
            self._matrix = None
        self.clock_seconds += len(inputs) * self._spec.vector_seconds
        return self._drive(inputs)

    def _matrix_now(self, dtype: torch.dtype) -> Tensor:
        """The transfer matrix at this moment, gains aside; for linear kinds."""
        if self._matrix is None or self._matrix.dtype != dtype:
            kind = self._chip.kind(self._as(dtype)[0])
            assert isinstance(kind, LinearPhysics)
            self._matrix = kind.matrix(self._present(dtype), self._spec.in_features, self._spec.out_features)
        return self._matrix

    def _noisy(self, matrix: Tensor) -> Tensor:
        std = self.impairments.weight_noise_std
        return torch.add(matrix, self._randn(matrix), alpha=std) if std else matrix

    def _drive(self, inputs: Tensor) -> Tensor:
        law = self.impairments
        signals = inputs.detach().to(self._device)
        if law.input_levels is not None:
            signals = quantize(signals, self._modulators, law.input_levels)
        if law.input_noise_std:
            signals = signals + law.input_noise_std * self._randn(signals)
        self._newest = signals, signals
        return signals

    def _seen(self, acting: Tensor, signals: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """The noiseless answer to acting controls and sent inputs."""
        signals = self._chip.modulate(signals, constants)
        outputs = self._chip.kind(constants).transfer(acting, signals, self._spec.out_features)
        return self._masked(self._chip.detect(outputs, constants))

    def _masked(self, outputs: Tensor) -> Tensor:
        return outputs if self._seeing is None else outputs * self._seeing.to(outputs.dtype)

    def _detect(self, outputs: Tensor) -> Tensor:
        law, full_scale = self.impairments, self._full_scale
        outputs = self._masked(outputs)
        clean = outputs
        if self._noise_by_output is not None:
            outputs = torch.addcmul(outputs, self._noise_by_output.to(outputs.dtype), self._randn(outputs))
        elif law.output_noise_fraction:
            noise = self._randn(outputs)
            outputs = torch.add(outputs, noise, alpha=law.output_noise_fraction * full_scale, out=noise)
        if law.output_noise_relative:
            outputs = torch.addcmul(outputs, clean, self._randn(outputs), value=law.output_noise_relative)
        if law.shot_noise_fraction:
            strength = (clean.abs() * full_scale).sqrt()
            outputs = torch.addcmul(outputs, strength, self._randn(outputs), value=law.shot_noise_fraction)
        bounds = self._spec.output_range
        if bounds is not None:
            outputs = quantize(outputs, bounds, law.output_levels)
        if self._newest is not None:
            self._newest = self._newest[0], outputs
        return outputs

    def _as(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
        """Constants and fixed controls, in a dtype."""
        if dtype not in self._tables:
            constants = {name: table.to(self._device, dtype) for name, table in self._constants.items()}
            self._tables[dtype] = constants, None if self._fixed is None else self._fixed.to(self._device, dtype)
        return self._tables[dtype]

    def _randn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._noise, dtype=like.dtype, device=self._device)

    def _require_open(self, operation: str) -> None:
        if not self._is_open:
            raise NotConnected("is closed; call open first", device=self._spec.name, operation=operation)


def _processes(law: Impairments) -> list[Process]:
    own, common = (1 - law.wander_common) ** 0.5, law.wander_common**0.5
    return [
        Process(law.wander_std * own, law.wander_seconds),
        Process(law.wander_std * common, law.wander_seconds, common=True),
        *flicker(law.flicker_std, *law.flicker_seconds),
    ]


def _most_noise(law: Impairments, full_scale: float, in_features: int) -> float:
    """Standard deviation of an output at full scale: what a chip may promise of all of them."""
    detector = hypot(law.output_noise_fraction, law.output_noise_relative, law.shot_noise_fraction)
    return hypot(detector * full_scale, law.input_noise_std * full_scale, law.weight_noise_std * in_features**0.5)


def _check_impairments(kind: str, physics: Physics, law: Impairments) -> None:
    if law.pcm and not physics.conductances:
        raise ValueError(f"pcm belongs to kinds whose controls are conductances, and those of {kind} are phases")
    if law.weight_noise_std and not isinstance(physics, LinearPhysics):
        raise ValueError(f"weight_noise_std is noise on a transfer matrix, and {kind} has none")
    if law.splitter_error_std and "splitter_error" not in type(physics).model_fields:
        raise ValueError(f"splitter_error_std belongs to meshes, and {kind} has no couplers")


def _known(chip: Chip, constants: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    known = {}
    for name, value in constants.items():
        if name not in chip.declared:
            raise ValueError(f"{kind} has no constant {name!r}; known are {', '.join(chip.declared)}")
        shape = chip.declared[name].shape
        if tuple(value.shape) != shape:
            raise ValueError(f"the constant {name!r} of {kind} must have shape {shape}, but has {tuple(value.shape)}")
        known[name] = value.to(torch.float64)
    return known


def _fingerprint(physics: Physics, impairments: Impairments) -> str:
    """Tells chips of one seed but of another design apart."""
    design = f"{physics!r} {impairments!r}"
    return hashlib.blake2b(design.encode(), digest_size=4).hexdigest()
