"""Measure pairs of inputs and outputs, and keep them in a file until the measurement is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..characterisation.context import saturated_share
from ..common.errors import ConfigurationError
from ..devices import BudgetExceeded, DeviceSpec, Purpose, Session, derive_generator
from ..devices.files import file_name, write_file
from ..devices.parsing import parse_json, read_tensors
from ..probing.probes import lit_probes, orthogonal_probes
from .costs import CostRecord, Spent
from .unfinished import REMEDY, tensor_hash

__all__ = ["Design", "Pairs", "choose_design", "measure_pairs"]

_KEY = "astralora_pairs"

# Modulators with a large gain clip before the end of their range; the fit would then find a smaller gain.
_HEADROOM = 0.875
# The amplitude is halved while a larger share of the outputs is saturated.
_MOST_SATURATED = 0.2
# Settings that a fit needs, of which one is held out.
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Design:
    """Describe the settings and vectors of a measurement.

    Attributes:
        settings: settings on the converters' codes, (settings, num_controls).
        inputs: signs of the vectors at every setting, (vectors, in_features); 0 and 1 where inputs cannot be negative.
        repeats: number of vectors of the last setting that are repeated, to estimate the noise.
    """

    settings: Tensor
    inputs: Tensor
    repeats: int

    @property
    def vectors(self) -> int:
        """Return the number of vectors of the whole measurement."""
        return len(self.settings) * len(self.inputs) + self.repeats


@dataclass(frozen=True, slots=True)
class Pairs:
    """Hold measured pairs of inputs and outputs.

    Attributes:
        settings: settings, (settings, num_controls).
        inputs: inputs, (settings, vectors, in_features).
        outputs: outputs, (settings, vectors, out_features).
        again: second outputs of the first vectors of the last setting, to estimate the noise, (repeats, out_features).
    """

    settings: Tensor
    inputs: Tensor
    outputs: Tensor
    again: Tensor

    def part(self, where: slice) -> Pairs:
        """Return the pairs of some settings."""
        return replace(self, settings=self.settings[where], inputs=self.inputs[where], outputs=self.outputs[where])

    def noise_std(self, spec: DeviceSpec) -> float:
        """Return the noise of an answer, estimated from repeated vectors; the claim of the spec if there are none.

        Where the noise is far below one step, the difference of two rounded answers is 0. The result is therefore at
        least the noise of the rounding.
        """
        rounding = (spec.output_step or 0.0) / 12**0.5
        if len(self.again):
            apart = self.again - self.outputs[-1, : len(self.again)]
            return max(float(apart.square().mean().sqrt()) / 2**0.5, rounding)
        return max(hypot(spec.noise_std, rounding), 1e-6 * float(self.outputs.abs().amax().clamp_min(1e-30)))


def choose_design(spec: DeviceSpec, programs: int, vectors: int, seed: int) -> Design:
    """Choose informative settings and vectors within a number of programs and vectors.

    The settings are a Latin hypercube: the values of each control are all different, evenly spaced over its range, and
    independent of the other controls, so that offset, efficiency and curve can be separated. The vectors are orthogonal
    and of full power; their number is the number of inputs. If the budget does not cover all of them at each setting, a
    random part is used.

    Raises:
        ConfigurationError: there are too few programs or vectors to fit and hold out any, or the spec has no control
            range.
    """
    generator = derive_generator(seed, "calibration")
    repeats = min(4, max(0, vectors - 3 * programs))
    probes = _probes(spec)
    each = min(len(probes), (vectors - repeats) // max(programs, 1))
    if programs < _FEWEST or each < 1:
        raise ConfigurationError(
            f"a calibration needs at least {_FEWEST} programs and a vector for each, not {programs} and {vectors}; "
            f"allow about 64 programs of {len(probes)} vectors for a chip of {spec.num_controls:,} controls"
        )
    if spec.control_range is None:
        raise ConfigurationError(
            f"the spec of {spec.name!r} has no control_range, so no settings can be chosen; set it in the spec"
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
    """Return the vectors that determine the device."""
    if not spec.linear:
        # No basis determines a nonlinear law. Use random vectors, twice as many as inputs.
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
    costs: CostRecord | None = None,
    listener: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Measure all settings of a design, one by one.

    Args:
        session: session of the chip.
        design: settings and vectors.
        spec: spec completed by measured properties, such as codes; the session's spec if None.
        part: file into which the measured data are saved after every setting; an interrupted measurement of the same
            design on the same chip resumes from it.
        costs: cost of the calibration so far. The last settings are left out where the user's budget does not cover
            them, because an interruption has lost what was spent on a setting.
        listener: called with the number of settings done, and of all.

    Raises:
        BudgetExceeded: the session's budget or the rest of the user's budget is too small; nothing is spent.
        ConfigurationError: the file holds another measurement, or it is damaged.
    """
    spec = session.spec if spec is None else spec
    identity = {"serial_number": spec.serial_number, "name": spec.name}
    outputs, amplitudes, again = _load_part(part, design, identity, spec) if part is not None else ([], [], None)
    amplitude = amplitudes[-1] if amplitudes else _HEADROOM
    total = len(design.settings)
    if costs is not None:
        costs.include(_least_cost(design, spec, len(outputs), again))
        total = _affordable(session, design, costs, len(outputs), again)
    remaining = total - len(outputs)
    repeats = design.repeats if remaining or costs is None or _covers(costs, 1, design.repeats) else 0
    with session.purpose(Purpose.CALIBRATION), session.transaction():
        session.afford(
            "calibrate",
            programs=remaining,
            vectors=remaining * len(design.inputs),
            batches=(repeats,) if again is None else (),
        )
        for index in range(len(outputs), total):
            if index:
                amplitude = _next_amplitude(spec, outputs[-1], amplitudes[-1])
            outputs.append(session.apply(design.settings[index], _make_inputs(spec, design.inputs, amplitude)))
            amplitudes.append(amplitude)
            _save_part(part, design, identity, outputs, amplitudes, None)
            if listener is not None:
                listener(index + 1, total)
        if again is None and not repeats:
            again = outputs[-1][:0]
        if again is None:
            session.program(design.settings[total - 1])
            again = session.query(_make_inputs(spec, design.inputs[:repeats], amplitudes[-1]))
            _save_part(part, design, identity, outputs, amplitudes, again)
    inputs = torch.stack([_make_inputs(spec, design.inputs, amplitude) for amplitude in amplitudes])
    return Pairs(design.settings[: len(outputs)], inputs, torch.stack(outputs), again)


