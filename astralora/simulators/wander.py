"""Compute the slow wander of the controls on the virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log10, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .impairments import Impairments

__all__ = ["Process", "Wander", "flicker", "wander_processes"]

# A process keeps its value for this share of its correlation time. The steps are then about 14 % of the standard
# deviation, far below the resolution of a converter, and less than a hundredth of the power is at higher frequencies.
# Drawing new values for a whole chip at every program would cost as much as the noise of all its detectors.
_RESOLUTION = 1e-2


class Process(NamedTuple):
    """Describe an Ornstein-Uhlenbeck process.

    Attributes:
        std: standard deviation in the steady state.
        seconds: correlation time, in seconds.
        common: whether all controls have one process in common; otherwise each control has its own process.
    """

    std: float
    seconds: float
    common: bool = False


def flicker(std: float, shortest: float, longest: float) -> list[Process]:
    """Return processes whose spectra add up to 1 / f.

    They are equally strong, with two processes per decade of correlation times. The spectrum of the sum falls as 1 / f
    between 1 / (2 pi longest) and 1 / (2 pi shortest). It is white at lower frequencies, and falls as 1 / f^2 at higher
    ones.

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
    """Return the processes that change a chip's controls: individual wander, common wander and 1/f wander."""
    own, common = (1 - impairments.wander_common) ** 0.5, impairments.wander_common**0.5
    return [
        Process(impairments.wander_std * own, impairments.wander_seconds),
        Process(impairments.wander_std * common, impairments.wander_seconds, common=True),
        *flicker(impairments.flicker_std, *impairments.flicker_seconds),
    ]


class Wander:
    """Compute the sum of Ornstein-Uhlenbeck processes, which start from their steady state.

    x(t + dt) = x(t) rho + std sqrt(1 - rho^2) xi, with rho = exp(-dt / seconds). This is exact for any dt, so the
    statistics do not depend on how often the wander is evaluated.

    Args:
        count: number of controls.
        processes: processes to add; processes with zero standard deviation are left out.
        generator: source of the noise; no other object may draw from it.

    Attributes:
        value: present displacement of the controls, (count,); None if there are no processes.
    """

    def __init__(self, count: int, processes: Sequence[Process], generator: torch.Generator) -> None:
        self._processes = [process for process in processes if process.std]
        self._count = count
        self._generator = generator
        self._times = [0.0] * len(self._processes)
        self._values = [process.std * self._draw(process) for process in self._processes]
        self.value = self._sum()

    def advance(self, now: float) -> bool:
        """Advance to clock time ``now``, in seconds; return whether any value has changed."""
        moved = False
        for place, process in enumerate(self._processes):
            elapsed = now - self._times[place]
            if elapsed < _RESOLUTION * process.seconds:
                continue
            rho = exp(-elapsed / process.seconds)
            # Not changed in place, because an autograd graph may still use the old tensor.
            self._values[place] = torch.add(
                rho * self._values[place], self._draw(process), alpha=process.std * sqrt(1 - rho * rho)
            )
            self._times[place] = now
            moved = True
        if moved:
            self.value = self._sum()
        return moved

    def path(self, times: Sequence[float]) -> Tensor | None:
        """Return the displacements at several increasing times, (len(times), count); None if there are no processes."""
        if self.value is None:
            return None
        values = []
        for now in times:
            self.advance(now)
            values.append(self.value)
        return torch.stack(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state, so that the wander can be continued exactly."""
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
