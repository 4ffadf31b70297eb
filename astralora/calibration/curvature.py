"""Compute standard errors of fitted constants from the curvature of the posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Constant, DeviceSpec, Identifiable, derive_generator
from .evaluation import law_outputs, unsaturated_mask
from .pairs import Pairs
from .prior import FREEDOM

__all__ = ["Curvature"]

Constants = dict[str, Tensor]

# Largest number of unknowns for which the errors include all correlations.
_DENSE = 1200


class Curvature:
    """Compute the curvature of the posterior at a fit.

    It gives standard errors (Laplace's approximation) and, for small problems, Newton steps.

    Args:
        model: fitted law.
        declared: constants of the law.
        constants: fitted constants.
        pairs: fitted pairs.
        spec: spec of the chip.
        noise: noise of an answer.

    Attributes:
        flat: all constants in one vector.
        dense: whether the errors include correlations.
    """

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
        # Forward derivatives do not work for the product of a mesh's columns, and a deep mesh has too many unknowns.
        self.dense = len(self.flat) <= _DENSE and spec.coupling != "dense"

    def constants(self) -> Constants:
        """Return the constants by name."""
        return {name: value.float() for name, value in self._split(self.flat).items()}

    def newton(self, steps: int = 4) -> None:
        """Take Gauss-Newton steps from the result of L-BFGS to the nearby maximum."""
        for _ in range(steps):
            information, slope = self._normal_equations()
            moved = self.flat + torch.linalg.solve(information, slope)
            if not bool(torch.isfinite(moved).all()):
                return
            self.flat = torch.minimum(torch.maximum(moved, self._low), self._high)

    def errors(self, scale: float) -> Constants:
        """Return standard errors by name.

        Args:
            scale: root mean square residual in units of the noise; more than 1 if the law is incomplete.
        """
        if self.dense:
            information, _ = self._normal_equations()
            found = torch.linalg.inv(information).diagonal().clamp_min(0).sqrt()
        else:
            found = (self._diagonal() + self._prior()).rsqrt()
        return {name: (max(scale, 1.0) * value).float() for name, value in self._split(found).items()}

    def _split(self, values: Tensor) -> Constants:
        """Split a vector into parts by the names of the constants."""
        parts = values.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, shape, part in zip(self._names, self._shapes, parts, strict=True)}

    def _prior(self) -> Tensor:
        """Return the weight of each squared constant in a quadratic approximation of the prior at the fit."""
        scaled = (self.flat - self._nominal) / self._spreads
        return FREEDOM / (FREEDOM + scaled.square()) / self._spreads.square()

    def _residual(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Return the residuals divided by the noise, flat."""
        answers = law_outputs(self._model, self._split(values), self._pairs, chosen)
        measured = self._pairs.outputs[chosen]
        valid = unsaturated_mask(measured, answers.detach(), self._spec, self._noise)
        residual: Tensor = ((measured - answers) * valid / self._noise).flatten()
        return residual

    def _normal_equations(self) -> tuple[Tensor, Tensor]:
        """Return the information matrix and the gradient of the log posterior."""
        prior = self._prior()
        information, slope = torch.diag(prior), prior * (self._nominal - self.flat)
        basis = torch.eye(len(self.flat), dtype=torch.float64)
        for part in torch.arange(len(self._pairs.settings)).split(4):
            # Compute J t as the derivative of J^T u by u: two backward passes, which every law supports.
            forth: Any = torch.func.vjp(lambda values, part=part: self._residual(values, part), self.flat)
            residual, backwards = forth
            back: Any = torch.func.vjp(lambda weights, pull=backwards: pull(weights)[0], torch.zeros_like(residual))
            slopes = -torch.func.vmap(lambda tangent, pull=back[1]: pull(tangent)[0], chunk_size=64)(basis)
            information += slopes @ slopes.mT
            slope = slope + slopes @ residual
        return information, slope

    def _diagonal(self, rounds: int = 8) -> Tensor:
        """Estimate the diagonal of J^T J by the mean square of J^T s over random signs s."""
        generator = derive_generator(0, "errors")
        curvature = torch.zeros_like(self.flat)
        for _ in range(rounds):
            for part in torch.arange(len(self._pairs.settings)).split(16):
                leaf = self.flat.clone().requires_grad_()
                residual = self._residual(leaf, part)
                signs = torch.randint(0, 2, residual.shape, generator=generator).to(residual) * 2 - 1
                (gradient,) = torch.autograd.grad(residual, leaf, signs)
                curvature += gradient.square() / rounds
        return curvature
