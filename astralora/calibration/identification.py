"""System identification: the constants of a chip's own law, from measured pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from devices import Constant, DeviceSpec, Identifiable, derive_generator

from .pairs import Pairs

__all__ = ["Identification", "identify"]

Constants = dict[str, Tensor]

# What is left of held-out answers, noise aside, may be at most this share of their power for a law to fit.
_UNEXPLAINED = 0.02
# Degrees of freedom of Student's t, the prior of every constant: most are as good as the drawing, a stuck control is
# not.
_FREEDOM = 4.0
_STARTS = 3
# Step lengths of the descents, one after the other while more is left than noise, by mean squares.
_RATES = (0.1, 0.05, 0.03)
_SETTLED = 1.1
# Unknowns up to which standard errors allow for all correlations.
_DENSE = 1200


@dataclass(frozen=True, slots=True)
class Identification:
    """What a fit came to.

    Attributes:
        constants: by name.
        errors: their standard errors, by name.
        dense: the errors allow for correlations; else each takes the other constants for known.
        unexplained: share of the held-out answers' power that is neither foreseen nor noise.
        unexplained_error: standard error of it.
        held_out_rms: what is left of held-out answers, in output units.
        training_rms: what is left of fitted ones.
        noise_std: of an answer.
        starts: fits that were tried.
        held_out: measured and foreseen answers that were not fitted, (settings, vectors, out_features) each.
    """

    constants: Constants
    errors: Constants
    dense: bool
    unexplained: float
    unexplained_error: float
    held_out_rms: float
    training_rms: float
    noise_std: float
    starts: int
    held_out: tuple[Tensor, Tensor]

    @property
    def fits(self) -> bool:
        """Whether the law foresees what it has not seen."""
        return self.unexplained <= _UNEXPLAINED

    @property
    def verdict(self) -> str:
        """The same in a sentence."""
        share = f"{100 * self.unexplained:.2g} % of the power of held-out answers"
        if self.fits:
            return f"The law fits: {share} is neither foreseen nor noise."
        return (
            f"The law does not fit: {share} is neither foreseen nor noise, where 2 % are allowed; after {self.starts} "
            f"starts. Either the chip is of another kind, or there are too few settings for its constants."
        )


def identify(
    model: Identifiable,
    pairs: Pairs,
    spec: DeviceSpec,
    *,
    held_out: int,
    steps: int = 300,
    seed: int = 0,
    listener: Callable[[int, int, float], None] | None = None,
) -> Identification:
    """Fit the constants of a law to measured pairs.

    Maximum a posteriori: squares of what is left over the noise, and Student's t about the drawing. The landscape of a
    deep mesh has many valleys, all of which random subsets of the settings shake: steps of Adam on a third of them at a
    time find the way, and L-BFGS on all of them the bottom. Where held-out settings are not foreseen, the fit begins
    anew, from elsewhere and with more steps.

    Args:
        model: the law.
        pairs: all of them; the last settings are held out.
        spec: of the chip: where its detectors end, and their noise.
        held_out: settings to hold out.
        steps: of Adam, at the first start.
        seed: of subsets and starts.
        listener: told of steps done, steps in all and the mean square of what is left over the noise.
    """
    noise = pairs.noise_std(spec)
    train, test = pairs.part(slice(0, len(pairs.settings) - held_out)), pairs.part(slice(-held_out, None))
    declared = model.constants()
    best: tuple[float, Constants] | None = None
    start = 0
    while start < _STARTS:
        fit = _Fit(model, declared, train, spec, noise, seed, start)
        for rate in _RATES:
            if rate == _RATES[0] or fit.left > _SETTLED:
                fit.descend(steps * (start + 1), rate, listener)
        fit.polish()
        constants = fit.constants()
        left = _unexplained(model, constants, test, spec, noise)[0]
        start += 1
        if best is None or left < best[0]:
            best = left, constants
        if left <= _UNEXPLAINED:
            break
    assert best is not None
    curvature = _Curvature(model, declared, best[1], train, spec, noise)
    if curvature.dense and best[0] <= _UNEXPLAINED:
        curvature.newton()
    constants = curvature.constants()
    share, error = _unexplained(model, constants, test, spec, noise)
    foreseen = _foresee(model, constants, test)
    left_of_training = _rms(train, _foresee(model, constants, train), spec, noise)
    return Identification(
        constants,
        curvature.errors(left_of_training / noise),
        curvature.dense,
        share,
        error,
        _rms(test, foreseen, spec, noise),
        left_of_training,
        noise,
        start,
        # As the detectors would have reported it.
        (test.outputs, foreseen if spec.output_range is None else foreseen.clamp(*spec.output_range)),
    )


class _Fit:
    """One descent from one start.

    Attributes:
        left: mean square of what is left, over the noise's, of the newest subsets.
    """

    left = float("inf")

    def __init__(
        self,
        model: Identifiable,
        declared: Mapping[str, Constant],
        pairs: Pairs,
        spec: DeviceSpec,
        noise: float,
        seed: int,
        start: int,
    ) -> None:
        self._model, self._declared, self._pairs, self._noise = model, declared, pairs, noise
        self._generator = derive_generator(seed, "identification", start)
        self._spec = spec
        # In units of each constant's spread, so that one step length suits all.
        self._scaled = {name: torch.zeros(constant.shape) for name, constant in declared.items()}
        if start:
            for value in self._scaled.values():
                value.normal_(std=0.5, generator=self._generator)
        for value in self._scaled.values():
            value.requires_grad_()

    def constants(self) -> Constants:
        with torch.no_grad():
            return {name: value.clone() for name, value in self._unscaled().items()}

    def descend(self, steps: int, rate: float, listener: Callable[[int, int, float], None] | None) -> None:
        """Adam on random subsets, at a rate that falls along a cosine."""
        leaves = list(self._scaled.values())
        optimizer = torch.optim.Adam(leaves, lr=rate, betas=(0.9, 0.99))
        count = len(self._pairs.settings)
        subset = max(1, (count + 2) // 3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1e-3 + (1 - 1e-3) * (1 + cos(pi * step / steps)) / 2)
            chosen = torch.randperm(count, generator=self._generator)[:subset]
            optimizer.zero_grad()
            loss, left = self._loss(chosen)
            loss.backward()
            optimizer.step()
            self.left = left if step == 0 else self.left + 0.1 * (left - self.left)
            if listener is not None:
                listener(step + 1, steps, self.left)

    def polish(self, iterations: int = 20) -> None:
        """L-BFGS on all settings."""
        optimizer = torch.optim.LBFGS(
            list(self._scaled.values()), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )
        everything = torch.arange(len(self._pairs.settings))

        def closure() -> float:
            optimizer.zero_grad()
            total = 0.0
            # In parts, as many as were in a step: a deep mesh keeps every column's state until it is done.
            for part in everything.split(max(1, (len(everything) + 2) // 3)):
                loss, _ = self._loss(part)
                loss.backward()
                total += float(loss.detach())
            return total

        before = {name: value.detach().clone() for name, value in self._scaled.items()}
        optimizer.step(closure)
        if not all(bool(torch.isfinite(value).all()) for value in self._scaled.values()):
            with torch.no_grad():
                for name, value in self._scaled.items():
                    value.copy_(before[name])

    def _loss(self, chosen: Tensor) -> tuple[Tensor, float]:
        """Minus the log posterior of the chosen settings, per answer; and the mean square left over the noise."""
        pairs, constants = self._pairs, self._unscaled()
        answers, measured = _answers(self._model, constants, pairs, chosen), pairs.outputs[chosen]
        valid = _within(measured, answers.detach(), self._spec, self._noise)
        squares = ((answers - measured).square() * valid).sum() / self._noise**2
        penalty = sum(_FREEDOM * torch.log1p(value.square() / _FREEDOM).sum() for value in self._scaled.values())
        total = pairs.outputs.numel()
        share = len(chosen) / len(pairs.settings)
        return (squares + share * penalty) / total, float(squares.detach() / valid.sum().clamp_min(1))

    def _unscaled(self) -> Constants:
        constants = {}
        for name, scaled in self._scaled.items():
            known = self._declared[name]
            constants[name] = (known.nominal + known.spread * scaled).clamp(known.low, known.high)
        return constants


def _answers(model: Identifiable, constants: Constants, pairs: Pairs, chosen: Tensor) -> Tensor:
    """What the law says of some of the settings: (chosen, vectors, out_features)."""
    inputs = pairs.inputs[chosen]
    # All settings are asked for the same vectors, at one of a few strengths: those of one strength at a time.
    strengths = inputs.flatten(1).abs().amax(dim=1)
    answers = inputs.new_empty(0)
    if bool((strengths == strengths[0]).all()):
        return model.law(constants, pairs.settings[chosen], inputs[0])
    parts, order = [], []
    for strength in strengths.unique():
        where = (strengths == strength).nonzero()[:, 0]
        parts.append(model.law(constants, pairs.settings[chosen[where]], inputs[where[0]]))
        order.append(where)
    answers = torch.cat(parts)
    return answers[torch.cat(order).argsort()]


def _within(measured: Tensor, foreseen: Tensor, spec: DeviceSpec, noise: float) -> Tensor:
    """Where answers are clear of the ends of the detectors' range: 1 there, else 0.

    What is foreseen decides: leaving out what was measured near an end would leave out one side of the noise. Only an
    answer far from an end that was foreseen there counts, since the law is wrong about it.
    """
    valid = torch.ones_like(measured)
    for rail in spec.rails:
        sign = 1.0 if rail > 0 else -1.0
        valid = valid * ~((sign * (rail - foreseen) < 3 * noise) & (sign * (rail - measured) < 6 * noise))
    return valid


def _foresee(model: Identifiable, constants: Constants, pairs: Pairs) -> Tensor:
    with torch.no_grad():
        everything = torch.arange(len(pairs.settings))
        return torch.cat([_answers(model, constants, pairs, part) for part in everything.split(16)])


def _rms(pairs: Pairs, foreseen: Tensor, spec: DeviceSpec, noise: float) -> float:
    valid = _within(pairs.outputs, foreseen, spec, noise)
    return sqrt(float(((pairs.outputs - foreseen).square() * valid).sum() / valid.sum().clamp_min(1)))


def _unexplained(
    model: Identifiable, constants: Constants, pairs: Pairs, spec: DeviceSpec, noise: float
) -> tuple[float, float]:
    """Share of the answers' power, noise aside, that is not foreseen; and its standard error."""
    foreseen = _foresee(model, constants, pairs)
    valid = _within(pairs.outputs, foreseen, spec, noise)
    count = float(valid.sum().clamp_min(1))
    left = float(((pairs.outputs - foreseen).square() * valid).sum()) / count
    # About their mean: a constant offset is nothing to be proud of having foreseen.
    about = pairs.outputs - (pairs.outputs * valid).sum() / count
    power = max(float((about.square() * valid).sum()) / count - noise**2, 1e-12)
    # Of noise known from few repeats, the uncertainty of its own variance outweighs that of the answers'.
    known = max(float(pairs.again.numel()), 1.0)
    error = sqrt(2 / count * left**2 + 2 / known * noise**4) / power
    return max(left - noise**2, 0.0) / power, error


