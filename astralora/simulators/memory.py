"""What memory cells do to the conductances written into them: programming noise, and decay."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor

from ..devices import derive_generator
from .impairments import Impairments

__all__ = ["PCM_MAX_MICROSIEMENS", "Decay", "pcm_drift", "pcm_programming_std"]

PCM_MAX_MICROSIEMENS = 25.0
"""The conductance that stands for a magnitude of one."""

# A decay that has gone on by less than this is not worth computing a transfer matrix anew.
_RESOLUTION = 1e-4


def pcm_programming_std(conductance: Tensor) -> Tensor:
    """Error of a programmed phase-change cell: 0.26348 + 1.9650 g - 1.1731 g^2 microsiemens, as a share of the largest.

    Args:
        conductance: g, relative to the largest, 0 to 1.
    """
    return (0.26348 + 1.9650 * conductance - 1.1731 * conductance.square()) / PCM_MAX_MICROSIEMENS


def pcm_drift(conductance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of phase-change cells' drift exponents, by their relative conductance."""
    logarithm = conductance.clamp_min(1e-12).log()
    mean = (-0.0155 * logarithm + 0.0244).clamp(0.049, 0.1)
    std = (-0.0125 * logarithm - 0.0059).clamp(0.008, 0.045)
    return mean, std


class Decay:
    """The factor (t / t0)^-nu by which controls have decayed since they were programmed.

    Args:
        impairments: whose ``pcm`` and ``drift_...`` hold.
        count: number of controls.
        seed: which chip.
        noise: stream of what is drawn at every program.
    """

    def __init__(self, impairments: Impairments, count: int, seed: int, noise: torch.Generator) -> None:
        self._law = impairments
        self._noise = noise
        self._exponents: Tensor | None = None
        self._programmed_at = 0.0
        self._seen: float | None = None  # log of t / t0 when the factor was taken last
        if impairments.drift_nu or impairments.drift_nu_std:
            draw = torch.randn(count, generator=derive_generator(seed, "chip", "drift"), dtype=torch.float64)
            exponents = (impairments.drift_nu + impairments.drift_nu_std * draw).clamp_min(0)
            self._exponents = exponents.to(noise.device)

    def write(self, controls: Tensor) -> Tensor:
        """What cells come to hold that are written ``controls``, (..., num_controls)."""
        if not self._law.pcm:
            return controls
        return controls.sign() * (
            controls.abs() + pcm_programming_std(controls.abs()) * self._randn(controls)
        ).clamp_min(0)

    def programmed(self, controls: Tensor, now: float) -> None:
        """Decay starts anew, from ``controls``, (num_controls,)."""
        self._programmed_at, self._seen = now, None
        if self._law.pcm:
            mean, std = pcm_drift(controls.abs())
            self._exponents = (mean + std * self._randn(controls)).clamp_min(0)

    def factor(self, now: float, dtype: torch.dtype) -> Tensor | None:
        """What is left of every control; None while nothing has decayed."""
        elapsed = (now - self._programmed_at) / self._law.drift_t0_seconds
        if self._exponents is None or elapsed <= 1:
            return None
        self._seen = log(elapsed)
        return torch.exp(-self._seen * self._exponents).to(dtype)

    def moved(self, now: float) -> bool:
        """Whether the factor has changed since it was taken last."""
        elapsed = (now - self._programmed_at) / self._law.drift_t0_seconds
        return self._exponents is not None and elapsed > 1 and abs(log(elapsed) - (self._seen or 0.0)) > _RESOLUTION

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        return {"programmed_at": self._programmed_at, "exponents": self._exponents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._programmed_at, self._seen = state["programmed_at"], None
        exponents = state["exponents"]
        self._exponents = None if exponents is None else exponents.to(self._noise.device)

    def _randn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._noise, dtype=like.dtype, device=like.device)
