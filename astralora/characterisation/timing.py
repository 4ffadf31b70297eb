"""Measurements of time: settling, repeatability, drift, and how fast the link is."""

from __future__ import annotations

import time
from math import log, sqrt

import torch
from torch import Tensor

from .examiner import Examiner
from .findings import Finding
from .measurement import Cost, Effort, Measurement

__all__ = ["Drift", "Repeatability", "Settling", "Speed"]

# How far drift lights the detectors, and the share of answers that have to stay clear of the ends of their range.
_ROOM = 0.7
_CLEAR = 0.25
# The first look at drift comes after as many times what a look takes.
_SLOW = 30.0
# Settling is looked at after jumps by so much of the controls' range.
_NEAR = 1 / 8
# What has not arrived when a program is over has had time to after as many more.
_LATER = 10.0


class Repeatability(Measurement):
    """Away and back again: does the same setting do the same?"""

    name = "repeatability"
    priority = 6

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """Two programs for each of at least 2 returns, and one before."""
        returns = self._returns(effort)
        return Cost(2 * returns + 1, (returns + 1) * self._vectors(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """What returning adds to the noise, as a share of the answers."""
        away = examiner.settings(1)[0]
        vectors = examiner.vectors(self._vectors(effort))
        examiner.session.program(examiner.base)
        answers = [examiner.ask(vectors)]
        for _ in range(self._returns(effort)):
            examiner.session.program(away)
            examiner.session.program(examiner.base)
            answers.append(examiner.ask(vectors))
        stack = torch.stack(answers).double()
        spread = stack.var(dim=0)
        freedom = spread.numel() * (len(answers) - 1)
        # Rounding that repeats does so here as well.
        noise = examiner.noise_std**2 - examiner.repeating
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
                sentence=f"Programmed again, a setting answers the same but for {100 * value:.2g} % beyond noise."
                if low > 0
                else f"Programmed again, a setting answers the same, to {100 * high:.2g} % beyond noise.",
            )
        ]

    def _returns(self, effort: Effort) -> int:
        return max(2, round(3 * effort.settings))

    def _vectors(self, effort: Effort) -> int:
        return max(8, round(32 * effort.repeats))


