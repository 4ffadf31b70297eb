"""What reference vectors and reference columns tell of a chip's drift."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, exp, log2
from typing import Any

import torch
from torch import Tensor

from ..random import derive_generator
from ..spec import DeviceSpec

__all__ = ["DEAD", "References", "Rows", "reference_controls"]

# References are asked so many times right after a program: what they say then is divided by for long.
_REPEATS = 4
# Degrees of freedom from which on an output's own scatter can be told.
_FREEDOM = 6
# Standard deviation of a gain, as a share, beyond which it tells nothing.
_TELLING = 0.1
DEAD = 0.05
"""Gains below this are those of dead channels."""


class References:
    """Vectors whose answers are compared with what they were right after a program.

    Of every output, y = g y_0 + c is fitted to the answers y_0 then and y now, by least squares: an offset of the
    detector, which does not fade, is none of the gain's. Half of the vectors mirror the others about the middle, so
    that the offset costs nothing. Answers at an end of the detector's range are left out, and what noise adds to
    |y_0|^2 is taken off.

    Args:
        spec: of the chip.
        count: number of vectors, 2 at least.
        seed: of the vectors.

    Attributes:
        vectors: (count, in_features), in the middle half of the input range.
    """

    def __init__(self, spec: DeviceSpec, count: int, seed: int) -> None:
        self._spec = spec
        signs = _random_signs((ceil(count / 2), spec.in_features), seed, "references")
        middle, reach = _middle(spec)
        self.vectors = middle + reach * torch.cat([signs, -signs])[:count]
        self._first: Tensor | None = None  # mean answers right after the program
        self._variance = 0.0  # of one output of one answer

    @property
    def at_program(self) -> Tensor:
        """What to ask right after a program: (vectors, in_features)."""
        return self.vectors.repeat(_REPEATS, 1)

    def begin(self, answers: Tensor) -> bool:
        """Take the answers right after a program; returns whether they will tell anything."""
        repeated = answers.double().unflatten(0, (_REPEATS, -1))
        self._first = repeated.mean(dim=0)
        self._variance = float(repeated.var(dim=0).mean()) + _rounding(self._spec)
        return self._tells(self._sums(self._first)[1])

    def gains(self, answers: Tensor, *, each: bool) -> tuple[float, Tensor] | None:
        """What is left of the outputs, from the answers now.

        Args:
            answers: (vectors, out_features).
            each: of every output, rather than of all together. Gains are then pulled to their mean, as far as the
                scatter of the answers explains that they differ: the random-effects model of DerSimonian and Laird
                (Control. Clin. Trials 7, 177 (1986)).

        Returns:
            The gain of all outputs together, and gains, () or (out_features,); None where noise is all there is.
        """
        along, power, rest, freedom = self._sums(answers.double())
        if not self._tells(power):
            return None
        common = along.sum() / power.sum()
        if not each:
            return float(common), common
        # The last term is for chips without noise.
        noise = (1 + 1 / _REPEATS) * self._variance + 1e-12 * float(power.mean())
        return float(common), _apart(along, power.clamp_min(0), rest, freedom, noise)

    def state_dict(self) -> dict[str, Any]:
        """What the answers were right after the program."""
        return {"first": self._first, "variance": self._variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._first, self._variance = state["first"], state["variance"]

    def _sums(self, now: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of y y_0, y_0^2 and (y - g y_0 - c)^2 over the vectors, and the last one's degrees of freedom.

        All (out_features,); y and y_0 are taken about their means.
        """
        assert self._first is not None
        first = self._first.to(now)
        seen = [_unsaturated(self._spec, answers, self._variance) for answers in (first, now)]
        free = (seen[0] & seen[1]).double()
        count = free.sum(dim=0).clamp_min(1)
        first, now = (free * (answers - (free * answers).sum(dim=0) / count) for answers in (first, now))
        along, squares = (now * first).sum(dim=0), first.square().sum(dim=0)
        rest = now.square().sum(dim=0) - along.square() / squares.clamp_min(1e-300)
        power = squares - (count - 1) * self._variance / _REPEATS
        return along, power, rest, count - 2

    def _tells(self, power: Tensor) -> bool:
        # Of g = sum(y y_0) / sum(y_0^2): an answer's variance and that of the mean before it, over the sum.
        return _tells(float(power.sum()), (1 + 1 / _REPEATS) * self._variance)


