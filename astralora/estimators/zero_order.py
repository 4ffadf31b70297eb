"""Zero-order estimators: perturb the controls, and see how the loss would move."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import ceil, inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Differentiable, Session
from ..probing.hadamard import CodedSigns
from .base import Estimator, directions_per_call, sign_reach, whole, within
from .readout import Compression, Readout, choose_readout
from .steps import Step, StepChoice, choose_step
from .variate import ControlVariate

__all__ = ["Coordinate", "Gaussian", "Orthogonal", "Output", "Quota", "Rademacher", "ZeroOrder"]

Quota = Callable[[Session, int, int, int, int], int]
"""How many of the perturbations that an estimate is about to make it may make.

Called with the session, the perturbations, the programs of each, further programs, and the vectors of each program.
"""

_SAMPLES = 100
# The change that a perturbation causes should exceed its noise this many times in variance.
_CLEAR = 4.0
# Where it does not, the step grows, by this factor from one estimate to the next and this much in all.
_GROWTH = 2**0.5
_MOST_GROWTH = 8.0


class ZeroOrder(Estimator):
    """Shared by all that perturb: which vectors to pass, and how to read the answers.

    With first-order loss change ``sum_b <f_{w + mu u}(x_b) - f_w(x_b), g_b>``, what counts of the answers is the
    product with G, summed over the batch. A linear device is asked for it with fewer vectors than the batch has,
    where there are; see `astralora.estimators.readout`.

    Args:
        samples: number of perturbations M, one program each; two with ``antithetic``. None for the estimator's own:
            100, or
            all controls for `Coordinate`.
        step: size mu of the perturbation in control units; see `choose_step`. ``"auto"`` also grows where the answers
            turn
            out to drown in noise.
        antithetic: take (f_{w + mu u} - f_{w - mu u}) / 2 mu, which even curvature does not enter, in place of
            (f_{w + mu u} - f_w) / mu.
        compression: how a linear device is asked: with the ``"singular"`` vectors of G^T X, with its ``"rows"`` as in
            the
            published method, or with the batch itself (``"none"``). None for the estimator's own.
        tail: share of |G^T X|^2 that singular vectors may leave out; a little saves many vectors.
        twin: a differentiable model of the device, whose gradient is used as far as it explains the device's answers:
            the estimate stays unbiased, and its variance falls by what the twin gets right; see `ControlVariate`.
        batch_fraction: share of the batch, drawn anew each time, that stands for all of it.
        control_fraction: share of the controls, drawn anew each time, that is perturbed; the others get no
            gradient.
        seed: of the estimator's own random stream.
    """

    step_share: ClassVar[float] = 1 / 64
    independent: ClassVar[bool] = False
    """Directions do not depend on one another: those drawn without repetition do."""
    default_compression: ClassVar[Compression] = "singular"

    def __init__(
        self,
        *,
        samples: int | None = None,
        step: Step = "auto",
        antithetic: bool = False,
        compression: Compression | None = None,
        tail: float = 0.0,
        twin: Differentiable | None = None,
        batch_fraction: float = 1.0,
        control_fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        for name, value in (("batch_fraction", batch_fraction), ("control_fraction", control_fraction)):
            if not (isinstance(value, int | float) and 0 < value <= 1):
                raise ConfigurationError(f"{name} must be above 0 and at most 1, not {value!r}")
        compression = compression or self.default_compression
        if compression not in ("singular", "rows", "none"):
            raise ConfigurationError(f"compression must be 'singular', 'rows' or 'none', not {compression!r}")
        if not (isinstance(tail, int | float) and 0 <= tail < 1):
            raise ConfigurationError(f"tail must be at least 0 and below 1, not {tail!r}")
        self.samples = None if samples is None else whole("samples", samples)
        self.step = step
        self.antithetic = antithetic
        self.compression = compression
        self.tail = tail
        self.batch_fraction = batch_fraction
        self.control_fraction = control_fraction
        self.quota: Quota | None = None
        self._variate = None if twin is None else ControlVariate(twin)
        self._growth = 1.0

    def check(self, session: Session) -> None:
        """Refuse a device that this estimator cannot work on, or a step that it would not notice."""
        super().check(session)
        self._choose_step(session.spec)
        if self._variate is not None:
            self._variate.check(session)

    @abstractmethod
    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Random directions u: (count, num_controls), of zero mean and unit covariance."""

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """An estimate begins; all calls of `directions` until the next are about this one."""

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Sum over directions of u times the change that it caused; by default one number for all outputs together.

        Args:
            directions: (count, num_controls).
            changes: change of the loss by output, (count, out_features).

        Returns:
            (num_controls,).
        """
        return changes.sum(dim=1) @ directions

    def predict(self, moves: Tensor, gradient: Tensor, out_features: int) -> Tensor:  # noqa: ARG002
        """The changes that a known gradient predicts for moves of the controls, in the form that `combine` takes."""
        return (moves @ gradient).unsqueeze(1)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """E[u d], where d is the direction u cut off at ``below`` <= 0 and ``above`` >= 0: 1 without a cut."""
        return sign_reach(below, above)

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """The mean over perturbations of u (f_{w + mu u} - f_w) / mu, weighed with G."""
        spec = session.spec
        self.gradient_energy = None
        self.step_choice = self._choose_step(spec)
        step = self.step_choice.size
        sample = self._batch(inputs, outputs, grad_outputs)
        readout = choose_readout(spec, self.compression, self.tail, *sample)
        count = self.count(len(controls))
        if self.quota is not None:
            count = self.quota(session, count, self.settings_each, int(readout.measures_base), readout.vectors)
            if not count:
                return torch.zeros_like(controls)
        settings = self.settings_each * count + readout.measures_base
        session.afford(
            "estimate",
            programs=settings,
            vectors=settings * readout.vectors,
            first=controls if readout.measures_base else None,
        )
        self.begin(spec, controls)
        mask = self._mask(controls)
        known = (
            None if self._variate is None else self._variate.gradient(session, controls, inputs, outputs, grad_outputs)
        )
        gradient = torch.zeros_like(controls)
        energy = 0.0
        with session.transaction():
            if readout.measures_base:
                session.program(controls)
            base = readout.base(session)
            for part in directions_per_call(count, len(controls), readout.vectors * spec.out_features):
                directions = self.directions(part, controls)
                if mask is not None:
                    directions *= mask
                perturbed = within(spec, torch.add(controls, directions, alpha=step))
                changes = readout.each(session, perturbed) - base
                if self.antithetic:
                    opposite = within(spec, torch.sub(controls, directions, alpha=step))
                    changes = (changes + base - readout.each(session, opposite)) / 2
                    perturbed = controls + (perturbed - opposite) / 2
                energy += float(changes.sum(dim=1).square().sum())
                if known is not None and self._variate is not None:
                    predicted = self.predict(perturbed - controls, known, spec.out_features)
                    changes = self._variate.remove(changes, predicted, leave_one_out=self.independent)
                gradient += self.combine(directions, changes)
        gradient /= count * step
        noise = self.change_variance(readout)
        self._look_out_for_noise(energy / count, noise)
        # A change is mu <u, g> plus its noise, and E <u, g>^2 = |g|^2 for directions of unit covariance.
        scale = self.directions_energy(len(controls)) * step**2
        self.gradient_energy = (energy / count - noise) / scale
        if spec.control_range is not None:
            low, high = spec.control_range
            # Near an end of the range a perturbation is cut short; what it loses on average is made up for.
            gradient /= self.reach((low - controls) / step, (high - controls) / step)
        if known is not None and self._variate is not None:
            gradient += self._variate.restore(known if mask is None else known * mask)
        return gradient

    def count(self, controls: int) -> int:  # noqa: ARG002
        """Number of perturbations of one estimate."""
        return self.samples or _SAMPLES

    @property
    def settings_each(self) -> int:
        """Programs of one perturbation."""
        return 2 if self.antithetic else 1

    def directions_energy(self, controls: int) -> float:
        """E <u, g>^2 / |g|^2 for the directions u that are perturbed."""
        return ceil(self.control_fraction * controls) / controls

    def change_variance(self, readout: Readout) -> float:
        """Variance of the noise on one perturbation's change: of a difference, or of half of one."""
        return (0.5 if self.antithetic else 2.0) * readout.variance()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next estimate depends on."""
        variate = None if self._variate is None else self._variate.state_dict()
        return {**super().state_dict(), "growth": self._growth, "variate": variate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._growth = state["growth"]
        if self._variate is not None and state["variate"] is not None:
            self._variate.load_state_dict(state["variate"])

    def _choose_step(self, spec: DeviceSpec) -> StepChoice:
        low, high = spec.control_range or (0.0, 1.0)
        # Where every control acts on what the others do, moving all of them at once bends the response sooner.
        share = self.step_share / 2 if spec.coupling == "dense" else self.step_share
        noise = share * (high - low) * self._growth if self._growth > 1 else 0.0
        return choose_step(spec, self.step, share, noise)

    def _look_out_for_noise(self, energy: float, noise: float) -> None:
        if energy < _CLEAR * noise:
            self._growth = min(self._growth * _GROWTH, _MOST_GROWTH)
        elif energy > _CLEAR * _GROWTH**4 * noise:
            self._growth = max(self._growth / _GROWTH, 1.0)

    def _batch(self, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(inputs)
        kept = ceil(self.batch_fraction * batch)
        if kept == batch:
            return inputs, outputs, grad_outputs
        rows = torch.randperm(batch, generator=self.generator)[:kept].to(inputs.device)
        return inputs[rows], outputs[rows], grad_outputs[rows] * (batch / kept)

    def _mask(self, controls: Tensor) -> Tensor | None:
        kept = ceil(self.control_fraction * len(controls))
        if kept == len(controls):
            return None
        mask = torch.zeros_like(controls)
        mask[torch.randperm(len(controls), generator=self.generator)[:kept].to(controls.device)] = 1
        return mask


class Gaussian(ZeroOrder):
    """The published estimator: g = 1 / (M mu) sum_k u_k <f_{w + mu u_k}(X) - f_w(X), G>, u_k ~ N(0, I).

    arXiv 2509.15113, with the rows of G^T X in place of a batch that is larger. Works on every device. For a loss
    change that is linear in the controls it is unbiased, with variance (|g|^2 + g_i^2) / M of entry i: the cosine to
    the gradient is about sqrt(M / (P + M)) for P controls.
    """

    independent = True
    default_compression = "rows"

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Standard normal directions."""
        return self._randn(count, controls)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """The probability of staying within (Stein: E[u d(u)] = E[d'(u)] for a normal u)."""
        within_range: Tensor = torch.special.ndtr(above) - torch.special.ndtr(below)
        return within_range


