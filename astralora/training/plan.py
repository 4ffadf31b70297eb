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

# Steps that are rehearsed one by one; of longer runs the rest is taken to go on like the last of them, as many as are
# divisible by every period that a method is likely to have.
_REHEARSED = 320
_WINDOW = 160


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

    Exact for what does not depend on the device's answers. What some methods do when the answers call for it comes
    on top: a slope that is measured before its time, a detector whose range has to be found, a direction that no
    batch shows.

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
    per_epoch = ceil(samples / config.batch_size)
    total = config.epochs * per_epoch
    steps = [step(batch)]
    once = tuple(session.usage for session in sessions.values())
    if first_step_only:
        return Plan(spec, 1, once, _sum((1, startup), (1, steps[0])))
    evaluation: Spending = {}
    # In order, the shorter last batches and the evaluations included: methods need not do the same in every step.
    while len(steps) < min(total, _REHEARSED):
        if len(steps) % per_epoch == 0:
            fit.evaluate()
            evaluation = spent()
        last = (len(steps) + 1) % per_epoch == 0
        steps.append(step(samples - (per_epoch - 1) * batch if last else batch))
    if not evaluation:
        fit.evaluate()
        evaluation = spent()
    window = steps[-min(len(steps), _WINDOW) :]
    by_purpose = _sum(
        (1, startup),
        *((1, each) for each in steps),
        ((total - len(steps)) / len(window), _sum(*((1, each) for each in window))),
        (config.epochs, evaluation),
    )
    return Plan(spec, total, once, {name: usage.rounded() for name, usage in by_purpose.items()})


def usage_by_purpose(sessions: Iterable[Session]) -> Spending:
    """What several devices have been asked for together, by what it was spent on."""
    return _sum(*((1, session.usage_by_purpose) for session in sessions))


def _sum(*parts: tuple[float, Spending]) -> Spending:
    names = {name for _, part in parts for name in part}
    return {
        name: _total({str(i): part.get(name, Usage()).scaled(n) for i, (n, part) in enumerate(parts)})
        for name in sorted(names)
    }


def _total(parts: Spending) -> Usage:
    return sum(parts.values(), Usage())
