"""Measurements of controls: their codes, what they reach, and what they do to their neighbours."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .examiner import Examiner
from .findings import Finding
from .measurement import Cost, Effort, Measurement, scan_levels

__all__ = ["Coupling", "Wobble"]

_SHARE = 1 / 16
_REACH = 2  # neighbours this far away stand in the crosstalk map
_MOST_CONTROLS = 1024


class Wobble(Measurement):
    """All controls at once, a little and at random, about a setting: codes of the controls, and crosstalk.

    Each entry follows its own control along a parabola. What that leaves is, in one part, the saw of the control's
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
        matrices = []
        for setting in written:
            examiner.session.program(setting.float())
            matrices.append(examiner.matrix(self._repeats(effort)))
        entries = torch.stack(matrices).flatten(1).double()  # (count, controls)
        error = examiner.entry_error(self._repeats(effort))
        slopes, basis, left = _parabolas(entries, written - base)
        levels = self._levels(examiner, written, slopes, basis, left, error)
        if levels.value is not None:
            # Now it is known what the controls really did.
            step = (examiner.high - examiner.low) / (round(levels.value) - 1)
            written = examiner.low + step * ((written - examiner.low) / step).round()
            slopes, basis, left = _parabolas(entries, written - base)
        return [self._crosstalk(examiner, written - base, slopes, basis, left, error), levels]

    def _crosstalk(
        self, examiner: Examiner, moves: Tensor, slopes: Tensor, basis: Tensor, left: Tensor, error: float
    ) -> Finding:
        rows, columns = examiner.spec.out_features, examiner.spec.in_features
        size = 2 * _REACH + 1
        kernel, errors = torch.zeros(size, size), torch.zeros(size, size)
        grid = moves.view(-1, rows, columns)
        for down in range(-_REACH, _REACH + 1):
            for right in range(-_REACH, _REACH + 1):
                if down == 0 and right == 0:
                    kernel[_REACH, _REACH] = 1.0
                    continue
                shifted = torch.zeros_like(grid)
                target = (
                    slice(max(down, 0), rows + min(down, 0)),
                    slice(max(right, 0), columns + min(right, 0)),
                )
                source = (
                    slice(max(-down, 0), rows + min(-down, 0)),
                    slice(max(-right, 0), columns + min(-right, 0)),
                )
                if rows <= abs(down) or columns <= abs(right):
                    errors[down + _REACH, right + _REACH] = torch.inf
                    continue
                shifted[:, target[0], target[1]] = grid[:, source[0], source[1]]
                expected = _without(basis, shifted.flatten(1)) * slopes
                power = expected.square().sum()
                kernel[down + _REACH, right + _REACH] = (expected * left).sum() / power
                # The saws of converters and the chip's wander are noise here too: what is left tells all of it.
                scatter = max(error**2, float((expected.square() * left.square()).sum() / power))
                errors[down + _REACH, right + _REACH] = sqrt(scatter / float(power))
        beside = [(_REACH - 1, _REACH), (_REACH + 1, _REACH), (_REACH, _REACH - 1), (_REACH, _REACH + 1)]
        seen = [place for place in beside if torch.isfinite(errors[place])]
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
            data={"kernel": kernel.tolist(), "errors": errors.nan_to_num(posinf=0.0).tolist()},
        )

    def _levels(
        self,
        examiner: Examiner,
        written: Tensor,
        slopes: Tensor,
        basis: Tensor,
        left: Tensor,
        error: float,
    ) -> Finding:
        useful = self._useful(slopes)
        low, high = examiner.low, examiner.high
        written, basis, slopes = written[:, useful], basis[useful], slopes[useful]

        def departures(levels: int) -> Tensor:
            step = (high - low) / (levels - 1)
            off = low + step * ((written - low) / step).round() - written
            return (_without(basis, off) * slopes).flatten()

        scatter = max(error, float(left[:, useful].square().mean().sqrt()) * 0.5)
        return scan_levels(
            "control_levels",
            self.name,
            departures,
            left[:, useful].flatten(),
            scatter,
            examiner.spec.control_levels,
            finest=(high - low) / sqrt(12) * float(slopes.square().mean().sqrt()),
            samples=written.numel(),
        )

    def _useful(self, slopes: Tensor) -> Tensor:
        """The controls whose entries move most: the others only add noise."""
        count = min(len(slopes), _MOST_CONTROLS)
        return slopes.abs().topk(count).indices

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
            middle = (examiner.low + examiner.high) / 2
            far = examiner.high if float(moved[control]) < middle else examiner.low
            moved[control] = far
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


def _parabolas(entries: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each entry along its own control: slopes, (controls,); the basis of its curve; and what the curve leaves.

    Args:
        entries: (count, controls).
        moves: of the controls, (count, controls).
    """
    powers = torch.stack([torch.ones_like(moves), moves, moves.square(), moves**3], dim=-1).movedim(1, 0)
    fitted = torch.linalg.lstsq(powers, entries.mT.unsqueeze(-1)).solution[..., 0]
    basis = torch.linalg.qr(powers).Q  # (controls, count, 4)
    return fitted[:, 1], basis, _without(basis, entries)


def _without(basis: Tensor, values: Tensor) -> Tensor:
    """What a fit by these functions leaves: (controls, count, k) and (count, controls) -> (count, controls)."""
    columns = values.mT.unsqueeze(-1)
    left: Tensor = (columns - basis @ (basis.mT @ columns))[..., 0].mT
    return left