def _least_cost(design: Design, spec: DeviceSpec, done: int, again: Tensor | None) -> Spent:
    """Return what the saved part of a measurement has cost at least."""
    repeats = 0 if again is None else len(again)
    return Spent(
        programs=done,
        queries=done * spec.queries_for(len(design.inputs)) + spec.queries_for(repeats),
        vectors=done * len(design.inputs) + repeats,
    )


def _affordable(session: Session, design: Design, costs: CostRecord, done: int, again: Tensor | None) -> int:
    """Return the number of settings, with those that are done, that the user's budget covers.

    Raises:
        BudgetExceeded: it covers too few to fit and hold out any.
    """
    total = len(design.settings)
    if again is not None:
        return done
    while total > done and not _covers(costs, total - done, (total - done) * len(design.inputs) + design.repeats):
        total -= 1
    if total < _FEWEST:
        budget = costs.remaining
        raise BudgetExceeded(
            f"the parts before the interruption have left {budget.programs} programs and {budget.vectors} vectors of "
            f"the budget, and a calibration needs {_FEWEST} settings of {len(design.inputs)} vectors; raise the budget",
            device=session.spec.name,
            operation="calibrate",
        )
    return total


def _covers(costs: CostRecord, programs: int, vectors: int) -> bool:
    """Return whether the rest of the user's budget covers these operations."""
    left = costs.remaining
    return (left.programs is None or programs <= left.programs) and (left.vectors is None or vectors <= left.vectors)


