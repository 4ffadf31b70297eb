"""System identification: the constants of a chip's own law, from measured pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from ..devices import Constant, DeviceSpec, Identifiable, derive_generator
from .evaluation import answers_of, foresee, rms_by_output, rms_left, unexplained, within_range
from .pairs import Pairs
from .stuck import HeldModel, find_held

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
# Looks for controls that do not move: what the first finds may have hidden others.
_LOOKS = 3
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
        noise_by_output: root mean square of what is left of the fitted answers of each output, rounding aside,
            (out_features,).
        fixed: what controls that do not move are held at, as it would be written; nan for all others, (num_controls,).
            None where all move.
        fixed_errors: standard errors of that.
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
    noise_by_output: Tensor
    fixed: Tensor | None = None
    fixed_errors: Tensor | None = None

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
    noise: float | None = None,
    steps: int = 300,
    seed: int = 0,
    listener: Callable[[int, int, float], None] | None = None,
) -> Identification:
    """Fit the constants of a law to measured pairs.

    Maximum a posteriori: squares of what is left over the noise, and Student's t about the drawing. The landscape of a
    deep mesh has many valleys, all of which random subsets of the settings shake: steps of Adam on a third of them at a
    time find the way, and L-BFGS on all of them the bottom. Where held-out settings are not foreseen, the fit begins
    anew, from elsewhere and with more steps.

    Controls that do not move are named, and held, where answers are explained better by that; see
    `astralora.calibration.stuck`.

    Args:
        model: the law.
        pairs: all of them; the last settings are held out.
        spec: of the chip: where its detectors end, and their noise.
        held_out: settings to hold out.
        noise: of an answer, rounding included, where it is known better than from the few that were asked for twice.
        steps: of Adam, at the first start.
        seed: of subsets and starts.
        listener: told of steps done, steps in all and the mean square of what is left over the noise.
    """
    noise = pairs.noise_std(spec) if noise is None else noise
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
        left = unexplained(model, constants, test, spec, noise)[0]
        start += 1
        if best is None or left < best[0]:
            best = left, constants
        if left <= _UNEXPLAINED:
            break
    assert best is not None
    held, constants = _hold(model, best[1], train, spec, noise, steps, seed, listener)
    if held is not None and unexplained(held, constants, test, spec, noise)[0] <= max(best[0], _UNEXPLAINED):
        model, declared = held, held.constants()
    else:
        held, constants = None, best[1]
    fits = unexplained(model, constants, test, spec, noise)[0] <= _UNEXPLAINED
    left = rms_left(train, foresee(model, constants, train), spec, noise)
    # Where the law fits, what it leaves of thousands of answers tells the noise better than a few asked for twice.
    curvature = _Curvature(model, declared, constants, train, spec, left if fits else noise)
    if curvature.dense and fits:
        curvature.newton()
    constants = curvature.constants()
    errors = curvature.errors(1.0 if fits else max(1.0, left / noise))
    share, error = unexplained(model, constants, test, spec, noise)
    foreseen, left = foresee(model, constants, test), rms_left(train, foresee(model, constants, train), spec, noise)
    by_output = (rms_by_output(train, foresee(model, constants, train), spec, noise) ** 2).sub(
        (spec.output_step or 0.0) ** 2 / 12
    )
    at, uncertain = constants.pop(HeldModel.name, None), errors.pop(HeldModel.name, None)
    return Identification(
        constants,
        errors,
        curvature.dense,
        share,
        error,
        rms_left(test, foreseen, spec, noise),
        left,
        noise,
        start,
        # As the detectors would have reported it.
        (test.outputs, foreseen if spec.output_range is None else foreseen.clamp(*spec.output_range)),
        by_output.clamp_min(0).sqrt(),
        fixed=None if held is None or at is None else held.fixed(at),
        fixed_errors=None if held is None or uncertain is None else held.fixed(uncertain),
    )


def _hold(
    model: Identifiable,
    constants: Constants,
    pairs: Pairs,
    spec: DeviceSpec,
    noise: float,
    steps: int,
    seed: int,
    listener: Callable[[int, int, float], None] | None,
) -> tuple[HeldModel | None, Constants]:
    """Name controls that do not move, fit all others without what those had spoilt, and look again."""
    held: HeldModel | None = None
    for round_ in range(_LOOKS):
        free = {name: value for name, value in constants.items() if name != HeldModel.name}
        left = max(noise, rms_left(pairs, foresee(held or model, constants, pairs), spec, noise))
        found = find_held(model, free, pairs, spec, left)
        if found is None or (held is not None and torch.equal(found.which, held.which)):
            break
        held = found
        begin = dict(free)
        for name, known in model.constants().items():
            if known.shape == (spec.num_controls,):
                begin[name] = free[name].index_fill(0, held.which, known.nominal)
        fit = _Fit(held, held.constants(), pairs, spec, noise, seed, _STARTS + round_)
        fit.begin({**begin, HeldModel.name: held.at})
        fit.descend(max(1, steps // 3), _RATES[-1], listener)
        fit.polish()
        constants = fit.constants()
    return held, constants


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

    def begin(self, constants: Constants) -> None:
        """Go on from these."""
        with torch.no_grad():
            for name, scaled in self._scaled.items():
                known = self._declared[name]
                scaled.copy_((constants[name] - known.nominal) / known.spread)

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
        answers, measured = answers_of(self._model, constants, pairs, chosen), pairs.outputs[chosen]
        valid = within_range(measured, answers.detach(), self._spec, self._noise)
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
        answers = answers_of(self._model, self._split(values), self._pairs, chosen)
        measured = self._pairs.outputs[chosen]
        valid = within_range(measured, answers.detach(), self._spec, self._noise)
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
