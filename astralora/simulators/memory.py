"""Compute the programming noise and the decay of controls in memory cells."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from ..devices import derive_generator
from .impairments import Impairments
from .noise import standard_normal

__all__ = ["PCM_MAX_MICROSIEMENS", "Decay", "pcm_drift", "pcm_programming_std"]

PCM_MAX_MICROSIEMENS = 25.0
"""Conductance for a control of magnitude one."""

# Smallest relative change of the controls for which a new transfer matrix is computed.
_RESOLUTION = 1e-4


def pcm_programming_std(conductance: Tensor) -> Tensor:
    """Return the standard deviation of a phase-change cell's programming error, relative to the largest conductance.

    It is 0.26348 + 1.9650 g - 1.1731 g^2 microsiemens.

    Args:
        conductance: conductance g relative to the largest conductance, 0 to 1.
    """
    return (0.26348 + 1.9650 * conductance - 1.1731 * conductance.square()) / PCM_MAX_MICROSIEMENS


def pcm_drift(conductance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of phase-change cells' drift exponents.

    Args:
        conductance: conductance relative to the largest conductance, 0 to 1.
    """
    logarithm = conductance.clamp_min(1e-12).log()
    mean = (-0.0155 * logarithm + 0.0244).clamp(0.049, 0.1)
    std = (-0.0125 * logarithm - 0.0059).clamp(0.008, 0.045)
    return mean, std


class Decay:
    """Compute the factor (t / t0)^-nu by which controls have decayed since they were programmed.

    Args:
        impairments: impairments of the chip; only ``pcm`` and ``drift_...`` are used.
        count: number of controls.
        seed: seed of the chip.
        noise: random stream for the numbers that are drawn at every program.
    """

    def __init__(self, impairments: Impairments, count: int, seed: int, noise: torch.Generator) -> None:
        self._law = impairments
        self._noise = noise
        self._exponents: Tensor | None = None
        self._programmed_at = 0.0
        self._log_elapsed: float | None = None  # log(t / t0) of the newest factor
        if impairments.drift_nu or impairments.drift_nu_std:
            draw = torch.randn(count, generator=derive_generator(seed, "chip", "drift"), dtype=torch.float64)
            exponents = (impairments.drift_nu + impairments.drift_nu_std * draw).clamp_min(0)
            self._exponents = exponents.to(noise.device)

    def write(self, controls: Tensor) -> Tensor:
        """Return the values in the cells after writing ``controls``, (..., num_controls): with programming noise."""
        if not self._law.pcm:
            return controls
        magnitudes = controls.abs()
        error = pcm_programming_std(magnitudes) * standard_normal(controls, self._noise)
        return controls.sign() * (magnitudes + error).clamp_min(0)

    def start(self, controls: Tensor, now: float) -> None:
        """Start the decay of newly programmed acting ``controls``, (num_controls,), at clock time ``now``."""
        self._programmed_at, self._log_elapsed = now, None
        if self._law.pcm:
            mean, std = pcm_drift(controls.abs())
            self._exponents = (mean + std * standard_normal(controls, self._noise)).clamp_min(0)

    def factor(self, now: float, dtype: torch.dtype) -> Tensor | None:
        """Return the factor of every control, (num_controls,), at clock time ``now``; None before decay begins."""
        elapsed = self._elapsed(now)
        if self._exponents is None or elapsed <= 1:
            return None
        self._log_elapsed = log(elapsed)
        return torch.exp(-self._log_elapsed * self._exponents).to(dtype)

    def has_changed(self, now: float) -> bool:
        """Return whether the factor has changed noticeably since `factor` computed it last."""
        elapsed = self._elapsed(now)
        if self._exponents is None or elapsed <= 1:
            return False
        return abs(log(elapsed) - (self._log_elapsed or 0.0)) > _RESOLUTION

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state, so that the decay can be continued exactly."""
        return {"programmed_at": self._programmed_at, "exponents": self._exponents}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._programmed_at, self._log_elapsed = state["programmed_at"], None
        exponents = state["exponents"]
        self._exponents = None if exponents is None else exponents.to(self._noise.device)

    def _elapsed(self, now: float) -> float:
        return (now - self._programmed_at) / self._law.drift_t0_seconds
