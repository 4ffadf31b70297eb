"""Compute the slow wander of the controls on the virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log10, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .impairments import Impairments

__all__ = ["Process", "Wander", "flicker", "wander_processes"]

# A process keeps its value for this share of its correlation time. The step is then within 14 % of the standard
# deviation, far below the resolution of a converter, and less than a hundredth of the power is faster. Drawing new
# values for a whole chip at every program would cost as much as the noise of all its detectors.
_RESOLUTION = 1e-2


class Process(NamedTuple):
    """Describe an Ornstein-Uhlenbeck process.

    Attributes:
        std: standard deviation in the steady state.
        seconds: correlation time, in seconds.
        common: all controls share one process; otherwise each has its own.
    """

    std: float
    seconds: float
    common: bool = False


def flicker(std: float, shortest: float, longest: float) -> list[Process]:
    """Return processes whose spectra add up to 1 / f.

    They are equally strong, two per decade of correlation times. The sum falls as 1 / f between 1 / (2 pi longest) and
    1 / (2 pi shortest). Below it is white, above it falls as 1 / f^2.

    Args:
        std: standard deviation of the sum.
        shortest: shortest correlation time, in seconds.
        longest: longest correlation time, in seconds.
    """
    if not std:
        return []
    count = max(2, round(2 * log10(longest / shortest)) + 1)
    ratio = (longest / shortest) ** (1 / (count - 1))
    return [Process(std / sqrt(count), shortest * ratio**step) for step in range(count)]


def wander_processes(impairments: Impairments) -> list[Process]:
    """Return the processes that move a chip's controls: individual wander, common wander and flicker."""
    own, common = (1 - impairments.wander_common) ** 0.5, impairments.wander_common**0.5
    return [
        Process(impairments.wander_std * own, impairments.wander_seconds),
        Process(impairments.wander_std * common, impairments.wander_seconds, common=True),
        *flicker(impairments.flicker_std, *impairments.flicker_seconds),
    ]


class Wander:
    """Add up Ornstein-Uhlenbeck processes, which start from their steady state.

    x(t + dt) = x(t) rho + std sqrt(1 - rho^2) xi, with rho = exp(-dt / seconds). This is exact for any dt, so that the
    statistics do not depend on how often the wander is evaluated.

    Args:
        count: number of controls.
        processes: the processes; those with zero standard deviation are left out.
        generator: source of the noise; nothing else may draw from it.

    Attributes:
        value: displacement of the controls at present, (count,); None where nothing moves.
    """

    def __init__(self, count: int, processes: Sequence[Process], generator: torch.Generator) -> None:
        self._processes = [process for process in processes if process.std]
        self._count = count
        self._generator = generator
        self._times = [0.0] * len(self._processes)
        self._values = [process.std * self._draw(process) for process in self._processes]
        self.value = self._sum()

    def advance(self, now: float) -> bool:
        """Move on to clock time ``now``, in seconds; return whether anything has moved."""
        moved = False
        for place, process in enumerate(self._processes):
            elapsed = now - self._times[place]
            if elapsed < _RESOLUTION * process.seconds:
                continue
            rho = exp(-elapsed / process.seconds)
            # A new tensor: an autograd graph may hold the old one.
            self._values[place] = torch.add(
                rho * self._values[place], self._draw(process), alpha=process.std * sqrt(1 - rho * rho)
            )
            self._times[place] = now
            moved = True
        if moved:
            self.value = self._sum()
        return moved

    def path(self, times: Sequence[float]) -> Tensor | None:
        """Return the displacements at several rising times, (len(times), count); None where nothing moves."""
        if self.value is None:
            return None
        values = []
        for now in times:
            self.advance(now)
            values.append(self.value)
        return torch.stack(values)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the future depends on."""
        return {"times": list(self._times), "values": list(self._values), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._times = list(state["times"])
        self._values = [value.to(self._generator.device) for value in state["values"]]
        self.value = self._sum()
        self._generator.set_state(state["generator"])

    def _draw(self, process: Process) -> Tensor:
        size = 1 if process.common else self._count
        return torch.randn(size, generator=self._generator, device=self._generator.device)

    def _sum(self) -> Tensor | None:
        if not self._values:
            return None
        total = self._values[0]
        for value in self._values[1:]:
            total = total + value
        return total.expand(self._count)
