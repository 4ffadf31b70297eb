"""Strength of the light against strength of the answers: codes of the inputs, and how straight the way through is."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .examiner import Examiner
from .findings import Finding
from .measurement import MOST_LEVELS, Cost, Effort, Measurement, scan_levels

__all__ = ["Ramp"]

_PATTERNS = 8
# Share of the outputs, at least, that have to stay clear of the ends of the range; else the light is weakened.
_CLEAR = 0.25
_GRID = 41


class Ramp(Measurement):
    """A few patterns of light, each at random strengths.

    What one output's converter rounds looks bent as well; no two outputs and patterns have that in common.
    """

    name = "ramp"
    priority = 2
    linear = True

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """One program, at least 128 vectors."""
        return Cost(1, self._count(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Levels of the inputs, and linearity error."""
        count, spec = self._count(effort), examiner.spec
        examiner.session.program(examiner.base)
        patterns = torch.randint(0, 2, (_PATTERNS, spec.in_features), generator=examiner.generator).float()
        signs = (patterns * 2 - 1 if examiner.signed else patterns).repeat_interleave(count // _PATTERNS, dim=0)
        low = -1.0 if examiner.signed else 0.0
        strengths = low + (1 - low) * torch.rand(len(signs), generator=examiner.generator, dtype=torch.float64)
        span = examiner.amplitude * examiner.limit
        values = (strengths * span).float()
        answers = examiner.ask(values.unsqueeze(1) * signs).double()
        response = _Response(examiner, values.double(), answers, span)
        found = []
        if spec.input_range is not None:
            levels = self._levels(examiner, response)
            found.append(levels)
            if levels.value is not None:
                # Now it is known what was really sent.
                response.values = _rounded(response.values, spec.input_range, round(levels.value))
                if spec.input_levels is None and levels.low == levels.high:
                    examiner.learn(input_levels=round(levels.value))
        return [self._linearity(examiner, response, low * response.span), *found]

    def _levels(self, examiner: Examiner, response: _Response) -> Finding:
        spec = examiner.spec
        assert spec.input_range is not None
        total, freedom = float(response.left(response.values)), len(response.values) - 3 - _PATTERNS
        gains = torch.full((MOST_LEVELS + 1,), -torch.inf, dtype=torch.float64)
        for levels in torch.arange(2, MOST_LEVELS + 1).split(64):
            gains[levels] = total - response.left(_rounded(response.values, spec.input_range, levels.unsqueeze(1)))
        # In units of the noise already.
        return scan_levels("input_levels", self.name, gains, total, 1.0, freedom, spec.input_levels)

    def _linearity(self, examiner: Examiner, response: _Response, low: float) -> Finding:
        spec = examiner.spec
        departure, error = response.departure(low)
        return Finding(
            name="linearity_error",
            measurement=self.name,
            value=departure,
            low=max(departure - 3 * error, 0.0),
            high=departure + 3 * error,
            unit="share of the range",
            promised=0.0 if spec.linear else None,
            agrees=departure - 3 * error <= 0.005 if spec.linear else None,
            sentence=f"From a straight line the answers depart by {100 * departure:.2g} % of the range at most, "
            f"+- {100 * error:.1g}.",
            data={"strength": response.values[:2000].tolist(), "response": response.answers[:2000].tolist()},
        )

    def _count(self, effort: Effort) -> int:
        return max(128, round(1024 * effort.repeats)) // _PATTERNS * _PATTERNS


class _Response:
    """Answers to patterns at several strengths, as one number each that would be the strength itself.

    Every output answers a pattern along a straight line of its own; weighed by their slopes they make one good one.

    Attributes:
        values: strengths, (samples,).
        answers: (samples,), each pattern's mean aside.
        span: the greatest strength that was kept.
    """

    def __init__(self, examiner: Examiner, values: Tensor, answers: Tensor, span: float) -> None:
        which = torch.arange(_PATTERNS).repeat_interleave(len(values) // _PATTERNS)
        for halving in range(4):
            self.span = span / 2**halving
            kept = values.abs() <= self.span
            self.values, self._which = values[kept], which[kept]
            if self._weigh(examiner, answers[kept]) >= _CLEAR:
                break

    def _weigh(self, examiner: Examiner, answers: Tensor) -> float:
        """Set answers and their errors; returns the share of outputs that are clear of the range's ends."""
        self.answers = torch.zeros_like(self.values)
        self._errors = torch.full_like(self.values, torch.inf)
        used = 0.0
        for pattern in range(_PATTERNS):
            mine = self._which == pattern
            if int(mine.sum()) < 4:
                continue
            line = torch.stack([torch.ones_like(self.values[mine]), self.values[mine]], dim=1)
            start, slope = torch.linalg.lstsq(line, answers[mine]).solution
            clear = examiner.clear(start.abs() + slope.abs() * self.span)
            slope, power = slope * clear, float((slope * clear).square().sum())
            used += float(clear.double().mean()) / _PATTERNS
            if power > 0:
                about = answers[mine] - answers[mine].mean(dim=0)
                self.answers[mine] = about @ slope / power
                self._errors[mine] = examiner.noise_std / sqrt(power)
        return used

    def left(self, values: Tensor) -> Tensor:
        """Squares over the noise that a cubic of these strengths (..., samples) leaves of all answers: (...)."""
        powers, answers = self._whitened(values)
        slope = powers.mT @ answers
        fitted = torch.linalg.pinv(powers.mT @ powers, hermitian=True, rtol=1e-10) @ slope.unsqueeze(-1)
        left: Tensor = answers @ answers - (fitted[..., 0] * slope).sum(dim=-1)
        return left

    def departure(self, low: float) -> tuple[float, float]:
        """The greatest departure of that cubic from a straight line, as a share of the range; and its standard error.

        Args:
            low: the least strength.
        """
        grid = torch.linspace(low, self.span, _GRID, dtype=torch.float64)
        curves = _powers(grid / self.span)
        line = torch.linalg.qr(torch.stack([torch.ones_like(grid), grid], dim=1)).Q
        bent = curves - line @ (line.mT @ curves)  # what is not straight of the powers
        powers, answers = self._whitened(self.values)
        departures, covariance = _curve(powers, answers, bent)
        place = int(departures.abs().argmax())
        error = float(covariance[place, place].clamp_min(0).sqrt())
        # What patterns differ by tells of the rounding of outputs, which noise does not.
        each = []
        for pattern in range(_PATTERNS):
            mine = self._which == pattern
            if bool(torch.isfinite(self._errors[mine]).all()) and int(mine.sum()) >= 6:
                each.append(_curve(powers[mine], answers[mine], bent)[0][place])
        if len(each) > 2:
            error = max(error, float(torch.stack(each).std()) / sqrt(len(each)))
        size = self.span - low
        return float(departures[place].abs()) / size, error / size

    def _whitened(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Powers of relative strengths, each pattern's mean aside, and answers; both over the answers' errors.

        Args:
            values: strengths, (..., samples).

        Returns:
            (..., samples, 3), and (samples,).
        """
        powers = _powers(values / self.span)
        counts = self._which.bincount(minlength=_PATTERNS).clamp_min(1)
        sums = powers.new_zeros(*powers.shape[:-2], _PATTERNS, 3).index_add(-2, self._which, powers)
        powers = powers - (sums / counts.unsqueeze(1)).index_select(-2, self._which)
        return powers / self._errors.unsqueeze(1), self.answers / self._errors


def _curve(powers: Tensor, answers: Tensor, bent: Tensor) -> tuple[Tensor, Tensor]:
    """What is not straight of the fitted cubic on a grid, and its covariance."""
    inverse = torch.linalg.pinv(powers.mT @ powers, hermitian=True, rtol=1e-12)
    fitted = inverse @ (powers.mT @ answers)
    left = answers - powers @ fitted
    scale = max(float(left.square().mean()), 1.0)
    return bent @ fitted, scale * (bent @ inverse @ bent.mT)


def _powers(values: Tensor) -> Tensor:
    return torch.stack([values, values**2, values**3], dim=-1)


def _rounded(values: Tensor, bounds: tuple[float, float], levels: int | Tensor) -> Tensor:
    step = (bounds[1] - bounds[0]) / (levels - 1)
    on_codes: Tensor = bounds[0] + step * ((values - bounds[0]) / step).round()
    return on_codes
