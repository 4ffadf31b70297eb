"""Slow wander of the controls on the virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log10, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Process", "Wander", "flicker"]

# Between samples a process is held. A hundredth of the correlation time keeps the step within 14 % of the standard
# deviation, far below what a converter resolves; less than a hundredth of its power moves faster than that. Redrawing a
# whole chip for every program would cost as much as the noise of all its detectors.
_RESOLUTION = 1e-2


class Process(NamedTuple):
    """An Ornstein-Uhlenbeck process.

    Attributes:
        std: in its steady state.
        seconds: correlation time.
        common: all controls have the same one, rather than one each.
    """

    std: float
    seconds: float
    common: bool = False


def flicker(std: float, shortest: float, longest: float) -> list[Process]:
    """Processes of equal strength, two to a decade of correlation times, whose spectra add up to 1 / f.

    Between 1 / (2 pi longest) and 1 / (2 pi shortest); below it is white, above it falls with 1 / f^2.
    """
    if not std:
        return []
    count = max(2, round(2 * log10(longest / shortest)) + 1)
    ratio = (longest / shortest) ** (1 / (count - 1))
    return [Process(std / sqrt(count), shortest * ratio**step) for step in range(count)]


class Wander:
    """Ornstein-Uhlenbeck processes that add up, started from their steady state.

    x(t + dt) = x(t) rho + std sqrt(1 - rho^2) xi, with rho = exp(-dt / seconds): exact for any dt, so the
    law does not depend on how often it is looked at.

    Args:
        count: number of controls.
        processes: that add up; those of no strength are left out.
        generator: where the noise comes from; owned by this object from now on.

    Attributes:
        value: where the controls are, (count,); None where nothing moves.
    """

    def __init__(self, count: int, processes: Sequence[Process], generator: torch.Generator) -> None:
        self._processes = [process for process in processes if process.std]
        self._count = count
        self._generator = generator
        self._times = [0.0] * len(self._processes)
        self._values = [process.std * self._fresh(process) for process in self._processes]
        self.value = self._sum()

    def advance(self, now: float) -> bool:
        """Move on to the time ``now``, in seconds; returns whether anything moved."""
        moved = False
        for place, process in enumerate(self._processes):
            elapsed = now - self._times[place]
            if elapsed < _RESOLUTION * process.seconds:
                continue
            rho = exp(-elapsed / process.seconds)
            # A new tensor: the old one may be saved in somebody's graph.
            self._values[place] = torch.add(
                rho * self._values[place], self._fresh(process), alpha=process.std * sqrt(1 - rho * rho)
            )
            self._times[place] = now
            moved = True
        if moved:
            self.value = self._sum()
        return moved

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
        return {"times": list(self._times), "values": list(self._values), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._times = list(state["times"])
        self._values = [value.to(self._generator.device) for value in state["values"]]
        self.value = self._sum()
        self._generator.set_state(state["generator"])

    def _fresh(self, process: Process) -> Tensor:
        size = 1 if process.common else self._count
        return torch.randn(size, generator=self._generator, device=self._generator.device)

    def _sum(self) -> Tensor | None:
        if not self._values:
            return None
        total = self._values[0]
        for value in self._values[1:]:
            total = total + value
        return total.expand(self._count)
