"""Identify a chip: fit the constants of its law to measured pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices import DeviceSpec, Identifiable
from .curvature import Curvature
from .descent import Descent
from .evaluation import predict, residual_rms, residual_rms_by_output, unexplained
from .pairs import Pairs
from .stuck import StuckModel, find_stuck

__all__ = ["Identification", "identify"]

Constants = dict[str, Tensor]
Listener = Callable[[int, int, float], None]

# A law fits if at most this share of the power of held-out answers, without noise, remains unexplained.
_UNEXPLAINED = 0.02
_STARTS = 3
# Step sizes of successive descents. The next one runs only while the mean squared residual exceeds the noise by this
# factor.
_RATES = (0.1, 0.05, 0.03)
_SETTLED = 1.1
# Number of searches for stuck controls; the controls found first may have hidden others.
_SEARCHES = 3


@dataclass(frozen=True, slots=True)
class Identification:
    """Hold the result of a fit.

    Attributes:
        constants: constants by name.
        errors: standard errors of the constants by name.
        dense: whether the errors include correlations; otherwise each takes the other constants as exact.
        unexplained: share of the held-out answers' power that is neither predicted nor noise.
        unexplained_error: standard error of that share.
        held_out_rms: root mean square residual of held-out answers, in output units.
        training_rms: root mean square residual of fitted answers, in output units.
        noise_std: noise of an answer, in output units.
        starts: number of fits that were tried.
        held_out: measured and predicted held-out answers, (settings, vectors, out_features) each.
        noise_by_output: root mean square residual of the fitted answers of each output, rounding excluded,
            (out_features,).
        fixed: value in control units that each stuck control is stuck at; nan for all others, (num_controls,). None
            where no control is stuck.
        fixed_errors: standard errors of ``fixed``.
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
        """Return whether the law predicts held-out answers."""
        return self.unexplained <= _UNEXPLAINED

    @property
    def verdict(self) -> str:
        """Return whether the law fits, as a sentence."""
        share = f"{100 * self.unexplained:.2g} % of the power of held-out answers"
        if self.fits:
            return f"The law fits: {share} is neither predicted nor noise."
        return (
            f"The law does not fit: after {self.starts} starts, {share} is neither predicted nor noise, and 2 % are "
            f"allowed. Either the chip is of another kind, or its constants need more settings."
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
    listener: Listener | None = None,
) -> Identification:
    """Fit the constants of a law to measured pairs.

    The fit is a maximum a posteriori estimate: squared residuals in units of the noise, and Student's t about the
    nominal constants as the prior. The posterior of a deep mesh has many local maxima. Adam on random thirds of the
    settings finds a good one, and L-BFGS on all settings converges to it. Where the law does not predict the held-out
    settings, the fit restarts from another point with more steps.

    A control counts as stuck if this explains the answers better; see `find_stuck`.

    Args:
        model: law to fit.
        pairs: measured pairs; the last settings are held out.
        spec: spec of the chip, for the detectors' range and noise.
        held_out: number of settings to hold out.
        noise: noise of an answer, rounding included, if known; None estimates it from the repeated vectors.
        steps: steps of Adam at the first start.
        seed: seed of subsets and starts.
        listener: called with the steps done, the steps in all, and the mean squared residual in units of the noise's
            variance.
    """
    fit = _Fit(model, pairs, spec, held_out, noise, steps, seed, listener)
    share, constants, starts = fit.descend()
    stuck, with_stuck = fit.find_stuck(constants)
    if stuck is not None and fit.unexplained(stuck, with_stuck)[0] <= max(share, _UNEXPLAINED):
        constants = with_stuck
    else:
        stuck = None
    return fit.finish(stuck, constants, starts)


