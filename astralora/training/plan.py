"""Predict the device operations of a run by rehearsing its steps without the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import torch

from ..devices import BudgetExceeded, Device, DeviceSpec, Purpose, Session, Usage, rehearse
from ..nn.methods import ExpensiveGradientWarning, expected_expense
from ..tasks import Splits, Task
from .config import RunConfig
from .fit import Fit
from .setup import attach_devices, check_method, make_devices, make_task

__all__ = ["Plan", "check_run", "plan", "usage_by_purpose"]

Spending = dict[Purpose, Usage]

# Number of steps that are rehearsed. Longer runs are assumed to continue like the last steps; their number is divisible
# by the periods that methods are likely to have.
_REHEARSED = 320
_WINDOW = 160


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the predicted cost of a run.

    Attributes:
        specs: specs of the devices.
        steps: number of updates.
        first_step: operations of each device at startup and in the first step.
        by_device: operations of each device by purpose.
        expense: sentence about the operations that a calibration would save; None if it would save few.
    """

    specs: tuple[DeviceSpec, ...]
    steps: int
    first_step: tuple[Usage, ...]
    by_device: tuple[Spending, ...]
    expense: str | None = None

    @property
    def by_purpose(self) -> Spending:
        """Return the operations of all devices together, by purpose."""
        return _sum(*((1, spending) for spending in self.by_device))

    @property
    def total(self) -> Usage:
        """Return the operations of all devices and purposes."""
        return _total(self.by_purpose)

    def seconds(self, purpose: str | None = None) -> float:
        """Return the seconds on hardware at the rates of each spec, for one purpose or for all."""
        return sum(
            usage.hardware_seconds(spec)
            for spec, spending in zip(self.specs, self.by_device, strict=True)
            for name, usage in spending.items()
            if purpose in (None, name)
        )

    @property
    def hardware_seconds(self) -> float:
        """Return the seconds on hardware for all purposes."""
        return self.seconds()


