"""Measure times: settling, repeatability, drift, latency and throughput."""

from __future__ import annotations

import time
from math import log, sqrt

import torch
from torch import Tensor

from .context import MeasurementContext
from .findings import Finding
from .measurement import Cost, Measurement

__all__ = ["Drift", "Repeatability", "Settling", "Speed"]

# Drift is measured at this share of the amplitude, and at least this share of the answers must be unsaturated.
_HEADROOM = 0.7
_LEAST_UNSATURATED = 0.25
# The first query for drift starts after this multiple of the duration of a query.
_FIRST_LOOK = 30.0
# Settling is measured after jumps by this share of the control range.
_JUMP = 1 / 8
# After a wait of this many program times, all controls have settled.
_LATER = 10.0


class Repeatability(Measurement):
    """Measure how much a setting's answers change when another setting is programmed in between."""

    name = "repeatability"
    priority = 6

    def cost(self) -> Cost:
        """Count one program, and two for each of at least 2 repetitions."""
        returns = self._returns
        return Cost(2 * returns + 1, (returns + 1) * self._vectors)

    def run(self) -> list[Finding]:
        """Return the spread of the answers between repetitions, without noise, as a share of the answers."""
        away = self.context.draw_settings(1)[0]
        vectors = self.context.draw_vectors(self._vectors)
        self.context.session.program(self.context.base)
        answers = [self.context.query(vectors)]
        for _ in range(self._returns):
            self.context.session.program(away)
            self.context.session.program(self.context.base)
            answers.append(self.context.query(vectors))
        stack = torch.stack(answers).double()
        spread = stack.var(dim=0)
        freedom = spread.numel() * (len(answers) - 1)
        # The part of the rounding that repeats does not contribute to the spread.
        noise = self.context.noise_std**2 - self.context.repeated_variance
        excess = float(spread.mean()) - noise
        error = max(noise * sqrt(2 / freedom), float(spread.std()) / sqrt(spread.numel())) + 0.02 * noise
        power = max(float(stack.mean(dim=0).square().mean()), 1e-300)
        value, low, high = (sqrt(max(part, 0.0) / power) for part in (excess, excess - 3 * error, excess + 3 * error))
        return [
            Finding(
                name="repeatability",
                measurement=self.name,
                value=value,
                low=low,
                high=high,
                unit="share of an answer",
                sentence=f"Programmed again, a setting answers differently by {100 * value:.2g} %, noise excluded."
                if low > 0
                else f"Programmed again, a setting answers the same within {100 * high:.2g} %, noise excluded.",
            )
        ]

    @property
    def _returns(self) -> int:
        return max(2, round(3 * self.effort.settings))

    @property
    def _vectors(self) -> int:
        return max(8, round(32 * self.effort.repeats))


