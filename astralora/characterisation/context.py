"""Hold session, test vectors, amplitude and noise for all measurements of a device."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, pi, sqrt

import torch
from torch import Tensor

from ..devices import DeviceSpec, Session, clock_of, derive_generator
from ..probing.probes import lit_probes, orthogonal_probes

__all__ = ["MeasurementContext", "lattice_step", "saturated_share"]

# The inputs are halved while a larger share of the outputs is saturated.
_MOST_SATURATED = 0.005
_AMPLITUDE_VECTORS = 8
_AMPLITUDE_TRIES = 5


class MeasurementContext:
    """Query a device for all its measurements, and hold their common amplitude and noise.

    Args:
        session: session of the device.
        seed: seed of the settings and vectors.
        drift_seconds: seconds for which `Drift` holds a setting.

    Attributes:
        spec: spec of the device, completed by `set_levels`.
        clock: clock of the device, or the wall clock.
        generator: generator of settings and vectors.
        probe_signs: signs of the vectors that determine the matrix of a linear device, (count, in_features).
        amplitude: share of the input range that keeps the outputs within the detectors' range.
        base: setting that most measurements start from, (num_controls,).
        noise_std: measured noise of one output of one query, rounding included, in output units; infinite before the
            measurement.
        repeated_variance: the part of ``noise_std ** 2`` that does not change when a query is repeated: the rounding
            that noise does not average out.
        vector_seconds: seconds per vector, measured together with the noise.
        outputs: outputs of all queries so far.
    """

    amplitude_programs = 1
    amplitude_vectors = _AMPLITUDE_VECTORS * _AMPLITUDE_TRIES

    def __init__(self, session: Session, seed: int, drift_seconds: float = 1.0) -> None:
        self.session, self.drift_seconds = session, drift_seconds
        self.spec: DeviceSpec = session.spec
        self.clock = clock_of(session)
        self.generator = derive_generator(seed, "characterise")
        bounds, width = self.spec.input_range, self.spec.in_features
        self.signed = bounds is None or bounds[0] < 0
        self.probe_signs = orthogonal_probes(width)[0] if self.signed else 2 * lit_probes(width) - 1
        self.input_limit = 1.0 if bounds is None else (min(-bounds[0], bounds[1]) if self.signed else bounds[1])
        self.amplitude = 1.0
        self.noise_std = float("inf")
        self.repeated_variance = 0.0
        self.vector_seconds = self.spec.vector_seconds
        self.low, self.high = self.spec.control_range or (-1.0, 1.0)
        # A random setting: at the initial controls of a training, some kinds of chips hardly transmit.
        self.base = self.draw_settings(1)[0]
        self.outputs: list[Tensor] = []

    def set_levels(self, **levels: int) -> None:
        """Complete the spec by measured levels, such as ``input_levels``; later inputs and settings lie on these codes.

        Converters may round values between codes to different magnitudes for the two signs, which adds a constant to
        all vectors.
        """
        self.spec = self.spec.model_copy(update=levels)

    # -- queries ---------------------------------------------------------------------------------

    def find_amplitude(self) -> None:
        """Halve the amplitude until few outputs are saturated."""
        self.session.program(self.base)
        for _ in range(_AMPLITUDE_TRIES):
            outputs = self.query(self.draw_vectors(_AMPLITUDE_VECTORS))
            if saturated_share(self.spec, outputs) <= _MOST_SATURATED:
                break
            self.amplitude /= 2

    def draw_vectors(self, count: int) -> Tensor:
        """Draw random vectors of full contrast at the present amplitude: (count, in_features)."""
        signs = torch.randint(0, 2, (count, self.spec.in_features), generator=self.generator).float()
        return self.make_inputs(signs * 2 - 1)

    def make_inputs(self, signs: Tensor, strength: Tensor | float = 1.0) -> Tensor:
        """Turn vectors of -1 ... 1 into inputs, on the converters' codes if these are known."""
        values = (signs if self.signed else (signs + 1) / 2) * (strength * self.amplitude * self.input_limit)
        step, bounds = self.spec.input_step, self.spec.input_range
        if step is None or bounds is None:
            return values
        return (bounds[0] + step * ((values - bounds[0]) / step).round()).clamp(*bounds)

    def query(self, inputs: Tensor) -> Tensor:
        """Query the device at its present setting, and keep the outputs for `OutputLevels`."""
        outputs = self.session.query(inputs)
        self.outputs.append(outputs)
        return outputs

    def measure_matrix(self, repeats: int = 1, strength: float = 1.0) -> Tensor:
        """Measure the transfer matrix of a linear device at its present setting: (out_features, in_features).

        This costs ``len(probe_signs) * repeats`` vectors.
        """
        return self.measure_matrix_checked(repeats, strength)[0]

    def measure_matrix_checked(self, repeats: int = 1, strength: float = 1.0) -> tuple[Tensor, bool]:
        """Measure the transfer matrix, and return whether no answer was saturated.

        A saturated answer does not change with the setting. A change of one entry in its row would therefore look like
        a change of the other entries.
        """
        inputs = self.make_inputs(self.probe_signs, strength)
        answers = self.query(inputs.repeat(repeats, 1)).unflatten(0, (repeats, -1))
        return _solve_matrix(inputs, answers.mean(dim=0)), saturated_share(self.spec, answers) == 0

    def estimate_noise(self, groups: Tensor) -> tuple[Tensor, float, float]:
        """Estimate the noise, separated from rounding, from repeated queries of the same vectors.

        The variance of answers that are rounded to a step q, about their own mean and averaged over all positions
        between two codes, is s^2 + q^2 / 12 - sum_k q^2 / (2 pi^2 k^2) exp(-4 pi^2 k^2 s^2 / q^2). The subtracted sum
        is the part of the rounding that repeats. Second differences in time remove steady changes: right after a
        program, a chip that decays changes by more than its noise.

        Args:
            groups: answers, (times, vectors, out_features), with three times or more.

        Returns:
            Variance of each output, (out_features,); the noise s without rounding; its standard error.
        """
        apart = groups.diff(n=2, dim=0).square().mean(dim=0) / 6  # (vectors, out_features)
        step = self.spec.output_step or lattice_step(groups.flatten())
        # Dead outputs stay on one code, so their rounding does not show.
        means = groups.mean(dim=0)
        usable = (means.std(dim=0) > step / 4).expand_as(means)
        for rail in self.spec.rails:
            # Saturated outputs scatter to one side only.
            usable = usable & ((means - rail).abs() > 0.05 * abs(rail) + 4 * groups.std(dim=0))
        variances = apart[usable] if bool(usable.any()) else apart
        scatter = float(variances.mean())
        # The position of a value between two codes decides its scatter, so vectors and outputs truly differ.
        error = float(variances.std()) / sqrt(variances.numel())
        noise = sqrt(scatter)
        slope = 2 * noise
        if step:
            noise = _invert(lambda std: _rounded_variance(std, step), scatter, sqrt(scatter) + step)
            nudge = 0.01 * (noise + 0.1 * step)
            slope = (_rounded_variance(noise + nudge, step) - _rounded_variance(max(noise - nudge, 0.0), step)) / (
                nudge + min(nudge, noise)
            )
        self.noise_std = max(sqrt(noise**2 + step**2 / 12), 1e-12)
        self.repeated_variance = max(noise**2 + step**2 / 12 - _rounded_variance(noise, step), 0.0) if step else 0.0
        return apart.mean(dim=0), noise, error / max(slope, 1e-300)

    def entry_error(self, repeats: int = 1, strength: float = 1.0) -> float:
        """Return the standard error of an entry of `measure_matrix`."""
        inputs = self.make_inputs(self.probe_signs, strength).double()
        spread = float(torch.linalg.inv(inputs.mT @ inputs).diagonal().mean())
        return sqrt(spread * ((self.noise_std**2 - self.repeated_variance) / repeats + self.repeated_variance))

    def unsaturated(self, peaks: Tensor) -> Tensor:
        """Return which answers of these magnitudes stay within the detectors' range, noise included."""
        nearest = min((abs(rail) for rail in self.spec.rails), default=float("inf"))
        unsaturated: Tensor = peaks.abs() + 4 * self.noise_std + (self.spec.output_step or 0.0) < nearest
        return unsaturated

    # -- settings --------------------------------------------------------------------------------

    def round_to_codes(self, controls: Tensor) -> Tensor:
        """Return the nearest legal controls, on the converters' codes if these are known."""
        step = self.spec.control_step
        if step is not None:
            controls = self.low + step * ((controls - self.low) / step).round()
        return controls.clamp(self.low, self.high) if self.spec.control_range is not None else controls

    def draw_settings(self, count: int) -> Tensor:
        """Draw settings over the whole range by a Latin hypercube: (count, num_controls)."""
        controls = self.spec.num_controls
        strata = torch.stack([torch.randperm(count, generator=self.generator) for _ in range(controls)], dim=1)
        shares = (strata + torch.rand(strata.shape, generator=self.generator)) / count
        return self.round_to_codes(self.low + (self.high - self.low) * shares)


