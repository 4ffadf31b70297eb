"""Measure the properties of a device within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..common.errors import ConfigurationError
from ..devices import Budget, Device, Purpose, Session, Thermometer
from .context import MeasurementContext
from .controls import Coupling, Wobble
from .findings import Characterisation, Finding
from .levels import OutputLevels
from .linearity import Ramp
from .measurement import Cost, Effort, Measurement
from .noise import Noise
from .survey import Survey
from .timing import Drift, Repeatability, Settling, Speed

__all__ = ["MEASUREMENTS", "characterisation_cost", "characterise"]

MEASUREMENTS: dict[str, type[Measurement]] = {
    "noise": Noise,
    "survey": Survey,
    "ramp": Ramp,
    "wobble": Wobble,
    "coupling": Coupling,
    "repeatability": Repeatability,
    "settling": Settling,
    "drift": Drift,
    "speed": Speed,
    "converters": OutputLevels,
}
"""Every measurement by name, in order."""

# Factors that are tried for the number of settings and repeats where there is a budget; the usual effort otherwise.
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
    """Measure noise, converters, linearity, coupling, crosstalk, settling, repeatability, drift and speed.

    The effort of all measurements grows with the budget. If the budget does not cover all measurements, the least
    important ones are left out. Without a budget, the measurements take about 70 programs and, for 16 inputs, 6,000
    vectors. The cost is known before the first operation and is never exceeded.

    Args:
        device: device or its open session.
        budget: largest numbers of programs and vectors to spend.
        only: names from `MEASUREMENTS`; all if None. Noise is always measured, since every error follows from it.
        drift_seconds: seconds for which a setting is held to measure drift, by the device's clock; on hardware, this is
            real time.
        seed: seed of the settings and vectors.
        listener: called with every finding as it is made.

    Raises:
        ConfigurationError: there is no such measurement, or the budget does not even cover noise; nothing is spent.
        BudgetExceeded: the session's own budget is too small; nothing is spent.
    """
    session = device if isinstance(device, Session) else Session(device)
    start, began = time.perf_counter(), session.usage
    session.open()
    plan = _plan(session, budget, only, drift_seconds, seed)
    findings, shares = _measure(session, plan, listener)
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


def _measure(
    session: Session, plan: _Plan, listener: Callable[[Finding], None] | None
) -> tuple[list[Finding], dict[str, dict[str, int]]]:
    """Make the measurements; return the findings, and the programs and vectors of each measurement."""
    findings: list[Finding] = []
    shares: dict[str, dict[str, int]] = {}
    with session.purpose(Purpose.CHARACTERISE), session.transaction():
        # Splitting a query by max_batch costs neither programs nor vectors.
        session.afford("characterise", programs=plan.total.programs, vectors=plan.total.vectors)
        before = session.usage
        plan.context.find_amplitude()
        for measurement in plan.measurements:
            for finding in measurement.run():
                findings.append(finding)
                if listener is not None:
                    listener(finding)
            took, before = session.usage - before, session.usage
            shares[measurement.name] = {"programs": took.programs, "vectors": took.vectors}
    return findings, shares


def characterisation_cost(
    device: Device,
    budget: Budget | None = None,
    *,
    only: Sequence[str] | None = None,
    drift_seconds: float = 1.0,
    seed: int = 0,
) -> Cost:
    """Return the largest number of programs and vectors that `characterise` can spend with these arguments.

    Nothing is spent.

    Raises:
        ConfigurationError: there is no such measurement, or the budget does not even cover noise.
    """
    session = device if isinstance(device, Session) else Session(device)
    return _plan(session, budget, only, drift_seconds, seed).total


class _Plan(NamedTuple):
    """Hold the measurements that a budget covers.

    Attributes:
        context: session, test vectors, amplitude and noise of all measurements.
        measurements: measurements in order.
        skipped: reason by the name of each measurement that is not made.
        total: largest cost of all measurements together, the search for the amplitude included.
    """

    context: MeasurementContext
    measurements: list[Measurement]
    skipped: dict[str, str]
    total: Cost


def _plan(
    session: Session, budget: Budget | None, only: Sequence[str] | None, drift_seconds: float, seed: int
) -> _Plan:
    """Choose the measurements and their effort, before anything is spent."""
    for name in only or ():
        if name not in MEASUREMENTS:
            raise ConfigurationError(f"there is no measurement {name!r}; known are {', '.join(MEASUREMENTS)}")
    context = MeasurementContext(session, seed, drift_seconds)
    wanted = [name for name in MEASUREMENTS if only is None or name in only or name == "noise"]
    chosen, skipped = {}, {}
    for name in wanted:
        reason = MEASUREMENTS[name].refusal(context.spec)
        if reason is None:
            chosen[name] = MEASUREMENTS[name]
        else:
            skipped[name] = f"does not apply: {reason}"
    effort, dropped = _choose_effort(context, chosen, budget or Budget())
    skipped |= dict.fromkeys(dropped, "the budget is too small for it")
    measurements = [kind(context, effort) for kind in chosen.values()]
    return _Plan(context, measurements, skipped, _total(context, chosen, effort))


def _choose_effort(
    context: MeasurementContext, chosen: dict[str, type[Measurement]], budget: Budget
) -> tuple[Effort, list[str]]:
    """Return the greatest effort that a budget covers, and the measurements that it cannot cover.

    These measurements are removed from ``chosen``.
    """
    limited = budget.programs is not None or budget.vectors is not None
    efforts = [Effort(settings, repeats) for settings in _SCALES for repeats in _SCALES] if limited else [_USUAL]
    # Prefer equal factors, and then the larger sum.
    efforts.sort(key=lambda effort: (min(effort), sum(effort)), reverse=True)
    dropped: list[str] = []
    while True:
        for effort in efforts:
            cost = _total(context, chosen, effort)
            if cost.programs <= _limit(budget.programs) and cost.vectors <= _limit(budget.vectors):
                return effort, dropped
        if set(chosen) <= {"noise", "converters"}:
            least = _total(context, chosen, efforts[-1])
            raise ConfigurationError(
                f"a characterisation takes at least {least.programs} programs and {least.vectors} vectors, "
                f"for noise alone"
            )
        last = max(chosen, key=lambda name: (name not in ("noise", "converters"), chosen[name].priority))
        dropped.append(last)
        del chosen[last]


def _total(context: MeasurementContext, chosen: dict[str, type[Measurement]], effort: Effort) -> Cost:
    """Add up the costs of measurements and of the search for the amplitude."""
    costs = [kind(context, effort).cost() for kind in chosen.values()]
    return Cost(
        context.amplitude_programs + sum(cost.programs for cost in costs),
        context.amplitude_vectors + sum(cost.vectors for cost in costs),
    )


def _limit(limit: int | None) -> float:
    """Return the limit as a number, infinite where there is none."""
    return float("inf") if limit is None else limit