class _Fit:
    """Fit a law from several starts, find stuck controls, and compute errors.

    Args:
        model: law to fit.
        pairs: measured pairs; the last settings are held out.
        spec: spec of the chip.
        held_out: number of settings to hold out.
        noise: noise of an answer; None estimates it from the repeated vectors.
        steps: steps of Adam at the first start.
        seed: seed of subsets and starts.
        listener: called after each step.
    """

    def __init__(
        self,
        model: Identifiable,
        pairs: Pairs,
        spec: DeviceSpec,
        held_out: int,
        noise: float | None,
        steps: int,
        seed: int,
        listener: Listener | None,
    ) -> None:
        self._model, self._spec = model, spec
        self._noise = pairs.noise_std(spec) if noise is None else noise
        self._train = pairs.part(slice(0, len(pairs.settings) - held_out))
        self._test = pairs.part(slice(-held_out, None))
        self._steps, self._seed, self._listener = steps, seed, listener

    def unexplained(self, model: Identifiable, constants: Constants) -> tuple[float, float]:
        """Return the unexplained share of held-out answers, and its standard error."""
        return unexplained(model, constants, self._test, self._spec, self._noise)

    def _residual_rms(self, model: Identifiable, constants: Constants) -> float:
        """Return the root mean square residual of the fitted answers."""
        return residual_rms(self._train, predict(model, constants, self._train), self._spec, self._noise)

    def descend(self) -> tuple[float, Constants, int]:
        """Fit from new starts until the law predicts held-out answers.

        Returns:
            Unexplained share and constants of the best start, and the number of starts.
        """
        declared = self._model.constants()
        best: tuple[float, Constants] | None = None
        start = 0
        while start < _STARTS:
            descent = Descent(self._model, declared, self._train, self._spec, self._noise, self._seed, start)
            for rate in _RATES:
                if rate == _RATES[0] or descent.residual > _SETTLED:
                    descent.descend(self._steps * (start + 1), rate, self._listener)
            descent.polish()
            constants = descent.constants()
            share = self.unexplained(self._model, constants)[0]
            start += 1
            if best is None or share < best[0]:
                best = share, constants
            if share <= _UNEXPLAINED:
                break
        assert best is not None
        return *best, start

    def find_stuck(self, constants: Constants) -> tuple[StuckModel | None, Constants]:
        """Find stuck controls, fit the other constants without them, and search again."""
        spec, name = self._spec, StuckModel.name
        stuck: StuckModel | None = None
        for search in range(_SEARCHES):
            free = {key: value for key, value in constants.items() if key != name}
            noise = max(self._noise, self._residual_rms(stuck or self._model, constants))
            found = find_stuck(self._model, free, self._train, spec, noise)
            if found is None or (stuck is not None and torch.equal(found.which, stuck.which)):
                break
            stuck = found
            begin = dict(free)
            for key, known in self._model.constants().items():
                if known.shape == (spec.num_controls,):
                    begin[key] = free[key].index_fill(0, stuck.which, known.nominal)
            declared = stuck.constants()
            descent = Descent(stuck, declared, self._train, spec, self._noise, self._seed, _STARTS + search)
            descent.begin({**begin, name: stuck.at})
            descent.descend(max(1, self._steps // 3), _RATES[-1], self._listener)
            descent.polish()
            constants = descent.constants()
        return stuck, constants

    def finish(self, stuck: StuckModel | None, constants: Constants, starts: int) -> Identification:
        """Compute standard errors, and assemble the result."""
        model, spec, noise = stuck or self._model, self._spec, self._noise
        fits = self.unexplained(model, constants)[0] <= _UNEXPLAINED
        residual = self._residual_rms(model, constants)
        # Where the law fits, the residual of thousands of answers estimates the noise better than a few repeats.
        curvature = Curvature(model, model.constants(), constants, self._train, spec, residual if fits else noise)
        if curvature.dense and fits:
            curvature.newton()
        constants = curvature.constants()
        errors = curvature.errors(1.0 if fits else max(1.0, residual / noise))
        share, error = self.unexplained(model, constants)
        predicted = predict(model, constants, self._test)
        residual = self._residual_rms(model, constants)
        by_output = residual_rms_by_output(self._train, predict(model, constants, self._train), spec, noise)
        at, at_error = constants.pop(StuckModel.name, None), errors.pop(StuckModel.name, None)
        return Identification(
            constants=constants,
            errors=errors,
            dense=curvature.dense,
            unexplained=share,
            unexplained_error=error,
            held_out_rms=residual_rms(self._test, predicted, spec, noise),
            training_rms=residual,
            noise_std=noise,
            starts=starts,
            # The detectors would have clipped the answers.
            held_out=(
                self._test.outputs,
                predicted if spec.output_range is None else predicted.clamp(*spec.output_range),
            ),
            noise_by_output=(by_output**2).sub((spec.output_step or 0.0) ** 2 / 12).clamp_min(0).sqrt(),
            fixed=None if stuck is None or at is None else stuck.fixed(at),
            fixed_errors=None if stuck is None or at_error is None else stuck.fixed(at_error),
        )
