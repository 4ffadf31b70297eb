"""What a run is going to ask of its device, found out by rehearsing its steps without the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import torch

from devices import BudgetExceeded, Device, DeviceSpec, Session, Usage, rehearse

from ..tasks import Splits, Task
from .config import RunConfig
from .fit import Fit
from .setup import attach_devices, check_method, make_devices, make_task

__all__ = ["Plan", "check_run", "plan", "usage_by_purpose"]

Spending = dict[str, Usage]

# Divisible by every period that a method is likely to have.
_SAMPLED_STEPS = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """The price of a run.

    Attributes:
        spec: of the device that would be used; all of them are of one kind.
        steps: updates in all.
        first_step: what startup and one step take of each device.
        by_purpose: everything, by what it is for.
    """

    spec: DeviceSpec
    steps: int
    first_step: tuple[Usage, ...]
    by_purpose: Spending

    @property
    def total(self) -> Usage:
        """All purposes together."""
        return _total(self.by_purpose)

    @property
    def hardware_seconds(self) -> float:
        """Time on hardware at the spec's own rates."""
        return self.total.hardware_seconds(self.spec)


def plan(config: RunConfig) -> Plan:
    """Price a configuration without opening its device.

    Raises:
        DeviceError, ConfigurationError: the configuration cannot be run.
    """
    task = make_task(config)
    return _rehearse(config, task, make_devices(config, task), task.splits())


def check_run(config: RunConfig, task: Task, splits: Splits, devices: Mapping[str, Device]) -> None:
    """Refuse a run that cannot even be begun, before anything is spent or written.

    The first step is rehearsed, so that whatever is wrong with names, options and widths shows; the method is
    asked whether it can work on this very device; and the budget has to cover the start and one step.

    Raises:
        BudgetExceeded: says what start and first step take.
        DeviceError, ConfigurationError: the configuration cannot be run.
    """
    rehearsal = _rehearse(config, task, devices, splits, first_step_only=True)
    for device, first in zip(devices.values(), rehearsal.first_step, strict=True):
        check_method(config, device)
        reason = config.budget.shortfall(first, device.spec)
        if reason is not None:
            raise BudgetExceeded(
                f"start and first step alone would come to {reason}; raise the budget, "
                f"or see what the run takes with 'astralora plan'",
                device=device.spec.name,
                operation="train",
            )


def _rehearse(
    config: RunConfig,
    task: Task,
    devices: Mapping[str, Device],
    splits: Splits,
    *,
    first_step_only: bool = False,
) -> Plan:
    sessions = {name: Session(rehearse(device)) for name, device in devices.items()}
    spec = next(iter(devices.values())).spec
    fit = Fit(config, task, splits, attach_devices(config, task, sessions))
    startup = usage_by_purpose(sessions.values())
    seen = startup

    def spent() -> Spending:
        nonlocal seen
        before, seen = seen, usage_by_purpose(sessions.values())
        return {name: usage - before.get(name, Usage()) for name, usage in seen.items()}

    def step(rows: int) -> Spending:
        fit.train_step(torch.arange(rows))
        for layer in fit.layers:
            # Answers of zero teach nothing; a real update would have moved the controls.
            with torch.no_grad():
                layer.controls.copy_(layer.controls.flip(0))
        return spent()

    samples, batch = len(splits.train_inputs), min(config.batch_size, len(splits.train_inputs))
    steps = ceil(samples / config.batch_size)
    first = step(batch)
    once = tuple(session.usage for session in sessions.values())
    if first_step_only:
        return Plan(spec, 1, once, _sum((1, startup), (1, first)))
    # Several, for methods that do not spend the same in every step.
    sampled = min(max(steps - 2, 1), _SAMPLED_STEPS)
    steady = _sum(*((1, step(batch)) for _ in range(sampled)))
    rest = samples - (steps - 1) * batch
    last = step(rest)
    fit.evaluate()
    evaluation = spent()
    after_evaluation = step(batch)
    epochs = config.epochs
    if steps == 1:
        parts = _sum((1, first), (epochs - 1, after_evaluation))
    else:
        parts = _sum(
            (1, first),
            (epochs - 1, after_evaluation),
            (epochs * (steps - 2), {name: usage.scaled(1 / sampled) for name, usage in steady.items()}),
            (epochs, last),
        )
    by_purpose = {name: usage.rounded() for name, usage in _sum((1, startup), (1, parts), (epochs, evaluation)).items()}
    return Plan(spec, epochs * steps, once, by_purpose)


def usage_by_purpose(sessions: Iterable[Session]) -> Spending:
    """What several devices have been asked for together, by what it was spent on."""
    return _sum(*((1, session.usage_by_purpose) for session in sessions))


def _sum(*parts: tuple[int, Spending]) -> Spending:
    names = {name for _, part in parts for name in part}
    return {
        name: _total({str(i): part.get(name, Usage()).scaled(n) for i, (n, part) in enumerate(parts)})
        for name in sorted(names)
    }


def _total(parts: Spending) -> Usage:
    return sum(parts.values(), Usage())
