"""Slow wander of the controls on the virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

__all__ = ["Wander"]

# Between samples the wander is held. A thousandth of the correlation time keeps the step within 4.5 % of the
# standard deviation, and spares redrawing a whole chip for microseconds that changed nothing.
_RESOLUTION = 1e-3


class Wander:
    """Independent Ornstein-Uhlenbeck processes, one a control, started from their steady state.

    x(t + dt) = x(t) rho + std sqrt(1 - rho^2) xi, with rho = exp(-dt / seconds): exact for any dt, so the
    law does not depend on how often it is looked at.

    Args:
        count: number of controls.
        std: steady-state standard deviation, in control units; 0 keeps everything still.
        seconds: correlation time.
        generator: where the noise comes from; owned by this object from now on.
    """

    def __init__(self, count: int, std: float, seconds: float, generator: torch.Generator) -> None:
        self._std = std
        self._seconds = seconds
        self._generator = generator
        self._time = 0.0
        self.value: Tensor | None = None
        if std:
            self.value = std * torch.randn(count, generator=generator, device=generator.device)

    def advance(self, now: float) -> bool:
        """Move on to the time ``now``, in seconds; returns whether anything moved."""
        elapsed = now - self._time
        if self.value is None or elapsed < _RESOLUTION * self._seconds:
            return False
        rho = exp(-elapsed / self._seconds)
        fresh = torch.randn(self.value.shape, generator=self._generator, device=self._generator.device)
        # A new tensor: the old one may be saved in somebody's graph.
        self.value = torch.add(rho * self.value, fresh, alpha=self._std * sqrt(1 - rho * rho))
        self._time = now
        return True

    def path(self, times: Sequence[float]) -> Tensor | None:
        """The wander at several rising times: (len(times), count), or None where nothing moves."""
        if self.value is None:
            return None
        values = []
        for now in times:
            self.advance(now)
            values.append(self.value)
        return torch.stack(values)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        return {
            "time": self._time,
            "value": self.value,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._time = state["time"]
        value = state["value"]
        self.value = None if value is None else value.to(self._generator.device)
        self._generator.set_state(state["generator"])
