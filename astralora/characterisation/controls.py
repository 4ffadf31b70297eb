"""Measure controls: their levels, crosstalk and coupling."""

from __future__ import annotations

from math import sqrt

import torch
from pydantic import JsonValue
from torch import Tensor

from .context import MeasurementContext
from .crosstalk import REACH, CrosstalkFit
from .findings import Finding
from .levels import MOST_LEVELS, scan_levels
from .measurement import Cost, Measurement

__all__ = ["Coupling", "Wobble"]

# Controls move by this share of their range to either side.
_SHARE = 1 / 16
# Largest number of controls that the search for levels uses.
_MOST_CONTROLS = 512
# At most this many settings are dropped because an output was saturated; each time the inputs are weakened.
_DIMMED, _DIMMER = 4, 0.75
# With at most this many levels, rounding changes a setting by a large part of the move.
_COARSE = 128


class Wobble(Measurement):
    """Measure levels and crosstalk of the controls, by small random moves of all controls at once.

    Each entry follows its own control along a curve. The residual contains the sawtooth of the control's converter and
    the crosstalk of its neighbours. All controls move independently, so that the same settings measure the levels, and
    the crosstalk of every pair of neighbours.
    """

    name = "wobble"
    priority = 3
    linear = True
    elementwise = True

    def cost(self) -> Cost:
        """Count one program for each of at least 12 settings."""
        count = self._count
        return Cost(count, count * self._repeats * len(self.context.probe_signs))

    def run(self) -> list[Finding]:
        """Return the crosstalk map and the number of control levels."""
        count, spec = self._count, self.context.spec
        width = (self.context.high - self.context.low) * _SHARE
        shape = (count, spec.num_controls)
        draw = torch.rand(spec.num_controls, generator=self.context.generator, dtype=torch.float64)
        base = self.context.low + width + (self.context.high - self.context.low - 2 * width) * draw
        written = base + width * (2 * torch.rand(shape, generator=self.context.generator, dtype=torch.float64) - 1)
        written = written.float().double()
        matrices, strength = [], 1.0
        kept: list[int] = []
        for place, setting in enumerate(written):
            self.context.session.program(setting.float())
            matrix, unsaturated = self.context.measure_matrix_checked(self._repeats, strength)
            if unsaturated or place - len(kept) >= _DIMMED:
                matrices.append(matrix)
                kept.append(place)
            else:
                strength *= _DIMMER
        written = written[kept]
        entries = torch.stack(matrices).flatten(1).double()  # (count, controls)
        error = self.context.entry_error(self._repeats, strength)
        fit = CrosstalkFit(entries, (written - base) / width, (spec.out_features, spec.in_features), error)
        levels = self._levels(fit, written, base, width)
        if levels.value is not None:
            # With the levels, the rounded settings that the chip applied are known.
            acted = _on_levels(written, self.context, round(levels.value))
            fit = CrosstalkFit(entries, (acted - base) / width, (spec.out_features, spec.in_features), error)
        # If the codes are further apart than the moves, the slope of a curve cannot be measured.
        fine = levels.value is None or (self.context.high - self.context.low) / (levels.value - 1) < width
        return [self._crosstalk(fit, fine), levels]

    def _crosstalk(self, fit: CrosstalkFit, fine: bool) -> Finding:
        """Average the kernel over the four nearest neighbours."""
        kernel, errors = fit.kernel, fit.errors
        neighbours = [(REACH - 1, REACH), (REACH + 1, REACH), (REACH, REACH - 1), (REACH, REACH + 1)]
        resolved = [place for place in neighbours if torch.isfinite(errors[place])]
        data: dict[str, JsonValue] = {"kernel": kernel.tolist(), "errors": errors.nan_to_num(posinf=0.0).tolist()}
        if not resolved or not fine:
            return Finding(
                name="crosstalk",
                measurement=self.name,
                value=None,
                sentence="Noise hides the crosstalk between controls; allow more vectors."
                if fine
                else "The codes of the controls are too coarse to resolve crosstalk.",
                data=data if fine else {},
            )
        weights = torch.tensor([1 / float(errors[place]) ** 2 for place in resolved])
        value = float((weights * torch.tensor([float(kernel[place]) for place in resolved])).sum() / weights.sum())
        spread = 1 / sqrt(float(weights.sum()))
        return Finding(
            name="crosstalk",
            measurement=self.name,
            value=value,
            low=value - 3 * spread,
            high=value + 3 * spread,
            unit="share of a neighbour's action",
            sentence=f"A control picks up {100 * value:.2g} % of the action of each of its four neighbours, "
            f"+- {100 * spread:.1g} %.",
            data=data,
        )

    def _levels(self, fit: CrosstalkFit, written: Tensor, base: Tensor, width: float) -> Finding:
        """Find the number of levels: by a fit for each candidate if it is small, else by the sawtooth of rounding."""
        useful = fit.strongest(_MOST_CONTROLS)
        written, base = written[:, useful], base[useful]
        total = float(fit.residual[:, useful].square().sum())
        gains = torch.full((MOST_LEVELS + 1,), -torch.inf, dtype=torch.float64)
        spread = torch.zeros_like(gains)
        freedom = float((len(written) - fit.curve) * len(useful))
        for levels in range(2, _COARSE + 1):
            squares, fitted, variance = fit.residual_with(
                (_on_levels(written, self.context, levels) - base) / width, useful
            )
            # With fewer coefficients the residual contains more noise.
            fewer = fit.curve * len(useful) - fitted
            gains[levels] = total - squares * freedom / (freedom + fewer)
            spread[levels] = sqrt(variance)

        def off(levels: int) -> Tensor:
            return (_on_levels(written, self.context, levels) - written) / width

        fine = range(_COARSE + 1, MOST_LEVELS + 1)
        gains[fine.start :] = fit.gains(off, fine, useful)
        claimed = self.context.spec.control_levels
        return scan_levels("control_levels", self.name, gains, total, fit.error, freedom, claimed, spread)

    @property
    def _count(self) -> int:
        return max(12, round(32 * self.effort.settings))

    @property
    def _repeats(self) -> int:
        return max(1, round(2 * self.effort.repeats))


