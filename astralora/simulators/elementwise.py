"""Define kinds in which every control sets one entry of the transfer matrix."""

from __future__ import annotations

from math import pi, sqrt
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..devices import Constant, Range
from .physics import Heated, LinearPhysics

__all__ = ["MRR", "SLM", "MatVec"]

_Amplitude = Annotated[float, Field(gt=0, lt=1)]

# If |a - r| is smaller than this, a ring transmits so little on resonance that the result depends on rounding.
_DARK = 1e-3

_QUALITIES = {"high": (0.987, 0.99), "medium": (0.925, 0.93), "low": (0.845, 0.85)}


class MatVec(LinearPhysics):
    """Simulate a crossbar: the controls are the matrix entries, A = W, from -1 to 1."""

    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (-1.0, 1.0)
    initial_range: ClassVar[Range] = (-0.5, 0.5)  # the inner half, so that entries can grow in both directions
    conductances: ClassVar[bool] = True
    reciprocal: ClassVar[bool] = True

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Return the controls as the entries of the matrix, row by row; see `LinearPhysics.matrix`."""
        return controls.reshape(*controls.shape[:-1], out_features, in_features)


class SLM(LinearPhysics):
    """Simulate a spatial light modulator: A_ij = cos(w_ij) / sqrt(in_features)."""

    initial_range: ClassVar[Range] = (pi / 2 - 0.1, pi / 2 + 0.1)  # near the zero crossing
    period: ClassVar[float] = 2 * pi

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute cos(w_ij) / sqrt(in_features); see `LinearPhysics.matrix`."""
        phases = controls.reshape(*controls.shape[:-1], out_features, in_features)
        return torch.cos(phases) / sqrt(in_features)

    def full_scale(self, in_features: int) -> float:
        """Return 1, because the matrix already has the factor 1 / sqrt(in_features)."""
        del in_features
        return 1.0


class MRR(Heated, LinearPhysics):
    """Simulate a bank of microring resonators: the transmission of a ring at detuning phase w_ij gives each weight.

    With self-coupling r and round-trip amplitude a, an add-drop ring transmits the power
    T(w) = (a^2 + r^2 - 2 a r cos w) / (1 + a^2 r^2 - 2 a r cos w).

    Attributes:
        response: ``"field"`` for weights 2 sqrt(T) - 1, as in arXiv 2509.15113; ``"power"`` for 2 T - 1.
        quality: ``"high"``, ``"medium"`` or ``"low"``, in place of a and r.
        a: amplitude after one round trip.
        r: self-coupling of the waveguide.
        balanced: whether the detector subtracts a reference, which shifts and scales the weights to -1 ... 1.
    """

    control_range: ClassVar[Range] = (0.0, pi)  # T is even and periodic: this covers all its values
    initial_range: ClassVar[Range] = (0.01, pi / 4)  # close to resonance, where the slope is large

    response: Literal["field", "power"] = "field"
    quality: Literal["high", "medium", "low"] | None = None
    a: _Amplitude = 0.8
    r: _Amplitude = 0.9
    balanced: bool = False

    @model_validator(mode="before")
    @classmethod
    def _set_losses_by_quality(cls, options: Any) -> Any:
        if not isinstance(options, dict) or options.get("quality") not in _QUALITIES:
            return options
        if "a" in options or "r" in options:
            raise ValueError("quality sets a and r: give either quality, or a and r")
        a, r = _QUALITIES[options["quality"]]
        return {**options, "a": a, "r": r}

    def constants(self, in_features: int, out_features: int) -> dict[str, Constant]:
        """Return the constants a and r, which are equal for all rings of a chip."""
        del in_features, out_features
        # The spread is the difference between two qualities, because gaps and waveguides vary between wafers.
        return {
            "a": Constant((), self.a, 0.05, low=1e-3, high=1 - 1e-4),
            "r": Constant((), self.r, 0.05, low=1e-3, high=1 - 1e-4),
        }

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the ring weights; see `LinearPhysics.matrix`."""
        phases = controls.reshape(*controls.shape[:-1], out_features, in_features)
        fitted = isinstance(self.a, Tensor) or isinstance(self.r, Tensor)
        if self.response == "field" and not fitted and abs(self.a - self.r) > _DARK:
            weights: Tensor = _FieldWeight.apply(phases, self.a, self.r)  # type: ignore[no-untyped-call]
        else:
            weights = self._weight(torch.cos(phases))
        if not self.balanced:
            return weights
        least, most = (self._weight(controls.new_tensor(cosine)) for cosine in (1.0, -1.0))
        return (2 * weights - (most + least)) / (most - least)

    def _weight(self, cosine: Tensor) -> Tensor:
        a, r = self.a, self.r
        # 1 - T is computed instead of T, because it needs one division only and is exact near resonance.
        absorbed = (1 + (a * r) ** 2 - a**2 - r**2) / (1 + (a * r) ** 2 - 2 * a * r * cosine)
        if self.response == "power":
            return 1 - 2 * absorbed
        # For a = r the transmission at resonance is zero, and rounding could make it negative.
        return 2 * (1 - absorbed).clamp_min(1e-12).sqrt() - 1


class _FieldWeight(torch.autograd.Function):
    """Compute 2 sqrt(T(w)) - 1 for rings with known losses, with an explicit gradient.

    It reads and writes a third of the memory that autograd would. With l = (1 - a^2)(1 - r^2),
    alpha = -(1 + (a r)^2) / (4 l), beta = a r / (2 l) and v = 1 / (alpha + beta cos w), the transmission is
    T = (4 + v) / 4. The derivative of 2 sqrt(T) is beta v^2 sin(w) / (2 sqrt(4 T)).
    """

    @staticmethod
    def forward(ctx: Any, phases: Tensor, a: float, r: float) -> Tensor:
        loss = (1 - a**2) * (1 - r**2)
        alpha, beta = -(1 + (a * r) ** 2) / (4 * loss), a * r / (2 * loss)
        v = torch.cos(phases).mul_(beta).add_(alpha).reciprocal_()
        twice_field = (v + 4).sqrt_()
        ctx.save_for_backward(phases, v, twice_field)
        ctx.beta = beta
        return twice_field - 1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        phases, v, twice_field = ctx.saved_tensors
        return torch.sin(phases).mul_(v).mul_(v).div_(twice_field).mul_(grad).mul_(ctx.beta / 2), None, None
