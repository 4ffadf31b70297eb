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

    arXiv 2509.15113; where the batch is larger, the rows of G^T X replace it. It works on every device. For a loss
    change that is linear in the controls it is unbiased, with variance (|g|^2 + g_i^2) / M of entry i: the cosine to
    the gradient is about sqrt(M / (P + M)) for P controls.
    """

    independent = True
    default_compression = "rows"

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return standard normal directions."""
        return self._randn(count, controls)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Return the probability to stay within the range (Stein: E[u d(u)] = E[d'(u)] for a normal u)."""
        probability: Tensor = torch.special.ndtr(above) - torch.special.ndtr(below)
        return probability


class Rademacher(ZeroOrder):
    """Move every control by one step of random sign (simultaneous perturbation, Spall 1992).

    The variance of entry i is (|g|^2 - g_i^2) / M, a little less than with Gaussian directions. No step exceeds mu.
    """

    independent = True

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return random signs."""
        return self._signs(count, controls)


class Orthogonal(ZeroOrder):
    """Move all controls by signs that are orthogonal from one perturbation to the next: no direction is used twice.

    M perturbations measure the projection of the gradient on M directions. The cosine to the gradient is sqrt(M / P),
    against sqrt(M / (P + M)) for Gaussian directions; with M the next power of two above P the estimate is exact.
    Every control moves in every perturbation, so noise matters much less than with `Coordinate`.
    """

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Shuffle the Hadamard matrix anew."""
        self._codes = CodedSigns(len(controls), self.generator)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return the next rows of a shuffled Hadamard matrix."""
        return self._codes.take(count).to(controls)


class Coordinate(ZeroOrder):
    """Move one control at a time: for devices with few controls.

    An estimate moves all controls, and is then exact up to curvature and noise; or a random choice of ``samples``
    controls, which is unbiased.
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
        """Return unit steps of the next controls."""
        chosen, self._order = self._order[:count], self._order[count:]
        directions = controls.new_zeros(count, len(controls))
        directions[torch.arange(count), chosen] = self._inward[chosen]
        return directions

    def directions_energy(self, controls: int) -> float:
        """Return E <u, g>^2 / |g|^2 for one control chosen at random."""
        return super().directions_energy(controls) / controls

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Sum as for any directions, times the number of controls, since each direction moves one of them."""
        return len(directions[0]) * super().combine(directions, changes)

    def reach(self, below: Tensor, above: Tensor) -> Tensor:
        """Return E[u d]: 1, since inward steps are not cut short; opposite steps of antithetic pairs may be."""
        return super().reach(below, above) if self.antithetic else torch.ones_like(above)


class Output(ZeroOrder):
    """Move the controls of every output by orthogonal signs, and read the change of each output separately.

    Where a control moves one output only, the change of an output depends on its own controls alone: m estimates for
    the price of one. The variance of entry i is the squared gradient of the other controls of its output, over M,
    times (N - M) / (N - 1), where N is the number of rows of a set: the next power of two above the number of controls
    of an output. With N samples the estimate is exact.
    """

    couplings = ("elementwise", "output")
    step_share = 1 / 32

    def begin(self, spec: DeviceSpec, controls: Tensor) -> None:
        """Shuffle the Hadamard matrix anew."""
        self._outputs = spec.out_features
        self._codes = CodedSigns(len(controls) // self._outputs, self.generator)
        self._control_signs = self._signs(1, controls)

    def directions(self, count: int, controls: Tensor) -> Tensor:
        """Return the same orthogonal signs for the controls of each output, times a random sign for each control."""
        return self._codes.take(count).to(controls).repeat(1, self._outputs) * self._control_signs

    def combine(self, directions: Tensor, changes: Tensor) -> Tensor:
        """Sum u times the change of the output that the control moves."""
        runs = directions.unflatten(1, (changes.shape[1], -1))
        gradient: Tensor = torch.einsum("kmc,km->mc", runs, changes).flatten()
        return gradient

    def predict(self, moves: Tensor, gradient: Tensor) -> Tensor:
        """Return the predicted changes, output by output."""
        predicted: Tensor = (moves * gradient).unflatten(1, (self._outputs, -1)).sum(dim=2)
        return predicted
