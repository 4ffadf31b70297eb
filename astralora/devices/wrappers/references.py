"""Measure the drift of a chip with reference vectors or reference columns."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, exp, log2
from typing import Any

import torch
from torch import Tensor

from ..random import derive_generator
from ..spec import DeviceSpec

__all__ = ["DEAD", "References", "Rows", "reference_controls"]

# Number of queries of the references right after a program; later answers are compared with the mean of them.
_REPEATS = 4
# Fewest degrees of freedom for estimating the scatter of a single output.
_FREEDOM = 6
# Largest relative standard deviation of a gain that is precise enough to be used.
_LARGEST_ERROR = 0.1
DEAD = 0.05
"""Largest gain of a dead channel."""


class References:
    """Compare the answers to reference vectors with their answers right after a program.

    For every output, y = g y_0 + c is fitted by least squares to the first answers y_0 and the present answers y. The
    offset c of the detector does not drift and must not change the gain g. Half of the vectors mirror the other half
    about the middle, so that fitting the offset costs no precision. Answers at an end of the detector's range are left
    out, and the power that noise adds to |y_0|^2 is subtracted.

    Args:
        spec: spec of the chip.
        count: number of vectors, at least 2.
        seed: seed of the vectors.

    Attributes:
        vectors: references, (count, in_features), in the middle half of the input range.
    """

    def __init__(self, spec: DeviceSpec, count: int, seed: int) -> None:
        self._spec = spec
        signs = _random_signs((ceil(count / 2), spec.in_features), seed, "references")
        middle, reach = _middle(spec)
        self.vectors = middle + reach * torch.cat([signs, -signs])[:count]
        self._first: Tensor | None = None  # mean answers right after the program
        self._variance = 0.0  # variance of one output in one answer

    @property
    def at_program(self) -> Tensor:
        """Return the vectors to query right after a program, (vectors, in_features)."""
        return self.vectors.repeat(_REPEATS, 1)

    def begin(self, answers: Tensor) -> bool:
        """Store the answers right after a program; return whether their noise is low enough to measure drift."""
        repeated = answers.double().unflatten(0, (_REPEATS, -1))
        self._first = repeated.mean(dim=0)
        self._variance = float(repeated.var(dim=0).mean()) + _rounding(self._spec)
        return self._is_reliable(self._sums(self._first)[1])

    def gains(self, answers: Tensor, *, each: bool) -> tuple[float, Tensor] | None:
        """Estimate the gain since the program from the present answers.

        Args:
            answers: present answers to `vectors`, (vectors, out_features).
            each: whether to return one gain for each output. These gains are moved towards their mean, the more the
                scatter of the answers explains their differences: the random-effects model of DerSimonian and Laird
                (Control. Clin. Trials 7, 177 (1986)).

        Returns:
            The common gain of all outputs, and the gains to use, () or (out_features,); None if the answers do not
            exceed the noise.
        """
        products, power, residual, freedom = self._sums(answers.double())
        if not self._is_reliable(power):
            return None
        common = products.sum() / power.sum()
        if not each:
            return float(common), common
        # The last term prevents a division by zero on chips without noise.
        noise = (1 + 1 / _REPEATS) * self._variance + 1e-12 * float(power.mean())
        return float(common), _shrunk_gains(products, power.clamp_min(0), residual, freedom, noise)

    def state_dict(self) -> dict[str, Any]:
        """Return the answers right after the program, and their variance."""
        return {"first": self._first, "variance": self._variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._first, self._variance = state["first"], state["variance"]

    def _sums(self, now: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the sums of y y_0, y_0^2 and (y - g y_0 - c)^2 over the vectors, and their degrees of freedom.

        The degrees of freedom belong to the third sum. All four are (out_features,). The means of y and y_0 are
        subtracted first.
        """
        assert self._first is not None
        first = self._first.to(now)
        clear = [_unsaturated(self._spec, answers, self._variance) for answers in (first, now)]
        used = (clear[0] & clear[1]).double()
        count = used.sum(dim=0).clamp_min(1)
        first, now = (used * (answers - (used * answers).sum(dim=0) / count) for answers in (first, now))
        products, squares = (now * first).sum(dim=0), first.square().sum(dim=0)
        residual = now.square().sum(dim=0) - products.square() / squares.clamp_min(1e-300)
        power = squares - (count - 1) * self._variance / _REPEATS
        return products, power, residual, count - 2

    def _is_reliable(self, power: Tensor) -> bool:
        # Variance of g = sum(y y_0) / sum(y_0^2): (variance of y + variance of y_0, a mean of _REPEATS) / power.
        return _is_precise(float(power.sum()), (1 + 1 / _REPEATS) * self._variance)


