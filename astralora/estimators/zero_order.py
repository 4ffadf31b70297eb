"""Estimate gradients from the change of the loss under perturbations of the controls (zero-order estimation)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Differentiable, Session
from .base import Estimator, directions_per_call, sign_reach, within
from .readout import Compression, Readout, choose_readout
from .steps import Step, StepChoice, choose_step
from .variate import ControlVariate

__all__ = ["Quota", "ZeroOrder"]

Quota = Callable[[Session, int, int, int, int], int]
"""Function that returns the number of perturbations that an estimate may make.

Its arguments are the session, the requested number of perturbations, the programs of each, the additional programs of
the estimate, and the vectors of each program.
"""

_SAMPLES = 100
# Smallest acceptable ratio of the mean squared change by a perturbation to the variance of its noise.
_CLEAR = 4.0
# Below this ratio the step grows by the first factor at each estimate, and in total by at most the second factor.
_GROWTH = 2**0.5
_MOST_GROWTH = 8.0


class ZeroOrder(Estimator):
    """Estimate the gradient by perturbing the controls in random directions, which a subclass chooses.

    The first-order change of the loss is ``sum_b <f_{w + mu u}(x_b) - f_w(x_b), g_b>``, so only the product of the
    answers with G, summed over the batch, is needed. On a linear device it can be measured with fewer vectors than the
    batch has; see `astralora.estimators.readout`.

    Args:
        samples: number of perturbations M, with one program each, or two with ``antithetic``. None for 100; with
            `Coordinate`, None for all controls.
        step: size mu of the perturbation in control units; see `choose_step`. With ``"auto"`` the step also grows if
            the change of the loss is below the noise.
        antithetic: whether to use (f_{w + mu u} - f_{w - mu u}) / (2 mu), which has no error of second order, instead
            of (f_{w + mu u} - f_w) / mu.
        compression: vectors to send to a linear device: the ``"singular"`` vectors of G^T X, its ``"rows"`` as in the
            published method, or the batch itself (``"none"``). None for the default of the estimator.
        tail: share of |G^T X|^2 that singular vectors may leave out; a small share saves many vectors.
        twin: differentiable model of the device. The better its gradient explains the device's answers, the smaller is
            the variance of the estimate, which stays unbiased; see `ControlVariate`.
        batch_fraction: share of the batch to send; each estimate chooses the vectors at random.
        control_fraction: share of the controls to perturb; each estimate chooses them at random, and the others get no
            gradient.
        seed: seed of the estimator's own random stream.
    """

    step_share: ClassVar[float] = 1 / 64
    independent: ClassVar[bool] = False
    """Whether directions are independent of each other; directions drawn without repetition are not."""
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
        self.samples = None if samples is None else check_whole("samples", samples)
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
        """Refuse a device that this estimator cannot work on, and a step below its control levels."""
        super().check(session)
        self._choose_step(session.spec)
        if self._variate is not None:
            self._variate.check(session)

    @abstractmethod
    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return random directions u, (count, num_controls), with zero mean and unit covariance."""

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Prepare an estimate; all calls of `directions` until the next `begin` belong to this estimate."""

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Return the sum over all directions u of u times the change of the loss in this direction.

        Args:
            directions: directions u, (count, num_controls).
            changes: change of the loss by each output, (count, out_features); by default summed over the outputs.

        Returns:
            (num_controls,).
        """
        return changes.sum(dim=1) @ directions

    def predict(self, moves: Tensor, gradient: Tensor) -> Tensor:
        """Return the changes that a gradient predicts for moves of the controls, as an argument for `combine`."""
        return (moves @ gradient).unsqueeze(1)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Return E[u d], where d is u clamped to ``below`` <= 0 and ``above`` >= 0; this is 1 if nothing is clamped."""
        return sign_reach(below, above)

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """Return the mean of u <f_{w + mu u}(X) - f_w(X), G> / mu over perturbations u; see `Estimator.estimate`."""
        spec = session.spec
        self.gradient_energy = None
        self.step_choice = self._choose_step(spec)
        step = self.step_choice.size
        sample = self._sample_batch(inputs, outputs, grad_outputs)
        readout = choose_readout(spec, self.compression, self.tail, *sample)
        count = self._affordable_count(session, controls, readout)
        if not count:
            return torch.zeros_like(controls)
        self.begin(spec, controls)
        mask = self._control_mask(controls)
        twin_gradient = (
            None if self._variate is None else self._variate.gradient(session, controls, inputs, outputs, grad_outputs)
        )
        gradient, energy = self._perturb(session, controls, readout, count, mask, twin_gradient)
        gradient /= count * step
        noise = self.change_variance(readout)
        self._adapt_step(energy / count, noise)
        # A change is mu <u, g> plus noise, and E <u, g>^2 = |g|^2 for directions of unit covariance.
        scale = self.directions_energy(len(controls)) * step**2
        self.gradient_energy = (energy / count - noise) / scale
        if spec.control_range is not None:
            low, high = spec.control_range
            # Near an end of the range perturbations are clamped, so the gradient is divided by their mean length.
            gradient /= self.reach((low - controls) / step, (high - controls) / step)
        if twin_gradient is not None and self._variate is not None:
            gradient += self._variate.restore(twin_gradient if mask is None else twin_gradient * mask)
        return gradient

    def _affordable_count(self, session: Session, controls: Tensor, readout: Readout) -> int:
        """Return the number of perturbations that the quota allows; refuse the estimate if the budget is too small."""
        count = self.count(len(controls))
        if self.quota is not None:
            count = self.quota(session, count, self.settings_each, int(readout.measures_base), readout.vectors)
            if not count:
                return 0
        settings = self.settings_each * count + readout.measures_base
        session.afford(
            "estimate",
            programs=settings,
            vectors=settings * readout.vectors,
            first=controls if readout.measures_base else None,
        )
        return count

    def _perturb(
        self,
        session: Session,
        controls: Tensor,
        readout: Readout,
        count: int,
        mask: Tensor | None,
        twin_gradient: Tensor | None,
    ) -> tuple[Tensor, float]:
        """Return two sums over the perturbations: of u times the change, (num_controls,), and of the squared change."""
        assert self.step_choice is not None
        spec, step = session.spec, self.step_choice.size
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
                if twin_gradient is not None and self._variate is not None:
                    predicted = self.predict(perturbed - controls, twin_gradient)
                    changes = self._variate.remove(changes, predicted, leave_one_out=self.independent)
                gradient += self.combine(directions, changes)
        return gradient, energy

    def count(self, controls: int) -> int:
        """Return the number of perturbations of one estimate."""
        return self.samples or _SAMPLES

    @property
    def settings_each(self) -> int:
        """Return the number of programs of one perturbation."""
        return 2 if self.antithetic else 1

    def directions_energy(self, controls: int) -> float:
        """Return E <u, g>^2 / |g|^2 for the directions u."""
        return ceil(self.control_fraction * controls) / controls

    def change_variance(self, readout: Readout) -> float:
        """Return the noise variance of the change by one perturbation: a difference, or half a difference."""
        return (0.5 if self.antithetic else 2.0) * readout.variance()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next estimate depends on."""
        variate = None if self._variate is None else self._variate.state_dict()
        return {**super().state_dict(), "growth": self._growth, "variate": variate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._growth = state["growth"]
        if self._variate is not None and state["variate"] is not None:
            self._variate.load_state_dict(state["variate"])

    def _choose_step(self, spec: DeviceSpec) -> StepChoice:
        low, high = spec.control_range or (0.0, 1.0)
        # With dense coupling, all controls move at once, so curvature is stronger and the step must be smaller.
        share = self.step_share / 2 if spec.coupling == "dense" else self.step_share
        noise = share * (high - low) * self._growth if self._growth > 1 else 0.0
        return choose_step(spec, self.step, share, noise)

    def _adapt_step(self, energy: float, noise: float) -> None:
        if energy < _CLEAR * noise:
            self._growth = min(self._growth * _GROWTH, _MOST_GROWTH)
        elif energy > _CLEAR * _GROWTH**4 * noise:
            self._growth = max(self._growth / _GROWTH, 1.0)

    def _sample_batch(self, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(inputs)
        kept = ceil(self.batch_fraction * batch)
        if kept == batch:
            return inputs, outputs, grad_outputs
        rows = torch.randperm(batch, generator=self.generator)[:kept].to(inputs.device)
        return inputs[rows], outputs[rows], grad_outputs[rows] * (batch / kept)

    def _control_mask(self, controls: Tensor) -> Tensor | None:
        kept = ceil(self.control_fraction * len(controls))
        if kept == len(controls):
            return None
        mask = torch.zeros_like(controls)
        mask[torch.randperm(len(controls), generator=self.generator)[:kept].to(controls.device)] = 1
        return mask