class Rademacher(ZeroOrder):
    """Random signs for all controls (simultaneous perturbation, Spall 1992): every control moves by just one step.

    Variance (|g|^2 - g_i^2) / M of entry i: a little less than Gaussian directions, and no step strays beyond mu.
    """

    independent = True

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Random signs."""
        return self._signs(count, controls)


class Orthogonal(ZeroOrder):
    """Signs that are orthogonal from one perturbation to the next: no direction is asked for twice.

    M perturbations see the gradient's projection on M directions: the cosine to the gradient is sqrt(M / P) where
    that of Gaussian directions is sqrt(M / (P + M)), and with as many as the next power of two above P the estimate
    is exact. Every control moves in every perturbation, so that noise counts for much less than with `Coordinate`.
    """

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:  # noqa: ARG002
        """Shuffle the matrix anew."""
        self._codes = CodedSigns(len(controls), self.generator)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Rows of a shuffled Hadamard matrix."""
        return self._codes.take(count).to(controls)


class Coordinate(ZeroOrder):
    """One control at a time: for devices with few controls.

    All of them in every estimate, which is then exact up to curvature and noise; or a random choice of ``samples``,
    which stands for the others on average.
    """

    def count(self, controls: int) -> int:
        """All controls, or as many as asked for."""
        return min(self.samples or controls, controls)

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Choose the controls and the way to move them, away from the nearer end of the range."""
        self._order = torch.randperm(len(controls), generator=self.generator).to(controls.device)
        low, high = spec.control_range or (-inf, inf)
        self._inward = torch.where(high - controls < controls - low, -1.0, 1.0).to(controls)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Unit steps of as many controls as are due next."""
        chosen, self._order = self._order[:count], self._order[count:]
        directions = controls.new_zeros(count, len(controls))
        directions[torch.arange(count), chosen] = self._inward[chosen]
        return directions

    def directions_energy(self, controls: int) -> float:
        """One control out of all, each as likely."""
        return super().directions_energy(controls) / controls

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Every chosen control stands for as many as there are to each."""
        return len(directions[0]) * super().combine(directions, changes)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Steps inward are not cut short; the opposite ones of antithetic pairs may be."""
        return super().reach(below, above) if self.antithetic else torch.ones_like(above)


class Output(ZeroOrder):
    """Orthogonal signs for the controls of every output, read output by output.

    Where a control moves one output only, every output's change tells of its own controls alone: m estimates for the
    price of one. The variance of entry i falls to the squared gradient of its own output's other controls, over M,
    times (N - M) / (N - 1) for the N rows of a set, the next power of two above the number of controls of an output:
    with as many samples the estimate is exact.
    """

    couplings = ("elementwise", "output")
    step_share = 1 / 32

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Shuffle the matrix anew."""
        self._outputs = spec.out_features
        self._codes = CodedSigns(len(controls) // self._outputs, self.generator)
        self._own = self._signs(1, controls)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """The same orthogonal signs for the controls of each output, each with a random sign of its own."""
        return self._codes.take(count).to(controls).repeat(1, self._outputs) * self._own

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Each run of controls with the change of its own output."""
        runs = directions.unflatten(1, (changes.shape[1], -1))
        gradient: Tensor = torch.einsum("kmc,km->mc", runs, changes).flatten()
        return gradient

    def predict(self, moves: Tensor, gradient: Tensor, out_features: int) -> Tensor:
        """Output by output."""
        predicted: Tensor = (moves * gradient).unflatten(1, (out_features, -1)).sum(dim=2)
        return predicted
