"""What all measurements share: a guarded device, vectors on its codes, and what has been answered so far."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, pi, sqrt

import torch
from torch import Tensor

from ..devices import DeviceSpec, Session, clock_of, derive_generator
from ..probing.probes import lit_probes, orthogonal_probes

__all__ = ["Examiner", "lattice_step"]

# Light is halved while more than this share of outputs is at an end of the range.
_CROWDED = 0.005
_LEVEL_VECTORS = 8
_LEVEL_TRIES = 5


class Examiner:
    """Asks a device on behalf of measurements, and remembers what they have in common.

    Args:
        session: guards the device.
        seed: of settings and vectors.

    Attributes:
        spec: what the device promises.
        clock: the device's own, or that of the wall.
        generator: of settings and vectors.
        rows: signs of the vectors that tell all about a linear device, (count, in_features).
        amplitude: share of the input range that keeps the outputs within the detectors' range.
        base: a setting that most measurements start from, (num_controls,).
        noise_std: of one output of one query, rounding included, as measured; infinite before that.
        repeating: the part of its square that is the same whenever the same is asked: rounding that noise does not
            blur.
        vector_seconds: that a vector takes, as measured together with the noise.
    """

    level_programs = 1
    level_vectors = _LEVEL_VECTORS * _LEVEL_TRIES

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.spec: DeviceSpec = session.spec
        self.clock = clock_of(session)
        self.generator = derive_generator(seed, "characterise")
        bounds, width = self.spec.input_range, self.spec.in_features
        self.signed = bounds is None or bounds[0] < 0
        self.rows = orthogonal_probes(width)[0] if self.signed else 2 * lit_probes(width) - 1
        self.limit = 1.0 if bounds is None else (min(-bounds[0], bounds[1]) if self.signed else bounds[1])
        self.amplitude = 1.0
        self.noise_std = float("inf")
        self.repeating = 0.0
        self.vector_seconds = self.spec.vector_seconds
        self.low, self.high = self.spec.control_range or (-1.0, 1.0)
        # Anywhere in the range: where training starts, some kinds hardly answer at all.
        self.base = self.settings(1)[0]
        self.seen: list[Tensor] = []
        self.survey: tuple[Tensor, Tensor] | None = None  # settings and their transfer matrices
        self.survey_error = 0.0  # standard error of an entry of those

    def learn(self, **levels: int) -> None:
        """Know what the spec does not tell, such as ``input_levels``: from now on, what is sent is on these codes.

        Off them, converters may round one sign to another magnitude than the other, and let light in with all vectors.
        """
        self.spec = self.spec.model_copy(update=levels)

    # -- asking --------------------------------------------------------------------------------

    def find_level(self) -> None:
        """Weaken the light until the detectors are not crowded any more."""
        self.session.program(self.base)
        for _ in range(_LEVEL_TRIES):
            outputs = self.ask(self.vectors(_LEVEL_VECTORS))
            if self.crowded(outputs) <= _CROWDED:
                break
            self.amplitude /= 2

    def vectors(self, count: int) -> Tensor:
        """Random vectors of full contrast at the present amplitude: (count, in_features)."""
        signs = torch.randint(0, 2, (count, self.spec.in_features), generator=self.generator).float()
        return self.sent(signs * 2 - 1)

    def sent(self, signs: Tensor, strength: Tensor | float = 1.0) -> Tensor:
        """Vectors of -1 ... 1 as inputs, on the converters' codes if these are known."""
        values = (signs if self.signed else (signs + 1) / 2) * (strength * self.amplitude * self.limit)
        step, bounds = self.spec.input_step, self.spec.input_range
        if step is None or bounds is None:
            return values
        return (bounds[0] + step * ((values - bounds[0]) / step).round()).clamp(*bounds)

    def ask(self, inputs: Tensor) -> Tensor:
        """Outputs of the device as it is programmed."""
        outputs = self.session.query(inputs)
        self.seen.append(outputs)
        return outputs

    def crowded(self, outputs: Tensor) -> float:
        """Share of outputs at an end of the range."""
        if not self.spec.rails or not outputs.numel():
            return 0.0
        margin = (self.spec.output_step or 0.0) / 2
        ends = [outputs >= rail - margin if rail > 0 else outputs <= rail + margin for rail in self.spec.rails]
        return sum(float(end.float().mean()) for end in ends)

    def matrix(self, repeats: int = 1, strength: float = 1.0) -> Tensor:
        """The transfer matrix of a linear device at the controls that it holds, (out_features, in_features).

        Takes ``len(rows) * repeats`` vectors.
        """
        return self.matrix_and_clear(repeats, strength)[0]

    def matrix_and_clear(self, repeats: int = 1, strength: float = 1.0) -> tuple[Tensor, bool]:
        """The same, and whether all answers stayed clear of the ends of the range.

        One that did not is too small by as much in all settings, and the change of any entry in its row is laid at the
        door of all others.
        """
        inputs = self.sent(self.rows, strength)
        answers = self.ask(inputs.repeat(repeats, 1)).unflatten(0, (repeats, -1))
        return self.solve(inputs, answers.mean(dim=0)), self.crowded(answers) == 0

    def find_noise(self, groups: Tensor) -> tuple[Tensor, float, float]:
        """Noise from vectors that were each asked several times over, rounding told apart from it.

        Answers that are rounded to a step q scatter, about their own mean and over all places between two codes, by
        s^2 + q^2 / 12 - sum_k q^2 / (2 pi^2 k^2) exp(-4 pi^2 k^2 s^2 / q^2): what is missing is what the rounding
        does in the same way every time. Second differences in time leave out what changes steadily: right after a
        program, chips that decay do so by more than their noise.

        Args:
            groups: (times, vectors, out_features), of three times or more.

        Returns:
            Variance of each output as it scatters, (out_features,); the noise s without rounding; its standard error.
        """
        apart = groups.diff(n=2, dim=0).square().mean(dim=0) / 6  # (vectors, out_features)
        step = self.spec.output_step or lattice_step(groups.flatten())
        # Outputs that see no light stay on one code, and tell nothing of what lies between two.
        means = groups.mean(dim=0)
        lit = (means.std(dim=0) > step / 4).expand_as(means)
        for rail in self.spec.rails:
            # Nor do those at an end of the range, which scatter to one side only.
            lit = lit & ((means - rail).abs() > 0.05 * abs(rail) + 4 * groups.std(dim=0))
        told = apart[lit] if bool(lit.any()) else apart
        scatter = float(told.mean())
        # Where a value lies between two codes decides how its answers scatter: vectors and outputs differ for real.
        error = float(told.std()) / sqrt(told.numel())
        noise = sqrt(scatter)
        slope = 2 * noise
        if step:
            noise = _invert(lambda std: _rounded_variance(std, step), scatter, sqrt(scatter) + step)
            nudge = 0.01 * (noise + 0.1 * step)
            slope = (_rounded_variance(noise + nudge, step) - _rounded_variance(max(noise - nudge, 0.0), step)) / (
                nudge + min(nudge, noise)
            )
        self.noise_std = max(sqrt(noise**2 + step**2 / 12), 1e-12)
        self.repeating = max(noise**2 + step**2 / 12 - _rounded_variance(noise, step), 0.0) if step else 0.0
        return apart.mean(dim=0), noise, error / max(slope, 1e-300)

    def solve(self, inputs: Tensor, answers: Tensor) -> Tensor:
        """Least squares: A with answers = inputs A^T, (out_features, in_features)."""
        found: Tensor = torch.linalg.lstsq(inputs.double(), answers.double()).solution.mT
        return found.float()

    def entry_error(self, repeats: int = 1, strength: float = 1.0) -> float:
        """Standard error of an entry of `matrix`."""
        inputs = self.sent(self.rows, strength).double()
        spread = float(torch.linalg.inv(inputs.mT @ inputs).diagonal().mean())
        return sqrt(spread * ((self.noise_std**2 - self.repeating) / repeats + self.repeating))

    def clear(self, peaks: Tensor) -> Tensor:
        """Whether answers of these magnitudes, noise aside, stay clear of the ends of the range: True where they do."""
        nearest = min((abs(rail) for rail in self.spec.rails), default=float("inf"))
        clear: Tensor = peaks.abs() + 4 * self.noise_std + (self.spec.output_step or 0.0) < nearest
        return clear

    # -- settings --------------------------------------------------------------------------------

    def on_codes(self, controls: Tensor) -> Tensor:
        """The nearest legal controls on the converters' codes, if these are known."""
        step = self.spec.control_step
        if step is not None:
            controls = self.low + step * ((controls - self.low) / step).round()
        return controls.clamp(self.low, self.high) if self.spec.control_range is not None else controls

    def settings(self, count: int) -> Tensor:
        """Settings all over the range: a Latin hypercube, (count, num_controls)."""
        controls = self.spec.num_controls
        strata = torch.stack([torch.randperm(count, generator=self.generator) for _ in range(controls)], dim=1)
        shares = (strata + torch.rand(strata.shape, generator=self.generator)) / count
        return self.on_codes(self.low + (self.high - self.low) * shares)


def lattice_step(values: Tensor) -> float:
    """The step that all values are whole multiples of, counted from the least; 0 where there is none.

    Args:
        values: as reported, flat.
    """
    codes = values.double().unique()
    if len(codes) < 4:
        return 0.0
    scale = float(codes.abs().max())
    gaps = codes.diff()
    # Codes that differ by float rounding alone are one.
    gaps = gaps[gaps > 1e-5 * scale]
    if len(gaps) < 3:
        return 0.0
    step = float(gaps.min())
    away = codes - codes[0]
    for _ in range(3):
        # All values share in the estimate.
        counts = (away / step).round()
        step = float((counts * away).sum() / counts.square().sum())
    counts = away / step
    uneven = float((counts - counts.round()).abs().max())
    # Values without steps fill what lies between: as many of them as there are gaps would not repeat.
    return step if uneven < 0.05 and len(codes) < 0.5 * values.numel() else 0.0


def _rounded_variance(std: float, step: float) -> float:
    missing = sum(exp(-2 * (pi * k * std / step) ** 2 * 2) / k**2 for k in range(1, 200)) * step**2 / (2 * pi**2)
    return std**2 + step**2 / 12 - missing


def _invert(rising: Callable[[float], float], wanted: float, most: float) -> float:
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2
