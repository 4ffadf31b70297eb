"""Measured pairs: what a chip is asked for and what it answered, as a file from which to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Session, derive_generator
from ..devices.files import write_atomically
from ..probing.probes import lit_probes, orthogonal_probes

__all__ = ["Design", "Pairs", "choose_design", "measure_pairs"]

_KEY = "astralora_pairs"

# Modulators that are stronger than drawn clip before the end of their range; gains would seem to end there as well.
_HEADROOM = 0.875
# A detector at its end tells nothing: light is halved from this share of outputs on.
_CROWDED = 0.2


@dataclass(frozen=True, slots=True)
class Design:
    """What to ask of a chip.

    Attributes:
        settings: (settings, num_controls), on the converters' codes.
        inputs: signs of the vectors that every setting is asked for, (vectors, in_features), or 0 and 1 where the
            inputs cannot be negative.
        repeats: vectors of the last setting that are asked for again, to see the noise.
    """

    settings: Tensor
    inputs: Tensor
    repeats: int

    @property
    def vectors(self) -> int:
        """Vectors in all."""
        return len(self.settings) * len(self.inputs) + self.repeats


@dataclass(frozen=True, slots=True)
class Pairs:
    """What was asked and answered.

    Attributes:
        settings: (settings, num_controls).
        inputs: (settings, vectors, in_features).
        outputs: (settings, vectors, out_features).
        again: second answers to the first vectors of the last setting, (repeats, out_features).
    """

    settings: Tensor
    inputs: Tensor
    outputs: Tensor
    again: Tensor

    def part(self, where: slice) -> Pairs:
        """Some of the settings."""
        return replace(self, settings=self.settings[where], inputs=self.inputs[where], outputs=self.outputs[where])

    def noise_std(self, spec: DeviceSpec) -> float:
        """Standard deviation of an answer about what the law says: from asking twice, or as promised where nothing was.

        Differences between two roundings of the same value are blind to the rounding itself where noise is far below
        one step; then what rounding alone does is the least that is taken.
        """
        rounding = (spec.output_step or 0.0) / 12**0.5
        if len(self.again):
            apart = self.again - self.outputs[-1, : len(self.again)]
            return max(float(apart.square().mean().sqrt()) / 2**0.5, rounding)
        return max(hypot(spec.noise_std, rounding), 1e-6 * float(self.outputs.abs().amax().clamp_min(1e-30)))


def choose_design(spec: DeviceSpec, programs: int, vectors: int, seed: int) -> Design:
    """Settings and vectors that tell the most, within a number of programs and of vectors.

    Settings are a Latin hypercube: each control takes as many different values as there are settings, evenly over its
    range and independently of all others, so that offset, efficiency and curve can be told apart. Vectors are
    orthogonal and of full power, as many as there are inputs where that leaves a program for every such set; else
    fewer, at random.

    Raises:
        ConfigurationError: too few for anything to be fitted and held out.
    """
    generator = derive_generator(seed, "calibration")
    repeats = min(4, max(0, vectors - 3 * programs))
    probes = _probes(spec)
    each = min(len(probes), (vectors - repeats) // max(programs, 1))
    if programs < 3 or each < 1:
        raise ConfigurationError(
            f"a calibration needs at least 3 programs and as many vectors, not {programs} and {vectors}; "
            f"some 64 programs of {len(probes)} vectors are what a chip of {spec.num_controls:,} controls is worth"
        )
    if spec.control_range is None:
        raise ConfigurationError(
            f"{spec.name!r} promises no control_range, so there is nothing to choose settings from"
        )
    low, high = spec.control_range
    strata = torch.stack([torch.randperm(programs, generator=generator) for _ in range(spec.num_controls)], dim=1)
    shares = (strata + torch.rand(strata.shape, generator=generator, dtype=torch.float64)) / programs
    settings = low + (high - low) * shares
    step = spec.control_step
    if step is not None:
        settings = (low + step * ((settings - low) / step).round()).clamp(low, high)
    if each < len(probes):
        probes = probes[torch.randperm(len(probes), generator=generator)[:each]]
    return Design(settings.to(torch.float32), probes, repeats)


def _probes(spec: DeviceSpec) -> Tensor:
    if not spec.linear:
        # No basis tells all of a curved law: random vectors, twice as many as there are inputs.
        generator = derive_generator(spec.in_features, "calibration vectors")
        count = 2 * spec.in_features
        if spec.input_range is not None and spec.input_range[0] >= 0:
            return torch.rand(count, spec.in_features, generator=generator)
        return 2 * torch.rand(count, spec.in_features, generator=generator) - 1
    if spec.input_range is not None and spec.input_range[0] >= 0:
        return lit_probes(spec.in_features)
    return orthogonal_probes(spec.in_features)[0]


def measure_pairs(
    session: Session,
    design: Design,
    *,
    spec: DeviceSpec | None = None,
    part: Path | None = None,
    listener: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Ask a chip for all of a design, setting by setting.

    Args:
        session: guards the chip, and its budget.
        design: what to ask.
        spec: what is known of it, such as its codes; what it promises where None.
        part: a file that what was measured is kept in after every setting, and taken from where an earlier measurement
            of the same design on the same chip was cut short.
        listener: told the number of settings done, and of all.

    Raises:
        BudgetExceeded: before anything is spent.
        ConfigurationError: the file holds something else.
    """
    spec = session.spec if spec is None else spec
    fingerprint = {"serial_number": spec.serial_number, "name": spec.name}
    outputs, amplitudes, again = _resume(part, design, fingerprint) if part is not None else ([], [], None)
    amplitude = amplitudes[-1] if amplitudes else _HEADROOM
    total = len(design.settings)
    left = total - len(outputs)
    with session.purpose("calibration"), session.transaction():
        session.afford(
            "calibrate",
            programs=left,
            vectors=left * len(design.inputs),
            batches=(design.repeats,) if again is None else (),
        )
        for index in range(len(outputs), total):
            if index:
                amplitude = _dimmer(spec, outputs[-1], amplitudes[-1])
            outputs.append(session.apply(design.settings[index], _sent(spec, design.inputs, amplitude)))
            amplitudes.append(amplitude)
            _keep(part, design, fingerprint, outputs, amplitudes, None)
            if listener is not None:
                listener(index + 1, total)
        if again is None:
            session.program(design.settings[-1])
            again = session.query(_sent(spec, design.inputs[: design.repeats], amplitudes[-1]))
            _keep(part, design, fingerprint, outputs, amplitudes, again)
    inputs = torch.stack([_sent(spec, design.inputs, amplitude) for amplitude in amplitudes])
    return Pairs(design.settings, inputs, torch.stack(outputs), again)


