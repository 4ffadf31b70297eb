"""Survey transfer matrices over the control range: dead channels, stuck controls, dark levels, transfer curve."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from ..devices import DeviceError, FittedModel, make_model
from .context import MeasurementContext
from .findings import Finding, first_numbers
from .measurement import Cost, Measurement

__all__ = ["Survey"]

# A stuck control explains at most this share of the typical variance of an entry.
_STUCK_SHARE = 0.1
# All controls follow a common curve if it explains at least this share of the typical variance.
_COMMON = 0.3
# Largest number of controls for which a map is stored.
_MAP = 65_536


class Survey(Measurement):
    """Measure transfer matrices at settings over the whole range, to find dead channels and stuck controls."""

    name = "survey"
    priority = 1
    linear = True

    def cost(self) -> Cost:
        """Count one program for each of at least 6 settings."""
        count = self._count
        return Cost(count, count * self._repeats * (len(self.context.probe_signs) + self._dark_vectors))

    def run(self) -> list[Finding]:
        """Return dead channels, dark levels, stuck controls and the transfer curve."""
        settings = self.context.draw_settings(self._count)
        matrices, dark = [], []
        nothing = torch.zeros(self._dark_vectors * self._repeats, self.context.spec.in_features)
        for setting in settings:
            self.context.session.program(setting)
            matrices.append(self.context.measure_matrix(self._repeats))
            if len(nothing):
                dark.append(self.context.query(nothing).double().mean(dim=0))
        matrix = torch.stack(matrices)
        error = self.context.entry_error(self._repeats)
        power = matrix.square().mean(dim=0) - error**2
        rows, columns = power.mean(dim=1), power.mean(dim=0)
        found = [
            self._dead_channels("dead_outputs", rows, error**2 * sqrt(2 / (len(matrix) * matrix.shape[2]))),
            self._dead_channels("dead_inputs", columns, error**2 * sqrt(2 / (len(matrix) * matrix.shape[1]))),
        ]
        if dark:
            found.append(self._offsets(torch.stack(dark), len(nothing)))
        if self.context.spec.coupling == "elementwise":
            found.append(self._stuck_controls(settings, matrix, error, rows))
            found.append(_curve(self.context, settings, matrix))
        return found

    def _offsets(self, dark: Tensor, count: int) -> Finding:
        """Estimate the dark level of each output.

        The part that all settings have in common is the offset of the detectors. The part that differs between settings
        is light that enters through inputs that do not switch off completely.

        Args:
            dark: means of the outputs without light, (settings, out_features).
            count: number of vectors in each mean.
        """
        offset, settings = dark.mean(dim=0), len(dark)
        # The rounding of repeated answers does not average out.
        once = sqrt(
            (self.context.noise_std**2 - self.context.repeated_variance) / count + self.context.repeated_variance
        )
        spread = dark.std(dim=0)
        error = torch.maximum(spread, torch.full_like(spread, once)) / sqrt(settings)
        error = (error**2 + self.context.repeated_variance).sqrt()
        most, which = offset.abs().max(dim=0)
        three = 3 * float(error[which])
        light = float(spread.square().mean().sqrt())
        sentence = (
            f"Without light, output {int(which)} reports {float(offset[which]):.3g}, the largest dark level."
            if float(most) > three
            else f"Without light, the outputs report 0, to {three:.2g}."
        )
        if light > 2 * once:
            sentence += f" The dark level changes by {light:.2g} between settings: some light enters."
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

    @property
    def _dark_vectors(self) -> int:
        """Return the number of vectors without light; 0 where the input range or the converters exclude zero."""
        low, high = self.context.spec.input_range or (-1.0, 1.0)
        step = self.context.spec.input_step
        coded = step is None or abs(low / step - round(low / step)) < 1e-3
        return 4 if low <= 0 <= high and coded else 0

    def _dead_channels(self, name: str, power: Tensor, error: float) -> Finding:
        """Find rows or columns of the transfer matrix without signal."""
        dead = (power < 0.02 * power.median() + 4 * error).nonzero()[:, 0].tolist()
        if float(power.median()) < 4 * error:
            dead = []  # noise hides every channel
        what = name.replace("_", " ")
        return Finding(
            name=name,
            measurement=self.name,
            value=len(dead),
            low=len(dead),
            high=len(dead),
            sentence=f"There are no {what}." if not dead else f"{len(dead)} {what}: {first_numbers(dead)}.",
            data={"which": dead, "power": power.clamp_min(0).tolist()},
        )

    def _stuck_controls(self, settings: Tensor, matrix: Tensor, error: float, rows: Tensor) -> Finding:
        """Find controls whose entry does not depend on them, in rows that have a signal.

        An entry whose control is stuck still follows the crosstalk of its neighbours. The test therefore measures which
        share of the entry's variance a cubic of its own control explains, minus the share that a cubic explains by
        chance. If most controls follow one common curve, a stuck control must also not follow this curve.
        """
        count, values = len(matrix), matrix.flatten(1).double()  # (settings, controls)
        size = error**2 * sqrt(2 / (count - 1))
        moved = values.var(dim=0) - error**2
        x = ((settings - settings.mean()) / settings.std()).double()
        cubic = torch.stack([torch.ones_like(x), x, x**2, x**3], dim=-1).movedim(1, 0)
        own, own_error = _explained(values, torch.linalg.qr(cubic).Q[..., 1:])
        alive = rows > 0.02 * rows.median() + 4 * error**2 * sqrt(2 / (count * matrix.shape[2]))
        alive = alive.repeat_interleave(matrix.shape[2])
        typical = moved[alive].median()
        part, part_error = _explained(values, _common_curve(settings.double(), values))
        usual = part[alive].median()
        moves = (own > 0.02 * typical + 4 * own_error) | (part > 0.02 * typical + 4 * part_error)
        stuck_like = own + 3 * own_error < _STUCK_SHARE * typical
        if usual > _COMMON * typical:
            stuck_like = stuck_like & (part + 3 * part_error < _STUCK_SHARE * usual)
        resolvable = bool(typical > 40 * size)
        stuck = (stuck_like & ~moves & alive).nonzero()[:, 0].tolist() if resolvable else []
        undecided = int((~stuck_like & ~moves & alive).sum())
        sentence = "No control is stuck" if not stuck else f"{len(stuck)} controls are stuck: {first_numbers(stuck)}"
        sentence += f", but {undecided} more may be stuck." if undecided else "."
        return Finding(
            name="stuck_controls",
            measurement=self.name,
            value=len(stuck) if resolvable else None,
            low=len(stuck) if resolvable else None,
            high=len(stuck) + undecided if resolvable else None,
            sentence=sentence if resolvable else "Noise hides whether a control is stuck; allow more vectors.",
            data={
                "which": stuck,
                # A coarser map would not show which controls are stuck.
                "moved": (moved / typical.clamp_min(1e-30)).tolist() if moved.numel() <= _MAP else None,
                "grid": list(matrix.shape[1:]),
            },
        )

    @property
    def _count(self) -> int:
        return max(6, round(12 * self.effort.settings))

    @property
    def _repeats(self) -> int:
        return max(1, round(2 * self.effort.repeats))


def _explained(values: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance of each entry that functions of its own control explain, and its standard error: (controls,).

    Args:
        values: entries, (settings, controls).
        basis: orthonormal functions without a mean, (controls, settings, count).
    """
    settings, functions = basis.shape[1:]
    about = (values - values.mean(dim=0)).mT.unsqueeze(-1)
    found = (basis.mT @ about).square().sum(dim=(1, 2))
    scatter = (about.square().sum(dim=(1, 2)) - found).clamp_min(0) / (settings - 1 - functions)
    return (found - functions * scatter) / (settings - 1), sqrt(2 * functions) / (settings - 1) * scatter


