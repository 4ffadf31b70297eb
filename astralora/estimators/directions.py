"""Choose the directions in which zero-order estimators perturb the controls."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ..devices import DeviceSpec
from ..probing.hadamard import CodedSigns
from .zero_order import ZeroOrder

__all__ = ["Coordinate", "Gaussian", "Orthogonal", "Output", "Rademacher"]


class Gaussian(ZeroOrder):
    """Estimate g = 1 / (M mu) sum_k u_k <f_{w + mu u_k}(X) - f_w(X), G>, u_k ~ N(0, I): the published estimator.

    See arXiv 2509.15113. If the batch has more vectors than G^T X has rows, these rows replace it. The estimator works
    on every device. If the change of the loss is linear in the controls, the estimate is unbiased, and entry i has the
    variance (|g|^2 + g_i^2) / M. The cosine to the gradient is about sqrt(M / (P + M)) for P controls.
    """

    independent = True
    default_compression = "rows"

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return standard normal directions."""
        return self._randn(count, controls)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Return the probability that a step stays within the range (Stein: E[u d(u)] = E[d'(u)] for a normal u)."""
        probability: Tensor = torch.special.ndtr(above) - torch.special.ndtr(below)
        return probability


class Rademacher(ZeroOrder):
    """Move every control by one step of random sign (simultaneous perturbation, Spall 1992).

    The variance of entry i is (|g|^2 - g_i^2) / M, slightly less than with Gaussian directions. No step exceeds mu.
    """

    independent = True

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return random signs."""
        return self._signs(count, controls)


class Orthogonal(ZeroOrder):
    """Move all controls in directions of signs that are orthogonal to each other, so no direction is used twice.

    M perturbations measure the projection of the gradient on M directions. The cosine to the gradient is sqrt(M / P),
    compared with sqrt(M / (P + M)) for Gaussian directions. If M is the next power of two above P, the estimate is
    exact. Every control moves in every perturbation, so noise has much less effect than with `Coordinate`.
    """

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Draw a new random order and new signs for the Hadamard matrix."""
        self._codes = CodedSigns(len(controls), self.generator)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return the next rows of a shuffled Hadamard matrix."""
        return self._codes.take(count).to(controls)


class Coordinate(ZeroOrder):
    """Move one control at a time, for devices with few controls.

    Without ``samples``, an estimate moves every control once and is exact up to curvature and noise. With ``samples``,
    it moves a random choice of this many controls and is unbiased.
    """

    def count(self, controls: int) -> int:
        """Return the number of controls to move: all, or ``samples``."""
        return min(self.samples or controls, controls)

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Choose the controls, and the sign of each move: away from the nearer end of the range."""
        self._order = torch.randperm(len(controls), generator=self.generator).to(controls.device)
        low, high = spec.control_range or (-inf, inf)
        self._inward = torch.where(high - controls < controls - low, -1.0, 1.0).to(controls)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return steps of size 1 of the next controls."""
        chosen, self._order = self._order[:count], self._order[count:]
        directions = controls.new_zeros(count, len(controls))
        directions[torch.arange(count), chosen] = self._inward[chosen]
        return directions

    def directions_energy(self, controls: int) -> float:
        """Return E <u, g>^2 / |g|^2 for one control chosen at random."""
        return super().directions_energy(controls) / controls

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Return the sum of `ZeroOrder.combine` times the number of controls, because a direction moves one control."""
        return len(directions[0]) * super().combine(directions, changes)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Return 1, because inward steps are not clamped; with antithetic pairs the opposite steps may be clamped."""
        return super().reach(below, above) if self.antithetic else torch.ones_like(above)


class Output(ZeroOrder):
    """Move the controls of every output by orthogonal signs, and use the change of each output separately.

    If each control changes one output only, the change of an output depends only on its own controls. So the price of
    one estimate gives m estimates. The variance of entry i is the squared gradient with respect to the other controls
    of its output, divided by M, times (N - M) / (N - 1). N is the number of rows of a set: the next power of two above
    the number of controls of an output. With N samples the estimate is exact.
    """

    couplings = ("elementwise", "output")
    step_share = 1 / 32

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Draw a new random order and new signs for the Hadamard matrix."""
        self._outputs = spec.out_features
        self._codes = CodedSigns(len(controls) // self._outputs, self.generator)
        self._control_signs = self._signs(1, controls)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return the same orthogonal signs for the controls of each output, times a random sign for each control."""
        return self._codes.take(count).to(controls).repeat(1, self._outputs) * self._control_signs

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Sum, for each control, u times the change of the output that this control changes."""
        runs = directions.unflatten(1, (changes.shape[1], -1))
        gradient: Tensor = torch.einsum("kmc,km->mc", runs, changes).flatten()
        return gradient

    def predict(self, moves: Tensor, gradient: Tensor) -> Tensor:
        """Return the predicted changes of each output."""
        predicted: Tensor = (moves * gradient).unflatten(1, (self._outputs, -1)).sum(dim=2)
        return predicted
