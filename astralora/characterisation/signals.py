"""Measurements of signals: noise, converters of the outputs, dead channels, controls that do not move."""

from __future__ import annotations

from math import exp, log2, sqrt

import numpy as np
import torch
from torch import Tensor

from ..devices import DeviceError, FittedModel, make_model
from .examiner import Examiner, lattice_step
from .findings import Finding
from .measurement import Cost, Effort, Measurement, agrees

__all__ = ["Converters", "Noise", "Survey"]

# What the entry of a stuck control may seem to follow it, as a share of what is usual; and from what share of a usual
# entry's variance on controls have a curve in common.
_STILL = 0.1
_COMMON = 0.3
_MAP = 65_536  # controls that a map of them is kept for
# Queries before the noise is looked at, and the time that is waited then, in as many times theirs: right after a
# program, chips decay by more than their noise.
_FIRST = 4
_WAIT = 100.0


class Noise(Measurement):
    """A few vectors, over and over: the noise floor of every output, and its spectrum."""

    name = "noise"
    priority = 0
    _queries = 64

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """One program; at least 2 vectors, 64 times each."""
        return Cost(1, self._queries * self._each(effort))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Noise of one query, and what is slower than that."""
        vectors = examiner.vectors(self._each(effort))
        examiner.session.program(examiner.base)
        start = examiner.clock.clock_seconds
        for _ in range(_FIRST):
            examiner.ask(vectors)
        examiner.clock.wait(_WAIT * (examiner.clock.clock_seconds - start))
        start = examiner.clock.clock_seconds
        answers = torch.stack([examiner.ask(vectors) for _ in range(self._queries - _FIRST)]).double()
        elapsed = examiner.clock.clock_seconds - start
        examiner.vector_seconds = elapsed / answers.shape[:2].numel()
        within = answers - answers.mean(dim=0)
        variances, noise, error = examiner.find_noise(answers)
        spec, outputs = examiner.spec, len(variances)
        # By its logarithm: far below one step, it is told by a few answers that changed, and fewer tell less.
        factor = exp(3 * min(error / noise, 2.0)) if noise > 0 else 1.0
        low, high = noise / factor, noise * factor if noise > 0 else 3 * error
        found = [
            Finding(
                name="noise_std",
                measurement=self.name,
                value=noise,
                low=low,
                high=high,
                unit="output units",
                promised=spec.noise_std,
                agrees=low <= spec.noise_std * 1.05 and spec.noise_std <= high * 1.05 + 1e-12,
                sentence=f"One output of one query has a noise of {noise:.3g}, rounding aside.",
                data={
                    "outputs": list(range(outputs)),
                    "std": variances.sqrt().tolist(),
                    "samples": within.flatten()[:20000].tolist(),
                },
            ),
            self._spectrum(answers, elapsed),
        ]
        if spec.output_range is not None:
            span = spec.output_range[1] - spec.output_range[0]
            bits = log2(span / (sqrt(12) * examiner.noise_std))
            found.append(
                Finding(
                    name="output_enob",
                    measurement=self.name,
                    value=bits,
                    low=log2(span / (sqrt(12) * max(examiner.noise_std + 3 * error, 1e-300))),
                    high=log2(span / (sqrt(12) * max(examiner.noise_std - 3 * error, examiner.noise_std / 2))),
                    unit="bits",
                    sentence=f"Outputs are worth {bits:.1f} bits: noise and rounding are those of so many.",
                )
            )
        return found

    def _spectrum(self, answers: Tensor, elapsed: float) -> Finding:
        """Power against frequency, and from where on it is not white."""
        from scipy import signal  # half a second that importing astralora is not to take

        series = (answers - answers.mean(dim=0)).flatten(0, 1).numpy()
        rate = len(series) / elapsed if elapsed > 0 else 1.0
        frequencies, power = signal.welch(series, fs=rate, nperseg=max(8, len(series) // 8), axis=0)
        # A chip without noise has no spectrum to speak of; nothing is to be divided by it all the same.
        frequencies, power = frequencies[1:-1], power[1:-1].mean(axis=1) + np.finfo(float).tiny ** 0.5
        # White plus 1/f: least squares in relative errors, neither of them negative.
        terms = np.stack([np.ones_like(frequencies), 1 / frequencies], axis=1) / power[:, None]
        white, flicker = np.maximum(np.linalg.lstsq(terms, np.ones_like(power), rcond=None)[0], 0.0)
        segments = 15 * answers.shape[2]
        # At the lowest frequency, averages of so many periodograms scatter by their inverse root.
        visible = flicker / frequencies[0] > 4 * white / sqrt(segments)
        corner = float(flicker / white) if visible and white > 0 else 0.0
        said = f"1/f noise up to {corner:.3g} Hz, white above" if corner else "white"
        return Finding(
            name="flicker_corner",
            measurement=self.name,
            value=corner,
            unit="Hz",
            sentence=f"The noise is {said}, from {frequencies[0]:.3g} to {frequencies[-1]:.3g} Hz.",
            data={"frequency": frequencies.tolist(), "power": power.tolist(), "white": float(white), "corner": corner},
        )

    def _each(self, effort: Effort) -> int:
        return max(2, round(16 * effort.repeats))


class Survey(Measurement):
    """Transfer matrices at settings all over the range: dead channels, and controls that do not move."""

    name = "survey"
    priority = 1
    linear = True

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """A program for each of at least 6 settings."""
        count = self._count(effort)
        return Cost(count, count * self._repeats(effort) * (len(examiner.rows) + self._dark(examiner)))

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """The survey itself, and what can be seen in it without knowing the kind."""
        settings = examiner.settings(self._count(effort))
        matrices, dark = [], []
        nothing = torch.zeros(self._dark(examiner) * self._repeats(effort), examiner.spec.in_features)
        for setting in settings:
            examiner.session.program(setting)
            matrices.append(examiner.matrix(self._repeats(effort)))
            if len(nothing):
                dark.append(examiner.ask(nothing).double().mean(dim=0))
        matrix = torch.stack(matrices)
        error = examiner.entry_error(self._repeats(effort))
        examiner.survey, examiner.survey_error = (settings, matrix), error
        power = matrix.square().mean(dim=0) - error**2
        rows, columns = power.mean(dim=1), power.mean(dim=0)
        found = [
            self._dead("dead_outputs", rows, error**2 * sqrt(2 / (len(matrix) * matrix.shape[2]))),
            self._dead("dead_inputs", columns, error**2 * sqrt(2 / (len(matrix) * matrix.shape[1]))),
        ]
        if dark:
            found.append(self._offsets(examiner, torch.stack(dark), len(nothing)))
        if examiner.spec.coupling == "elementwise":
            found.append(self._stuck(settings, matrix, error, rows))
            found.append(_curve(examiner, settings, matrix))
        return found

    def _offsets(self, examiner: Examiner, dark: Tensor, count: int) -> Finding:
        """What outputs report of no light: (settings, out_features) means of ``count`` vectors each.

        What all settings have in common is the detectors'. What differs from one to the next came in as light: inputs
        that let some through when they are off.
        """
        offset, settings = dark.mean(dim=0), len(dark)
        # Of one and the same answer, rounding does not average out.
        once = sqrt((examiner.noise_std**2 - examiner.repeating) / count + examiner.repeating)
        spread = dark.std(dim=0)
        error = torch.maximum(spread, torch.full_like(spread, once)) / sqrt(settings)
        error = (error**2 + examiner.repeating).sqrt()
        most, which = offset.abs().max(dim=0)
        three = 3 * float(error[which])
        light = float(spread.square().mean().sqrt())
        sentence = (
            f"In the dark, output {int(which)} reports {float(offset[which]):.3g}; that is the most."
            if float(most) > three
            else f"In the dark, outputs report nothing, to {three:.2g}."
        )
        if light > 2 * once:
            sentence += f" It changes by {light:.2g} from setting to setting: some light comes in."
        return Finding(
            name="dark_level",
            measurement=self.name,
            value=float(most),
            low=max(float(most) - three, 0.0),
            high=float(most) + three,
            unit="output units",
            sentence=sentence,
            data={"offset": offset.tolist(), "error": error.tolist(), "spread": spread.tolist()},
        )

    def _dark(self, examiner: Examiner) -> int:
        """Vectors without light, where inputs can be that and converters have a code for it."""
        low, high = examiner.spec.input_range or (-1.0, 1.0)
        step = examiner.spec.input_step
        coded = step is None or abs(low / step - round(low / step)) < 1e-3
        return 4 if low <= 0 <= high and coded else 0

    def _dead(self, name: str, power: Tensor, error: float) -> Finding:
        dead = (power < 0.02 * power.median() + 4 * error).nonzero()[:, 0].tolist()
        if float(power.median()) < 4 * error:
            dead = []  # nothing can be told of a chip that is all noise
        what = name.replace("_", " ")
        return Finding(
            name=name,
            measurement=self.name,
            value=len(dead),
            low=len(dead),
            high=len(dead),
            sentence=f"There are no {what}." if not dead else f"{len(dead)} {what}: {_some(dead)}.",
            data={"which": dead, "power": power.clamp_min(0).tolist()},
        )

    def _stuck(self, settings: Tensor, matrix: Tensor, error: float, rows: Tensor) -> Finding:
        """Controls that their entry does not follow, in rows that see anything.

        An entry whose control is stuck still does what crosstalk brings from its neighbours. So it is asked how much
        of its variance a cubic of its own control explains, beyond the share that it would of anything; and, where
        all controls have much the same curve, whether it takes part in that.
        """
        count, values = len(matrix), matrix.flatten(1).double()
        size = error**2 * sqrt(2 / (count - 1))
        moved = values.var(dim=0) - error**2
        x = ((settings - settings.mean()) / settings.std()).double()
        cubic = torch.stack([torch.ones_like(x), x, x**2, x**3], dim=-1).movedim(1, 0)
        own, uncertain = _explained(values, torch.linalg.qr(cubic).Q[..., 1:])
        alive = rows > 0.02 * rows.median() + 4 * error**2 * sqrt(2 / (count * matrix.shape[2]))
        alive = alive.repeat_interleave(matrix.shape[2])
        typical = moved[alive].median()
        part, unsure = _explained(values, _shared(settings.double(), values))
        usual = part[alive].median()
        moves = (own > 0.02 * typical + 4 * uncertain) | (part > 0.02 * typical + 4 * unsure)
        still = own + 3 * uncertain < _STILL * typical
        if usual > _COMMON * typical:
            still = still & (part + 3 * unsure < _STILL * usual)
        resolvable = bool(typical > 40 * size)
        stuck = (still & ~moves & alive).nonzero()[:, 0].tolist() if resolvable else []
        open_ = int((~still & ~moves & alive).sum())
        sentence = "All controls move" if not stuck else f"{len(stuck)} controls do not move: {_some(stuck)}"
        sentence += f", but {open_} cannot be told from those." if open_ else "."
        return Finding(
            name="stuck_controls",
            measurement=self.name,
            value=len(stuck) if resolvable else None,
            low=len(stuck) if resolvable else None,
            high=len(stuck) + open_ if resolvable else None,
            sentence=sentence if resolvable else "Noise hides whether every control moves; give more vectors.",
            data={
                "which": stuck,
                # A coarser map than that of all controls would not show which they are.
                "moved": (moved / typical.clamp_min(1e-30)).tolist() if moved.numel() <= _MAP else None,
                "grid": list(matrix.shape[1:]),
            },
        )

    def _count(self, effort: Effort) -> int:
        return max(6, round(12 * effort.settings))

    def _repeats(self, effort: Effort) -> int:
        return max(1, round(2 * effort.repeats))


class Converters(Measurement):
    """The lattice that all answers so far lie on: codes of the outputs. Costs nothing."""

    name = "converters"
    priority = 9

    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """Nothing."""
        return Cost(0, 0)

    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Levels of the outputs."""
        spec = examiner.spec
        step = lattice_step(torch.cat([part.flatten() for part in examiner.seen]))
        bounds = spec.output_range
        levels = round((bounds[1] - bounds[0]) / step) + 1 if step and bounds is not None else None
        if step:
            sentence = f"Outputs step by {step:.4g}" + (f": {levels} codes." if levels else ".")
        else:
            sentence = f"No steps can be seen in {sum(part.numel() for part in examiner.seen):,} outputs."
        return [
            Finding(
                name="output_levels",
                measurement=self.name,
                value=levels,
                low=levels,
                high=levels,
                promised=spec.output_levels,
                agrees=agrees(spec.output_levels, levels),
                sentence=sentence,
                data={"step": step or None},
            )
        ]