def _common_curve(settings: Tensor, values: Tensor) -> Tensor:
    """Return the common curve of all controls at each control's settings: (controls, settings, 1), of unit length."""
    order = settings.flatten().argsort()
    parts = order.tensor_split(24)
    x = np.array([float(settings.flatten()[part].mean()) for part in parts])
    y = np.array([float(values.flatten()[part].median()) for part in parts])
    curve: Tensor = torch.from_numpy(np.interp(settings.numpy(), x, y)).mT
    curve = curve - curve.mean(dim=1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(curve, dim=1, keepdim=True)
    found: Tensor = (curve / length.clamp_min(1e-12)).unsqueeze(-1)
    return found


def _curve(context: MeasurementContext, settings: Tensor, matrix: Tensor) -> Finding:
    """Return the transfer curve: median and spread of all entries as a function of their own control."""
    controls, entries = settings.flatten(), matrix.flatten(1).flatten()
    order = controls.argsort()
    parts = [(controls[part], entries[part]) for part in order.tensor_split(24)]
    nominal = _nominal_entries(context, [float(part.mean()) for part, _ in parts])
    x = [float(part.mean()) for part, _ in parts]
    y, spread = [float(part.median()) for _, part in parts], [float(part.std()) for _, part in parts]
    return Finding(
        name="transfer_curve",
        measurement="survey",
        value=None,
        sentence=f"The entries range from {min(y):.3g} to {max(y):.3g} over the controls' range.",
        data={"control": x, "entry": y, "spread": spread, **({} if nominal is None else {"promised": nominal})},
    )


def _nominal_entries(context: MeasurementContext, controls: list[float]) -> list[float] | None:
    """Return the entries of a nominal device at uniform settings; None if no law is registered under its name."""
    spec = context.spec
    try:
        model = make_model(FittedModel(name=spec.name), spec)
    except DeviceError:
        return None
    settings = torch.tensor(controls).unsqueeze(1).expand(-1, spec.num_controls)
    unit = torch.zeros(1, spec.in_features)
    unit[0, 0] = 1.0
    entries: list[float] = model.law({}, settings, unit)[:, 0, 0].tolist()
    return entries