def _make_inputs(spec: DeviceSpec, signs: Tensor, amplitude: float) -> Tensor:
    """Return vectors of this amplitude, rounded to the converters' codes, so that the inputs are known exactly."""
    if spec.input_range is None:
        return signs * amplitude
    low, high = spec.input_range
    values = signs * (amplitude * (high if low >= 0 else min(-low, high)))
    step = spec.input_step
    return values if step is None else (low + step * ((values - low) / step).round()).clamp(low, high)


def _next_amplitude(spec: DeviceSpec, outputs: Tensor, amplitude: float) -> float:
    """Return the amplitude of the next setting: halved if too many outputs were saturated, else unchanged."""
    if not spec.rails or not spec.linear:
        return amplitude
    saturated = saturated_share(spec, outputs) > _MOST_SATURATED
    return amplitude / 2 if saturated and amplitude > 2**-6 else amplitude


# -- the file of an unfinished measurement ------------------------------------------------------


def _save_part(
    part: Path | None,
    design: Design,
    identity: dict[str, Any],
    outputs: list[Tensor],
    amplitudes: list[float],
    again: Tensor | None,
) -> None:
    """Save the measured data."""
    if part is None:
        return
    tensors = {"settings": design.settings, "inputs": design.inputs, "outputs": torch.stack(outputs)}
    if again is not None:
        tensors["again"] = again
    content = {name: value.contiguous() for name, value in tensors.items()}
    index = {**identity, "amplitudes": amplitudes, "repeats": design.repeats, "sha256": tensor_hash(content)}
    write_file(part, save_tensors(content, {_KEY: json.dumps(index)}), "the unfinished calibration")


def _load_part(
    part: Path, design: Design, identity: dict[str, Any], spec: DeviceSpec
) -> tuple[list[Tensor], list[float], Tensor | None]:
    """Load the outputs, amplitudes and repeated outputs that an interrupted measurement has saved.

    Raises:
        ConfigurationError: the file holds another measurement, or it is damaged.
    """
    if not part.exists():
        return [], [], None
    subject = file_name(part)

    def refused(message: str) -> ConfigurationError:
        return ConfigurationError(f"{message}; {REMEDY}")

    content = read_tensors(part, error=refused)
    index = parse_json(content.metadata.get(_KEY, "{}"), subject, error=refused)
    tensors = content.tensors
    if not _is_complete(index, tensors, design, spec):
        raise ConfigurationError(f"{subject} is not the file of an unfinished calibration, or it is damaged; {REMEDY}")
    if not (
        {name: index[name] for name in identity} == identity
        and index["repeats"] == design.repeats
        and torch.equal(tensors["settings"], design.settings)
        and torch.equal(tensors["inputs"], design.inputs)
        and tensors["outputs"].shape[1:] == (len(design.inputs), spec.out_features)
    ):
        raise ConfigurationError(
            f"{subject} holds another measurement, of another chip, seed or budget; resume that one, or delete the file"
        )
    return list(tensors["outputs"]), [float(value) for value in index["amplitudes"]], tensors.get("again")


def _is_complete(index: Any, tensors: Mapping[str, Tensor], design: Design, spec: DeviceSpec) -> bool:
    """Return whether the parts of a file of an unfinished measurement are there and fit together."""
    if not isinstance(index, dict) or not {"serial_number", "name", "amplitudes", "repeats"} <= index.keys():
        return False
    if not {"settings", "inputs", "outputs"} <= tensors.keys():
        return False
    if not all(value.is_floating_point() and bool(value.isfinite().all()) for value in tensors.values()):
        return False
    amplitudes, outputs, again = index["amplitudes"], tensors["outputs"], tensors.get("again")
    return (
        isinstance(amplitudes, list)
        and all(isinstance(value, float) and 0 < value <= 1 for value in amplitudes)
        and outputs.ndim == 3
        and 0 < len(outputs) == len(amplitudes) <= len(tensors["settings"])
        and (again is None or (again.ndim == 2 and again.shape[1] == outputs.shape[2]))
        and index.get("sha256") == tensor_hash(tensors)
    )