def _explained(values: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of each entry (settings, controls) that functions of its own control explain, and its uncertainty.

    Args:
        values: the entries.
        basis: orthonormal functions without a mean, (controls, settings, count).
    """
    settings, functions = basis.shape[1:]
    about = (values - values.mean(dim=0)).mT.unsqueeze(-1)
    found = (basis.mT @ about).square().sum(dim=(1, 2))
    scatter = (about.square().sum(dim=(1, 2)) - found).clamp_min(0) / (settings - 1 - functions)
    return (found - functions * scatter) / (settings - 1), sqrt(2 * functions) / (settings - 1) * scatter


def _shared(settings: Tensor, values: Tensor) -> Tensor:
    """The curve that controls have in common, at the settings of each: (controls, settings, 1), of unit length."""
    order = settings.flatten().argsort()
    parts = order.tensor_split(24)
    x = np.array([float(settings.flatten()[part].mean()) for part in parts])
    y = np.array([float(values.flatten()[part].median()) for part in parts])
    curve: Tensor = torch.from_numpy(np.interp(settings.numpy(), x, y)).mT
    curve = curve - curve.mean(dim=1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(curve, dim=1, keepdim=True)
    found: Tensor = (curve / length.clamp_min(1e-12)).unsqueeze(-1)
    return found


def _curve(examiner: Examiner, settings: Tensor, matrix: Tensor) -> Finding:
    """Mean and spread of the entries against their own control, over all controls that move."""
    controls, entries = settings.flatten(), matrix.flatten(1).flatten()
    order = controls.argsort()
    parts = [(controls[part], entries[part]) for part in order.tensor_split(24)]
    drawn = _drawn(examiner, [float(part.mean()) for part, _ in parts])
    x = [float(part.mean()) for part, _ in parts]
    y, spread = [float(part.median()) for _, part in parts], [float(part.std()) for _, part in parts]
    return Finding(
        name="transfer_curve",
        measurement="survey",
        value=None,
        sentence=f"Entries run from {min(y):.3g} to {max(y):.3g} over the controls' range.",
        data={"control": x, "entry": y, "spread": spread, **({} if drawn is None else {"promised": drawn})},
    )


def _drawn(examiner: Examiner, controls: list[float]) -> list[float] | None:
    """Entries at uniform settings as the device's own kind has them, if it is one of those that are simulated."""
    spec = examiner.spec
    try:
        model = make_model(FittedModel(name=spec.name), spec)
    except DeviceError:
        return None
    settings = torch.tensor(controls).unsqueeze(1).expand(-1, spec.num_controls)
    unit = torch.zeros(1, spec.in_features)
    unit[0, 0] = 1.0
    entries: list[float] = model.law({}, settings, unit)[:, 0, 0].tolist()
    return entries


def _some(which: list[int]) -> str:
    return ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