class Settling(Measurement):
    """Find whether the controls have settled, by the answers of one setting right after two different settings.

    Changes of the setting itself, such as decay, are equal in both series of answers. A control that has not settled
    differs between them, so their difference is evaluated.
    """

    name = "settling"
    priority = 7
    _queries = 16

    def cost(self) -> Cost:
        """Count four programs, and 34 short queries."""
        return Cost(4, 2 * (self._queries + 1) * self._batch_size)

    def run(self) -> list[Finding]:
        """Return the share of a jump that has not settled when the device reports the end of a program."""
        each = self._batch_size
        vector = self.context.draw_vectors(1).repeat(each, 1)
        start, arrivals = [], []
        times: list[float] = []
        # The step is small enough for a linear response of the answers.
        step = (self.context.high - self.context.low) * _JUMP
        base = self.context.round_to_codes(self.context.base.clamp(self.context.low + step, self.context.high - step))
        away = step * (torch.randint(0, 2, base.shape, generator=self.context.generator) * 2 - 1)
        for side in (1, -1):
            self.context.session.program(self.context.round_to_codes(base + side * away))
            start.append(self.context.query(vector).double().mean(dim=0))
            self.context.session.program(base)
            answers, times = self._follow(vector)
            arrivals.append(answers)
        apart = arrivals[0] - arrivals[1]
        apart = apart - apart[self._queries // 2 :].mean(dim=0)
        jump = start[0] - start[1]
        size = float(jump.square().sum())
        share = apart @ jump / max(size, 1e-300)
        error = self.context.noise_std * sqrt(2 / (each * max(size, 1e-300)) * (1 + 2 / self._queries))
        value = float(share[0])
        return [
            Finding(
                name="settling",
                measurement=self.name,
                value=value,
                low=value - 3 * error,
                high=value + 3 * error,
                unit="share of a jump",
                agrees=value <= max(3 * error, 0.01),
                sentence=f"Right after a program, {100 * value:.2g} % of the jump has not settled."
                if value > 3 * error
                else f"Right after a program, the controls have settled to {300 * error:.2g} % of the jump.",
                data={"time": times, "share": share.tolist()},
            )
        ]

    def _follow(self, vector: Tensor) -> tuple[Tensor, list[float]]:
        """Return answers after a program, (queries, out_features), and their times; half of them come much later."""
        begin = self.context.clock.clock_seconds
        answers, times = [], []
        for query in range(self._queries):
            if query == self._queries // 2:
                self.context.clock.wait(_LATER * self.context.spec.program_seconds)
            times.append(self.context.clock.clock_seconds - begin)
            answers.append(self.context.query(vector).double().mean(dim=0))
        return torch.stack(answers), times

    @property
    def _batch_size(self) -> int:
        return max(4, round(8 * self.effort.repeats))


class Drift(Measurement):
    """Hold one setting, and measure how its answers change with time."""

    name = "drift"
    priority = 4
    _times = 20

    def cost(self) -> Cost:
        """Count one program, and 20 queries."""
        return Cost(1, self._times * self._batch_size)

    def run(self) -> list[Finding]:
        """Return the exponent of the decay, and the other changes of the answers."""
        each = self._batch_size
        # Saturated outputs do not appear to decay.
        vectors = self.context.draw_vectors(each) * _HEADROOM
        # The session would skip the program if the device held this setting already.
        self.context.session.program(self.context.base.flip(0) if len(self.context.base) > 1 else self.context.base)
        self.context.session.program(self.context.base)
        clock = self.context.clock
        start = clock.clock_seconds
        # The first query must be short compared with the time since the program.
        seconds = self.context.drift_seconds
        first = max(seconds / 1000, min(_FIRST_LOOK * each * self.context.vector_seconds, seconds / 10), 1e-6)
        due = [first * (seconds / first) ** (place / (self._times - 1)) for place in range(self._times)]
        answers, times = [], []
        for moment in due:
            wait = moment - (clock.clock_seconds - start)
            if wait > 0:
                clock.wait(wait)
            before = clock.clock_seconds
            answers.append(self.context.query(vectors).double())
            times.append((before + clock.clock_seconds) / 2 - start)
        stack = torch.stack(answers)
        reference = stack.mean(dim=0)
        # Exclude saturated outputs, which do not appear to decay. The mean of all queries has little noise.
        most = float(((stack * reference).sum(dim=(1, 2)) / reference.square().sum()).max())
        unsaturated = self.context.unsaturated(max(most, 1.0) * reference)
        if float(unsaturated.double().mean()) >= _LEAST_UNSATURATED:
            reference = reference * unsaturated
        gains = (stack * reference).sum(dim=(1, 2)) / reference.square().sum()
        noise = self.context.noise_std / float(reference.square().sum().sqrt())
        slope, error = _log_slope(times, gains, noise)
        # Each answer has its own rounding error, equal in many queries; the spread between answers shows its size.
        error = max(error, *(_slope_error(times, stack, reference, axis) for axis in (0, 1)))
        return [
            Finding(
                name="drift_exponent",
                measurement=self.name,
                value=-slope,
                low=-slope - 3 * error,
                high=-slope + 3 * error,
                sentence=f"While a setting is held for {times[-1]:.3g} s, answers decay as t^-{-slope:.2g}, "
                f"+- {error:.1g}."
                if abs(slope) > 3 * error
                else f"While a setting is held for {times[-1]:.3g} s, answers do not decay, "
                f"to {300 * error * log(10):.2g} % per decade of time.",
                data={"time": times, "gain": gains.tolist(), "error": noise},
            ),
            self._change_beside_gain(
                stack[:, unsaturated] if bool(unsaturated.any()) else stack.flatten(1), gains, times
            ),
        ]

    def _change_beside_gain(self, stack: Tensor, gains: Tensor, times: list[float]) -> Finding:
        """Measure the change between the first and the last queries, apart from a common gain.

        Args:
            stack: unsaturated answers, (queries, answers).
            gains: gains of the queries.
            times: times of the queries.
        """
        scaled = stack / gains[:, None]
        part = max(2, self._times // 4)
        apart = scaled[-part:].mean(dim=0) - scaled[:part].mean(dim=0)
        # Dividing by a smaller gain enlarges the noise.
        factor = float(gains[-part:].square().reciprocal().mean() + gains[:part].square().reciprocal().mean()) / 2
        noise = factor * (self.context.noise_std**2 - self.context.repeated_variance) * 2 / part
        excess = float(apart.square().mean()) - noise
        error = max(noise * sqrt(2 / apart.numel()), float(apart.square().std()) / sqrt(apart.numel())) + 0.02 * noise
        # A change of the gain moves answers to other codes: their rounding errors are then partly independent.
        rounding = 2 * factor * self.context.repeated_variance
        power = max(float(scaled.mean(dim=0).square().mean()), 1e-300)
        value, low, high = (
            sqrt(max(squares, 0.0) / power)
            for squares in (excess - rounding / 2, excess - rounding - 3 * error, excess + 3 * error)
        )
        return Finding(
            name="wander",
            measurement=self.name,
            value=value,
            low=low,
            high=high,
            unit=f"share of an answer in {times[-1]:.3g} s",
            sentence=f"Apart from the decay, answers change by {100 * value:.2g} % in {times[-1]:.3g} s."
            if low > 0
            else f"Apart from the decay, answers do not change in {times[-1]:.3g} s, to {100 * high:.2g} %.",
        )

    @property
    def _batch_size(self) -> int:
        return max(8, round(32 * self.effort.repeats))


class Speed(Measurement):
    """Measure the latency of one vector and the throughput of a batch, by the wall clock."""

    name = "speed"
    priority = 8
    _single = 8
    _large = 2

    def cost(self) -> Cost:
        """Count at most one program, 8 single vectors and 2 batches."""
        return Cost(1, self._single + self._large * self._batch)

    def run(self) -> list[Finding]:
        """Return median times."""
        batch = self._batch
        start = time.perf_counter()
        self.context.session.program(self.context.base.flip(0))
        programming = time.perf_counter() - start
        one, many = self.context.draw_vectors(1), self.context.draw_vectors(batch)
        latency = _median([_timed(self.context, one) for _ in range(self._single)])
        rate = batch / _median([_timed(self.context, many) for _ in range(self._large)])
        return [
            Finding(
                name="latency",
                measurement=self.name,
                value=latency,
                unit="s",
                sentence=f"A query of one vector takes {1e3 * latency:.3g} ms, a program {1e3 * programming:.3g} ms.",
            ),
            Finding(
                name="throughput",
                measurement=self.name,
                value=rate,
                unit="vectors/s",
                sentence=f"In batches of {batch}, the device answers {rate:,.0f} vectors per second.",
            ),
        ]

    @property
    def _batch(self) -> int:
        return max(16, round(256 * self.effort.repeats))


def _timed(context: MeasurementContext, inputs: Tensor) -> float:
    """Return the seconds that a query takes."""
    start = time.perf_counter()
    context.query(inputs)
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def _slope_error(times: list[float], stack: Tensor, reference: Tensor, axis: int) -> float:
    """Return the standard error of the slope of log gain over log time, from the spread of vectors or outputs.

    Uses the delete-one jackknife. For small changes, the log gain is the gain minus one.

    Args:
        times: times of the queries.
        stack: answers, (queries, vectors, out_features).
        reference: weights of the answers, (vectors, out_features).
        axis: axis along which one element at a time is left out: 0 for vectors, 1 for outputs.
    """
    x = torch.tensor(times, dtype=torch.float64).log()
    about = (x - x.mean()) / (x - x.mean()).square().sum()
    slopes = torch.einsum("l,lvo->vo", about, stack) * reference
    powers = reference.square()
    rest = [total.sum() - total.sum(dim=1 - axis) for total in (slopes, powers)]
    without = rest[0] / rest[1].clamp_min(1e-300)
    count = len(without)
    if count < 4:
        return 0.0
    return float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())


def _log_slope(times: list[float], gains: Tensor, noise: float) -> tuple[float, float]:
    """Return the slope of log gain over log time, and its standard error."""
    x, y = torch.tensor(times, dtype=torch.float64).log(), gains.clamp_min(1e-12).log()
    about = x - x.mean()
    size = float(about.square().sum())
    slope = float((about * y).sum()) / size
    residual = y - y.mean() - slope * about
    # Other changes scatter about the line by more than the noise.
    scatter = max(noise, float((residual.square().sum() / (len(times) - 2)).sqrt()))
    return slope, scatter / sqrt(size)
