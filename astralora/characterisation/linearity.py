"""Measure the linearity of the inputs and the number of their levels."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .context import MeasurementContext
from .findings import Finding
from .levels import MOST_LEVELS, scan_levels
from .measurement import Cost, Measurement

__all__ = ["Ramp"]

_PATTERNS = 8
# At least this share of the outputs must be unsaturated; otherwise the strongest inputs are left out.
_LEAST_UNSATURATED = 0.25
_GRID = 41


class Ramp(Measurement):
    """Measure linearity and levels of the inputs, with a few patterns of inputs at random strengths.

    Several patterns are needed because the rounding of one output can look like a curve, but differs between outputs
    and patterns.
    """

    name = "ramp"
    priority = 2
    linear = True

    def cost(self) -> Cost:
        """Count one program and at least 128 vectors."""
        return Cost(1, self._count)

    def run(self) -> list[Finding]:
        """Return the linearity error and the number of input levels."""
        count, spec = self._count, self.context.spec
        self.context.session.program(self.context.base)
        patterns = torch.randint(0, 2, (_PATTERNS, spec.in_features), generator=self.context.generator).float()
        signs = (patterns * 2 - 1 if self.context.signed else patterns).repeat_interleave(count // _PATTERNS, dim=0)
        low = -1.0 if self.context.signed else 0.0
        strengths = low + (1 - low) * torch.rand(len(signs), generator=self.context.generator, dtype=torch.float64)
        span = self.context.amplitude * self.context.input_limit
        values = (strengths * span).float()
        answers = self.context.query(values.unsqueeze(1) * signs).double()
        response = _Response(self.context, values.double(), answers, span)
        found = []
        if spec.input_range is not None:
            levels = self._levels(response)
            found.append(levels)
            if levels.value is not None:
                # With the levels, the rounded inputs that the device received are known.
                response.values = _rounded(response.values, spec.input_range, round(levels.value))
                if spec.input_levels is None and levels.low == levels.high:
                    self.context.set_levels(input_levels=round(levels.value))
        return [self._linearity(response, low * response.span), *found]

    def _levels(self, response: _Response) -> Finding:
        """Find the number of input levels."""
        spec = self.context.spec
        assert spec.input_range is not None
        total, freedom = float(response.residual_squares(response.values)), len(response.values) - 3 - _PATTERNS
        gains = torch.full((MOST_LEVELS + 1,), -torch.inf, dtype=torch.float64)
        for levels in torch.arange(2, MOST_LEVELS + 1).split(64):
            gains[levels] = total - response.residual_squares(
                _rounded(response.values, spec.input_range, levels.unsqueeze(1))
            )
        # The squares are in units of the noise already.
        return scan_levels("input_levels", self.name, gains, total, 1.0, freedom, spec.input_levels)

    def _linearity(self, response: _Response, low: float) -> Finding:
        """Compare the response with a straight line."""
        spec = self.context.spec
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
            sentence=f"The answers depart from a straight line by at most {100 * departure:.2g} % of the range, "
            f"+- {100 * error:.1g} %.",
            data={"strength": response.values[:2000].tolist(), "response": response.answers[:2000].tolist()},
        )

    @property
    def _count(self) -> int:
        return max(128, round(1024 * self.effort.repeats)) // _PATTERNS * _PATTERNS


class _Response:
    """Estimate the strength of each input vector from all outputs of its answer.

    For one pattern, each output of a linear device is proportional to the strength. The outputs are combined with
    weights proportional to their slopes.

    Attributes:
        values: strengths, (samples,).
        answers: estimated strengths, (samples,), minus their mean over each pattern.
        span: greatest strength that is used.
    """

    def __init__(self, context: MeasurementContext, values: Tensor, answers: Tensor, span: float) -> None:
        which = torch.arange(_PATTERNS).repeat_interleave(len(values) // _PATTERNS)
        for halving in range(4):
            self.span = span / 2**halving
            kept = values.abs() <= self.span
            self.values, self._which = values[kept], which[kept]
            if self._weigh(context, answers[kept]) >= _LEAST_UNSATURATED:
                break

    def _weigh(self, context: MeasurementContext, answers: Tensor) -> float:
        """Set the answers and their errors, and return the share of unsaturated outputs."""
        self.answers = torch.zeros_like(self.values)
        self._errors = torch.full_like(self.values, torch.inf)
        used = 0.0
        for pattern in range(_PATTERNS):
            mine = self._which == pattern
            if int(mine.sum()) < 4:
                continue
            line = torch.stack([torch.ones_like(self.values[mine]), self.values[mine]], dim=1)
            start, slope = torch.linalg.lstsq(line, answers[mine]).solution
            usable = context.unsaturated(start.abs() + slope.abs() * self.span)
            slope, power = slope * usable, float((slope * usable).square().sum())
            used += float(usable.double().mean()) / _PATTERNS
            if power > 0:
                about = answers[mine] - answers[mine].mean(dim=0)
                self.answers[mine] = about @ slope / power
                self._errors[mine] = context.noise_std / sqrt(power)
        return used

    def residual_squares(self, values: Tensor) -> Tensor:
        """Return the squared residuals in units of the noise after a cubic fit of strengths (..., samples): (...)."""
        powers, answers = self._whitened(values)
        slope = powers.mT @ answers
        fitted = torch.linalg.pinv(powers.mT @ powers, hermitian=True, rtol=1e-10) @ slope.unsqueeze(-1)
        squares: Tensor = answers @ answers - (fitted[..., 0] * slope).sum(dim=-1)
        return squares

    def departure(self, low: float) -> tuple[float, float]:
        """Return the greatest distance of the cubic from a straight line, as a share of the range; and its error.

        Args:
            low: least strength.
        """
        grid = torch.linspace(low, self.span, _GRID, dtype=torch.float64)
        curves = _powers(grid / self.span)
        line = torch.linalg.qr(torch.stack([torch.ones_like(grid), grid], dim=1)).Q
        bent = curves - line @ (line.mT @ curves)  # powers without their linear part
        powers, answers = self._whitened(self.values)
        departures, covariance = _curve(powers, answers, bent)
        place = int(departures.abs().argmax())
        error = float(covariance[place, place].clamp_min(0).sqrt())
        # The scatter between patterns includes the rounding of outputs; the noise does not.
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
        """Return powers of relative strengths and answers, centred for each pattern, over the answers' errors.

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
    """Return the curved part of the fitted cubic on a grid, and its covariance."""
    inverse = torch.linalg.pinv(powers.mT @ powers, hermitian=True, rtol=1e-12)
    fitted = inverse @ (powers.mT @ answers)
    residual = answers - powers @ fitted
    scale = max(float(residual.square().mean()), 1.0)
    return bent @ fitted, scale * (bent @ inverse @ bent.mT)


def _powers(values: Tensor) -> Tensor:
    """Return the first three powers of values."""
    return torch.stack([values, values**2, values**3], dim=-1)


def _rounded(values: Tensor, bounds: tuple[float, float], levels: int | Tensor) -> Tensor:
    """Round values to the codes of a converter with these levels."""
    step = (bounds[1] - bounds[0]) / (levels - 1)
    on_codes: Tensor = bounds[0] + step * ((values - bounds[0]) / step).round()
    return on_codes
