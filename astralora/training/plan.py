"""What a run is going to ask of its device, found out by rehearsing its steps without the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import torch

from ..devices import BudgetExceeded, Device, DeviceSpec, Session, Usage, rehearse
from ..nn.methods import ExpensiveGradientWarning, expected_expense
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
        specs: of the devices that would be used.
        steps: updates in all.
        first_step: what startup and one step take of each device.
        by_device: everything that each is asked for, by what it is for.
        expense: what a calibration would save, in a sentence; None where nothing much.
    """

    specs: tuple[DeviceSpec, ...]
    steps: int
    first_step: tuple[Usage, ...]
    by_device: tuple[Spending, ...]
    expense: str | None = None

    @property
    def by_purpose(self) -> Spending:
        """All devices together, by what it is for."""
        return _sum(*((1, spending) for spending in self.by_device))

    @property
    def total(self) -> Usage:
        """All devices and purposes together."""
        return _total(self.by_purpose)

    def seconds(self, purpose: str | None = None) -> float:
        """Time on hardware at each spec's own rates: for a purpose, or for all."""
        return sum(
            usage.hardware_seconds(spec)
            for spec, spending in zip(self.specs, self.by_device, strict=True)
            for name, usage in spending.items()
            if purpose in (None, name)
        )

    @property
    def hardware_seconds(self) -> float:
        """Time on hardware in all."""
        return self.seconds()


def plan(config: RunConfig) -> Plan:
    """Price a configuration without opening its device.

    Exact for what does not depend on the device's answers. What some methods do when the answers call for it comes on
    top: a slope that is measured before its time, a detector whose range has to be found, a direction that no batch
    shows.

    Raises:
        DeviceError, ConfigurationError: the configuration cannot be run.
    """
    task = make_task(config)
    devices = make_devices(config, task)
    priced = _rehearse(config, task, devices, task.splits())
    for device in devices.values():
        check_method(config, device)
    return priced


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
    specs = tuple(device.spec for device in devices.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExpensiveGradientWarning)  # the plan says it
        fit = Fit(config, task, splits, attach_devices(config, task, sessions))
    seen: list[Spending] = [{} for _ in sessions]

    def spent() -> list[Spending]:
        nonlocal seen
        before, seen = seen, [session.usage_by_purpose for session in sessions.values()]
        return [
            {name: usage - old.get(name, Usage()) for name, usage in new.items()}
            for old, new in zip(before, seen, strict=True)
        ]

    def step(rows: int) -> list[Spending]:
        fit.train_step(torch.arange(rows))
        for layer in fit.layers:
            # Its controls have no say in a rehearsal; a real update would have moved them.
            with torch.no_grad():
                layer.controls.copy_(layer.controls.flip(0))
        return spent()

    startup = spent()
    samples, batch = len(splits.train_inputs), min(config.batch_size, len(splits.train_inputs))
    per_epoch = ceil(samples / config.batch_size)
    total = config.epochs * per_epoch
    shortest = samples - (per_epoch - 1) * batch
    kinds: dict[bool, list[list[Spending]]] = {False: [], True: []}  # by whether it is an epoch's last step
    evaluation: list[Spending] | None = None
    first: list[Spending] | None = None
    done = 0
    # In order, the shorter last batches and the evaluations included: methods need not do the same in every step.
    while done < (1 if first_step_only else min(total, _REHEARSED)):
        if done and done % per_epoch == 0:
            fit.evaluate()
            evaluation = spent()
        last = (done + 1) % per_epoch == 0
        kinds[last].append(step(shortest if last else batch))
        first = first or kinds[last][0]
        done += 1
    assert first is not None
    if first_step_only:
        once = [_sum((1, before), (1, one)) for before, one in zip(startup, first, strict=True)]
        return Plan(specs, 1, tuple(map(_total, once)), tuple(once))
    if evaluation is None:
        fit.evaluate()
        evaluation = spent()
    parts: list[list[tuple[float, Spending]]] = [[(1, each)] for each in startup]
    for last, steps in kinds.items():
        due = config.epochs if last else total - config.epochs
        # The rest is taken to go on like the newest of its kind.
        window = steps[-_WINDOW:] or ([step(shortest)] if last else [])
        for place, part in enumerate(parts):
            part += [(1, each[place]) for each in steps]
            part += [((due - len(steps)) / len(window), each[place]) for each in window]
    for place, part in enumerate(parts):
        part.append((config.epochs, evaluation[place]))
    by_device = tuple({name: usage.rounded() for name, usage in _sum(*part).items()} for part in parts)
    once_each = tuple(_total(_sum((1, before), (1, one))) for before, one in zip(startup, first, strict=True))
    return Plan(specs, total, once_each, by_device, _expense(config, fit))


def _expense(config: RunConfig, fit: Fit) -> str | None:
    if config.method.name != "auto":
        return None
    said = (expected_expense(layer.session.spec, layer.estimator) for layer in fit.layers)
    return next((sentence for sentence in said if sentence is not None), None)


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