def _sent(spec: DeviceSpec, signs: Tensor, amplitude: float) -> Tensor:
    """Vectors of an amplitude, on the converters' own codes, so that what reaches the chip is known."""
    if spec.input_range is None:
        return signs * amplitude
    low, high = spec.input_range
    values = signs * (amplitude * (high if low >= 0 else min(-low, high)))
    step = spec.input_step
    return values if step is None else (low + step * ((values - low) / step).round()).clamp(low, high)


def _dimmer(spec: DeviceSpec, outputs: Tensor, amplitude: float) -> float:
    """Half the light where more than a few outputs were at an end of the range."""
    if not spec.rails or not spec.linear:
        return amplitude
    margin = (spec.output_step or 0.0) / 2
    ends = [outputs >= rail - margin if rail > 0 else outputs <= rail + margin for rail in spec.rails]
    crowded = sum(float(end.float().mean()) for end in ends) > _CROWDED
    return amplitude / 2 if crowded and amplitude > 2**-6 else amplitude


# -- the file of a measurement that is under way ------------------------------------------------


def _keep(
    part: Path | None,
    design: Design,
    fingerprint: dict[str, Any],
    outputs: list[Tensor],
    amplitudes: list[float],
    again: Tensor | None,
) -> None:
    if part is None:
        return
    tensors = {"settings": design.settings, "inputs": design.inputs, "outputs": torch.stack(outputs)}
    if again is not None:
        tensors["again"] = again
    index = {**fingerprint, "amplitudes": amplitudes, "repeats": design.repeats}
    content = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(part, save_tensors(content, {_KEY: json.dumps(index)}))


def _resume(part: Path, design: Design, fingerprint: dict[str, Any]) -> tuple[list[Tensor], list[float], Tensor | None]:
    if not part.exists():
        return [], [], None
    other = ConfigurationError(
        f"{part} holds another measurement, of another chip, seed or budget; go on with that one, or delete the file"
    )
    try:
        with safe_open(part, framework="pt") as file:
            index = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same = (
            {name: index[name] for name in fingerprint} == fingerprint
            and index["repeats"] == design.repeats
            and torch.equal(tensors["settings"], design.settings)
            and torch.equal(tensors["inputs"], design.inputs)
        )
        outputs, amplitudes = list(tensors["outputs"]), [float(value) for value in index["amplitudes"]]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise other from None
    if not same or len(outputs) != len(amplitudes):
        raise other
    return outputs, amplitudes, tensors.get("again")