def saturated_share(spec: DeviceSpec, outputs: Tensor) -> float:
    """Return the share of outputs at an end of the detectors' range."""
    if not spec.rails or not outputs.numel():
        return 0.0
    margin = (spec.output_step or 0.0) / 2
    ends = [outputs >= rail - margin if rail > 0 else outputs <= rail + margin for rail in spec.rails]
    return sum(float(end.float().mean()) for end in ends)


def _solve_matrix(inputs: Tensor, answers: Tensor) -> Tensor:
    """Return the least-squares solution A of answers = inputs A^T, (out_features, in_features)."""
    found: Tensor = torch.linalg.lstsq(inputs.double(), answers.double()).solution.mT
    return found.float()


def lattice_step(values: Tensor) -> float:
    """Return the step of the lattice on which all values lie: least value + k * step; 0 if they lie on none.

    Args:
        values: reported values, flat.
    """
    codes = values.double().unique()
    if len(codes) < 4:
        return 0.0
    scale = float(codes.abs().max())
    gaps = codes.diff()
    # Codes that differ by float rounding alone count as one.
    gaps = gaps[gaps > 1e-5 * scale]
    if len(gaps) < 3:
        return 0.0
    step = float(gaps.min())
    away = codes - codes[0]
    for _ in range(3):
        # Refine the step with all values.
        counts = (away / step).round()
        step = float((counts * away).sum() / counts.square().sum())
    counts = away / step
    uneven = float((counts - counts.round()).abs().max())
    # Values without steps hardly repeat, so nearly every value would be a different code.
    return step if uneven < 0.05 and len(codes) < 0.5 * values.numel() else 0.0


def _rounded_variance(std: float, step: float) -> float:
    """Return the variance of rounded answers; see `MeasurementContext.estimate_noise`."""
    missing = sum(exp(-2 * (pi * k * std / step) ** 2 * 2) / k**2 for k in range(1, 200)) * step**2 / (2 * pi**2)
    return std**2 + step**2 / 12 - missing


def _invert(rising: Callable[[float], float], wanted: float, most: float) -> float:
    """Invert an increasing function by bisection."""
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2
