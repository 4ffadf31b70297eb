"""Zero-order estimators: perturb the controls at random, and see how the loss would move."""

from __future__ import annotations

from abc import abstractmethod
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from devices import Session

from ..errors import ConfigurationError
from ..probing import LinearProbe
from .base import Estimator, Step, choose_step, directions_per_call, whole, within

__all__ = ["Gaussian", "Output"]


class ZeroOrder(Estimator):
    """Shared by all that perturb: which vectors to pass, and how to read the answers.

    With first-order loss change ``sum_b <f_{w + mu u}(x_b) - f_w(x_b), g_b>``, what counts of the answers
    is the product with G, summed over the batch. A linear device is asked for it with m vectors where the
    batch is larger: rows of G^T X, whose answers' diagonal is that sum, output by output.

    Args:
        samples: number of perturbations M, one program each.
        step: size mu of the perturbation in control units; see `choose_step`.
        batch_fraction: share of the batch, drawn anew each time, that stands for all of it.
        control_fraction: share of the controls, drawn anew each time, that is perturbed; the others get no
            gradient.
        seed: of the estimator's own random stream.
    """

    step_share: ClassVar[float]

    def __init__(
        self,
        *,
        samples: int = 100,
        step: Step = "auto",
        batch_fraction: float = 1.0,
        control_fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        for name, value in (("batch_fraction", batch_fraction), ("control_fraction", control_fraction)):
            if not (isinstance(value, int | float) and 0 < value <= 1):
                raise ConfigurationError(f"{name} must be above 0 and at most 1, not {value!r}")
        self.samples = whole("samples", samples)
        self.step = step
        self.batch_fraction = batch_fraction
        self.control_fraction = control_fraction

    def check(self, session: Session) -> None:
        """Refuse a device that this estimator cannot work on, or a step that it would not notice."""
        super().check(session)
        choose_step(session.spec, self.step, self.step_share)

    @abstractmethod
    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Random directions u: (count, num_controls), of zero mean and unit covariance."""

    @abstractmethod
    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Sum over directions of u times the change that it caused.

        Args:
            directions: (count, num_controls).
            changes: change of the loss by output, (count, out_features).

        Returns:
            (num_controls,).
        """

    @abstractmethod
    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """E[u d], where d is the direction u cut off at ``below`` <= 0 and ``above`` >= 0: 1 without a cut."""

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
        step = choose_step(spec, self.step, self.step_share)
        inputs, outputs, grad_outputs = self._batch(inputs, outputs, grad_outputs)
        compressed = spec.linear and len(inputs) > spec.out_features
        probe = LinearProbe(spec, grad_outputs.mT @ inputs) if compressed else None
        vectors = probe.vectors if probe else len(inputs)
        settings = self.samples + compressed
        session.afford(
            "estimate",
            programs=settings,
            vectors=settings * vectors,
            first=controls if compressed else None,
        )
        mask = self._mask(controls)
        gradient = torch.zeros_like(controls)
        with session.transaction():
            if probe is not None:
                session.program(controls)
                base = probe.ask(session).diagonal()
            else:
                # What the forward pass has paid for already.
                base = (outputs * grad_outputs).sum(dim=0)
            for count in directions_per_call(self.samples, len(controls), vectors * spec.out_features):
                directions = self.directions(count, controls)
                if mask is not None:
                    directions *= mask
                perturbed = within(spec, torch.add(controls, directions, alpha=step))
                if probe is not None:
                    after = probe.ask_each(session, perturbed).diagonal(dim1=-2, dim2=-1)
                else:
                    after = (session.query_each(perturbed, inputs) * grad_outputs).sum(dim=1)
                gradient += self.combine(directions, after - base)
        gradient /= self.samples * step
        if spec.control_range is None:
            return gradient
        low, high = spec.control_range
        # Near an end of the range a perturbation is cut short; what it loses on average is made up for.
        return gradient / self.reach((low - controls) / step, (high - controls) / step)

    def _batch(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        batch = len(tensors[0])
        kept = ceil(self.batch_fraction * batch)
        if kept == batch:
            return tensors
        rows = torch.randperm(batch, generator=self.generator)[:kept].to(tensors[0].device)
        inputs, outputs, grad_outputs = (tensor[rows] for tensor in tensors)
        return inputs, outputs, grad_outputs * (batch / kept)

    def _mask(self, controls: Tensor) -> Tensor | None:
        kept = ceil(self.control_fraction * len(controls))
        if kept == len(controls):
            return None
        mask = torch.zeros_like(controls)
        mask[torch.randperm(len(controls), generator=self.generator)[:kept].to(controls.device)] = 1
        return mask


class Gaussian(ZeroOrder):
    """The published estimator: g = 1 / (M mu) sum_k u_k <f_{w + mu u_k}(X) - f_w(X), G>, u_k ~ N(0, I).

    arXiv 2509.15113. Works on every device. For a loss change that is linear in the controls it is
    unbiased, with variance (|g|^2 + g_i^2) / M of entry i: the cosine to the gradient is about sqrt(M / (P
    + M)) for P controls.
    """

    # A Gaussian step strays to several times its size.
    step_share = 1 / 64

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Standard normal directions."""
        return self._randn(count, controls)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """The probability of staying within (Stein: E[u d(u)] = E[d'(u)] for a normal u)."""
        within_range: Tensor = torch.special.ndtr(above) - torch.special.ndtr(below)
        return within_range

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """One number for all outputs together."""
        return changes.sum(dim=1) @ directions


class Output(ZeroOrder):
    """Random signs for all controls at once, read output by output.

    Where a control moves one output only, every output's change tells of its own controls alone: m
    estimates for the price of one, and the variance of entry i falls to the squared gradient of its own
    output's other controls, over M.
    """

    couplings = ("elementwise", "output")
    step_share = 1 / 32

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Random signs."""
        return self._signs(count, controls)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """The mean of what is left of a step up and a step down."""
        return (above.clamp_max(1) - below.clamp_min(-1)) / 2

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Each run of controls with the change of its own output."""
        runs = directions.unflatten(1, (changes.shape[1], -1))
        return torch.einsum("kmc,km->mc", runs, changes).flatten()