class Settling(Measurement):
    """Answers of one setting right after two different ones: have the controls arrived?

    What a setting does by itself, such as to decay, it does wherever its controls come from. What is on the way from
    elsewhere differs, so the difference between the two arrivals is followed.
    """

    name = "settling"
    priority = 7
    _queries = 16

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """Four programs, and 34 short queries."""
        return Cost(4, 2 * (self._queries + 1) * self._each(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """What is left of a jump when the device says that it is done."""
        each = self._each(effort)
        vector = examiner.vectors(1).repeat(each, 1)
        start, arrivals = [], []
        times: list[float] = []
        # Near enough for answers to follow the controls along a straight line.
        near = (examiner.high - examiner.low) * _NEAR
        base = examiner.on_codes(examiner.base.clamp(examiner.low + near, examiner.high - near))
        away = near * (torch.randint(0, 2, base.shape, generator=examiner.generator) * 2 - 1)
        for side in (1, -1):
            examiner.session.program(examiner.on_codes(base + side * away))
            start.append(examiner.ask(vector).double().mean(dim=0))
            examiner.session.program(base)
            answers, times = self._follow(examiner, vector)
            arrivals.append(answers)
        apart = arrivals[0] - arrivals[1]
        apart = apart - apart[self._queries // 2 :].mean(dim=0)
        jump = start[0] - start[1]
        size = float(jump.square().sum())
        share = apart @ jump / max(size, 1e-300)
        error = examiner.noise_std * sqrt(2 / (each * max(size, 1e-300)) * (1 + 2 / self._queries))
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
                sentence=f"Right after a program {100 * value:.2g} % of the jump is still to come."
                if value > 3 * error
                else f"Right after a program the controls have arrived, to {300 * error:.2g} % of the jump.",
                data={"time": times, "share": share.tolist()},
            )
        ]

    def _follow(self, examiner: Examiner, vector: Tensor) -> tuple[Tensor, list[float]]:
        """Answers after a program, (queries, out_features), and when they were given; half of them much later."""
        begin = examiner.clock.clock_seconds
        answers, times = [], []
        for query in range(self._queries):
            if query == self._queries // 2:
                examiner.clock.wait(_LATER * examiner.spec.program_seconds)
            times.append(examiner.clock.clock_seconds - begin)
            answers.append(examiner.ask(vector).double().mean(dim=0))
        return torch.stack(answers), times

    def _each(self, effort: Effort) -> int:
        return max(4, round(8 * effort.repeats))


class Drift(Measurement):
    """One setting, held: how do its answers change with time?"""

    name = "drift"
    priority = 4
    _looks = 20

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """One program, and 20 looks."""
        return Cost(1, self._looks * self._each(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Decay by powers of time, and change of everything else."""
        each = self._each(effort)
        # With room to the ends of the detectors' range: what saturates does not seem to decay.
        vectors = examiner.vectors(each) * _ROOM
        # Away first: what holds the setting already would not be programmed again.
        examiner.session.program(examiner.base.flip(0) if len(examiner.base) > 1 else examiner.base)
        examiner.session.program(examiner.base)
        clock = examiner.clock
        start = clock.clock_seconds
        # A look takes time itself: short against how long the setting has been held.
        first = max(self._seconds / 1000, min(_SLOW * each * examiner.vector_seconds, self._seconds / 10), 1e-6)
        due = [first * (self._seconds / first) ** (look / (self._looks - 1)) for look in range(self._looks)]
        answers, times = [], []
        for moment in due:
            wait = moment - (clock.clock_seconds - start)
            if wait > 0:
                clock.wait(wait)
            before = clock.clock_seconds
            answers.append(examiner.ask(vectors).double())
            times.append((before + clock.clock_seconds) / 2 - start)
        stack = torch.stack(answers)
        reference = stack.mean(dim=0)
        # What saturates does not seem to decay; chosen by all looks together, which noise hardly moves.
        most = float(((stack * reference).sum(dim=(1, 2)) / reference.square().sum()).max())
        clear = examiner.clear(max(most, 1.0) * reference)
        if float(clear.double().mean()) >= _CLEAR:
            reference = reference * clear
        gains = (stack * reference).sum(dim=(1, 2)) / reference.square().sum()
        noise = examiner.noise_std / float(reference.square().sum().sqrt())
        slope, error = _log_slope(times, gains, noise)
        # Rounding moves an answer the same way for many looks, and each its own way: their spread tells of it.
        error = max(error, *(_spread(times, stack, reference, axis) for axis in (0, 1)))
        return [
            Finding(
                name="drift_exponent",
                measurement=self.name,
                value=-slope,
                low=-slope - 3 * error,
                high=-slope + 3 * error,
                sentence=f"Held for {times[-1]:.3g} s, answers decay as t^-{-slope:.2g}, +- {error:.1g}."
                if abs(slope) > 3 * error
                else f"Held for {times[-1]:.3g} s, answers do not decay, "
                f"to {300 * error * log(10):.2g} % a decade of time.",
                data={"time": times, "gain": gains.tolist(), "error": noise},
            ),
            self._wander(examiner, stack[:, clear] if bool(clear.any()) else stack.flatten(1), gains, times),
        ]

    def _wander(self, examiner: Examiner, stack: Tensor, gains: Tensor, times: list[float]) -> Finding:
        """What changes between the first looks and the last, common gain aside.

        Args:
            examiner: knows the noise.
            stack: answers that are clear of the ends of their range, (looks, answers).
            gains: of the looks.
            times: of the looks.
        """
        straight = stack / gains[:, None]
        part = max(2, self._looks // 4)
        apart = straight[-part:].mean(dim=0) - straight[:part].mean(dim=0)
        # The last answers are weaker, and so the noise on them is worth more.
        worth = float(gains[-part:].square().reciprocal().mean() + gains[:part].square().reciprocal().mean()) / 2
        noise = worth * (examiner.noise_std**2 - examiner.repeating) * 2 / part
        excess = float(apart.square().mean()) - noise
        error = max(noise * sqrt(2 / apart.numel()), float(apart.square().std()) / sqrt(apart.numel())) + 0.02 * noise
        # As gains change, answers come to other codes: from not at all to wholly another rounding.
        rounding = 2 * worth * examiner.repeating
        power = max(float(straight.mean(dim=0).square().mean()), 1e-300)
        value, low, high = (
            sqrt(max(left, 0.0) / power)
            for left in (excess - rounding / 2, excess - rounding - 3 * error, excess + 3 * error)
        )
        return Finding(
            name="wander",
            measurement=self.name,
            value=value,
            low=low,
            high=high,
            unit=f"share of an answer in {times[-1]:.3g} s",
            sentence=f"Beside that, answers have moved by {100 * value:.2g} % in {times[-1]:.3g} s."
            if low > 0
            else f"Beside that, answers have not moved in {times[-1]:.3g} s, to {100 * high:.2g} %.",
        )

    def _each(self, effort: Effort) -> int:
        return max(8, round(32 * effort.repeats))


class Speed(Measurement):
    """Latency of one vector, and throughput of many, on the wall's clock."""

    name = "speed"
    priority = 8
    _single = 8
    _large = 2

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """No program where the setting is held; 8 single vectors and 2 batches."""
        return Cost(1, self._single + self._large * self._batch(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Median times."""
        batch = self._batch(effort)
        start = time.perf_counter()
        examiner.session.program(examiner.base.flip(0))
        programming = time.perf_counter() - start
        one, many = examiner.vectors(1), examiner.vectors(batch)
        latency = _median([_timed(examiner, one) for _ in range(self._single)])
        rate = batch / _median([_timed(examiner, many) for _ in range(self._large)])
        return [
            Finding(
                name="latency",
                measurement=self.name,
                value=latency,
                unit="s",
                sentence=f"One vector takes {1e3 * latency:.3g} ms there and back, "
                f"a program {1e3 * programming:.3g} ms.",
            ),
            Finding(
                name="throughput",
                measurement=self.name,
                value=rate,
                unit="vectors/s",
                sentence=f"In batches of {batch}, {rate:,.0f} vectors pass in a second.",
            ),
        ]

    def _batch(self, effort: Effort) -> int:
        return max(16, round(256 * effort.repeats))


def _timed(examiner: Examiner, inputs: Tensor) -> float:
    start = time.perf_counter()
    examiner.ask(inputs)
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _spread(times: list[float], stack: Tensor, reference: Tensor, axis: int) -> float:
    """Standard error of the slope of log gain by log time, from how vectors (0) or outputs (1) differ in it.

    Delete-one jackknife; for small changes, log gain is gain less one.

    Args:
        times: of the looks.
        stack: (looks, vectors, out_features).
        reference: weights of its answers, (vectors, out_features).
        axis: what is left out one by one.
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
    """Slope of log gain by log time, and its standard error."""
    x, y = torch.tensor(times, dtype=torch.float64).log(), gains.clamp_min(1e-12).log()
    about = x - x.mean()
    size = float(about.square().sum())
    slope = float((about * y).sum()) / size
    left = y - y.mean() - slope * about
    # Wander shows as scatter about the line, which noise alone would underrate.
    scatter = max(noise, float((left.square().sum() / (len(times) - 2)).sqrt()))
    return slope, scatter / sqrt(size)