def plan(config: RunConfig) -> Plan:
    """Predict the operations of a configuration without opening its device.

    The prediction is exact for operations that do not depend on the answers. Some methods make additional ones when the
    answers require it: an early measurement of a slope, a search for a detector's range, a direction that no batch
    covers.

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
    """Refuse a run that cannot start, before anything is spent or written.

    The first step is rehearsed to check names, options and widths. The method is checked against the device itself, and
    the budget must cover startup and one step.

    Raises:
        BudgetExceeded: the budget does not cover startup and first step.
        DeviceError, ConfigurationError: the configuration cannot be run.
    """
    rehearsal = _rehearse(config, task, devices, splits, first_step_only=True)
    for device, first in zip(devices.values(), rehearsal.first_step, strict=True):
        check_method(config, device)
        reason = config.budget.shortfall(first, device.spec)
        if reason is not None:
            raise BudgetExceeded(
                f"startup and first step alone take {reason}; raise the budget, "
                f"or predict the cost of the run with 'astralora plan'",
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
    """Rehearse a run without its devices, and extrapolate the operations of long runs."""
    rehearsal = _Rehearsal(config, task, devices, splits)
    rehearsal.run(1 if first_step_only else min(rehearsal.total, _REHEARSED))
    once = [_sum((1, start), (1, step)) for start, step in zip(rehearsal.startup, rehearsal.first, strict=True)]
    specs = tuple(device.spec for device in devices.values())
    if first_step_only:
        return Plan(specs, 1, tuple(map(_total, once)), tuple(once))
    return Plan(
        specs, rehearsal.total, tuple(map(_total, once)), rehearsal.extrapolate(), _expense(config, rehearsal.fit)
    )


class _Rehearsal:
    """Make the steps of a run with devices that only count operations.

    Args:
        config: configuration of the run.
        task: task of the run.
        devices: closed devices by layer.
        splits: data of the task.

    Attributes:
        fit: training loop.
        startup: operations of each device before the first step.
        first: operations of each device in the first step.
        total: number of steps of the run.
    """

    first: list[Spending]

    def __init__(self, config: RunConfig, task: Task, devices: Mapping[str, Device], splits: Splits) -> None:
        self._sessions = {name: Session(rehearse(device)) for name, device in devices.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExpensiveGradientWarning)  # the plan reports the expense
            self.fit = Fit(config, task, splits, attach_devices(config, task, self._sessions))
        self._counted: list[Spending] = [{} for _ in self._sessions]
        self.startup = self._spent()
        samples = len(splits.train_inputs)
        self._epochs, self._batch = config.epochs, min(config.batch_size, samples)
        self._per_epoch = ceil(samples / config.batch_size)
        self._last_batch = samples - (self._per_epoch - 1) * self._batch
        self.total = self._epochs * self._per_epoch
        # Operations of each device by whether the step is the last one of an epoch.
        self._steps: dict[bool, list[list[Spending]]] = {False: [], True: []}
        self._evaluation: list[Spending] | None = None

    def run(self, steps: int) -> None:
        """Rehearse the first steps in order, short last batches and evaluations included, since steps may differ."""
        for done in range(steps):
            if done and done % self._per_epoch == 0:
                self._evaluation = self._evaluate()
            last = (done + 1) % self._per_epoch == 0
            self._steps[last].append(self._step(self._last_batch if last else self._batch))
            if not done:
                self.first = self._steps[last][0]

    def extrapolate(self) -> tuple[Spending, ...]:
        """Return the operations of each device in the whole run, if it continues like the last rehearsed steps."""
        evaluation = self._evaluation or self._evaluate()
        parts: list[list[tuple[float, Spending]]] = [[(1, each)] for each in self.startup]
        for last, steps in self._steps.items():
            due = self._epochs if last else self.total - self._epochs
            window = steps[-_WINDOW:] or ([self._step(self._last_batch)] if last else [])
            for place, part in enumerate(parts):
                part += [(1, each[place]) for each in steps]
                part += [((due - len(steps)) / len(window), each[place]) for each in window]
        for place, part in enumerate(parts):
            part.append((self._epochs, evaluation[place]))
        return tuple({name: usage.rounded() for name, usage in _sum(*part).items()} for part in parts)

    def _step(self, rows: int) -> list[Spending]:
        """Make one step, and return its operations."""
        self.fit.train_step(torch.arange(rows))
        for layer in self.fit.layers:
            # A rehearsed step does not change the controls, but a real one would.
            with torch.no_grad():
                layer.controls.copy_(layer.controls.flip(0))
        return self._spent()

    def _evaluate(self) -> list[Spending]:
        """Evaluate, and return the operations."""
        self.fit.evaluate()
        return self._spent()

    def _spent(self) -> list[Spending]:
        """Return the operations of each device since the last call."""
        before, self._counted = self._counted, [session.usage_by_purpose for session in self._sessions.values()]
        return [
            {name: usage - old.get(name, Usage()) for name, usage in new.items()}
            for old, new in zip(before, self._counted, strict=True)
        ]


def _expense(config: RunConfig, fit: Fit) -> str | None:
    """Return the sentence about operations that a calibration would save, for the method "auto"."""
    if config.method.name != "auto":
        return None
    sentences = (expected_expense(layer.session.spec, layer.estimator) for layer in fit.layers)
    return next((sentence for sentence in sentences if sentence is not None), None)


def usage_by_purpose(sessions: Iterable[Session]) -> Spending:
    """Return the operations of several devices together, by purpose."""
    return _sum(*((1, session.usage_by_purpose) for session in sessions))


def _sum(*parts: tuple[float, Spending]) -> Spending:
    """Add up usages by purpose, each part times its factor."""
    names = {name for _, part in parts for name in part}
    return {
        name: sum((part.get(name, Usage()).scaled(factor) for factor, part in parts), Usage()) for name in sorted(names)
    }


def _total(parts: Spending) -> Usage:
    """Return the sum of usages."""
    return sum(parts.values(), Usage())