class Coupling(Measurement):
    """Move a few controls far, one at a time, to find which entries each one changes."""

    name = "coupling"
    priority = 5
    linear = True

    def cost(self) -> Cost:
        """Count one program for the first setting, and one for each of at least 2 controls."""
        count = self._count
        return Cost(count + 1, (count + 1) * 2 * len(self.context.probe_signs))

    def run(self) -> list[Finding]:
        """Return the share of a change that lies outside the claimed coupling."""
        spec, count = self.context.spec, self._count
        self.context.session.program(self.context.base)
        before = self.context.measure_matrix(2)
        error = self.context.entry_error(2) * sqrt(2)
        entry = row = everything = 0.0
        touched = []
        chosen = torch.randperm(spec.num_controls, generator=self.context.generator)[:count]
        for control in chosen.tolist():
            moved = self.context.base.clone()
            # A quarter of the range: a full period of a periodic control would change nothing.
            quarter = (self.context.high - self.context.low) / 4
            moved[control] += (
                quarter if float(moved[control]) < (self.context.low + self.context.high) / 2 else -quarter
            )
            moved = self.context.round_to_codes(moved)
            self.context.session.program(moved)
            change = self.context.measure_matrix(2) - before
            power = change.square() - error**2
            everything += float(power.sum())
            touched.append(int((change.abs() > 4.5 * error).sum()))
            if spec.num_controls == spec.in_features * spec.out_features:
                i, j = divmod(control, spec.in_features)
                entry += float(power[i, j])
                row += float(power[i].sum())
            elif spec.num_controls % spec.out_features == 0:
                row += float(power[control // (spec.num_controls // spec.out_features)].sum())
        size = before.numel()
        uncertain = count * error**2 * sqrt(2 * size)
        if everything < 4 * uncertain:
            return [
                Finding(
                    name="coupling",
                    measurement=self.name,
                    value=None,
                    sentence="No change by a single control rises above the noise.",
                )
            ]
        outside = {"elementwise": 1 - entry / everything, "output": 1 - row / everything}.get(spec.coupling)
        spread = uncertain / everything
        return [
            Finding(
                name="coupling",
                measurement=self.name,
                value=None if outside is None else max(outside, 0.0),
                low=None if outside is None else outside - 3 * spread,
                high=None if outside is None else outside + 3 * spread,
                unit="share of a change outside the claimed coupling",
                agrees=None if outside is None else outside - 3 * spread < 0.05,
                sentence=f"One control changes {sum(touched) / len(touched):.0f} of {size} entries noticeably; "
                + (
                    f"{100 * max(outside, 0.0):.2g} % of the change is outside {spec.coupling} coupling."
                    if outside is not None
                    else f"the spec claims {spec.coupling} coupling."
                ),
                data={"controls": chosen.tolist(), "touched": touched},
            )
        ]

    @property
    def _count(self) -> int:
        return min(self.context.spec.num_controls, max(2, round(4 * self.effort.settings)))


def _on_levels(written: Tensor, context: MeasurementContext, levels: int) -> Tensor:
    """Round settings to the codes of a converter with these levels."""
    step = (context.high - context.low) / (levels - 1)
    return context.low + step * ((written - context.low) / step).round()
