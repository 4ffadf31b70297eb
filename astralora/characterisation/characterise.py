"""Measuring all that can be measured of a device, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..common.errors import ConfigurationError
from ..devices import Budget, Device, Session, Thermometer
from .controls import Coupling, Wobble
from .examiner import Examiner
from .findings import Characterisation, Finding
from .measurement import Cost, Effort, Measurement
from .ramp import Ramp
from .signals import Converters, Noise, Survey
from .timing import Drift, Repeatability, Settling, Speed

__all__ = ["MEASUREMENTS", "characterisation_cost", "characterise"]

MEASUREMENTS: dict[str, Callable[[float], Measurement]] = {
    "noise": lambda _: Noise(),
    "survey": lambda _: Survey(),
    "ramp": lambda _: Ramp(),
    "wobble": lambda _: Wobble(),
    "coupling": lambda _: Coupling(),
    "repeatability": lambda _: Repeatability(),
    "settling": lambda _: Settling(),
    "drift": Drift,
    "speed": lambda _: Speed(),
    "converters": lambda _: Converters(),
}
"""Every measurement by name, in their order; made with the seconds that drift is looked for."""

# What is tried for settings and for repeats where there is a budget, and what is usual.
_SCALES = tuple(8.0 * 2 ** (-step / 4) for step in range(25))
_USUAL = Effort(1.0, 1.0)


def characterise(
    device: Device,
    budget: Budget | None = None,
    *,
    only: Sequence[str] | None = None,
    drift_seconds: float = 1.0,
    seed: int = 0,
    listener: Callable[[Finding], None] | None = None,
) -> Characterisation:
    """Measure noise, converters, linearity, coupling, crosstalk, settling, repeatability, drift, dead elements, speed.

    A budget is spent on all measurements alike, as finely as it allows; one that is too small for all goes to the most
    telling ones. Without a budget some 70 programs are spent, and for 16 inputs 6,000 vectors. The price is known
    before the first operation, and is never exceeded.

    Args:
        device: the chip, or its open session.
        budget: the most that may be spent, in programs and vectors.
        only: names of measurements, in `MEASUREMENTS`; None for all. Noise is always measured: all errors come from it.
        drift_seconds: how long a setting is held to see drift, on the device's clock; on hardware that time passes.
        seed: of settings and vectors.
        listener: told every finding as it comes.

    Raises:
        ConfigurationError: no such measurement, or a budget that is too small even for noise; nothing was spent.
        BudgetExceeded: the session's own budget is smaller; nothing was spent.
    """
    session = device if isinstance(device, Session) else Session(device)
    start, began = time.perf_counter(), session.usage
    session.open()
    plan = _plan(session, budget, only, drift_seconds, seed)
    examiner, chosen, effort, total = plan.examiner, plan.chosen, plan.effort, plan.total
    findings: list[Finding] = []
    with session.purpose("characterise"), session.transaction():
        # Every query is cut at most into single vectors by what a device takes at a time; that costs no more of either.
        session.afford("characterise", programs=total.programs, vectors=total.vectors)
        examiner.find_level()
        shares: dict[str, dict[str, int]] = {}
        before = began
        for measurement in chosen.values():
            for finding in measurement.run(examiner, effort):
                findings.append(finding)
                if listener is not None:
                    listener(finding)
            took, before = session.usage - before, session.usage
            shares[measurement.name] = {"programs": took.programs, "vectors": took.vectors}
    thermometer = session.capability(Thermometer)
    spent = session.usage - began
    return Characterisation(
        device=session.spec.name,
        serial_number=session.spec.serial_number,
        temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
        promised=session.spec,
        findings=tuple(findings),
        skipped=plan.skipped,
        spent={"programs": spent.programs, "queries": spent.queries, "vectors": spent.vectors},
        spent_by_measurement=shares,
        wall_seconds=time.perf_counter() - start,
    )


def characterisation_cost(
    device: Device,
    budget: Budget | None = None,
    *,
    only: Sequence[str] | None = None,
    drift_seconds: float = 1.0,
    seed: int = 0,
) -> Cost:
    """The programs and vectors that `characterise` would spend at most, called like this; nothing is spent for it.

    Raises:
        ConfigurationError: no such measurement, or a budget that is too small even for noise.
    """
    session = device if isinstance(device, Session) else Session(device)
    return _plan(session, budget, only, drift_seconds, seed).total


class _Plan(NamedTuple):
    examiner: Examiner
    chosen: dict[str, Measurement]
    skipped: dict[str, str]
    effort: Effort
    total: Cost


def _plan(
    session: Session, budget: Budget | None, only: Sequence[str] | None, drift_seconds: float, seed: int
) -> _Plan:
    for name in only or ():
        if name not in MEASUREMENTS:
            raise ConfigurationError(f"there is no measurement {name!r}; known are {', '.join(MEASUREMENTS)}")
    examiner = Examiner(session, seed)
    wanted = [name for name in MEASUREMENTS if only is None or name in only or name == "noise"]
    chosen, skipped = {}, {}
    for name in wanted:
        measurement = MEASUREMENTS[name](drift_seconds)
        reason = measurement.refusal(examiner)
        if reason is None:
            chosen[name] = measurement
        else:
            skipped[name] = f"does not apply: {reason}"
    effort, late = _fit(examiner, chosen, budget or Budget())
    skipped |= dict.fromkeys(late, "the budget is too small for it")
    return _Plan(examiner, chosen, skipped, effort, _total(examiner, chosen, effort))


def _fit(examiner: Examiner, chosen: dict[str, Measurement], budget: Budget) -> tuple[Effort, list[str]]:
    """The most effort that a budget covers, and the measurements that had to go for that."""
    limited = budget.programs is not None or budget.vectors is not None
    efforts = [Effort(settings, repeats) for settings in _SCALES for repeats in _SCALES] if limited else [_USUAL]
    # Evenly first, and then what is left of either.
    efforts.sort(key=lambda effort: (min(effort), sum(effort)), reverse=True)
    dropped: list[str] = []
    while True:
        for effort in efforts:
            cost = _total(examiner, chosen, effort)
            if cost.programs <= _most(budget.programs) and cost.vectors <= _most(budget.vectors):
                return effort, dropped
        if set(chosen) <= {"noise", "converters"}:
            least = _total(examiner, chosen, efforts[-1])
            raise ConfigurationError(
                f"a characterisation takes at least {least.programs} programs and {least.vectors} vectors, "
                f"for noise alone"
            )
        last = max(chosen, key=lambda name: (name not in ("noise", "converters"), chosen[name].priority))
        dropped.append(last)
        del chosen[last]


def _total(examiner: Examiner, chosen: dict[str, Measurement], effort: Effort) -> Cost:
    costs = [measurement.cost(examiner, effort) for measurement in chosen.values()]
    return Cost(
        examiner.level_programs + sum(cost.programs for cost in costs),
        examiner.level_vectors + sum(cost.vectors for cost in costs),
    )


def _most(limit: int | None) -> float:
    return float("inf") if limit is None else limit
