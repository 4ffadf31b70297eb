"""Measurements of controls: their codes, what they reach, and what they do to their neighbours."""

from __future__ import annotations

from math import sqrt

import torch
from pydantic import JsonValue
from torch import Tensor

from .examiner import Examiner
from .findings import Finding
from .leak import REACH, Leak
from .measurement import MOST_LEVELS, Cost, Effort, Measurement, scan_levels

__all__ = ["Coupling", "Wobble"]

# Controls move by so much of their range to either side.
_SHARE = 1 / 16
_MOST_CONTROLS = 512
# Settings that may be given up to find light that no detector is full of, and how it is weakened then.
_DIMMED, _DIMMER = 4, 0.75
# Up to so many levels, a few codes lie in that: no small departure from what was written.
_COARSE = 128


class Wobble(Measurement):
    """All controls at once, a little and at random, about a setting: codes of the controls, and crosstalk.

    Each entry follows its own control along a curve. What that leaves is, in one part, the saw of the control's
    converter, and in another what its neighbours did, since all moved independently: one set of settings serves
    both, and every pair of neighbours at that.
    """

    name = "wobble"
    priority = 3
    linear = True
    elementwise = True

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """A program for each of at least 12 settings."""
        count = self._count(effort)
        return Cost(count, count * self._repeats(effort) * len(examiner.rows))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Crosstalk map, and levels of the controls."""
        count, spec = self._count(effort), examiner.spec
        width = (examiner.high - examiner.low) * _SHARE
        shape = (count, spec.num_controls)
        draw = torch.rand(spec.num_controls, generator=examiner.generator, dtype=torch.float64)
        base = examiner.low + width + (examiner.high - examiner.low - 2 * width) * draw
        written = base + width * (2 * torch.rand(shape, generator=examiner.generator, dtype=torch.float64) - 1)
        written = written.float().double()
        matrices, strength = [], 1.0
        kept: list[int] = []
        for place, setting in enumerate(written):
            examiner.session.program(setting.float())
            matrix, clear = examiner.matrix_and_clear(self._repeats(effort), strength)
            if clear or place - len(kept) >= _DIMMED:
                matrices.append(matrix)
                kept.append(place)
            else:
                strength *= _DIMMER
        written = written[kept]
        entries = torch.stack(matrices).flatten(1).double()  # (count, controls)
        error = examiner.entry_error(self._repeats(effort), strength)
        leak = Leak(entries, (written - base) / width, (spec.out_features, spec.in_features), error)
        levels = self._levels(examiner, leak, written, base, width)
        if levels.value is not None:
            # Now it is known what the controls really did.
            acted = _on_levels(written, examiner, round(levels.value))
            leak = Leak(entries, (acted - base) / width, (spec.out_features, spec.in_features), error)
        # Between codes that lie further apart than this nothing is known of a curve's slope.
        fine = levels.value is None or (examiner.high - examiner.low) / (levels.value - 1) < width
        return [self._crosstalk(leak, fine), levels]

    def _crosstalk(self, leak: Leak, fine: bool) -> Finding:
        kernel, errors = leak.kernel, leak.errors
        beside = [(REACH - 1, REACH), (REACH + 1, REACH), (REACH, REACH - 1), (REACH, REACH + 1)]
        seen = [place for place in beside if torch.isfinite(errors[place])]
        data: dict[str, JsonValue] = {"kernel": kernel.tolist(), "errors": errors.nan_to_num(posinf=0.0).tolist()}
        if not seen or not fine:
            return Finding(
                name="crosstalk",
                measurement=self.name,
                value=None,
                sentence="Noise hides what controls do to their neighbours; give more vectors."
                if fine
                else "The codes of the controls are too coarse for what neighbours do to be seen between them.",
                data=data if fine else {},
            )
        weights = torch.tensor([1 / float(errors[place]) ** 2 for place in seen])
        value = float((weights * torch.tensor([float(kernel[place]) for place in seen])).sum() / weights.sum())
        spread = 1 / sqrt(float(weights.sum()))
        return Finding(
            name="crosstalk",
            measurement=self.name,
            value=value,
            low=value - 3 * spread,
            high=value + 3 * spread,
            unit="share of a neighbour's action",
            sentence=f"A control takes {100 * value:.2g} % of what each of its four neighbours does, "
            f"+- {100 * spread:.1g}.",
            data=data,
        )

    def _levels(self, examiner: Examiner, leak: Leak, written: Tensor, base: Tensor, width: float) -> Finding:
        """Coarse converters are tried on the curves themselves, fine ones by the saw of what they are off."""
        useful = leak.strongest(_MOST_CONTROLS)
        written, base = written[:, useful], base[useful]
        total = float(leak.left[:, useful].square().sum())
        gains = torch.full((MOST_LEVELS + 1,), -torch.inf, dtype=torch.float64)
        spread = torch.zeros_like(gains)
        freedom = float((len(written) - leak.curve) * len(useful))
        for levels in range(2, _COARSE + 1):
            left, fitted, variance = leak.left_with((_on_levels(written, examiner, levels) - base) / width, useful)
            # What fewer numbers leave more of is noise.
            fewer = leak.curve * len(useful) - fitted
            gains[levels] = total - left * freedom / (freedom + fewer)
            spread[levels] = sqrt(variance)

        def off(levels: int) -> Tensor:
            return (_on_levels(written, examiner, levels) - written) / width

        fine = range(_COARSE + 1, MOST_LEVELS + 1)
        gains[fine.start :] = leak.gains(off, fine, useful)
        promised = examiner.spec.control_levels
        return scan_levels("control_levels", self.name, gains, total, leak.error, freedom, promised, spread)

    def _count(self, effort: Effort) -> int:
        return max(12, round(32 * effort.settings))

    def _repeats(self, effort: Effort) -> int:
        return max(1, round(2 * effort.repeats))


class Coupling(Measurement):
    """A few controls, one at a time and far: what does one reach?"""

    name = "coupling"
    priority = 5
    linear = True

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """A program for each of at least 2 controls, and one for where they start from."""
        count = self._count(examiner, effort)
        return Cost(count + 1, (count + 1) * 2 * len(examiner.rows))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Share of an entry's, a row's and all other entries in what a control changes."""
        spec, count = examiner.spec, self._count(examiner, effort)
        examiner.session.program(examiner.base)
        before = examiner.matrix(2)
        error = examiner.entry_error(2) * sqrt(2)
        entry = row = everything = 0.0
        touched = []
        chosen = torch.randperm(spec.num_controls, generator=examiner.generator)[:count]
        for control in chosen.tolist():
            moved = examiner.base.clone()
            # A quarter of the range: all of it would lead periodic ones back to where they were.
            quarter = (examiner.high - examiner.low) / 4
            moved[control] += quarter if float(moved[control]) < (examiner.low + examiner.high) / 2 else -quarter
            moved = examiner.on_codes(moved)
            examiner.session.program(moved)
            change = examiner.matrix(2) - before
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
                    sentence="One control alone changes nothing that rises above the noise.",
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
                unit="share of a change outside the promised reach",
                agrees=None if outside is None else outside - 3 * spread < 0.05,
                sentence=f"One control changes {sum(touched) / len(touched):.0f} of {size} entries noticeably; "
                + (
                    f"{100 * max(outside, 0.0):.2g} % of the change is beyond the reach of {spec.coupling} coupling."
                    if outside is not None
                    else f"its coupling is promised to be {spec.coupling}."
                ),
                data={"controls": chosen.tolist(), "touched": touched},
            )
        ]

    def _count(self, examiner: Examiner, effort: Effort) -> int:
        return min(examiner.spec.num_controls, max(2, round(4 * effort.settings)))


def _on_levels(written: Tensor, examiner: Examiner, levels: int) -> Tensor:
    step = (examiner.high - examiner.low) / (levels - 1)
    return examiner.low + step * ((written - examiner.low) / step).round()