class Rows:
    """Reference columns: outputs whose rows of the transfer matrix are known, and which answer along with every query.

    The rows are measured right after a program, by orthogonal vectors; a column that saturates has none. From then on,
    answers gather to sums of y (A_0 x) and (A_0 x)^2, older ones counting less and less, and their ratio is the gain.

    Args:
        spec: of the chip.
        columns: how many of its last outputs.
        seed: of the vectors.
        memory_seconds: time after which an answer counts a third.

    Attributes:
        vectors: (count, in_features), more than inputs and at most twice as many, but four at least.
    """

    def __init__(self, spec: DeviceSpec, columns: int, seed: int, memory_seconds: float) -> None:
        self._spec = spec
        self._columns = columns
        self._memory = memory_seconds
        self._middle, self._reach = _middle(spec)
        hadamard = torch.ones(1, 1)
        for _ in range(ceil(log2(spec.in_features + 2))):
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        # Without the column of ones, which is left for the offset; no vector but one of many lights all inputs alike.
        signs = _random_signs((spec.in_features,), seed, "references")
        self._signs = signs * hadamard[:, 1 : spec.in_features + 1]
        self.vectors = self._middle + self._reach * self._signs
        self._rows: Tensor | None = None  # (columns, in_features)
        self._offset: Tensor | None = None  # (columns,)
        self._variance = 0.0
        self._begun = 0.0  # sum of (A_0 x)^2 of the vectors right after the program, when the gain was one
        self._along = self._power = 0.0

    @property
    def at_program(self) -> Tensor:
        """What to ask right after a program: (vectors, in_features)."""
        return self.vectors

    def begin(self, answers: Tensor) -> bool:
        """Take the answers right after a program; returns whether they tell anything."""
        seen = answers[:, -self._columns :].double()
        signs, count = self._signs.to(seen), len(self.vectors)
        mean = seen.mean(dim=0)
        # A column that saturates has no row that could be known.
        clear = _unsaturated(self._spec, seen, 0.0).all(dim=0).double()
        slopes = (seen.mT @ signs / count) * clear[:, None]
        self._rows = slopes / self._reach
        self._offset = mean - self._middle * self._rows.sum(dim=1)
        rest = (seen - mean - signs @ slopes.mT) * clear
        used = int(clear.sum())
        freedom = max(used, 1) * (count - 1 - self._spec.in_features)
        self._variance = float(rest.square().sum()) / freedom + _rounding(self._spec)
        explained = float(slopes.square().sum()) * count - used * self._spec.in_features * self._variance
        self._begun = max(explained, 0.0)
        self.restart()
        return _tells(self._begun, self._variance)

    def restart(self) -> None:
        """Forget what has been seen since the program."""
        self._along = self._power = self._begun

    def gain(self, inputs: Tensor, answers: Tensor, elapsed: float) -> float | None:
        """What is left of the outputs, by the reference columns' newest and earlier answers.

        Args:
            inputs: (batch, in_features).
            answers: (batch, out_features), of all outputs.
            elapsed: seconds since the last time, or since the program.

        Returns:
            The gain; None where noise is all there is.
        """
        assert self._rows is not None
        assert self._offset is not None
        inputs, seen = inputs.double(), answers[:, -self._columns :].double()
        first = inputs @ self._rows.to(inputs).mT
        known = self._rows.to(inputs).abs().sum(dim=1) > 0
        free = (_unsaturated(self._spec, seen, self._variance) & known).double()
        # Rows have been measured to a variance that makes sums of squares too large.
        excess = free.sum(dim=1) @ inputs.square().sum(dim=1) * self._variance / (len(self.vectors) * self._reach**2)
        left = exp(-elapsed / self._memory)
        self._along = left * self._along + float((free * (seen - self._offset.to(seen)) * first).sum())
        self._power = left * self._power + float((free * first.square()).sum() - excess)
        return self._along / self._power if _tells(self._power, self._variance) else None

    def state_dict(self) -> dict[str, Any]:
        """The rows, and what has been seen since."""
        return {
            "rows": self._rows,
            "offset": self._offset,
            "variance": self._variance,
            "begun": self._begun,
            "along": self._along,
            "power": self._power,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._rows, self._offset, self._variance = state["rows"], state["offset"], state["variance"]
        self._begun, self._along, self._power = state["begun"], state["along"], state["power"]


def reference_controls(spec: DeviceSpec, columns: int, seed: int) -> Tensor:
    """What reference columns are set to, for good: (columns * in_features,), at random in the control range.

    Args:
        spec: of the chip, columns included.
        columns: how many.
        seed: of the draw.
    """
    generator = derive_generator(seed, "reference columns")
    low, high = spec.control_range or (-1.0, 1.0)
    draw: Tensor = torch.rand(columns * spec.in_features, generator=generator)
    return low + (high - low) * draw


def _apart(along: Tensor, power: Tensor, rest: Tensor, freedom: Tensor, noise: float) -> Tensor:
    """Gains of outputs that have a mean and a spread in common: g_i = (t s_i + m) / (t w_i + 1), (out_features,).

    With weights w_i = power / scatter and sums s_i = along / scatter, m is the mean s / w, and t the variance between
    outputs, by the method of moments.
    """
    # What differs within an output scatters its gain as noise does.
    own = freedom >= _FREEDOM
    scatter = torch.where(own, rest / freedom.clamp_min(1), noise).clamp_min(noise)
    sums, weights = along / scatter, power / scatter
    total = weights.sum()
    mean = sums.sum() / total
    # A scatter that is estimated itself makes such a quotient larger than one, as the mean of Fisher's F is.
    expected = torch.where(own, freedom / (freedom - 2), 1.0)
    seen = weights > 0
    excess = ((sums - mean * weights).square()[seen] / weights[seen] - expected[seen]).sum() + 1
    between = (excess / (total - weights.square().sum() / total).clamp_min(1e-300)).clamp_min(0)
    return (between * sums + mean) / (between * weights + 1)


def _middle(spec: DeviceSpec) -> tuple[float, float]:
    """Middle of the references, and how far they go to either side: half of what is legal, next to darkness.

    A detector at its end would not show that it gets less light.
    """
    low, high = spec.input_range or (-1.0, 1.0)
    dark = min(max(low, 0.0), high)
    least, most = dark + (low - dark) / 2, dark + (high - dark) / 2
    return (least + most) / 2, (most - least) / 2


def _random_signs(shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=derive_generator(seed, purpose)) - 1


def _rounding(spec: DeviceSpec) -> float:
    """Variance of what an output is rounded by."""
    # Where noise does not reach the next code, repeating a question does not show that its answer is rounded.
    return (spec.output_step or 0.0) ** 2 / 12


def _unsaturated(spec: DeviceSpec, answers: Tensor, variance: float) -> Tensor:
    """Which answers are as far from the ends of the detector's range as noise reaches."""
    rails = answers.new_tensor(spec.rails)
    margin = 3 * variance**0.5 + (spec.output_step or 0.0) / 2
    # A rail in float32 is not quite the one in the spec.
    free: Tensor = ((answers[..., None] - rails).abs() > margin + 1e-6 * rails.abs()).all(dim=-1)
    return free


def _tells(power: float, variance: float) -> bool:
    """Whether a gain whose variance is ``variance / power`` tells anything."""
    return power > 0 and variance <= _TELLING**2 * power