class Rows:
    """Measure the gain of reference columns, which are outputs with known rows of the transfer matrix.

    The rows are measured right after a program, with orthogonal vectors. A column that saturates is left out. Every
    later query adds to the sums of y (A_0 x) and (A_0 x)^2, in which the weight of earlier answers decays with time.
    The gain is the ratio of the sums.

    Args:
        spec: spec of the chip.
        columns: number of reference columns, which are the last outputs of the chip.
        seed: seed of the vectors.
        memory_seconds: time, in seconds, after which the weight of an answer has decayed to 1/e.

    Attributes:
        vectors: references, (count, in_features); count is larger than in_features, at most twice as large, and at
            least four.
    """

    def __init__(self, spec: DeviceSpec, columns: int, seed: int, memory_seconds: float) -> None:
        self._spec = spec
        self._columns = columns
        self._memory = memory_seconds
        self._middle, self._reach = _middle(spec)
        hadamard = torch.ones(1, 1)
        for _ in range(ceil(log2(spec.in_features + 2))):
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        # The column of ones is not used, so that it measures the offset. Random signs avoid uniform vectors.
        signs = _random_signs((spec.in_features,), seed, "references")
        self._signs = signs * hadamard[:, 1 : spec.in_features + 1]
        self.vectors = self._middle + self._reach * self._signs
        self._rows: Tensor | None = None  # (columns, in_features)
        self._offset: Tensor | None = None  # (columns,)
        self._variance = 0.0
        self._first_power = 0.0  # sum of (A_0 x)^2 over the vectors right after the program, when the gain is one
        self._products = self._power = 0.0

    @property
    def at_program(self) -> Tensor:
        """Return the vectors to query right after a program, (vectors, in_features)."""
        return self.vectors

    def begin(self, answers: Tensor) -> bool:
        """Measure the rows right after a program; return whether the noise is low enough to measure drift."""
        answers = answers[:, -self._columns :].double()
        signs, count = self._signs.to(answers), len(self.vectors)
        mean = answers.mean(dim=0)
        # The row of a column that saturates cannot be measured.
        clear = _unsaturated(self._spec, answers, 0.0).all(dim=0).double()
        slopes = (answers.mT @ signs / count) * clear[:, None]
        self._rows = slopes / self._reach
        self._offset = mean - self._middle * self._rows.sum(dim=1)
        residual = (answers - mean - signs @ slopes.mT) * clear
        used = int(clear.sum())
        freedom = max(used, 1) * (count - 1 - self._spec.in_features)
        self._variance = float(residual.square().sum()) / freedom + _rounding(self._spec)
        explained = float(slopes.square().sum()) * count - used * self._spec.in_features * self._variance
        self._first_power = max(explained, 0.0)
        self.restart()
        return _is_precise(self._first_power, self._variance)

    def restart(self) -> None:
        """Discard the answers since the program."""
        self._products = self._power = self._first_power

    def gain(self, inputs: Tensor, answers: Tensor, elapsed: float) -> float | None:
        """Estimate the gain since the program from the newest and earlier answers of the reference columns.

        Args:
            inputs: vectors of the newest query, (batch, in_features).
            answers: answers of all outputs, (batch, out_features).
            elapsed: seconds since the previous call, or since the program.

        Returns:
            The gain; None if the answers do not exceed the noise.
        """
        assert self._rows is not None
        assert self._offset is not None
        inputs, newest = inputs.double(), answers[:, -self._columns :].double()
        first = inputs @ self._rows.to(inputs).mT
        is_known = self._rows.to(inputs).abs().sum(dim=1) > 0
        used = (_unsaturated(self._spec, newest, self._variance) & is_known).double()
        # The error of the measured rows makes the sum of squares too large by this excess.
        excess = used.sum(dim=1) @ inputs.square().sum(dim=1) * self._variance / (len(self.vectors) * self._reach**2)
        decay = exp(-elapsed / self._memory)
        self._products = decay * self._products + float((used * (newest - self._offset.to(newest)) * first).sum())
        self._power = decay * self._power + float((used * first.square()).sum() - excess)
        return self._products / self._power if _is_precise(self._power, self._variance) else None

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and the sums over the answers since the program."""
        return {
            "rows": self._rows,
            "offset": self._offset,
            "variance": self._variance,
            "begun": self._first_power,
            "along": self._products,
            "power": self._power,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._rows, self._offset, self._variance = state["rows"], state["offset"], state["variance"]
        self._first_power, self._products, self._power = state["begun"], state["along"], state["power"]


def reference_controls(spec: DeviceSpec, columns: int, seed: int) -> Tensor:
    """Draw the fixed controls of reference columns, (columns * in_features,), uniformly within the control range.

    Args:
        spec: spec of the chip, including the reference columns.
        columns: number of reference columns.
        seed: seed of the controls.
    """
    generator = derive_generator(seed, "reference columns")
    low, high = spec.control_range or (-1.0, 1.0)
    draw: Tensor = torch.rand(columns * spec.in_features, generator=generator)
    return low + (high - low) * draw


def _shrunk_gains(products: Tensor, power: Tensor, residual: Tensor, freedom: Tensor, noise: float) -> Tensor:
    """Estimate one gain for each output, moved towards the mean: g_i = (t s_i + m) / (t w_i + 1), (out_features,).

    The weights are w_i = power / scatter, and the sums are s_i = products / scatter. m is the mean gain, the sum of s_i
    over the sum of w_i. t is the variance between outputs, estimated by the method of moments.
    """
    # Different drift of the entries of one output scatters its gain like noise.
    own = freedom >= _FREEDOM
    scatter = torch.where(own, residual / freedom.clamp_min(1), noise).clamp_min(noise)
    sums, weights = products / scatter, power / scatter
    total = weights.sum()
    mean = sums.sum() / total
    # The quotient by an estimated scatter has the mean of Fisher's F distribution, which is larger than one.
    expected = torch.where(own, freedom / (freedom - 2), 1.0)
    used = weights > 0
    excess = ((sums - mean * weights).square()[used] / weights[used] - expected[used]).sum() + 1
    between = (excess / (total - weights.square().sum() / total).clamp_min(1e-300)).clamp_min(0)
    return (between * sums + mean) / (between * weights + 1)


def _middle(spec: DeviceSpec) -> tuple[float, float]:
    """Return the middle of the reference values and their largest distance from it, within half the input range.

    The half next to zero is used: weak inputs do not saturate the detectors, and a saturated output would not show that
    it receives less light.
    """
    low, high = spec.input_range or (-1.0, 1.0)
    dark = min(max(low, 0.0), high)
    least, most = dark + (low - dark) / 2, dark + (high - dark) / 2
    return (least + most) / 2, (most - least) / 2


def _random_signs(shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=derive_generator(seed, purpose)) - 1


def _rounding(spec: DeviceSpec) -> float:
    """Return the variance of the rounding of an output."""
    # If the noise is smaller than one code, repeated queries return the same code and do not show the rounding.
    return (spec.output_step or 0.0) ** 2 / 12


def _unsaturated(spec: DeviceSpec, answers: Tensor, variance: float) -> Tensor:
    """Return a mask of the answers that are so far from the ends of the range that noise does not clip them."""
    rails = answers.new_tensor(spec.rails)
    margin = 3 * variance**0.5 + (spec.output_step or 0.0) / 2
    # In float32 the end of the range differs slightly from its value in the spec.
    clear: Tensor = ((answers[..., None] - rails).abs() > margin + 1e-6 * rails.abs()).all(dim=-1)
    return clear


def _is_precise(power: float, variance: float) -> bool:
    """Return whether a gain whose variance is ``variance / power`` is precise enough to be used."""
    return power > 0 and variance <= _LARGEST_ERROR**2 * power