class _Curvature:
    """The posterior's curvature at a fit, for standard errors (Laplace) and, where it is small enough, Newton steps."""

    def __init__(
        self,
        model: Identifiable,
        declared: Mapping[str, Constant],
        constants: Constants,
        pairs: Pairs,
        spec: DeviceSpec,
        noise: float,
    ) -> None:
        self._model, self._spec, self._noise = model, spec, noise
        self._names = list(constants)
        self._shapes = [constants[name].shape for name in self._names]
        known = [declared[name] for name in self._names]
        sizes = [shape.numel() for shape in self._shapes]

        def each(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))

        self._spreads = each([constant.spread for constant in known])
        self._nominal = each([constant.nominal for constant in known])
        self._low, self._high = each([constant.low for constant in known]), each([constant.high for constant in known])
        self.flat = torch.cat([constants[name].flatten() for name in self._names]).double()
        self._pairs = Pairs(pairs.settings.double(), pairs.inputs.double(), pairs.outputs.double(), pairs.again)
        # A product of columns has no forward derivative here, and a deep mesh too many unknowns.
        self.dense = len(self.flat) <= _DENSE and spec.coupling != "dense"

    def constants(self) -> Constants:
        """The constants by name."""
        return {name: value.float() for name, value in self._split(self.flat).items()}

    def newton(self, steps: int = 4) -> None:
        """Gauss-Newton steps: to the bottom of a valley that L-BFGS has come near to."""
        for _ in range(steps):
            information, slope = self._normal_equations()
            moved = self.flat + torch.linalg.solve(information, slope)
            if not bool(torch.isfinite(moved).all()):
                return
            self.flat = torch.minimum(torch.maximum(moved, self._low), self._high)

    def errors(self, scale: float) -> Constants:
        """Standard errors, where ``scale`` times the noise is left of an answer: more than 1 if the law is not all."""
        if self.dense:
            information, _ = self._normal_equations()
            found = torch.linalg.inv(information).diagonal().clamp_min(0).sqrt()
        else:
            found = (self._diagonal() + self._prior()).rsqrt()
        return {name: (max(scale, 1.0) * value).float() for name, value in self._split(found).items()}

    def _split(self, values: Tensor) -> Constants:
        parts = values.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, shape, part in zip(self._names, self._shapes, parts, strict=True)}

    def _prior(self) -> Tensor:
        """Weights of the constants' squares, as Student's t has them where they are."""
        scaled = (self.flat - self._nominal) / self._spreads
        return _FREEDOM / (_FREEDOM + scaled.square()) / self._spreads.square()

    def _left(self, values: Tensor, chosen: Tensor) -> Tensor:
        """What is left of answers, over the noise, flat."""
        answers = _answers(self._model, self._split(values), self._pairs, chosen)
        measured = self._pairs.outputs[chosen]
        valid = _within(measured, answers.detach(), self._spec, self._noise)
        left: Tensor = ((measured - answers) * valid / self._noise).flatten()
        return left

    def _normal_equations(self) -> tuple[Tensor, Tensor]:
        prior = self._prior()
        information, slope = torch.diag(prior), prior * (self._nominal - self.flat)
        basis = torch.eye(len(self.flat), dtype=torch.float64)
        for part in torch.arange(len(self._pairs.settings)).split(4):
            # J t, as the derivative of J^T u by u: backwards twice, which every law can do.
            forth: Any = torch.func.vjp(lambda values, part=part: self._left(values, part), self.flat)
            left, backwards = forth
            back: Any = torch.func.vjp(lambda weights, pull=backwards: pull(weights)[0], torch.zeros_like(left))
            slopes = -torch.func.vmap(lambda tangent, pull=back[1]: pull(tangent)[0], chunk_size=64)(basis)
            information += slopes @ slopes.mT
            slope = slope + slopes @ left
        return information, slope

    def _diagonal(self, rounds: int = 8) -> Tensor:
        """Of J^T J: the mean square of J^T s over random signs s."""
        generator = derive_generator(0, "errors")
        curvature = torch.zeros_like(self.flat)
        for _ in range(rounds):
            for part in torch.arange(len(self._pairs.settings)).split(16):
                leaf = self.flat.clone().requires_grad_()
                left = self._left(leaf, part)
                signs = torch.randint(0, 2, left.shape, generator=generator).to(left) * 2 - 1
                (gradient,) = torch.autograd.grad(left, leaf, signs)
                curvature += gradient.square() / rounds
        return curvature
