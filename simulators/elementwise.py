"""Kinds in which every control sets one entry of the transfer matrix."""

from __future__ import annotations

from math import pi, sqrt
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from devices import Range

from .physics import LinearPhysics

__all__ = ["MRR", "SLM", "MatVec"]

_Amplitude = Annotated[float, Field(gt=0, lt=1)]


class MatVec(LinearPhysics):
    """Crossbar: the controls are the matrix entries, A = W, from -1 to 1."""

    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (-1.0, 1.0)
    initial_range: ClassVar[Range] = (-0.5, 0.5)  # the inner half: entries can grow either way
    reciprocal: ClassVar[bool] = True

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The controls, in their places."""
        return controls.reshape(*controls.shape[:-1], out_features, in_features)


class SLM(LinearPhysics):
    """Spatial light modulator: A_ij = cos(w_ij) / sqrt(in_features)."""

    initial_range: ClassVar[Range] = (pi / 2 - 0.1, pi / 2 + 0.1)  # near the zero crossing

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The cosine of each phase over the square root of the number of inputs."""
        phases = controls.reshape(*controls.shape[:-1], out_features, in_features)
        return torch.cos(phases) / sqrt(in_features)

    def full_scale(self, in_features: int) -> float:  # noqa: ARG002
        """One: the matrix carries the 1 / sqrt(in_features) itself."""
        return 1.0


class MRR(LinearPhysics):
    """Microring resonator bank: the weight follows the ring's transmission at detuning phase w_ij.

    With self-coupling r and round-trip amplitude a, an add-drop ring transmits the power
    T(w) = (a^2 + r^2 - 2 a r cos w) / (1 + a^2 r^2 - 2 a r cos w).

    Attributes:
        response: ``"field"`` weighs by 2 sqrt(T) - 1, as in arXiv 2509.15113; ``"power"`` by 2 T - 1.
        a: amplitude that is left after one round trip.
        r: self-coupling of the waveguide.
    """

    control_range: ClassVar[Range] = (0.0, pi)  # T is even and periodic: this is all it can do
    initial_range: ClassVar[Range] = (0.01, pi / 4)  # close to resonance, where weights move fast

    response: Literal["field", "power"] = "field"
    a: _Amplitude = 0.8
    r: _Amplitude = 0.9

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The ring weights."""
        phases = controls.reshape(*controls.shape[:-1], out_features, in_features)
        loss = 1 + (self.a * self.r) ** 2 - self.a**2 - self.r**2
        # 1 - T rather than T: one division instead of two fractions, and exact near resonance.
        absorbed = loss / (1 + (self.a * self.r) ** 2 - 2 * self.a * self.r * torch.cos(phases))
        # Dark at resonance where a = r; rounding must not make it less than dark.
        transmitted = (1 - absorbed).clamp_min(1e-12)
        return 2 * (transmitted.sqrt() if self.response == "field" else transmitted) - 1
